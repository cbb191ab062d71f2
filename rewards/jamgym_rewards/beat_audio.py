"""Beat from audio: whether the attacks of what is played fall in step with those of what is heard.

For music without known beats. The onset curves of both sides are correlated at shifts over one beat of the
heard music. In step, the shift of none stands out; what matters is therefore the correlation there minus its
mean over all shifts, just as `harmony` takes its mean over all keys.

It is a reward of its own and not a parameter of `beat`, because what a reward `needs` is part of its name: `beat`
needs truth, says how well a listener could tap along with the played stream alone, and keeps its F-measure.
Tracking beats in both streams and comparing those was tried: the trackers settle on different levels of the metre,
and true stems of `band` could be told from those of other songs in 79 % of pairs against nearly all here.

Conventions: range [-1, 1], about 0.5 for true stems of `band` and 0 for those of another song; 0 if either side is
silent or has no attacks. Needs neither target nor truth. Windows of 8 s (shortest 4 s) every 2 s. Causal.
Source: jamgym's own; onset curves and tempo as in Ellis, "Beat Tracking by Dynamic Programming" (2007).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from jamgym.reward import Windows
from jamgym_rewards.beat import LEAST_ONSET_DB, SILENCE_DB, estimate_tempo, onset_strength
from jamgym_rewards.gating import level_db
from jamgym_rewards.rule import RuleReward

#: Onsets this close (in seconds) fall together.
TOLERANCE_SECONDS = 0.03


def phase_contrast(first: NDArray[np.float64], second: NDArray[np.float64], period: int, tolerance: int) -> float:
    """Return how much better two curves `(T,)` agree as they are than shifted, in [-1, 1].

    The highest correlation at shifts up to `tolerance` frames, minus the mean over the shifts of one
    `period`, divided by the norms.

    >>> pulses = np.tile([1.0, 0.0, 0.0, 0.0], 200)
    >>> round(phase_contrast(pulses, pulses, 4, 0), 2), round(phase_contrast(pulses, np.roll(pulses, 2), 4, 0), 2)
    (1.0, -0.33)
    """
    x, y = first - first.mean(), second - second.mean()
    norm = float(np.sqrt((x @ x) * (y @ y)))
    if norm <= 0.0:
        return 0.0
    size = 2 * len(x)
    cross = np.fft.irfft(np.fft.rfft(x, size).conj() * np.fft.rfft(y, size), size)
    shifts = np.arange(period) - period // 2
    near = np.arange(-tolerance, tolerance + 1)
    return float(np.clip((cross[near].max() - cross[shifts].mean()) / norm, -1.0, 1.0))


def onset_agreement(heard: NDArray[np.float32], played: NDArray[np.float32], sample_rate: int) -> NDArray[np.float64]:
    """Return how well the attacks of `played` keep step with those of `heard`, both `(N, S)`, as `(N,)` in [-1, 1]."""
    first, rate = onset_strength(heard, sample_rate)
    second, _ = onset_strength(played, sample_rate)
    width = TOLERANCE_SECONDS * rate
    reach = np.arange(-int(4 * width), int(4 * width) + 1)
    bell = np.exp(-0.5 * (reach / width) ** 2)
    silent = (level_db(heard) <= SILENCE_DB) | (level_db(played) <= SILENCE_DB)
    scores = np.zeros(len(first))
    for row, (a, b) in enumerate(zip(first, second, strict=True)):
        if silent[row] or a.max() < LEAST_ONSET_DB or b.max() < LEAST_ONSET_DB:
            continue
        period = max(round(60.0 * rate / estimate_tempo(a, rate)), 1)
        x, y = (np.convolve(curve, bell, "full")[reach[-1] : reach[-1] + len(curve)] for curve in (a, b))
        scores[row] = phase_contrast(x, y, min(period, len(a)), round(width))
    return scores


class BeatAudioReward(RuleReward):
    """Rewards attacks in step with those heard (see `onset_agreement`); no truth needed."""

    name = "beat_audio"
    range = (-1.0, 1.0)

    def __init__(self, window_seconds: float = 8.0, hop_seconds: float = 2.0, min_window_seconds: float = 4.0) -> None:
        super().__init__(window_seconds, hop_seconds, min_window_seconds)

    def score(self, windows: Windows) -> NDArray[np.float32]:
        """Return `(N,)` scores in [-1, 1]."""
        return onset_agreement(windows.heard, windows.played, windows.sample_rate).astype(np.float32)
