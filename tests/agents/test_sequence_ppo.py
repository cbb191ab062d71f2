import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from stable_baselines3.common.logger import Logger

from jamgym.errors import ConfigError, JamgymError
from jamgym.playback import ON_TIME
from jamgym.wrappers.sb3 import JamgymSB3VecEnv
from jamgym_agents.ppo import losses
from jamgym_agents.ppo import sequence_ppo as module
from jamgym_agents.ppo.sequence_ppo import SequencePPO
from jamgym_agents.sampling import Sampling

from .helpers import learn, make_ppo, tiny_decoder, vec_env

LATE = {"name": "lognormal", "median_seconds": 0.17, "sigma": 0.5}


@pytest.fixture
def seen(monkeypatch):
    """Collect (log_probs, old, mask) of every minibatch."""
    calls = []
    original = losses.clipped_policy_loss

    def spy(new, old, advantages, mask, clip):
        calls.append((new.detach().clone(), old.clone(), mask.clone()))
        return original(new, old, advantages, mask, clip)

    monkeypatch.setattr(module.losses, "clipped_policy_loss", spy)
    return calls


def check_ratio_one(seen, expected, tolerance):
    assert len(seen) == expected
    for new, old, mask in seen:
        assert mask.any() and (new - old).abs()[mask].max() < tolerance


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.7),
        Sampling(top_k=5),
        Sampling(temperature=1.3, top_p=0.8),
        Sampling(temperature=1.2, guidance=2.0),
    ],
)
def test_without_learning_the_ratio_is_one(seen, sampling):
    # Late frames, T mod k != 0, two epochs, truncated distributions: all in one distribution and one history.
    env = vec_env(4, latency=LATE, k=4)
    learn(make_ppo(env, learning_rate=0.0, n_epochs=2, sampling=sampling))
    check_ratio_one(seen, 4, 1e-4)
    assert not all(bool(mask[:, :20].all()) for _, _, mask in seen)


def test_without_learning_the_ratio_is_one_in_bfloat16(seen):
    learn(make_ppo(vec_env(4), learning_rate=0.0, n_epochs=2, bf16=True))
    check_ratio_one(seen, 4, 2e-2)


@pytest.mark.parametrize("seconds", [3.0, 0.8])
def test_without_learning_the_ratio_is_one_for_an_oracle_too(seen, seconds):
    # It looks beyond the end: of 22 frames, no multiple of k, or of songs of 20 frames. Nothing is there to be heard.
    env = vec_env(4, seconds=seconds, t_f=10, k=5, allow_lookahead=True)
    learn(make_ppo(env, learning_rate=0.0))
    check_ratio_one(seen, 2, 1e-4)


def test_the_teacher_hears_nothing_behind_the_end_of_a_song():
    model = make_ppo(vec_env(2, seconds=0.8, frames=40), learning_rate=0.0)
    learn(model)
    batch = model.rollout_buffer.batch
    assert batch.frames.tolist() == [20, 20] and batch.heard.shape[1] == 40
    cut = replace(batch, heard=batch.heard[:, :20], played=batch.played[:, :20])
    with torch.no_grad():
        whole, alone = (model._log_probs(model.reference, part, 15)[0][:, :20] for part in (batch, cut))
    assert torch.allclose(whole, alone, atol=1e-5)


def test_one_episode_of_one_chunk_can_be_trained_on():
    learn(make_ppo(vec_env(1, frames=4), episodes_per_batch=1))


def test_dropout_is_off_in_the_update(seen):
    model = make_ppo(vec_env(4), learning_rate=0.0)
    model.policy.decoder.train()
    learn(model)
    check_ratio_one(seen, 2, 1e-4)
    assert not any(m.p for m in model.policy.decoder.modules() if isinstance(m, torch.nn.Dropout))


def test_divergence_from_itself_is_zero_and_learning_moves_it():
    model = make_ppo(vec_env(4), learning_rate=0.0)
    logged = {}
    model.set_logger(Logger(None, []))
    model.logger.record = lambda name, value, **_: logged.__setitem__(name, value)
    learn(model)
    assert abs(logged["train/kl_reference"]) < 1e-6 and logged["train/ratio"] == pytest.approx(1.0, abs=1e-5)
    model.lr_schedule = lambda _: 3e-3
    learn(model)
    learn(model)
    assert logged["train/kl_reference"] > 1e-5


@pytest.mark.parametrize("teacher_t_f, guidance, differs", [(-5, 1.0, False), (-5, 3.0, True), (10, 1.0, True)])
def test_the_teacher_is_the_start_with_its_own_view_and_guidance(teacher_t_f, guidance, differs):
    settings = {"teacher_t_f": teacher_t_f, "teacher_guidance": guidance}
    model = make_ppo(vec_env(4), learning_rate=0.0, kl_teacher=0.1, **settings)
    logged = {}
    model.set_logger(Logger(None, []))
    model.logger.record = lambda name, value, **_: logged.__setitem__(name, value)
    learn(model)
    assert abs(logged["train/kl_reference"]) < 1e-6
    assert (logged["train/kl_teacher"] > 1e-2) == differs


