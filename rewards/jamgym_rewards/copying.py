"""Copying: a penalty for playing back the input, at once or a moment later.

What is heard always goes with itself, so echoing it pleases most coherence scores. Levels in mel bands tell a
copy even when it went through a codec, which leaves no waveform alike, or got louder or softer.

Conventions: range [-1, 0]; 0 up to a correlation of 0.45, -1 from 0.65 on. In windows of 4 s true stems of `band`
stay below 0.45; a copy at any lag up to half a second is near 1, and from 0.59 on if it went through the codec
`spectral`. Needs neither target nor truth. Windows of
4 s (shortest 2 s) every second. Causal. Source: jamgym's own; matching of spectrograms as in audio
fingerprinting.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from jamgym.errors import ConfigError
from jamgym.reward import Windows
from jamgym_rewards.mel import mel_levels
from jamgym_rewards.rule import RuleReward

HOP_SECONDS = 0.02
WINDOW_SECONDS = 0.08
#: Levels that vary less than this many dB (RMS over time and bands) say nothing.
LEAST_VARIATION_DB = 0.5


def copy_correlation(
    heard: NDArray[np.float32], played: NDArray[np.float32], sample_rate: int, max_lag_seconds: float = 0.5
) -> NDArray[np.float64]:
    """Return the highest correlation of mel-band levels over lags of `played` behind `heard`.

    Args:
        heard: `(N, S)`.
        played: `(N, S)`.
        sample_rate: Samples per second.
        max_lag_seconds: Longest lag; at most half of the clip is used.

    Returns:
        `(N,)` in [-1, 1]; 0 where either side is silent or steady.
    """
    first, rate = mel_levels(heard, sample_rate, HOP_SECONDS, WINDOW_SECONDS)
    second, _ = mel_levels(played, sample_rate, HOP_SECONDS, WINDOW_SECONDS)
    # What is constant in a band is timbre and room, not music.
    first = first - first.mean(axis=1, keepdims=True)
    second = second - second.mean(axis=1, keepdims=True)
    frames = first.shape[1]
    best = np.full(len(first), -1.0)
    for lag in range(min(round(max_lag_seconds * rate), frames // 2) + 1):
        a, b = first[:, : frames - lag], second[:, lag:]
        energy = np.sum(a * a, axis=(1, 2)) * np.sum(b * b, axis=(1, 2))
        least = (LEAST_VARIATION_DB**2 * a.shape[1] * a.shape[2]) ** 2
        here = np.sum(a * b, axis=(1, 2)) / np.sqrt(np.maximum(energy, 1e-12))
        best = np.maximum(best, np.where(energy > least, here, 0.0))
    return best


class CopyingReward(RuleReward):
    """Penalises playing what was just heard (see `copy_correlation`).

    Args:
        allowed: Correlation up to which nothing is penalised.
        full: Correlation of the full penalty.
        max_lag_seconds: Longest lag at which a copy is looked for.
        window_seconds: Length of a window.
        hop_seconds: Time between windows.
        min_window_seconds: Shortest window.
    """

    name = "copying"
    range = (-1.0, 0.0)

    def __init__(
        self,
        allowed: float = 0.45,
        full: float = 0.65,
        max_lag_seconds: float = 0.5,
        window_seconds: float = 4.0,
        hop_seconds: float = 1.0,
        min_window_seconds: float = 2.0,
    ) -> None:
        if not -1.0 <= allowed < full <= 1.0:
            raise ConfigError(f"allowed is {allowed} and full {full}; they must ascend within [-1, 1].")
        self.allowed = allowed
        self.full = full
        self.max_lag_seconds = max_lag_seconds
        super().__init__(window_seconds, hop_seconds, min_window_seconds)

    def score(self, windows: Windows) -> NDArray[np.float32]:
        """Return `(N,)` penalties in [-1, 0]."""
        found = copy_correlation(windows.heard, windows.played, windows.sample_rate, self.max_lag_seconds)
        return -np.clip((found - self.allowed) / (self.full - self.allowed), 0.0, 1.0).astype(np.float32)
