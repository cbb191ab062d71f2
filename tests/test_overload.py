"""Overload and failure: what the documentation promises when calls are too slow, and when something raises."""

import numpy as np
import pytest

from jamgym import AccompanimentEnv, AccompanimentVectorEnv, EpisodeSource
from jamgym.errors import ActionError, ConfigError, RewardError
from jamgym.playback import NEVER_EMITTED
from jamgym.testing import ToyCodec, ToyCorpus, ToyReward

RATE, HOP, K = 16_000, 640, 5
#: 30 s of calls of 0.3 s, where 0.2 s would do, then 30 s of calls of 0.05 s.
SECONDS = 60.0
SOURCE = EpisodeSource(ToyCorpus(songs=1, seconds=SECONDS), ToyCodec(), frames=1500)


class Overload:
    def __init__(self, slow=0.3, calls=150):
        self.slow, self.calls = slow, calls

    def draw(self, rng, calls, timing):
        seconds = np.where(np.arange(calls) < self.calls, self.slow, 0.05)
        return np.rint(seconds * RATE).astype(np.int64)


def play(backlog, t_f=-10, latency=None, **settings):
    env = AccompanimentEnv(
        source=SOURCE, reward=None, t_f=t_f, k=K, latency=latency or Overload(), backlog=backlog, **settings
    )
    observation, _ = env.reset(seed=0)
    heard, done = [observation["heard"][: int(observation["heard_count"][0])]], False
    while not done:
        observation, _, ended, cut, info = env.step(np.ones(2 * K, dtype=int))
        heard.append(observation["heard"][: int(observation["heard_count"][0])])
        done = ended or cut
    return env, env.event_log(), info, np.concatenate(heard)


def test_queue_makes_every_call_and_works_the_backlog_off_as_fast_as_documented():
    _, log, info, _ = play("queue")
    assert log.call.tolist() == list(range(300)) and info["skipped_frames"] == 0
    # 150 calls each lose 0.1 s; after that each call gains 0.15 s.
    waited = log.start[150] - log.release[150]
    assert waited == 150 * RATE // 10
    calls_to_recover = int(np.ceil(waited / (0.15 * RATE)))
    caught_up = 150 + calls_to_recover
    assert log.start[caught_up - 1] > log.release[caught_up - 1] and log.start[caught_up] == log.release[caught_up]
    assert not log.lateness[caught_up * K :].any()
    # The budget is 0.4 s: the first calls are late only once 0.1 s a call have eaten it.
    assert not log.lateness[: 2 * K].any() and (log.lateness[4 * K : 150 * K] > 0).all()


def test_skip_keeps_playing_fresh_frames_and_is_on_time_right_after_the_load():
    env, log, info, heard = play("skip")
    assert info["skipped_frames"] == np.count_nonzero(log.lateness == NEVER_EMITTED) > 0
    during = log.lateness[: int(log.call[log.call < 150].max()) * K]
    # 0.3 s a call against 0.2 s of music: two thirds of the music can be played, and nearly all of that is in time.
    assert (during == 0).mean() == pytest.approx(2 / 3, abs=0.05)
    after = np.flatnonzero(log.call >= 150)[1]
    assert (log.lateness[int(log.first_slot[after]) :] == 0).all()
    # Nothing that was heard is lost by a jump.
    assert np.array_equal(heard, env.episode.input_codes[: len(heard)]) and len(heard) == 1490
    # A jump goes to the newest call whose input is there, and only when the next one would be late.
    for before, jump in zip(range(1, len(log.call) - 1), np.diff(log.call)[1:], strict=True):
        finish, following = log.finish[before], int(log.call[before]) + 1
        expected = log.latency[before - 1 : before + 1].min()
        late = finish + expected > env.timing.deadline(following * K)
        if jump > 1:
            coming = int(log.call[before + 1])
            assert late and env.timing.release(coming) <= finish < env.timing.release(coming + 1)
        else:
            assert not late or env.timing.release(following + 1) > finish or following == 299


def test_a_single_spike_inside_the_budget_skips_nothing():
    _, log, info, _ = play("skip", t_f=-25, latency=Overload(slow=0.9, calls=1))
    assert info["skipped_frames"] == 0 and not log.lateness.any() and len(log.call) == 300


