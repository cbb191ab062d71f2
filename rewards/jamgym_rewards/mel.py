"""Levels in mel bands: the frames that onsets, copies and repetitions are seen in."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BANDS = 40
HOP_SECONDS = 0.01
WINDOW_SECONDS = 0.04
#: Levels are not told apart below this, in dB relative to full scale.
FLOOR_DB = -80.0


def mel_levels(
    audio: NDArray[np.float32],
    sample_rate: int,
    hop_seconds: float = HOP_SECONDS,
    window_seconds: float = WINDOW_SECONDS,
) -> tuple[NDArray[np.float64], float]:
    """Return the levels of mono clips `(N, S)` in 40 mel bands as `(N, T, 40)` in dB, and the frames per second.

    Frame t is centred at t / rate seconds. The level of a band bends towards its floor at `FLOOR_DB`.
    """
    hop = max(round(hop_seconds * sample_rate), 1)
    window = max(round(window_seconds * sample_rate), hop)
    half = window // 2
    padded = np.pad(np.asarray(audio, dtype=np.float32), ((0, 0), (half, window - half)))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window, axis=1)[:, ::hop]
    taper = np.hanning(window).astype(np.float32)
    power = np.square(np.abs(np.fft.rfft(frames * taper, axis=-1)) / taper.sum())
    return 10.0 * np.log10(power @ mel_bands(window, sample_rate) + 10.0 ** (FLOOR_DB / 10.0)), sample_rate / hop


def mel_bands(window: int, sample_rate: int) -> NDArray[np.float64]:
    """Return triangular mel weights `(window // 2 + 1, 40)` from 30 Hz to 8 kHz (or half the sample rate)."""
    top = min(8000.0, sample_rate / 2.0)
    mel = np.linspace(2595.0 * np.log10(1.0 + 30.0 / 700.0), 2595.0 * np.log10(1.0 + top / 700.0), BANDS + 2)
    edges = 700.0 * (10.0 ** (mel / 2595.0) - 1.0)
    frequency = np.arange(window // 2 + 1)[:, None] * sample_rate / window
    up = (frequency - edges[:-2]) / (edges[1:-1] - edges[:-2])
    down = (edges[2:] - frequency) / (edges[2:] - edges[1:-1])
    return np.clip(np.minimum(up, down), 0.0, None)
