import numpy as np
import pytest

from jamgym.reward import Windows
from jamgym.testing import RewardConformance
from jamgym_rewards.harmony import HarmonyReward, rotation_contrast, segment_chroma

RATE = 16000


class TestHarmonyConformance(RewardConformance):
    def make(self):
        return HarmonyReward()


def chord(*keys, seconds=2.0, level=0.1):
    time = np.arange(int(seconds * RATE)) / RATE
    return (level * sum(np.sin(2 * np.pi * 440 * 2 ** ((key - 69) / 12) * time) for key in keys)).astype(np.float32)


def score(heard, played):
    return float(HarmonyReward().score(Windows(np.atleast_2d(heard), np.atleast_2d(played), RATE))[0])


def test_contrast_is_the_cosine_minus_its_mean_over_rotations():
    rng = np.random.default_rng(0)
    a, b = (x / np.linalg.norm(x) for x in rng.random((2, 12)))
    by_hand = a @ b - np.mean([a @ np.roll(b, r) for r in range(12)])
    assert rotation_contrast(a, b) == pytest.approx(by_hand)
    flat = np.full(12, 12**-0.5)
    assert rotation_contrast(flat, a) == pytest.approx(0.0)


def test_notes_by_hand():
    # One pitch class each: cosine 1 or 0, mean over rotations 1/12.
    assert score(chord(60), chord(72)) == pytest.approx(11 / 12, abs=0.02)
    assert score(chord(60), chord(61)) == pytest.approx(-1 / 12, abs=0.02)
    # Three equal notes heard, one of them played an octave higher: 1/sqrt(3) less sqrt(3)/12.
    assert score(chord(60, 64, 67), chord(72)) == pytest.approx(3**-0.5 - 3**0.5 / 12, abs=0.04)


def test_each_moment_counts_for_itself():
    heard = np.concatenate([chord(60), chord(62)])
    assert score(heard, np.concatenate([chord(60), chord(62)])) > 0.85
    assert score(heard, np.concatenate([chord(62), chord(60)])) < 0.1
    half = score(heard, np.concatenate([chord(60), np.zeros(2 * RATE, np.float32)]))
    assert half == pytest.approx(11 / 24, abs=0.08)


def test_silence_on_either_side_is_zero_and_its_moments_do_not_count():
    silent = np.zeros(2 * RATE, np.float32)
    assert score(silent, chord(60)) == 0.0 and score(chord(60), silent) == 0.0
    assert score(chord(60), chord(60, level=1e-4)) == 0.0
    heard = np.concatenate([chord(60), silent])
    assert score(heard, np.concatenate([chord(60), chord(61)])) == pytest.approx(11 / 12, abs=0.08)


def test_noise_scores_next_to_nothing():
    noise = np.random.default_rng(0).normal(0, 0.1, (20, 4 * RATE)).astype(np.float32)
    heard = np.tile(chord(60, 64, 67, seconds=4.0), (20, 1))
    scores = HarmonyReward().score(Windows(heard, noise, RATE))
    assert abs(scores.mean()) < 0.1


def test_segments_are_half_seconds():
    found = segment_chroma(np.concatenate([chord(60, seconds=1.0), chord(66, seconds=0.6)])[None], RATE)
    assert found.shape == (1, 3, 12)
    assert found[0].argmax(axis=1).tolist() == [0, 0, 6]
    assert np.allclose(np.linalg.norm(found, axis=2), 1.0)
