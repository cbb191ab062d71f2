import numpy as np
import pytest
import torch

from jamgym_rewards.separation import PARTS, separate

RATE = 16_000
TIME = np.arange(2 * RATE) / RATE


def tone() -> np.ndarray:
    return 0.2 * np.sin(2 * np.pi * 440 * TIME)


def clicks() -> np.ndarray:
    audio = np.zeros(len(TIME))
    audio[RATE // 4 :: RATE // 2] = 1.0
    return audio


def as_batch(*rows: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack(rows).astype(np.float32))


def test_a_tone_is_harmonic_and_clicks_are_percussive():
    audio = as_batch(tone(), clicks(), tone() + clicks())
    harmonic, percussive = (separate(audio, part) for part in PARTS[1:])
    assert percussive[0].square().sum() < 0.02 * audio[0].square().sum()
    assert harmonic[1].square().sum() < 0.02 * audio[1].square().sum()
    assert (harmonic[2] - audio[0]).square().mean() < 0.1 * audio[0].square().mean()


@pytest.mark.parametrize("seconds", [0.01, 0.05, 0.5, 2.0])
def test_the_parts_add_up(seconds):
    audio = torch.randn(3, round(seconds * RATE), generator=torch.Generator().manual_seed(0))
    parts = [separate(audio, part) for part in PARTS[1:]]
    assert parts[0].shape == audio.shape
    assert torch.allclose(parts[0] + parts[1], audio, atol=1e-4)


def test_both_and_nothing_stay_as_they_are():
    audio = as_batch(tone())
    assert separate(audio, "both") is audio
    assert separate(audio[:0], "harmonic").shape == (0, len(TIME))


def test_rows_do_not_touch_each_other():
    audio = as_batch(tone(), clicks())
    assert torch.allclose(separate(audio, "harmonic")[1:], separate(audio[1:], "harmonic"), atol=1e-5)
