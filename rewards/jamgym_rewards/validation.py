"""How well a score tells the true stem from wrong ones, on songs that were not trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jamgym_rewards.features import FeatureSpec
from jamgym_rewards.negatives import (
    MAX_SEMITONES,
    FeaturePair,
    half_beat_frames,
    other_start,
    shifted_start,
    sounding_start,
    window,
)

#: Raw scores `(N,)` of cut decibels `(N, R, T)` heard and played.
RawScore = Callable[[Tensor, Tensor], NDArray[np.float64]]

TRANSPOSITIONS = tuple(s for s in range(-MAX_SEMITONES, MAX_SEMITONES + 1) if s != 0)


@dataclass(frozen=True)
class Figure:
    """An estimate with its 95 % bootstrap interval over songs."""

    value: float
    low: float
    high: float


def auc(better: NDArray[np.float64], worse: NDArray[np.float64]) -> float:
    """Return the share of pairs in which `better` is higher, ties counting half.

    >>> auc(np.array([1.0, 2.0]), np.array([0.0, 1.0]))
    0.875
    """
    if len(better) == 0 or len(worse) == 0:
        return float("nan")
    difference = better[:, None] - worse[None]
    return float(np.mean((difference > 0) + 0.5 * (difference == 0)))


def bootstrap(statistic: Callable[[NDArray[np.int64]], float], songs: int, draws: int = 200, seed: int = 0) -> Figure:
    """Return `statistic` of all songs and its interval over resampled song indices `(songs,)`."""
    rng = np.random.default_rng(seed)
    drawn = [statistic(rng.integers(songs, size=songs)) for _ in range(draws)]
    kept = [value for value in drawn if not np.isnan(value)]
    low, high = np.percentile(kept, [2.5, 97.5]) if kept else (float("nan"), float("nan"))
    return Figure(statistic(np.arange(songs)), float(low), float(high))


def score_variants(
    score: RawScore,
    pairs: Sequence[FeaturePair],
    spec: FeatureSpec,
    seconds: float = 4.0,
    windows: int = 2,
    seed: int = 0,
) -> dict[str, NDArray[np.float64]]:
    """Score true and wrong versions of each pair's played stem, as it comes out of the codec.

    Args:
        score: The raw score.
        pairs: Held-out pairs; at least two, of distinct songs.
        spec: The features' layout.
        seconds: Length of a window.
        windows: Windows per pair.
        seed: Draws windows, partners and directions.

    Returns:
        For "truth", "random_stem", "other_time", "half_beat", "tempo" and "transposed_-6" to "transposed_+6"
        an array `(songs, windows)`; NaN where a version does not exist (transposed drums).
    """
    rng = np.random.default_rng([seed, 77])
    frames = spec.frames(round(seconds * 16000))
    starts = [[sounding_start(pair, spec, frames, rng) for _ in range(windows)] for pair in pairs]
    found: dict[str, NDArray[np.float64]] = {}
    for turn in range(windows):
        partner = np.roll(np.arange(len(pairs)), 1 + int(rng.integers(len(pairs) - 1)))
        rows: dict[str, list[tuple[int, NDArray[np.float32]]]] = {}
        heard = []
        for index, pair in enumerate(pairs):
            own, start, total = pair.played[-1], starts[index][turn], pair.heard.shape[1]
            other = int(partner[index])
            heard.append(window(pair.heard, spec, start, frames))
            versions = {
                "truth": window(own, spec, start, frames),
                "random_stem": window(pairs[other].played[-1], spec, starts[other][turn], frames),
                "other_time": window(own, spec, other_start(rng, start, total, frames, spec.frame_rate), frames),
                "half_beat": window(
                    own, spec, shifted_start(rng, start, half_beat_frames(pair, spec, rng), total, frames), frames
                ),
                "tempo": window(
                    own, spec, start, frames, speed=1.0 + float(rng.choice([-1, 1]) * rng.uniform(0.1, 0.25))
                ),
            }
            if pair.pitched:
                for semitones in TRANSPOSITIONS:
                    versions[f"transposed_{semitones:+d}"] = window(own, spec, start, frames, semitones)
            for kind, values in versions.items():
                rows.setdefault(kind, []).append((index, values))
        for kind, items in rows.items():
            which = [index for index, _ in items]
            scores = score(
                torch.from_numpy(np.stack([heard[index] for index in which])),
                torch.from_numpy(np.stack([values for _, values in items])),
            )
            table = found.setdefault(kind, np.full((len(pairs), windows), np.nan))
            table[which, turn] = scores
    return found


def auc_figures(scores: dict[str, NDArray[np.float64]], floor: float) -> dict[str, Figure]:
    """Return the AUC of truth against each wrong version, and against silence, which scores `floor`.

    Only songs that have the wrong version count on the side of the truth.
    """
    truth = scores["truth"]
    versions = {kind: table for kind, table in scores.items() if kind != "truth"}
    both = [table for kind, table in versions.items() if kind.startswith("transposed")]
    if both:
        versions["transposed"] = np.concatenate(both, axis=1)
    versions["silence"] = np.full_like(truth, floor)

    def measure(table: NDArray[np.float64], rows: NDArray[np.int64]) -> float:
        rows = rows[~np.isnan(table[rows]).all(axis=1)]
        worse = table[rows].ravel()
        return auc(truth[rows].ravel(), worse[~np.isnan(worse)])

    return {
        kind: bootstrap(lambda rows, table=table: measure(table, rows), len(truth))  # type: ignore[misc]
        for kind, table in versions.items()
    }


def mean_figure(table: NDArray[np.float64]) -> Figure:
    """Return the mean over songs with its interval."""

    def measure(rows: NDArray[np.int64]) -> float:
        values = table[rows][~np.isnan(table[rows])]
        return float(values.mean()) if len(values) else float("nan")

    return bootstrap(measure, len(table))
