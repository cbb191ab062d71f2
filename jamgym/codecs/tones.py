"""Target levels for the codec's oscillators, measured from the audio: which tones sound, how loud, when.

A spectral loss alone cannot place bass tones: a quarter tone at 50 Hz is 1.4 Hz, and no window that is
short enough to follow the music resolves that. So spectral peaks are measured in long windows, with
their frequencies interpolated (Smith & Serra 1987), and faded in and out with the level of their
surroundings in short windows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

#: (lowest frequency in Hz, window) of the analyses: long windows for low tones.
RANGES = ((0.0, 8192), (130.0, 4096), (520.0, 2048))
SHORT_WINDOW = 1024


def peak_levels(audio: Tensor, size: int, hop: int, sample_rate: int, frequencies: Tensor) -> Tensor:
    """Return amplitudes `(B, T, tones)` of the spectral peaks nearest to each of `frequencies`.

    Windows of `size` samples are centred on frames of `hop` samples of `(B, S)` audio.
    """
    padded = F.pad(audio, ((size - hop) // 2, size - hop - (size - hop) // 2))
    window = torch.hann_window(size)
    magnitude = torch.fft.rfft(padded.unfold(1, size, hop) * window).abs() * (2.0 / window.sum())
    left, middle, right = magnitude[..., :-2], magnitude[..., 1:-1], magnitude[..., 2:]
    peak = (middle > left) & (middle >= right) & (middle > 1e-5)
    a, b, c = (torch.log(x + 1e-9) for x in (left, middle, right))
    shift = (0.5 * (a - c) / (a - 2 * b + c).clamp(max=-1e-6)).clamp(-0.5, 0.5)
    bins = torch.arange(1, magnitude.shape[-1] - 1)
    frequency = (bins + shift) * sample_rate / size
    step = math.log(float(frequencies[1] / frequencies[0]))
    tone = torch.round(torch.log(frequency / float(frequencies[0])) / step).long()
    inside = peak & (tone >= 0) & (tone < len(frequencies))
    amplitude = torch.where(inside, torch.exp(b - 0.25 * (a - c) * shift), torch.zeros_like(b))
    power = torch.zeros(*magnitude.shape[:2], len(frequencies))
    power.scatter_add_(2, tone.clamp(0, len(frequencies) - 1), amplitude.square())
    return power.sqrt()


def fading(audio: Tensor, size: int, sub_hop: int, sample_rate: int, frequencies: Tensor) -> Tensor:
    """Return how loud the surroundings of each tone are now against the mean over a long window.

    `(B, M, tones)` amplitude ratios in [0, 3] for sub-frames of `sub_hop` samples of `(B, S)` audio.
    """
    padded = F.pad(audio, (SHORT_WINDOW // 2 - sub_hop, SHORT_WINDOW // 2))
    spectrum = torch.fft.rfft(padded.unfold(1, SHORT_WINDOW, sub_hop) * torch.hann_window(SHORT_WINDOW))
    power = spectrum.abs().square()
    bins = torch.fft.rfftfreq(SHORT_WINDOW, 1.0 / sample_rate).clamp_min(1.0)
    distance = torch.log2(bins.unsqueeze(1) / frequencies.float()).abs()
    # Half an octave to either side, but never less than what the short window resolves.
    near = (distance < 0.5) | ((bins.unsqueeze(1) - frequencies.float()).abs() < 1.5 * sample_rate / SHORT_WINDOW)
    around = power @ near.float() + 1e-8
    taps = max(size // sub_hop, 1) | 1
    kernel = torch.hann_window(taps + 2)[1:-1].square()
    flat = around.transpose(1, 2).reshape(-1, 1, around.shape[1])
    weight = F.conv1d(torch.ones_like(flat[:1]), (kernel / kernel.sum()).view(1, 1, -1), padding=taps // 2)
    mean = F.conv1d(flat, (kernel / kernel.sum()).view(1, 1, -1), padding=taps // 2) / weight
    return (around / mean.view(len(audio), -1, around.shape[1]).transpose(1, 2)).sqrt().clamp(max=3.0)


@torch.no_grad()
def tone_targets(audio: Tensor, sample_rate: int, hop: int, frequencies: Tensor) -> Tensor:
    """Return amplitudes `(B, 4T, tones)` at the ends of the quarter frames of `(B, T * hop)` audio."""
    parts = []
    for number, (low, size) in enumerate(RANGES):
        high = RANGES[number + 1][0] if number + 1 < len(RANGES) else math.inf
        chosen = (frequencies >= low) & (frequencies < high)
        level = peak_levels(audio, size, hop, sample_rate, frequencies)[..., chosen].repeat_interleave(4, dim=1)
        parts.append(level * fading(audio, size, hop // 4, sample_rate, frequencies[chosen]))
    return torch.cat(parts, dim=2)