def test_only_the_critic_learns_in_its_warm_up():
    model = make_ppo(vec_env(4), critic_warm_up=1)
    before, critic = copy.deepcopy(model.policy.decoder.state_dict()), copy.deepcopy(model.policy.critic.state_dict())
    learn(model)
    assert all(torch.equal(before[key], value) for key, value in model.policy.decoder.state_dict().items())
    assert not torch.equal(critic["head.weight"], model.policy.critic.head.weight)
    learn(model)
    assert any(not torch.equal(before[key], value) for key, value in model.policy.decoder.state_dict().items())
    assert all(torch.equal(before[key], value) for key, value in model.reference.state_dict().items())


def test_peeking_leaves_the_stream_as_it_is():
    env, other = vec_env(2), vec_env(2)
    models = [make_ppo(env), make_ppo(other)]
    actions = []
    for peek, model in zip((False, True), models, strict=True):
        model.env.seed(3)
        observation = model.env.reset()
        chosen = []
        for _ in range(3):
            chosen.append(model.policy.act(observation)[0])
            observation = model.env.step(chosen[-1])[0]
            if peek:
                model.policy.peek_values(observation)
        actions.append(np.stack(chosen))
    assert np.array_equal(*actions)


def test_the_value_of_a_truncated_end_is_that_of_the_terminal_observation():
    model = make_ppo(vec_env(3))
    torch.nn.init.normal_(model.policy.critic.head.weight, generator=torch.Generator().manual_seed(0))
    found = {}
    original = model.rollout_buffer.finish
    model.rollout_buffer.finish = lambda records, last: (
        found.update(last=last, records=records),
        original(records, last),
    )
    learn(model)
    batch = model.rollout_buffer.batch
    for row, record in enumerate(found["records"]):
        if record.episode.ends_song:
            assert found["last"][row] == 0.0
            continue
        # The state after the last chunk: one frame more, seen through the mask of the call that would come next.
        length, k, t_f = record.episode.frames, model.k, model.t_f
        calls = -(-length // k)
        heard = torch.zeros(1, calls * k + 1, 2, dtype=torch.int64)
        heard[0, :length] = torch.from_numpy(record.episode.input_codes.astype(np.int64))
        played = torch.zeros(1, calls * k + 1, 2, dtype=torch.int64)
        played[0, :length] = torch.from_numpy(record.played_codes.astype(np.int64))
        assert calls * k + t_f <= length and not record.episode.ends_song
        assert torch.equal(batch.played[row, :length], played[0, :length])


def test_terminal_value_equals_the_teacher_forced_one():
    # frames is a multiple of k, so nothing is emitted beyond the end and the comparison is exact.
    model = make_ppo(vec_env(3, frames=20), learning_rate=0.0)
    torch.nn.init.normal_(model.policy.critic.head.weight, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.policy.critic.head.weight.mul_(3)
    head = model.policy.critic.head.weight.detach().clone()
    model.policy.optimizer.param_groups[1]["lr"] = 0.0
    found = {}
    original = model.rollout_buffer.finish
    model.rollout_buffer.finish = lambda records, last: (
        found.update(last=last, records=records),
        original(records, last),
    )
    learn(model)
    assert torch.equal(head, model.policy.critic.head.weight)
    kinds = set()
    for row, record in enumerate(found["records"]):
        extra = np.zeros((1, 2), dtype=np.int64)
        heard = torch.from_numpy(np.concatenate([record.episode.input_codes, extra]))[None].long()
        played = torch.from_numpy(np.concatenate([record.played_codes, extra]))[None].long()
        instrument = torch.tensor([record.episode.instrument])
        with torch.no_grad():
            _, hidden = model.policy.decoder.trunk(heard, played, instrument, torch.tensor([-5]), torch.tensor([5]))
            value = float(model.policy.critic(hidden[0, 20]))
            starts = model.policy.critic(hidden[0, 0:20:5])
        expected = 0.0 if record.episode.ends_song else value
        assert found["last"][row] == pytest.approx(expected, abs=1e-4)
        assert np.allclose(model.rollout_buffer.values[row], starts, atol=1e-4)
        kinds.add(record.episode.ends_song)
    assert False in kinds


def test_terminated_episodes_are_worth_nothing_afterwards():
    # Songs are shorter than the episode, so every episode ends its song.
    model = make_ppo(vec_env(2, seconds=0.8, frames=60))
    torch.nn.init.constant_(model.policy.critic.head.bias, 5.0)
    found = {}
    original = model.rollout_buffer.finish
    model.rollout_buffer.finish = lambda records, last: (found.update(last=last), original(records, last))
    learn(model)
    assert (found["last"] == 0).all()


def test_what_was_played_enters_the_history_and_late_chunks_are_masked():
    model = make_ppo(vec_env(4, latency=LATE), learning_rate=0.0)
    records = {}
    original = model.rollout_buffer.finish
    model.rollout_buffer.finish = lambda made, last: (records.update(made=made), original(made, last))
    learn(model)
    batch, late_seen = model.rollout_buffer.batch, 0
    for row, record in enumerate(records["made"]):
        length = record.episode.frames
        assert np.array_equal(batch.played[row, :length], record.played_codes)
        for call in range(-(-length // 5)):
            part = slice(call * 5, min(call * 5 + 5, length))
            late = bool((record.status[part] != ON_TIME).any())
            late_seen += late
            assert bool(batch.token_mask[row, part].any()) == (not late)
            assert bool(batch.token_mask[row, part].all()) == (not late)
        assert not batch.token_mask[row, length:].any()
        assert batch.chunk_mask[row].sum() == -(-length // 5)
    assert 0 < late_seen < batch.chunk_mask.sum()


def test_an_update_that_is_not_finite_leaves_the_weights():
    model = make_ppo(vec_env(2))
    before = copy.deepcopy(model.policy.state_dict())
    original = model.rollout_buffer.finish

    def poisoned(records, last):
        original(records, last)
        model.rollout_buffer.batch.advantages[:] = np.nan

    model.rollout_buffer.finish = poisoned
    with pytest.raises(JamgymError, match="not finite.*checkpoint, if any, is intact"):
        learn(model)
    assert all(torch.equal(before[key], value) for key, value in model.policy.state_dict().items())


class LikesOneCode:
    """Reward of the share of 40 ms blocks that sound as loud as level 15, and of nothing else."""

    name, version, causal, range, needs = "level", "1", True, (0.0, 1.0), frozenset()
    window_seconds = min_window_seconds = hop_seconds = 0.2

    def score(self, windows):
        level = np.sqrt(np.mean(np.square(windows.played.reshape(len(windows.played), -1, 640)), axis=2))
        return (level > 0.28).mean(1).astype(np.float32)


@pytest.mark.slow
def test_a_bandit_is_solved():
    env = vec_env(8, reward=LikesOneCode(), frames=20)
    model = make_ppo(
        env, tiny_decoder(sharpness=1.0), learning_rate=3e-3, episodes_per_batch=4, kl_reference=0.0, n_epochs=2
    )
    scores = []
    original = model.rollout_buffer.finish
    model.rollout_buffer.finish = lambda records, last: (
        scores.append(np.mean([record.score for record in records])),
        original(records, last),
    )
    learn(model, 30)
    assert np.mean(scores[:3]) < 0.25 and np.mean(scores[-3:]) > np.mean(scores[:3]) + 0.3, scores


def test_save_and_load_of_stable_baselines3_keep_working(tmp_path):
    env = vec_env()
    model = learn(make_ppo(env, seed=0))
    model.save(tmp_path / "model.zip")
    loaded = SequencePPO.load(tmp_path / "model.zip", env=JamgymSB3VecEnv(env))
    for (name, before), after in zip(
        model.policy.state_dict().items(), loaded.policy.state_dict().values(), strict=True
    ):
        assert torch.equal(before, after), name
    assert (loaded.rollouts, loaded.k, loaded.t_f) == (model.rollouts, model.k, model.t_f)
    learn(loaded)
    assert loaded.rollouts == model.rollouts + 1


@pytest.mark.parametrize(
    ("setting", "match"),
    [
        ({"observation": "window"}, "observation='new'"),
        ({"action": "audio"}, "action='tokens'"),
        ({"backlog": "skip"}, "backlog='queue'"),
        ({"late_policy": "stall"}, "stall"),
        ({"t_f": [-5, -3]}, "one t_f a run"),
        ({"k": [1, 5]}, "one k a run"),
    ],
)
def test_environments_that_one_pass_cannot_recompute_are_refused(setting, match):
    with pytest.raises(ConfigError, match=match):
        make_ppo(vec_env(2, **setting))


@pytest.mark.parametrize("late_policy", ["repeat", "conceal"])
def test_late_policies_and_sets_of_latency_train(late_policy):
    slow = {"name": "lognormal", "median_seconds": 0.2, "sigma": 0.5}
    model = make_ppo(vec_env(4, late_policy=late_policy, latency=["none", slow], salvage="chunk"))
    learn(model)
    batch = model.rollout_buffer.batch
    assert 0 < float(batch.token_mask.float().mean()) < 1
