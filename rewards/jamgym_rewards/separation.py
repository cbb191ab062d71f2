"""The harmonic or the percussive part of audio, as a signal: what sustains, or what strikes."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from jamgym_rewards.hpss import hpss_masks

#: Which part of the music is listened to.
Part = Literal["both", "harmonic", "percussive"]
PARTS: tuple[Part, ...] = get_args(Part)

_WINDOW = 1024
_HOP = 256


@torch.no_grad()
def separate(audio: Tensor, part: Part) -> Tensor:
    """Return the `part` of mono audio `(N, S)`, of the same shape; the two parts add up to the audio.

    Median filters over 31 frames and 31 bins of a spectrogram (Fitzgerald 2010) with windows of 1 024 samples every
    256: meant for 16 kHz, where they are half a second long and 480 Hz high.
    """
    if part == "both" or audio.numel() == 0:
        return audio
    length = audio.shape[1]
    # Mirroring at the ends needs more samples than half a window.
    padded = torch.nn.functional.pad(audio, (0, max(0, _WINDOW - length)))
    window = torch.hann_window(_WINDOW, device=audio.device)
    spectrum = torch.stft(padded, _WINDOW, _HOP, window=window, return_complex=True)
    mask = hpss_masks(spectrum.abs())[PARTS.index(part) - 1]
    return torch.istft(spectrum * mask, _WINDOW, _HOP, window=window, length=padded.shape[1])[:, :length]
