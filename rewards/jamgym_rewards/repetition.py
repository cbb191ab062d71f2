"""Repetition: a penalty for literally repeating what was just played, a held chord or a bar in a loop.

ReaLchords (Wu et al. 2024) counts symbolic frames: -run/10 for runs of more than four equal ones. In audio,
chroma frames are compared with those a lag earlier, at every lag from half a second to a slow bar. A sound that
never changes is like itself at every lag, a loop at its length. Ordinary music repeats as well: a pattern comes
back on another chord, a phrase after several bars. So a window is long against a bar (a bar has to return about
four times), only near-equality counts, and where the heard music repeats as literally, playing may too.

Conventions: range [-1, 0]; 0 up to a self-similarity of 0.85, -1 from 1 on. True stems of `band` lose little:
see docs/rewards.md for the measured figure. Needs neither target nor truth. Windows of 12 s (shortest 8 s) every
2 s. Causal.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from jamgym.errors import ConfigError
from jamgym.reward import Windows
from jamgym_rewards.chroma import chroma
from jamgym_rewards.rule import RuleReward

SHORTEST_LAG_SECONDS = 0.5
#: A slow bar: four beats at 75 per minute.
LONGEST_LAG_SECONDS = 3.2
#: Frames whose chroma energy is this far below the loudest (power ratio) are rounding, not music.
_LEAST_ENERGY = 1e-12


def self_similarity(
    audio: NDArray[np.float32],
    sample_rate: int,
    shortest_seconds: float = SHORTEST_LAG_SECONDS,
    longest_seconds: float = LONGEST_LAG_SECONDS,
) -> NDArray[np.float64]:
    """Return how like each clip of `(N, S)` is to itself a moment earlier, at the lag where it is most so.

    Frames a and b of chroma (square root of the energy, mean over pitch classes removed) are alike by
    2ab / (aa + bb), summed over time: 1 only if they are equal in level too, about 0 for noise.

    Returns:
        `(N,)` in [-1, 1]; 0 for silence and for clips shorter than twice the shortest lag. Lags go up to
        half of the clip at most.
    """
    energy, times = chroma(audio, sample_rate)
    frames = np.sqrt(np.where(energy > _LEAST_ENERGY, energy, 0.0))
    frames = frames - frames.mean(axis=2, keepdims=True)
    step = times[1] if len(times) > 1 else longest_seconds
    first = max(int(np.ceil(shortest_seconds / step)), 1)
    last = min(int(longest_seconds / step), len(times) // 2)
    power = np.square(frames).sum(axis=2)
    if last < first:
        return np.zeros(len(frames))
    lags = np.arange(first, last + 1)
    spectrum = np.fft.rfft(frames, 2 * len(times), axis=1)
    product = np.fft.irfft(np.square(np.abs(spectrum)).sum(axis=2), 2 * len(times), axis=1)[:, lags]
    until = np.cumsum(np.pad(power, ((0, 0), (1, 0))), axis=1)
    total = until[:, len(times) - lags] + until[:, -1:] - until[:, lags]
    return np.where(total > 0.0, 2.0 * product / np.where(total > 0.0, total, 1.0), 0.0).max(axis=1)


class RepetitionReward(RuleReward):
    """Penalises a window that repeats itself more literally than music does (see `self_similarity`).

    Args:
        allowed: Self-similarity up to which nothing is penalised; that of the heard music if it is higher.
        window_seconds: Length of a window.
        hop_seconds: Time between windows.
        min_window_seconds: Shortest window.
    """

    name = "repetition"
    range = (-1.0, 0.0)

    def __init__(
        self,
        allowed: float = 0.85,
        window_seconds: float = 12.0,
        hop_seconds: float = 2.0,
        min_window_seconds: float = 8.0,
    ) -> None:
        if not -1.0 <= allowed < 1.0:
            raise ConfigError(f"allowed is {allowed}; it must lie in [-1, 1).")
        self.allowed = allowed
        super().__init__(window_seconds, hop_seconds, min_window_seconds)

    def score(self, windows: Windows) -> NDArray[np.float32]:
        """Return `(N,)` penalties in [-1, 0]."""
        played = self_similarity(windows.played, windows.sample_rate)
        floor = np.full(len(played), self.allowed)
        high = played > self.allowed  # the heard side matters for no other row
        if high.any():
            floor[high] = np.maximum(self_similarity(windows.heard[high], windows.sample_rate), self.allowed)
        return -np.clip((played - floor) / (1.0 - self.allowed), 0.0, 1.0).astype(np.float32)