def test_stall_slips_once_for_good():
    _, log, info, _ = play("queue", late_policy="stall")
    # 150 calls lose 0.1 s each, of which the budget of 0.4 s is free.
    assert info["slip"] == log.underruns and 14.0 < info["slip"] * HOP / RATE < 15.5
    slots = np.flatnonzero(log.source >= 0)
    shift = slots - log.source[slots]
    assert (np.diff(shift) >= 0).all() and shift[-1] == info["slip"]


class Moody(ToyReward):
    """Raises, or returns NaN, when told to."""

    def __init__(self):
        super().__init__()
        self.mood = None

    def score(self, windows):
        if self.mood == "raise":
            raise RuntimeError("reward is out of order")
        scores = super().score(windows)
        return scores * np.float32(np.nan) if self.mood == "nan" else scores


SHORT = EpisodeSource(ToyCorpus(songs=2, seconds=3.0), ToyCodec(), frames=22)


def test_episodes_that_observations_have_no_room_for_are_refused():
    longer = EpisodeSource(ToyCorpus(songs=2, seconds=3.0), ToyCodec(), frames=40).crop("train-0000", "bass", 0)
    for rule in ({"backlog": "skip"}, {"late_policy": "stall"}):
        env = AccompanimentEnv(source=SHORT, reward=None, t_f=-5, k=K, **rule)
        with pytest.raises(ConfigError, match="Set frames=40"):
            env.reset(options={"episode": longer})
        env.reset(seed=0)


@pytest.mark.parametrize("mood", ["raise", "nan"])
@pytest.mark.parametrize("vector", [False, True])
def test_after_a_reward_that_fails_a_reset_gives_a_sound_environment(mood, vector):
    reward = Moody()
    setting = dict(
        source=SHORT, reward=reward, t_f=-5, k=K, late_policy="repeat", backlog="skip", latency=Overload(0.5, 2)
    )
    env = AccompanimentVectorEnv(2, **setting) if vector else AccompanimentEnv(**setting)
    action = np.full((2, 2 * K) if vector else 2 * K, 9)

    def run():
        seen = [env.reset(seed=4)]
        for _ in range(3):
            seen.append(env.step(action))
        return seen

    expected = run()
    env.reset(seed=4)
    reward.mood = mood
    with pytest.raises(RewardError, match="song 'train-") as caught:
        for _ in range(5):
            env.step(action)
    assert isinstance(caught.value.__cause__, RuntimeError) is (mood == "raise")
    reward.mood = None
    again = run()
    for one, two in zip(expected, again, strict=True):
        assert all(one[0][key].tobytes() == two[0][key].tobytes() for key in one[0])
        assert np.array_equal(one[1], two[1]) if len(one) > 2 else True


@pytest.mark.parametrize(
    ("action", "match"),
    [
        (np.full((2, 2 * K), np.nan), "dtype float64"),
        (np.full((2, 2 * K), 99), "99"),
        (np.zeros((2, 2 * K), dtype=bool), "dtype bool"),
        (np.zeros((3, 2 * K), dtype=int), "shape"),
        (None, "shape"),
    ],
)
def test_a_bad_action_in_a_batch_changes_no_row(action, match):
    good = np.full((2, 2 * K), 9)
    env, twin = (AccompanimentVectorEnv(2, source=SHORT, reward=ToyReward(), t_f=-5, k=K) for _ in range(2))
    for e in (env, twin):
        e.reset(seed=0)
        e.step(good)
    with pytest.raises(ActionError, match=match):
        env.step(action)
    one, two = env.step(good), twin.step(good)
    assert np.array_equal(one[1], two[1]) and all(np.array_equal(one[0][key], two[0][key]) for key in one[0])


def test_a_policy_that_raises_in_mid_episode_leaves_an_environment_that_can_go_on_or_begin_anew():
    env = AccompanimentEnv(source=SHORT, reward=ToyReward(), t_f=-5, k=K)
    env.reset(seed=0)
    first = env.step(np.full(2 * K, 9))
    with pytest.raises(ZeroDivisionError):
        env.step(np.full(2 * K, 1 // 0))
    env.step(np.full(2 * K, 9))
    env.reset(seed=0)
    again = env.step(np.full(2 * K, 9))
    assert all(first[0][key].tobytes() == again[0][key].tobytes() for key in first[0]) and first[1:] == again[1:]
