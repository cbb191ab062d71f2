"""Flicker: a penalty for sound that changes with every frame where the music would hold a note.

A decoder that forgets what it played a moment ago draws every frame anew from what it hears: the right chord, in
shreds. Scores that sum over time, such as chroma or a contrastive score, hear the chord and not the shreds.

An onset changes the spectrum once, a held note not at all. What flickers differs from the frame before *and* from the
frame after; so the smaller of these two distances counts. Drums and noises do so by nature, and the target says how
much is right. Sixteenths at 120 beats a minute, three frames each, cost at most 0.2 beside a target that is held.

It looks for what decoders at 25 frames a second do. Shreds of two frames, or with a silent frame between any two, it
does not find.

Conventions: range [-1, 0]; 0 as long as the played audio flickers no more than the target or `allowed`, -1 from `full`
beyond that. Silence does not flicker. Needs the target. Windows of 4 s (shortest 1 s) every second. Causal.
Source: jamgym's own; the distance is a spectral flux (Masri 1996) that level does not move.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from jamgym.errors import ConfigError
from jamgym.reward import Windows
from jamgym_rewards.gating import level_db
from jamgym_rewards.rule import RuleReward
from jamgym_rewards.silence import SILENCE_DB

FRAME_SECONDS = 0.04


def flicker_index(audio: NDArray[np.float32], sample_rate: int) -> NDArray[np.float64]:
    """Return how much the spectrum changes back and forth from frame to frame.

    Args:
        audio: `(N, S)`.
        sample_rate: Samples per second.

    Returns:
        `(N,)` in [0, 1]: over the frames of 40 ms that sound between two that sound, the mean of the smaller of the two
        distances to the frames beside it. A distance is 1 - cosine of the roots of the magnitudes. 0 where no three
        frames in a row sound.
    """
    size = round(FRAME_SECONDS * sample_rate)
    count = audio.shape[1] // size
    if count < 3:
        return np.zeros(len(audio))
    frames = audio[:, : count * size].reshape(len(audio), count, size)
    shape = np.sqrt(np.abs(np.fft.rfft(frames * np.hanning(size).astype(np.float32), axis=2)))
    shape /= np.maximum(np.linalg.norm(shape, axis=2, keepdims=True), 1e-12)
    distance = 1.0 - np.einsum("nfb,nfb->nf", shape[:, :-1], shape[:, 1:])
    between = np.minimum(distance[:, :-1], distance[:, 1:])
    sounds = level_db(frames) > SILENCE_DB
    counted = sounds[:, :-2] & sounds[:, 1:-1] & sounds[:, 2:]
    total = np.where(counted, between, 0.0).sum(axis=1)
    return np.clip(total / np.maximum(counted.sum(axis=1), 1), 0.0, 1.0)


class FlickerReward(RuleReward):
    """Penalises playing that flickers more than the stem it replaces (see `flicker_index`).

    Args:
        allowed: Index up to which nothing is penalised, whatever the target does.
        full: Index of the full penalty, counted from the target's or from `allowed`.
        window_seconds: Length of a window.
        hop_seconds: Time between windows.
        min_window_seconds: Shortest window.
    """

    name = "flicker"
    range = (-1.0, 0.0)
    needs = frozenset({"target"})

    def __init__(
        self,
        allowed: float = 0.04,
        full: float = 0.06,
        window_seconds: float = 4.0,
        hop_seconds: float = 1.0,
        min_window_seconds: float = 1.0,
    ) -> None:
        if not (0.0 <= allowed <= 1.0 and 0.0 < full <= 1.0):
            raise ConfigError(f"allowed is {allowed} and full {full}; they must lie in [0, 1], full above 0.")
        self.allowed = allowed
        self.full = full
        super().__init__(window_seconds, hop_seconds, min_window_seconds)

    def score(self, windows: Windows) -> NDArray[np.float32]:
        """Return `(N,)` penalties in [-1, 0]."""
        assert windows.target is not None
        right = np.maximum(flicker_index(windows.target, windows.sample_rate), self.allowed)
        excess = flicker_index(windows.played, windows.sample_rate) - right
        return (0.0 - np.clip(excess / self.full, 0.0, 1.0)).astype(np.float32)
