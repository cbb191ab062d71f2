import numpy as np
import pytest
import torch

from jamgym.errors import ActionError, ConfigError
from jamgym.policy import Policy
from jamgym.testing import PolicyConformance, ToyCodec
from jamgym_agents.decoder_policy import DecoderPolicy
from jamgym_agents.sampling import Sampling, guide, transform

from .helpers import tiny_decoder, vec_env


def policy(k=5, seed=0, **kwargs):
    return DecoderPolicy(ToyCodec(), k, seed=seed, decoder=tiny_decoder(), **kwargs)


def codes_of(env, player, calls, seed=0):
    observation, _ = env.reset(seed=seed)
    player.reset(np.ones(env.num_envs, dtype=bool), env.episodes)
    chunks = []
    for _ in range(calls):
        chunks.append(player.act(observation))
        observation = env.step(chunks[-1])[0]
    return np.concatenate(chunks, axis=1)


class TestConformance(PolicyConformance):
    def make(self, env):
        return DecoderPolicy(env.codec, env.timing.k, seed=0, decoder=tiny_decoder())


class TestConformanceLate(TestConformance):
    settings = {"k": 3, "t_f": -4, "frames": 20, "latency": {"name": "lognormal", "median_seconds": 0.15, "sigma": 0.5}}


_SLOW = {"name": "lognormal", "median_seconds": 0.2, "sigma": 0.7}


class TestConformanceDrawn(TestConformance):
    settings = {"k": [1, 3, 6], "t_f": [-9, -2], "frames": 20, "latency": _SLOW, "late_policy": "repeat"}

    def make(self, env):
        return DecoderPolicy(env.codec, env.simulation.chunk, seed=0, decoder=tiny_decoder())


class TestConformanceGuided(TestConformanceDrawn):
    def make(self, env):
        return DecoderPolicy(env.codec, env.simulation.chunk, seed=0, decoder=tiny_decoder(), guidance=2.0)


class TestConformanceSkip(TestConformanceDrawn):
    settings = {"k": 3, "t_f": -4, "frames": 30, "latency": _SLOW, "backlog": "skip", "late_policy": "conceal"}


