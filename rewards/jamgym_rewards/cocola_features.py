"""The features that COCOLA reads: harmonic and percussive mel spectrograms in decibels.

Conventions of the public model: 16 kHz mono; STFT of 1024 with a Hann window of 400 samples, hop 160,
centred, zeros beyond the ends; `jamgym_rewards.hpss`; power on 64 Slaney mel bands from 60 to 7800 Hz;
decibels relative to the loudest cell of *each channel's own* clip, cut off at -80. So level is lost, and a
silent clip is 0 dB everywhere, which is the largest value there is: whoever scores with it must gate.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from jamgym_rewards.hpss import hpss_masks

SAMPLE_RATE = 16000
FFT = 1024
WINDOW = 400
HOP = 160
MEL_BANDS = 64
LOWEST_HZ = 60.0
HIGHEST_HZ = 7800.0
#: Power that counts as silence, and the depth in decibels at which features are cut off.
LEAST_POWER = 1e-10
DEPTH_DB = 80.0


def hertz_to_mel(hertz: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Slaney mels: linear (15 per kHz) up to 1 kHz, 27 per factor of 6.4 above.

    >>> hertz_to_mel(np.array([0.0, 1000.0, 6400.0])).round(6).tolist()
    [0.0, 15.0, 42.0]
    """
    hertz = np.asarray(hertz, dtype=np.float64)
    above = 15.0 + 27.0 * np.log(np.maximum(hertz, 1000.0) / 1000.0) / np.log(6.4)
    return np.where(hertz < 1000.0, hertz * 3.0 / 200.0, above)


def mel_to_hertz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the inverse of `hertz_to_mel`."""
    mel = np.asarray(mel, dtype=np.float64)
    return np.where(mel < 15.0, mel * 200.0 / 3.0, 1000.0 * 6.4 ** ((np.maximum(mel, 15.0) - 15.0) / 27.0))


def mel_filters() -> NDArray[np.float32]:
    """Return `(MEL_BANDS, FFT // 2 + 1)` triangles of equal area."""
    low, high = hertz_to_mel(np.array([LOWEST_HZ, HIGHEST_HZ]))
    edges = mel_to_hertz(np.linspace(low, high, MEL_BANDS + 2))[:, None]
    frequency = np.fft.rfftfreq(FFT, 1.0 / SAMPLE_RATE)[None]
    rise = (frequency - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - frequency) / (edges[2:] - edges[1:-1])
    triangles = np.clip(np.minimum(rise, fall), 0.0, None)
    return (triangles * 2.0 / (edges[2:] - edges[:-2])).astype(np.float32)


def relative_decibels(power: Tensor) -> Tensor:
    """Return `(N, bands, T)` power in decibels relative to each clip's loudest cell, -80 to 0."""
    level = 10.0 * torch.log10(power.clamp(min=LEAST_POWER))
    return (level - level.amax(dim=(-2, -1), keepdim=True)).clamp(min=-DEPTH_DB)


class CocolaFeatures(nn.Module):
    """Audio to COCOLA features, batched; nothing to train.

    Example:
        >>> CocolaFeatures()(torch.randn(3, 80000)).shape
        torch.Size([3, 2, 64, 501])
    """

    taper: Tensor
    filters: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("taper", torch.hann_window(WINDOW, periodic=True), persistent=False)
        self.register_buffer("filters", torch.from_numpy(mel_filters()), persistent=False)

    @torch.no_grad()
    def forward(self, audio: Tensor) -> Tensor:
        """Return `(N, 2, 64, 1 + S // 160)` decibels of mono `audio` `(N, S)` at 16 kHz.

        Channel 0 is the harmonic part, channel 1 the percussive one.
        """
        spectrum = torch.stft(
            audio, FFT, HOP, WINDOW, self.taper, center=True, pad_mode="constant", return_complex=True
        )
        magnitude = spectrum.abs()
        parts = [self.filters @ (magnitude * mask).square() for mask in hpss_masks(magnitude)]
        return torch.stack([relative_decibels(part) for part in parts], dim=1)
