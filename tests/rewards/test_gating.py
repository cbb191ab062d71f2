import numpy as np
import pytest

from jamgym_rewards.gating import FLOOR, GateSettings, active_share, gated, level_db, openness, smooth_step

RATE = 16000


def noise(level: float, seconds: float = 4.0, seed: int = 0) -> np.ndarray:
    audio = np.random.default_rng(seed).normal(0, 1, (1, round(seconds * RATE)))
    return (audio / np.sqrt(np.mean(audio**2)) * 10 ** (level / 20)).astype(np.float32)


def opened(heard: np.ndarray, played: np.ndarray) -> float:
    return float(openness(heard, played, RATE, GateSettings())[0])


def test_level_is_decibels_without_the_offset():
    assert level_db(noise(-20.0))[0] == pytest.approx(-20.0, abs=0.01)
    assert level_db(noise(-20.0) + 0.5)[0] == pytest.approx(-20.0, abs=0.01)
    assert level_db(np.full((1, RATE), 0.7, dtype=np.float32))[0] == pytest.approx(-120.0, abs=1.0)


def test_an_ordinary_stem_is_fully_open():
    for level in (-35.0, -25.0, -15.0, -8.0):
        assert opened(noise(-18.0), noise(level, seed=1)) == pytest.approx(1.0)


@pytest.mark.parametrize("level", [-60.0, -80.0, -200.0])
def test_silence_and_whispers_close(level):
    assert opened(noise(-18.0), noise(level, seed=1)) == 0.0
    assert opened(noise(-70.0), noise(level, seed=1)) == 0.0


def test_forty_decibels_below_the_music_closes():
    assert opened(noise(-10.0), noise(-50.0, seed=1)) == 0.0
    assert 0.0 < opened(noise(-10.0), noise(-42.0, seed=1)) < 1.0


def test_too_loud_closes_softly():
    assert opened(noise(-35.0), noise(-18.0, seed=1)) == pytest.approx(1.0)
    assert 0.0 < opened(noise(-35.0), noise(-12.0, seed=1)) < 1.0
    assert opened(noise(-45.0), noise(-10.0, seed=1)) == 0.0


def test_one_burst_does_not_open_the_gate():
    played = np.zeros((1, 4 * RATE), dtype=np.float32)
    played[:, RATE : RATE + RATE // 10] = noise(-12.0, 0.1)
    assert active_share(played, RATE)[0] < 0.06
    assert opened(noise(-18.0), played) < 0.05
    held = played.copy()
    held[:, : 2 * RATE] = noise(-12.0, 2.0)
    assert active_share(held, RATE)[0] == pytest.approx(0.5, abs=0.03)
    assert opened(noise(-18.0), held) == pytest.approx(1.0)


def test_gated_goes_from_the_score_to_the_floor():
    scores = gated(np.array([1.0, 1.0, 1.0]), np.array([0.0, 0.5, 1.0]))
    np.testing.assert_allclose(scores, [FLOOR, (1 + FLOOR) / 2, 1.0])


def test_smooth_step_works_either_way():
    np.testing.assert_allclose(smooth_step(np.array([18.0, 24.0, 30.0]), 30.0, 18.0), [1.0, 0.5, 0.0])


@pytest.mark.parametrize("samples", [1, 10, 799, 800])
def test_tiny_audio_is_finite(samples):
    audio = np.ones((2, samples), dtype=np.float32)
    assert np.isfinite(openness(audio, audio, RATE, GateSettings())).all()
