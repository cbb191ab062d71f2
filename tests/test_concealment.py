import numpy as np
import pytest

from jamgym import AccompanimentEnv, EpisodeSource
from jamgym.concealment import FADE, conceal, render_played
from jamgym.playback import CONCEALED, GAP, ON_TIME
from jamgym.testing import ToyCodec, ToyCorpus, ToyReward

HOP = 640
STATUS = np.array([[ON_TIME, CONCEALED, CONCEALED, ON_TIME, ON_TIME]], dtype=np.int8)


def faded(status=STATUS, level=1.0):
    audio = np.ones((len(status), status.shape[1] * HOP), dtype=np.float32)
    return conceal(audio, status, np.full(len(status), level, dtype=np.float32), HOP)


def test_each_concealed_frame_ends_at_half_the_level_of_the_one_before():
    audio, level = faded()
    ends = audio[0, HOP - 1 :: HOP]
    assert ends.tolist() == pytest.approx([1.0, FADE, FADE**2, 1.0, 1.0]) and level.tolist() == [1.0]
    assert (audio[0, :HOP] == 1).all() and (audio[0, 4 * HOP :] == 1).all(), "frames on time are left alone"
    assert (audio[0, 3 * HOP + HOP // 4 : 4 * HOP] == 1).all(), "the rise takes a quarter of a frame"


def test_there_is_no_click_at_either_end():
    audio, _ = faded()
    assert np.abs(np.diff(audio[0])).max() <= 4 / HOP  # a jump from a quarter to one would be 0.75


def test_a_fade_goes_on_across_calls():
    whole, _ = faded()
    first, level = faded(STATUS[:, :2])
    assert level.tolist() == [FADE]
    rest, _ = conceal(np.ones((1, 3 * HOP), dtype=np.float32), STATUS[:, 2:], level, HOP)
    assert np.array_equal(np.concatenate([first, rest], axis=1), whole)


def test_without_concealed_frames_nothing_is_touched():
    status = np.array([[ON_TIME, GAP, ON_TIME]], dtype=np.int8)
    audio = np.random.default_rng(0).standard_normal((1, 3 * HOP)).astype(np.float32)
    assert conceal(audio, status, np.ones(1, dtype=np.float32), HOP)[0] is audio


class Trace:
    """Two calls are late after some that were not."""

    def draw(self, rng, calls, timing):
        return np.resize([0, 0, 6000, 3000, 0, 0, 5000, 0], calls)


def test_what_is_scored_saved_and_rendered_is_the_same_faded_sound():
    source = EpisodeSource(ToyCorpus(songs=3, seconds=3.0), ToyCodec(), frames=40)
    made = {}
    for late_policy in ("repeat", "conceal"):
        sounds = []
        for reward in (ToyReward(), None):
            env = AccompanimentEnv(
                source=source,
                reward=reward,
                t_f=-5,
                k=5,
                late_policy=late_policy,
                latency=Trace(),
            )
            env.reset(seed=1)
            rng = np.random.default_rng(0)
            for _ in range(8):
                env.step(rng.integers(8, 16, 10))
            sounds.append(env.played_audio())
        log = env.event_log()
        assert log.late_frames > 3 and np.abs(sounds[0] - sounds[1]).max() < 1e-6
        assert np.array_equal(sounds[1], render_played(env.codec, env.played_codes()[None], log.status[None])[0])
        made[late_policy] = (sounds[0].reshape(40, -1), log.status)
    repeated, concealed = made["repeat"][0], made["conceal"][0]
    late = made["conceal"][1] == CONCEALED
    power = np.square(concealed).mean(1) / np.maximum(np.square(repeated).mean(1), 1e-12)
    assert late.any() and (power[late] < 0.9).all()
    steady = (made["conceal"][1] == ON_TIME) & ~np.roll(late, 1)
    assert np.array_equal(repeated[steady], concealed[steady])
