"""Harmony: whether the notes that are played go with the notes that are heard, judged from audio alone.

The chroma of both sides is pooled in short segments, which need no beats. A segment's score is the cosine of
the two, minus its mean over the twelve rotations of one of them: an instrument whose chroma is spread widely
gets nothing for being vaguely like everything. `note_in_chord` asks the same where the chords are known.

Conventions: range [-1, 1], about 0.24 for the true stems of `band` and 0 for those of another song, for drums
(which have no pitch), and for silence on either side. Needs neither target nor truth. Windows of 4 s (shortest
1 s) every second. Causal: a window's score depends on that window alone. Source: key-rotation-normalised chroma
similarity, a standard measure of harmonic compatibility (for instance Davies et al., "AutoMashUpper", 2014).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from jamgym.reward import Windows
from jamgym_rewards.chroma import chroma
from jamgym_rewards.rule import RuleReward

#: Audio below this RMS, in dBFS, counts as silence.
SILENCE_DB = -60.0
SEGMENT_SECONDS = 0.5


def segment_chroma(
    audio: NDArray[np.float32], sample_rate: int, segment_seconds: float = SEGMENT_SECONDS
) -> NDArray[np.float64]:
    """Return the chroma of mono clips `(N, S)` pooled in segments, `(N, segments, 12)` of length 1.

    The square root of the pooled energy counts, so that one loud note does not hide the others. A segment
    below `SILENCE_DB` is all zeros; what is left after the last whole segment goes to that segment.
    """
    energy, times = chroma(audio, sample_rate)
    count = max(round(audio.shape[1] / sample_rate / segment_seconds), 1)
    segment = np.minimum((times / segment_seconds).astype(np.int64), count - 1)
    starts = np.searchsorted(segment, np.unique(segment))
    pooled = np.sqrt(np.add.reduceat(energy, starts, axis=1))
    edges = np.append(np.round(times[starts] * sample_rate).astype(np.int64), audio.shape[1])
    sums = np.cumsum(np.pad(np.square(audio, dtype=np.float64), ((0, 0), (1, 0))), axis=1)
    power = np.diff(sums[:, edges], axis=1) / np.maximum(np.diff(edges), 1)
    norm = np.linalg.norm(pooled, axis=2)
    sounds = (power > 10.0 ** (SILENCE_DB / 10.0)) & (norm > 0.0)
    return np.where(sounds[..., None], pooled / np.where(norm > 0.0, norm, 1.0)[..., None], 0.0)


def rotation_contrast(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the cosine of unit chroma vectors `(..., 12)`, minus its mean over the twelve rotations of one.

    The mean over all rotations is the product of the sums divided by 12. A vector of zeros gives 0.

    >>> c = np.eye(12)[0]
    >>> round(float(rotation_contrast(c, c)), 3), round(float(rotation_contrast(c, np.roll(c, 7))), 3)
    (0.917, -0.083)
    """
    return (first * second).sum(axis=-1) - first.sum(axis=-1) * second.sum(axis=-1) / 12.0


def harmony(heard: NDArray[np.float32], played: NDArray[np.float32], sample_rate: int) -> NDArray[np.float64]:
    """Return how well the notes of `played` fit those of `heard`, both `(N, S)`, as `(N,)` in [-1, 1].

    It is the mean of `rotation_contrast` over the segments in which something is heard. Segments in which
    nothing is played count as 0, so few good notes are worth less than many.
    """
    first, second = segment_chroma(heard, sample_rate), segment_chroma(played, sample_rate)
    sounding = first.any(axis=2)
    return (rotation_contrast(first, second) * sounding).sum(axis=1) / np.maximum(sounding.sum(axis=1), 1)


class HarmonyReward(RuleReward):
    """Rewards notes that go with what is heard (see `harmony`); no truth needed."""

    name = "harmony"
    range = (-1.0, 1.0)

    def __init__(self, window_seconds: float = 4.0, hop_seconds: float = 1.0, min_window_seconds: float = 1.0) -> None:
        super().__init__(window_seconds, hop_seconds, min_window_seconds)

    def score(self, windows: Windows) -> NDArray[np.float32]:
        """Return `(N,)` scores in [-1, 1]; 0 for silence."""
        return harmony(windows.heard, windows.played, windows.sample_rate).astype(np.float32)
