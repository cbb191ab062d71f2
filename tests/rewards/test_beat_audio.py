import numpy as np
import pytest

from jamgym.reward import Windows
from jamgym.testing import RewardConformance
from jamgym_rewards.beat_audio import BeatAudioReward, phase_contrast

RATE = 16000


class TestBeatAudioConformance(RewardConformance):
    def make(self):
        return BeatAudioReward()


def clicks(times, seed=0, seconds=8.0):
    audio = np.zeros(int(seconds * RATE), np.float32)
    rng = np.random.default_rng(seed)
    for time in times:
        burst = 0.4 * rng.normal(size=RATE // 50) * np.exp(-np.arange(RATE // 50) / (RATE / 200))
        start = int(time * RATE)
        audio[start : start + len(burst)] += burst[: len(audio) - start].astype(np.float32)
    return audio


def score(heard, played):
    return float(BeatAudioReward().score(Windows(heard[None], played[None], RATE))[0])


BEATS = np.arange(0.3, 7.9, 0.5)


def test_contrast_by_hand():
    x = np.tile([1.0, 0.0, 0.0, 0.0], 250)
    # In step: 1 less the mean of (1, -1/3, -1/3, -1/3), which is 0. Out of step: -1/3 less 0.
    assert phase_contrast(x, x, 4, 0) == pytest.approx(1.0, abs=0.01)
    assert phase_contrast(x, np.roll(x, 1), 4, 0) == pytest.approx(-1 / 3, abs=0.01)
    assert phase_contrast(x, np.roll(x, 1), 4, 1) == pytest.approx(1.0, abs=0.01)
    assert phase_contrast(x, np.ones(1000), 4, 0) == 0.0


def test_what_agrees_at_every_shift_says_nothing():
    swell = 1.0 - np.cos(2 * np.pi * np.arange(1000) / 1000)  # both get busier and calmer together
    assert phase_contrast(swell, swell, 50, 3) == pytest.approx(0.0, abs=0.05)


def test_in_step_beats_out_of_step():
    heard = clicks(BEATS)
    inside, outside = score(heard, clicks(BEATS, 1)), score(heard, clicks(BEATS + 0.25, 1))
    assert inside > 0.75 and outside < 0.0
    assert score(heard, clicks(BEATS + 0.02, 1)) > 0.7 and score(heard, clicks(BEATS + 0.1, 1)) < 0.1
    assert abs(score(heard, clicks(np.sort(np.random.default_rng(3).uniform(0, 7.9, 16)), 1))) < 0.3


def test_another_tempo_is_out_of_step():
    heard = clicks(BEATS)
    assert score(heard, clicks(np.arange(0.3, 7.9, 0.42), 1)) < 0.25


def test_eighths_over_beats_still_agree():
    assert score(clicks(np.arange(0.3, 7.9, 0.25)), clicks(BEATS, 1)) > 0.3


def test_silence_and_steady_sounds_score_zero():
    heard = clicks(BEATS)
    tone = (0.3 * np.sin(2 * np.pi * 440 * np.arange(8 * RATE) / RATE)).astype(np.float32)
    for other in (np.zeros_like(heard), tone, heard * np.float32(1e-3)):
        assert score(heard, other) == 0.0 and score(other, heard) == 0.0
