import dataclasses
import json
import pickle

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from jamgym import AccompanimentEnv, EpisodeSource
from jamgym.errors import ActionError, ConfigError, LookaheadError, UnknownNameError
from jamgym.playback import GAP, ON_TIME, REPEATED
from jamgym.testing import ToyCodec, ToyCorpus, ToyReward
from jamgym.timing import Timing

SOURCE = EpisodeSource(ToyCorpus(songs=3, seconds=3.0), ToyCodec(), frames=22)
EPISODE = SOURCE.crop("train-0000", "bass", 10)


def play(env, actions, **reset):
    """Return all that an episode under `actions` shows."""
    seen = [env.reset(**reset)]
    for action in actions[: env.simulation.calls[0]]:
        seen.append(env.step(action))
    return seen


def same(a, b):
    """Whether two nested results are equal bit for bit, dtypes included."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    return type(a) is type(b) and a == b


@pytest.mark.parametrize("observation", ["new", "window"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_checkers(observation):
    kwargs = dict(source=SOURCE, reward=ToyReward(), observation=observation, window=9)
    check_env(gymnasium.make("jamgym/Accompaniment-v0", **kwargs).unwrapped)
    sb3_check_env(gymnasium.make("jamgym/Accompaniment-v0", **kwargs).unwrapped)


@pytest.mark.parametrize("k", [1, 5, 25])
@pytest.mark.parametrize("t_f", [-25, -5, 0, 25])
@pytest.mark.parametrize("observation", ["new", "window"])
def test_no_future_frame_influences_an_observation(t_f, k, observation, random_actions):
    source = EpisodeSource(ToyCorpus(songs=3, seconds=3.0), ToyCodec(), frames=72)
    episode = source.crop("train-0000", "bass", 0)
    env = AccompanimentEnv(
        source=source, reward=None, t_f=t_f, k=k, observation=observation, window=30, allow_lookahead=True
    )
    actions = random_actions(env.timing.num_calls, 1, k)[:, 0]
    original = play(env, actions, seed=0, options={"episode": episode})
    for call in range(0, env.timing.num_calls, max(1, env.timing.num_calls // 6)):
        visible = env.timing.visible(call)
        codes = episode.input_codes.copy()
        codes[visible:] = (codes[visible:] + 1) % 16
        changed = dataclasses.replace(episode, input_codes=codes, heard=episode.heard * 0.5)
        mutated = play(env, actions, seed=0, options={"episode": changed})
        for before, after in zip(original[: call + 1], mutated[: call + 1], strict=True):
            assert same(before[0], after[0])
        # The newest visible frame, on the other hand, is seen.
        if visible > 0:
            codes = episode.input_codes.copy()
            codes[visible - 1] = (codes[visible - 1] + 1) % 16
            changed = dataclasses.replace(episode, input_codes=codes)
            assert not same(original[: call + 1], play(env, actions, seed=0, options={"episode": changed})[: call + 1])


@pytest.mark.parametrize("t_f", [-25, -5, 0, 7])
@pytest.mark.parametrize("k", [1, 4, 5])
def test_new_frames_put_together_are_the_input(t_f, k, random_actions):
    env = AccompanimentEnv(source=SOURCE, reward=None, t_f=t_f, k=k, allow_lookahead=True)
    seen = play(env, random_actions(env.timing.num_calls, 1, k)[:, 0], options={"episode": EPISODE})
    heard = np.concatenate([step[0]["heard"][: int(step[0]["heard_count"][0])] for step in seen])
    calls = env.timing.num_calls
    assert np.array_equal(heard, EPISODE.input_codes[: env.timing.visible(calls)])
    for step in seen:
        assert not step[0]["heard"][int(step[0]["heard_count"][0]) :].any()
        assert env.observation_space.contains(step[0])


def test_window_is_right_aligned_with_zeros_and_silence_before(random_actions):
    env = AccompanimentEnv(source=SOURCE, reward=None, t_f=-3, k=4, observation="window", window=8)
    actions = random_actions(6, 1, 4)[:, 0]
    for call, step in enumerate(play(env, actions, options={"episode": EPISODE})):
        observation, slots = step[0], min(call * 4, 22)
        count = int(observation["heard_count"][0])
        visible = env.timing.visible(call)
        assert count == min(visible, 8)
        assert np.array_equal(observation["heard"][8 - count :], EPISODE.input_codes[visible - count : visible])
        assert not observation["heard"][: 8 - count].any()
        decided = min(slots, 8)
        emitted = actions.reshape(-1, 2)[slots - decided : slots]
        assert np.array_equal(observation["played"][8 - decided :], emitted)
        assert observation["played_status"].tolist() == [0] * (8 - decided) + [ON_TIME] * decided


@settings(max_examples=60, deadline=None)
@given(
    cost=st.integers(0, 6000),
    t_f=st.integers(-8, 0),
    k=st.integers(1, 8),
    policy=st.sampled_from(["silence", "repeat"]),
)
def test_constant_cost_is_never_late_iff_it_fits_budget_and_chunk(cost, t_f, k, policy):
    env = AccompanimentEnv(
        source=SOURCE,
        reward=None,
        t_f=t_f,
        k=k,
        late_policy=policy,
        latency={"name": "constant", "seconds": cost / 16_000},
    )
    calls = env.timing.num_calls
    actions = np.random.default_rng(0).integers(1, 16, (calls, k * 2))
    play(env, actions, options={"episode": EPISODE})
    log, timing = env.event_log(), env.timing
    # Beyond k*h a backlog grows by c - k*h a call; a short episode can end before it eats the budget.
    backlog = (calls - 1) * max(cost - k * timing.hop_samples, 0)
    assert (log.late_frames == 0) == (cost + backlog <= timing.budget)
    if cost <= timing.budget and cost <= k * timing.hop_samples:
        assert log.late_frames == 0
    assert len(log.status) == 22 and np.isin(log.status, [ON_TIME, GAP, REPEATED]).all()
    emitted = actions.reshape(-1, 2)[:22]
    on_time = log.status == ON_TIME
    assert np.array_equal(env.played_codes()[on_time], emitted[on_time])
    assert np.array_equal(log.source[on_time], np.flatnonzero(on_time))
    assert (env.played_codes()[log.status == GAP] == 0).all()
    repeated = log.status == REPEATED
    assert np.array_equal(env.played_codes()[repeated], emitted[log.source[repeated]])
    assert (log.source[repeated] < np.flatnonzero(repeated)).all()
    if policy == "silence":
        assert not repeated.any()


class Trace:
    def __init__(self, ticks):
        self.ticks = np.asarray(ticks)

    def draw(self, rng, calls, timing):
        return self.ticks[:calls]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 4000), min_size=8, max_size=8), st.lists(st.integers(0, 3000), min_size=8, max_size=8))
def test_pathwise_larger_latency_gives_a_superset_of_late_frames(base, more):
    late = []
    for ticks in (base, np.add(base, more)):
        env = AccompanimentEnv(source=SOURCE, reward=None, t_f=-4, k=3, latency=Trace(ticks))
        play(env, np.ones((8, 6), dtype=np.int64), options={"episode": EPISODE})
        log = env.event_log()
        late.append(log.lateness)
        starts, finishes = env.timing.schedule(np.array(ticks))
        assert np.array_equal(log.start, starts) and np.array_equal(log.finish, finishes)
    assert (late[0] <= late[1]).all()


def test_slack_and_latency_are_told():
    env = AccompanimentEnv(source=SOURCE, reward=None, t_f=-5, k=5, latency=Trace([8000, 1600, 0, 0, 0]))
    seen = play(env, np.ones((5, 10), dtype=np.int64), options={"episode": EPISODE})
    # Budget 0.2 s. Call 0 takes 0.5 s from -0.2 s; call 1 is released at 0 but starts at 0.3, due at 0.2.
    slack = [float(step[0]["slack"][0]) for step in seen[:4]]
    assert slack == pytest.approx([0.2, -0.1, 0.0, 0.2])
    assert [float(step[0]["latency"][0]) for step in seen[:4]] == pytest.approx([0.0, 0.5, 0.1, 0.0])
    assert env.event_log().lateness[:10].tolist() == [4800, 4160, 3520, 2880, 2240, 3200, 2560, 1920, 1280, 640]
    assert seen[-1][4]["late_frames"] == seen[-1][4]["underruns"] == 10


def test_buffers_shift_the_deadline():
    env = AccompanimentEnv(source=SOURCE, reward=None, t_f=-5, k=5, capture_samples=100, output_samples=60)
    assert env.reset(seed=0)[0]["slack"][0] == pytest.approx((5 * 640 - 160) / 16_000)


def test_lookahead_is_refused_or_labelled(random_actions):
    with pytest.raises(LookaheadError):
        AccompanimentEnv(source=SOURCE, reward=None, t_f=1)
    env = AccompanimentEnv(source=SOURCE, reward=None, t_f=10, k=5, allow_lookahead=True)
    seen = play(env, random_actions(5, 1, 5)[:, 0], seed=0)
    assert seen[0][1]["lookahead_oracle"] is True and seen[-1][4]["lookahead_oracle"] is True
    assert seen[-1][4]["late_frames"] == 0 and seen[0][0]["heard_count"][0] == 10
    assert AccompanimentEnv(source=SOURCE, reward=None, t_f=-1).reset(seed=0)[1]["lookahead_oracle"] is False


def test_song_end_terminates_and_a_cut_truncates(random_actions):
    env = AccompanimentEnv(source=SOURCE, reward=None, t_f=-5, k=5)
    actions = random_actions(5, 1, 5)[:, 0]
    cut = play(env, actions, options={"episode": EPISODE})[-1]
    assert cut[2:4] == (False, True) and not EPISODE.ends_song
    end = SOURCE.crop("train-0000", "bass", 75 - 22)
    assert play(env, actions, options={"episode": end})[-1][2:4] == (True, False)
    short = SOURCE.crop("train-0000", "bass", 75 - 7)
    seen = play(env, actions, options={"episode": short})
    assert len(seen) == 3 and seen[-1][2:4] == (True, False)
    assert len(env.event_log().status) == 7 and env.played_codes().shape == (7, 2)
    with pytest.raises(ResetNeeded):
        env.step(actions[0])


def test_an_episode_longer_than_the_settings_is_played_whole(random_actions):
    longer = EpisodeSource(ToyCorpus(songs=3, seconds=3.0), ToyCodec(), frames=60).crop("train-0001", "piano", 0)
    env = AccompanimentEnv(source=SOURCE, reward=ToyReward(), t_f=-5, k=5)
    actions = random_actions(12, 1, 5)[:, 0]
    seen = play(env, actions, options={"episode": longer})
    assert len(seen) == 13 and np.array_equal(env.played_codes(), actions.reshape(-1, 2))
    assert np.array_equal(env.played_audio(), env.codec.decode(actions.reshape(1, -1, 2).astype(np.int16))[0])


def test_seeds_repeat_and_streams_go_on_and_latency_does_not_touch_songs(random_actions):
    def songs(latency, first_seed=7, episodes=6):
        env = AccompanimentEnv(source=SOURCE, reward=None, t_f=-5, k=5, latency=latency)
        found = []
        for number in range(episodes):
            env.reset(seed=first_seed if number == 0 else None)
            found.append((env.episode.song_id, env.episode.target_name, env.episode.start_frame))
        return found

    noisy = {"name": "lognormal", "median_seconds": 0.2, "sigma": 1.0}
    assert songs("none") == songs(noisy)
    assert len(set(songs("none"))) > 1 and songs("none") != songs("none", first_seed=8)
    env = AccompanimentEnv(source=SOURCE, reward=ToyReward(), t_f=-5, k=5, latency=noisy)
    actions = random_actions(5, 1, 5)[:, 0]
    assert same(play(env, actions, seed=3), play(env, actions, seed=3))
    first = [tuple(play(env, actions, options={"episode": EPISODE}) and env.event_log().latency) for _ in range(2)]
    assert first[0] != first[1]


@pytest.mark.parametrize("at", [0, 1, 3])
def test_pickling_mid_episode_goes_on_identically(at, random_actions):
    env = AccompanimentEnv(
        source=SOURCE,
        reward=ToyReward(),
        t_f=-5,
        k=5,
        late_policy="repeat",
        latency={"name": "lognormal", "median_seconds": 0.2, "sigma": 0.5},
    )
    actions = random_actions(5, 1, 5)[:, 0]
    env.reset(seed=5)
    for action in actions[:at]:
        env.step(action)
    twin = pickle.loads(pickle.dumps(env))
    for action in actions[at:]:
        assert same(env.step(action), twin.step(action))
    assert same(play(env, actions), play(twin, actions))


def test_observations_are_the_callers_own(random_actions):
    actions = random_actions(5, 1, 5)[:, 0]
    for observation in ("new", "window"):
        env = AccompanimentEnv(source=SOURCE, reward=None, t_f=-5, k=5, observation=observation, window=9)
        untouched = play(env, actions, seed=0)
        seen = env.reset(seed=0)[0]
        kept = []
        for action in actions:
            kept.append({key: value.copy() for key, value in seen.items()})
            for value in seen.values():
                value += 1
            mine = action.copy()
            seen = env.step(mine)[0]
            mine += 1
        assert all(same(a, b[0]) for a, b in zip(kept, untouched, strict=False))


@pytest.mark.parametrize(
    ("action", "match"),
    [
        (np.zeros(9, dtype=int), "shape"),
        (np.zeros((1, 10), dtype=int), "shape"),
        (np.zeros(10), "dtype float64"),
        (np.full(10, np.nan), "dtype"),
        (np.full(10, -1), "-1"),
        (np.full(10, 16), r"16; codes of codec 'toy' are in \[0, 16\)"),
        (np.zeros(10, dtype=bool), "dtype bool"),
        (["a"] * 10, "dtype"),
    ],
)
def test_bad_actions_change_nothing(action, match, random_actions):
    env = AccompanimentEnv(source=SOURCE, reward=ToyReward(), t_f=-5, k=5)
    actions = random_actions(5, 1, 5)[:, 0]
    expected = play(env, actions, seed=2)
    env.reset(seed=2)
    with pytest.raises(ActionError, match=match):
        env.step(action)
    assert same(expected[1:], [env.step(a) for a in actions])
    assert env.reset(seed=2)[0]["frame"][0] == 0
    env.step(actions[0].reshape(5, 2))


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"latnecy": "none"}, ConfigError, "Did you mean 'latency'"),
        ({"max_episode_steps": 3}, ConfigError, "frames"),
        ({"corpus": "bnad"}, UnknownNameError, "Did you mean 'band'"),
        ({"corpus": {"name": "jamgym.testing:ToyCorpus", "sogns": 1}}, ConfigError, "Did you mean 'songs'"),
        ({"codec": {"cardinality": 3}}, ConfigError, "no 'name'"),
        ({"reward": "coherense"}, UnknownNameError, "Did you mean 'coherence'"),
        ({"reward": ToyCodec()}, ConfigError, "is not a reward model"),
        ({"split": "tset"}, ConfigError, "Did you mean 'test'"),
        ({"instruments": ["bas"]}, ConfigError, "Did you mean 'bass'"),
        ({"late_policy": "repaet"}, ConfigError, "Did you mean 'repeat'"),
        ({"observation": "windwo"}, ConfigError, "Did you mean 'window'"),
        ({"render_mode": "rgb"}, ConfigError, "Did you mean 'rgb_array'"),
        ({"k": 2.5}, ConfigError, "whole number"),
        ({"k": 0}, ConfigError, "at least 1"),
        ({"window": 0}, ConfigError, "window"),
        ({"max_songs": 0}, ConfigError, "max_songs"),
        ({"max_songs": "3"}, ConfigError, "max_songs is '3'; it must be a whole number"),
        ({"max_songs": 2.5}, ConfigError, "max_songs is 2.5; it must be a whole number"),
        ({"cache_songs": -1}, ConfigError, "cache_songs is -1; it must be at least 0"),
        ({"corpus": "stems"}, ConfigError, "corpus 'stems' needs path; give --corpus.path VALUE, or the key"),
        ({"corpus": None}, ConfigError, "The corpus is None; expected a name, or a mapping"),
        ({"codec": None}, ConfigError, "The codec is None; expected a name, or a mapping"),
        ({"late_policy": None}, ConfigError, "Unknown late_policy 'None'"),
        ({"instruments": "bas"}, ConfigError, "Unknown instrument class 'bas'. Did you mean 'bass'"),
        ({"instruments": 3}, ConfigError, "Unknown instrument class '3'"),
        ({"instruments": []}, ConfigError, "instruments is empty"),
    ],
)
def test_bad_settings_say_what_is_meant(change, error, match):
    good = {"corpus": ToyCorpus(songs=1, seconds=1.0), "codec": ToyCodec(), "reward": None, "frames": 10}
    with pytest.raises(error, match=match):
        AccompanimentEnv(**{**good, **change})


def test_a_single_instrument_class_is_a_set_of_one():
    env = AccompanimentEnv(corpus=ToyCorpus(songs=2, seconds=2.0), codec=ToyCodec(), reward=None, instruments="bass")
    for seed in range(5):
        env.reset(seed=seed)
        assert env.episode.target_name == "bass"
    assert EpisodeSource(ToyCorpus(), ToyCodec(), instruments="piano").targets("train-0000") == ("piano",)


def test_json_native_settings_through_the_registry():
    spec = gymnasium.spec("jamgym/Accompaniment-v0")
    env = gymnasium.make(
        spec,
        corpus={"name": "jamgym.testing:ToyCorpus", "songs": 2, "seconds": 2.0},
        codec={"name": "jamgym.testing:ToyCodec", "num_codebooks": 3},
        reward={"name": "jamgym.testing:ToyReward"},
        latency={"name": "constant", "seconds": 0.05},
        frames=10,
        instruments=["bass"],
    )
    assert json.loads(env.spec.to_json())["kwargs"]["codec"]["num_codebooks"] == 3
    env.reset(seed=0)
    assert env.unwrapped.episode.target_name == "bass"
    assert env.step(env.action_space.sample())[0]["latency"][0] == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"epsiode": EPISODE}, "Did you mean 'episode'"),
        ({"episode": 3}, "int"),
        ({"episode": dataclasses.replace(EPISODE, input_codes=EPISODE.input_codes[:, :1])}, "input codes"),
    ],
)
def test_bad_options(options, match):
    env = AccompanimentEnv(source=SOURCE, reward=None)
    with pytest.raises(ConfigError, match=match):
        env.reset(options=options)


def test_step_before_reset():
    with pytest.raises(ResetNeeded):
        AccompanimentEnv(source=SOURCE, reward=None).step(np.zeros(10, dtype=int))


def test_record_of_a_finished_episode(random_actions):
    env = AccompanimentEnv(source=SOURCE, reward=ToyReward(), t_f=-5, k=5)
    actions = random_actions(5, 1, 5)[:, 0]
    seen = play(env, actions, options={"episode": EPISODE})
    record = env.final_record()
    assert record.episode is EPISODE and record.played_audio.shape == EPISODE.heard.shape
    assert np.array_equal(record.played_codes, actions.reshape(-1, 2)[:22])
    assert record.rewards.tolist() == [step[1] for step in seen[1:]]
    assert record.score == pytest.approx(seen[-1][4]["episode_score"])
    assert seen[-1][4]["score_so_far"] == seen[-1][4]["episode_score"]


def test_rendering(random_actions):
    actions = random_actions(3, 1, 5)[:, 0]
    pictures = {}
    for mode in ("ansi", "rgb_array", "audio"):
        env = AccompanimentEnv(
            source=SOURCE, reward=None, t_f=-5, k=5, render_mode=mode, latency={"name": "constant", "seconds": 0.25}
        )
        env.reset(seed=0, options={"episode": EPISODE})
        env.render()
        for action in actions:
            env.step(action)
        pictures[mode] = env.render()
        assert env.metadata["render_fps"] == 5.0
    assert "late=9" in pictures["ansi"] and pictures["ansi"].splitlines()[-1].endswith("....#")
    assert pictures["ansi"].splitlines()[2].endswith("..###")
    image = pictures["rgb_array"]
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image[:96].std() > 5
    colours = {tuple(pixel) for pixel in image[-1]}
    assert {(64, 176, 88), (208, 64, 48), (32, 32, 32)} <= colours
    audio = pictures["audio"]
    assert audio.shape == (15 * 640, 2) and audio.dtype == np.float32
    assert np.array_equal(audio[:, 0], EPISODE.heard[: 15 * 640]) and np.array_equal(audio[:, 1], env.played_audio())


def test_timing_belongs_to_the_env():
    env = AccompanimentEnv(source=SOURCE, reward=None, t_f=-5, k=3)
    assert env.timing == Timing(t_f=-5, k=3, hop_samples=640, sample_rate=16_000, frames=22)