class TestConformanceStall(TestConformanceDrawn):
    settings = {"k": 3, "t_f": -4, "frames": 30, "latency": _SLOW, "late_policy": "stall"}


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("latency", ["none", {"name": "lognormal", "median_seconds": 0.05, "sigma": 0.9}])
def test_rows_of_different_k_and_t_f_equal_teacher_forcing(latency, guidance):
    decoder = tiny_decoder()
    env = vec_env(8, k=[1, 2, 5], t_f=[-6, -1], latency=latency, autoreset_mode="Disabled", frames=20)
    player = DecoderPolicy(ToyCodec(), 5, seed=0, decoder=decoder, guidance=guidance)
    observation, _ = env.reset(seed=1)
    scores = np.full((8, 30, 2), np.nan, dtype=np.float32)
    checked = 0
    rows = [dict(k=int(env.simulation.clock.k[row]), t_f=int(env.simulation.clock.t_f[row])) for row in range(8)]
    assert len({(row["k"], row["t_f"]) for row in rows}) > 3
    over = np.zeros(8, dtype=bool)
    for _ in range(4):  # no row of k = 5 is over before
        first = observation["frame"][:, 0]
        chunk = player.step(observation)
        for row in range(8):
            size = rows[row]["k"]
            scores[row, first[row] : first[row] + size] = chunk.log_probs[row, :size].numpy()
        observation, _, ended, cut, _ = env.step(chunk.codes.flatten(1).numpy())
        over |= ended | cut
    for row in range(8):
        played = env.played_codes(row)
        log = env.event_log(row)
        heard = env.episodes[row].input_codes
        shown = np.zeros_like(heard, shape=(20, 2))
        shown[: len(played)] = played
        codes = torch.as_tensor(shown).long()
        # The row itself, and the same one hearing nothing.
        t_f, k = torch.tensor([rows[row]["t_f"], -20]), torch.full((2,), rows[row]["k"])
        both = torch.as_tensor(heard).long().expand(2, -1, -1), codes.expand(2, -1, -1)
        with torch.no_grad():
            logits = decoder(*both, torch.full((2,), env.episodes[row].instrument), t_f, k).logits
        expected = transform(guide(logits[0], logits[1], guidance), Sampling())
        expected = expected.gather(-1, codes.unsqueeze(-1)).squeeze(-1).numpy()
        k = rows[row]["k"]
        for call in range(len(played) // k):
            part = slice(call * k, (call + 1) * k)
            if (log.status[part] == 1).all():
                assert np.abs(scores[row, part] - expected[part]).max() < 1e-4
                checked += 1
    assert checked > 10


def test_skipped_frames_enter_the_history():
    decoder = tiny_decoder()
    env = vec_env(1, k=2, t_f=-2, frames=30, backlog="skip", latency={"name": "constant", "seconds": 0.35})
    player = DecoderPolicy(ToyCodec(), 2, seed=0, decoder=decoder)
    observation, _ = env.reset(seed=0)
    before = 0
    while not observation["skipped"].any():
        before = int(observation["frame"][0, 0])
        observation, *_ = env.step(player.act(observation).reshape(1, -1))
    player.act(observation)
    first = int(observation["frame"][0, 0])
    assert first > before + 2
    # Every slot before the chunk is in the history, then the chunk itself.
    assert int(player._state.played[0]) == first + 2


def test_frames_behind_the_end_do_not_enter_the_history():
    env, player = vec_env(2, autoreset_mode="Disabled", t_f=-3), policy()
    observation, _ = env.reset(seed=0)
    done = False
    while not done:
        observation, _, terminated, truncated, _ = env.step(player.act(observation).reshape(2, -1))
        done = bool((terminated | truncated).all())
    # The last call emitted 25 frames in all, of an episode of 22.
    player.step(observation)
    assert player._state.played.tolist() == [22 + 5, 22 + 5]


@pytest.mark.parametrize("how", ["rows", "guidance", "reset"])
def test_an_episode_whose_beginning_was_not_played_is_refused(how):
    env, player = vec_env(2), policy()
    observation, _ = env.reset(seed=0)
    observation, *_ = env.step(player.act(observation).reshape(2, -1))
    if how == "rows":
        observation = {key: value[:1] for key, value in observation.items()}
    elif how == "guidance":
        player.sampling = Sampling(guidance=2.0)
        player.reset(np.array([True, False]))
    else:
        player.reset(np.array([False, True]))
    with pytest.raises(ActionError, match=r"Row \d is at frame 5, but policy 'decoder' has not played its episode"):
        player.act(observation)


def test_a_reset_takes_up_another_guidance():
    env, player = vec_env(2), policy()
    codes_of(env, player, 1)
    player.sampling = Sampling(guidance=2.0)
    guided = codes_of(env, player, 3)
    assert player._state.guided and guided.shape[1] == 15


def test_is_a_policy():
    assert isinstance(policy(), Policy) and not policy().privileged


def test_sampling_follows_the_seed():
    one, again, other = (codes_of(vec_env(2), policy(seed=seed), 4) for seed in (1, 1, 2))
    assert np.array_equal(one, again) and not np.array_equal(one, other)


def test_a_new_episode_begins_without_reset():
    env, player = vec_env(2), policy(temperature=0.0)
    episodes = env.source.fixed(2, seed=3)
    runs = []
    for _ in range(2):
        observation, _ = env.reset(seed=0, options={"episodes": episodes})
        chunks = []
        for _ in range(env.timing.num_calls):
            chunks.append(player.act(observation))
            observation = env.step(chunks[-1])[0]
        runs.append(np.concatenate(chunks, axis=1))
    assert np.array_equal(runs[0], runs[1])


def test_log_probs_are_those_of_the_codes_under_temperature_and_top_k():
    env, player = vec_env(2), policy(temperature=0.7, top_k=3)
    observation, _ = env.reset(seed=0)
    chunk = player.step(observation)
    assert chunk.log_probs.shape == (2, 5, 2) and (chunk.log_probs > -torch.inf).all()
    assert chunk.hidden.shape == (2, 32) and player.last_chunk is chunk


@pytest.mark.parametrize("window", [5, 20])
def test_window_observations_are_refused(window):
    env = vec_env(2, observation="window", window=window, k=4)
    observation, _ = env.reset(seed=0)
    with pytest.raises(ConfigError, match="observation='new'"):
        policy(k=4).act(observation)


def test_another_chunk_size_is_refused():
    observation, _ = vec_env(2, k=5).reset(seed=0)
    with pytest.raises(ConfigError, match="k = 3"):
        policy(k=3).act(observation)
