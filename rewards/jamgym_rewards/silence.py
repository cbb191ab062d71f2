"""Silence: a penalty for not playing where something is heard.

After the penalty of ReaLchords (Wu et al., "Adaptive Accompaniment with ReaLchords", 2024): -0.1 for every
silent frame beyond 4 % of the sequence. Two things differ. The penalty is a share of the window, so that its
range is known. And ordinary rests are free: in audio a drum or a short note leaves gaps that a symbolic frame
does not have, so only gaps longer than half a second count.

Conventions: range [-1, 0]; 0 up to the allowance, -1 for a window without a sound. Frames in which nothing is
heard either do not count. Needs neither target nor truth. Windows of 4 s (shortest 1 s) every second. Causal.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from jamgym.errors import ConfigError
from jamgym.reward import Windows
from jamgym_rewards.gating import level_db
from jamgym_rewards.rule import RuleReward

BLOCK_SECONDS = 0.05
#: A block below this RMS, in dBFS, is silent.
SILENCE_DB = -60.0


def gap_blocks(silent: NDArray[np.bool_], longest: int) -> NDArray[np.bool_]:
    """Return which of the blocks `(N, B)` lie in a run of more than `longest` silent ones.

    >>> gap_blocks(np.array([[False, True, True, False, True]]), 1)[0].tolist()
    [False, True, True, False, False]
    """
    inside = np.zeros_like(silent)
    for row, marks in enumerate(silent):
        edges = np.flatnonzero(np.diff(np.concatenate([[False], marks, [False]]).astype(np.int8)))
        for start, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            inside[row, start:end] = end - start > longest
    return inside


def silent_share(
    heard: NDArray[np.float32], played: NDArray[np.float32], sample_rate: int, gap_seconds: float = 0.5
) -> NDArray[np.float64]:
    """Return the share of the music heard beside which nothing is played.

    Args:
        heard: `(N, S)`.
        played: `(N, S)`.
        sample_rate: Samples per second.
        gap_seconds: Rests up to this long are no silence, on either side.

    Returns:
        `(N,)` in [0, 1]: blocks of 50 ms in a gap of `played` but not of `heard`, over those not in a gap of
        `heard`; 0 where nothing is heard.
    """
    block = min(max(round(BLOCK_SECONDS * sample_rate), 1), max(played.shape[1], 1))
    count = played.shape[1] // block
    longest = int(gap_seconds * sample_rate / block)
    sides = []
    for audio in (heard, played):
        level = level_db(audio[:, : count * block].reshape(len(audio), count, block))
        # A window shorter than a rest can still be all silent.
        sides.append(gap_blocks(level <= SILENCE_DB, min(longest, count - 1)))
    asked = ~sides[0]
    return (asked & sides[1]).sum(axis=1) / np.maximum(asked.sum(axis=1), 1)


class SilenceReward(RuleReward):
    """Penalises gaps in the playing (see `silent_share`).

    Args:
        allowance: Share of a window that may be silent, in [0, 1).
        gap_seconds: Rests up to this long are free.
        window_seconds: Length of a window.
        hop_seconds: Time between windows.
        min_window_seconds: Shortest window.
    """

    name = "silence"
    range = (-1.0, 0.0)

    def __init__(
        self,
        allowance: float = 0.04,
        gap_seconds: float = 0.5,
        window_seconds: float = 4.0,
        hop_seconds: float = 1.0,
        min_window_seconds: float = 1.0,
    ) -> None:
        if not 0.0 <= allowance < 1.0:
            raise ConfigError(f"allowance is {allowance}; it must lie in [0, 1).")
        self.allowance = allowance
        self.gap_seconds = gap_seconds
        super().__init__(window_seconds, hop_seconds, min_window_seconds)

    def score(self, windows: Windows) -> NDArray[np.float32]:
        """Return `(N,)` penalties in [-1, 0]."""
        share = silent_share(windows.heard, windows.played, windows.sample_rate, self.gap_seconds)
        return -np.maximum((share - self.allowance) / (1.0 - self.allowance), 0.0).astype(np.float32)
