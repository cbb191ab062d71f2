import numpy as np
import pytest

from jamgym.errors import ConfigError
from jamgym.reward import Windows
from jamgym.testing import RewardConformance
from jamgym_rewards.copying import CopyingReward, copy_correlation

RATE = 16000


class TestCopyingConformance(RewardConformance):
    def make(self):
        return CopyingReward()


def tune(seed, seconds=4.0):
    """Return decaying notes at random times and pitches."""
    rng = np.random.default_rng(seed)
    audio = np.zeros(int(seconds * RATE))
    for start in rng.integers(0, len(audio) - 2000, int(6 * seconds)):
        time = np.arange(len(audio) - start) / RATE
        audio[start:] += 0.2 * np.exp(-6 * time) * np.sin(2 * np.pi * rng.uniform(100, 3000) * time)
    return audio.astype(np.float32)[None]


def score(heard, played, **settings):
    return float(CopyingReward(**settings).score(Windows(heard, played, RATE))[0])


def late(audio, seconds):
    return np.pad(audio, ((0, 0), (round(seconds * RATE), 0)))[:, : audio.shape[1]]


@pytest.mark.parametrize("gain", [0.3, -1.0, 3.0])
@pytest.mark.parametrize("seconds", [0.0, 0.2, 0.5])
def test_a_copy_is_found_at_any_gain_and_lag_up_to_half_a_second(gain, seconds):
    heard = tune(0)
    assert score(heard, (gain * late(heard, seconds)).astype(np.float32)) == -1.0


def test_other_music_a_longer_lag_and_playing_ahead_are_no_copies():
    heard = tune(0)
    assert score(heard, tune(1)) == 0.0
    assert score(heard, late(heard, 0.8)) == 0.0
    assert score(heard, late(heard, 0.8), max_lag_seconds=1.0) == -1.0
    assert score(late(heard, 0.3), heard) == 0.0


def test_silent_and_steady_sounds_are_no_copies_of_each_other():
    tone = (0.2 * np.sin(2 * np.pi * 440 * np.arange(4 * RATE) / RATE)).astype(np.float32)[None]
    silent = np.zeros_like(tone)
    assert copy_correlation(silent, silent, RATE)[0] == 0.0
    assert copy_correlation(tune(0), silent, RATE)[0] == 0.0
    assert copy_correlation(tone[:, 2000:-2000], tone[:, 2000:-2000], RATE)[0] <= 1.0


def test_the_penalty_rises_between_allowed_and_full():
    heard, other = tune(0), tune(1)
    blend = (heard + 0.8 * other).astype(np.float32)
    found = float(copy_correlation(heard, blend, RATE)[0])
    assert 0.4 < found < 0.95
    assert score(heard, blend, allowed=found - 0.05, full=found + 0.05) == pytest.approx(-0.5, abs=1e-3)


def test_a_wrong_order_is_refused():
    with pytest.raises(ConfigError, match="ascend"):
        CopyingReward(allowed=0.9, full=0.5)
