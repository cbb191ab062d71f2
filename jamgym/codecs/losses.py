"""Losses of codec `spectral`: spectra at several resolutions, and the levels of its oscillators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

#: (window, hop) in samples of the spectra that the loss compares.
RESOLUTIONS = ((4096, 1280), (2048, 640), (1024, 320), (512, 160), (256, 128))


class RealFFT(torch.autograd.Function):
    """`torch.fft.rfft` over the last axis whose backward stays real: a third of the time of the built-in one."""

    @staticmethod
    def forward(ctx: Any, frames: Tensor) -> Tensor:
        """Transform `(..., N)`, N even, into `(..., N / 2 + 1)`."""
        ctx.size = frames.shape[-1]
        return torch.fft.rfft(frames)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Return the gradient `(..., N)`: every inner bin stands for itself and its mirror image."""
        weight = grad.real.new_full((grad.shape[-1],), 0.5)
        weight[0] = weight[-1] = 1.0
        return torch.fft.irfft(grad * weight, ctx.size, norm="forward")


def magnitudes(audio: Tensor, size: int, hop: int) -> Tensor:
    """Return `(B, frames, bins)` magnitudes of Hann windows that lie inside `(B, S)` audio."""
    frames = audio.unfold(1, size, hop) * torch.hann_window(size)
    spectrum = torch.view_as_real(RealFFT.apply(frames))
    return torch.sqrt(spectrum.square().sum(-1) + 1e-8 * size) / size**0.5


def pitch_weights(size: int, sample_rate: int = 16_000) -> Tensor:
    """Return weights `(bins,)` with mean 1 that count octaves rather than hertz, roughly.

    With equal weights seven eighths of the loss lie above 1 kHz, and the codec loses the pitch of basses.
    """
    weight = 1.0 / (torch.fft.rfftfreq(size, 1.0 / sample_rate) + 100.0)
    return weight / weight.mean()


def spectral_loss(decoded: Tensor, audio: Tensor) -> Tensor:
    """Return the mean over resolutions of log-magnitude L1 and spectral convergence (Yamamoto et al. 2020)."""
    total = decoded.new_zeros(())
    for size, hop in RESOLUTIONS:
        made = magnitudes(decoded, size, hop)
        with torch.no_grad():
            wanted = magnitudes(audio, size, hop)
        log_error = (torch.log(made + 3e-3) - torch.log(wanted + 3e-3)).abs().mean((0, 1)) @ pitch_weights(size)
        distance = (made - wanted).square().sum((1, 2)).sqrt() / (wanted.square().sum((1, 2)).sqrt() + 0.1)
        total = total + log_error / made.shape[2] + distance.mean()
    return total / len(RESOLUTIONS)


def tone_loss(levels: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean L1 of log levels; tones that should sound count ten times as much as silent ones."""
    error = (torch.log(levels + 1e-3) - torch.log(wanted + 1e-3)).abs()
    weight = 1.0 + 9.0 * (wanted > 2e-3)
    return (error * weight).sum() / weight.sum()
