"""Chroma: how the energy of audio is spread over the twelve pitch classes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Range of fundamental and partial frequencies that count, in Hz (A1 to A6).
LOWEST_HZ = 55.0
HIGHEST_HZ = 1760.0


def chroma(
    audio: NDArray[np.float32], sample_rate: int, window: int | None = None, hop: int | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the chroma energy of a batch of mono clips and the time of each frame.

    Only local maxima of the spectrum count, placed at their parabolically interpolated frequency: the
    main lobe of a low note is wider than a semitone and would otherwise spill onto its neighbours.

    Args:
        audio: `(N, S)` samples.
        sample_rate: Samples per second.
        window: FFT window in samples; default 0.256 s (4096 at 16 kHz).
        hop: Samples between frames; default a quarter of the window.

    Returns:
        Energies `(N, T, 12)`, not normalised, and the frames' centres `(T,)` in seconds. Clips are padded
        with zeros by half a window on both sides, so T = 1 + S // hop.
    """
    window = window or round(0.256 * sample_rate)
    hop = hop or max(window // 4, 1)
    half = window // 2
    padded = np.pad(np.asarray(audio, dtype=np.float32), ((0, 0), (half, window - half)))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window, axis=1)[:, ::hop]
    frames = frames[:, : 1 + audio.shape[1] // hop]
    spectrum = np.fft.rfft(frames * np.hanning(window).astype(np.float32), axis=-1)
    # Peaks above the range are not counted, so the bins beyond it (and one neighbour) need not be looked at.
    counted = int(np.ceil(HIGHEST_HZ * 2 ** (1 / 24) * window / sample_rate)) + 3
    magnitude = np.abs(spectrum[..., :counted])
    energy = _peaks(magnitude, sample_rate / window)
    return energy, np.arange(frames.shape[1]) * hop / sample_rate


def _peaks(magnitude: NDArray[np.floating], bin_hz: float) -> NDArray[np.float64]:
    """Fold the spectral peaks of `(N, T, F)` magnitudes onto `(N, T, 12)` pitch-class energies."""
    left, centre, right = magnitude[..., :-2], magnitude[..., 1:-1], magnitude[..., 2:]
    clip, frame, lower = np.nonzero((centre > left) & (centre >= right))
    a, b, c = (np.log(part[clip, frame, lower] + 1e-12) for part in (left, centre, right))
    curve = a - 2.0 * b + c
    shift = np.where(np.abs(curve) > 1e-9, 0.5 * (a - c) / np.where(curve == 0.0, 1.0, curve), 0.0)
    frequency = (lower + 1 + np.clip(shift, -0.5, 0.5)) * bin_hz
    keep = (frequency >= LOWEST_HZ * 2 ** (-1 / 24)) & (frequency <= HIGHEST_HZ * 2 ** (1 / 24))
    clip, frame, lower, frequency = clip[keep], frame[keep], lower[keep], frequency[keep]
    pitch = 69.0 + 12.0 * np.log2(frequency / 440.0)
    # Partials outnumber fundamentals above 440 Hz and fall on foreign pitch classes from the fifth on.
    power = centre[clip, frame, lower].astype(np.float64) ** 2 * 2.0 ** -np.maximum((pitch - 69.0) / 12.0, 0.0)
    folded = np.zeros((*magnitude.shape[:2], 12))
    np.add.at(folded, (clip, frame, np.round(pitch).astype(int) % 12), power)
    return folded
