"""Statistics of scores over a grid of future visibility t_f and chunk size k. Pure functions of arrays.

Scores are `(seeds, A, B, songs)`: S training seeds of one method in A x B cells (A values of t_f, B of k) on
the same J songs. A seed is one network that plays every song in every cell, and a song is the same in every
cell, so seeds and songs are *crossed*: each bootstrap sample draws S seeds and J songs, and takes these same
seeds and songs in every cell (Owen, "The pigeonhole bootstrap", 2007). Drawing seeds anew for each song, as
`stratified_interval` does for runs that were trained for one task each, would average the difference between
seeds away and give intervals that are too narrow. With one seed, only songs are drawn, and the interval says
nothing about other trainings. With fewer than `FEWEST_SONGS` songs the intervals are too narrow, and claim nothing
(`jamgym.benchmark.statistics`). No sample is ever dropped: a value that is not finite raises.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jamgym.benchmark.statistics import RESAMPLES, Interval, checked
from jamgym.errors import RewardError

Values = NDArray[np.float64]

#: Most numbers of one block of resamples; bounds memory to some tens of megabytes.
_BLOCK = 2_000_000


@dataclass(frozen=True)
class Trend:
    """How a score follows one axis of the grid, as Spearman's rank correlations.

    Attributes:
        overall: Over all cells, each with its value of the axis.
        within: Mean over the lines of the grid along which only this axis changes.
        cells: Number of cells.
    """

    overall: Interval
    within: Interval
    cells: int


@dataclass(frozen=True)
class Extremes:
    """The cell that should be the best against the one that should be the worst.

    Attributes:
        best: Mean with the greatest t_f and the smallest k.
        worst: Mean with the smallest t_f and the greatest k.
        difference: best - worst, paired: the same songs and seeds in both.
    """

    best: Interval
    worst: Interval
    difference: Interval

    @property
    def touch(self) -> bool:
        """Whether the two intervals have a value in common."""
        return self.best.low <= self.worst.high and self.worst.low <= self.best.high


@dataclass(frozen=True)
class GridStatistics:
    """What the scores of one method under one metric show.

    Attributes:
        cells: Mean of each cell, `cells[a][b]` with the a-th t_f and the b-th k.
        by_t_f: Trend with t_f; None if there is one t_f only.
        by_k: Trend with k; None if there is one k only.
        extremes: Best against worst corner; None if there is one cell only.
        songs: Number of songs J.
        seeds: Number of training seeds S.
    """

    cells: tuple[tuple[Interval, ...], ...]
    by_t_f: Trend | None
    by_k: Trend | None
    extremes: Extremes | None
    songs: int
    seeds: int


def grid_statistics(
    scores: ArrayLike, t_f: Sequence[int], k: Sequence[int], *, resamples: int = RESAMPLES, seed: int = 0
) -> GridStatistics:
    """Return cell means, trends and extremes, all with 95 % intervals from the same bootstrap samples.

    Args:
        scores: `(S, A, B, J)` finite numbers: training seeds, values of t_f, values of k, songs.
        t_f: The A future visibilities in frames.
        k: The B chunk sizes in frames.
        resamples: Bootstrap samples.
        seed: Seed of the resampling.

    Raises:
        RewardError: A value is not finite, or the shape does not fit.
    """
    array = checked(scores, "scores")
    if array.ndim != 4 or array.shape[1:3] != (len(t_f), len(k)):
        raise RewardError(f"Scores have shape {array.shape}; expected (seeds, {len(t_f)}, {len(k)}, songs).")
    seeds, _, _, songs = array.shape
    means = array.mean(axis=(0, 3))[None]
    drawn = resampled_means(array, resamples=resamples, seed=seed)

    def interval(estimate: Values, samples: Values) -> Interval:
        if songs == 1:
            return Interval(float(estimate[0]), -np.inf, np.inf, 1)
        low, high = np.quantile(samples, [0.025, 0.975])
        return Interval(float(estimate[0]), float(low), float(high), songs)

    def trend(axis: int, values: Sequence[int]) -> Trend | None:
        if len(values) < 2:
            return None
        overall, within = (
            interval(measure(means, axis, values), measure(drawn, axis, values))
            for measure in (overall_spearman, within_spearman)
        )
        return Trend(overall, within, means[0].size)

    cells = tuple(tuple(interval(means[:, a, b], drawn[:, a, b]) for b in range(len(k))) for a in range(len(t_f)))
    extremes = None
    if means[0].size > 1:
        best = (slice(None), int(np.argmax(t_f)), int(np.argmin(k)))
        worst = (slice(None), int(np.argmin(t_f)), int(np.argmax(k)))
        extremes = Extremes(
            cells[best[1]][best[2]],
            cells[worst[1]][worst[2]],
            interval(means[best] - means[worst], drawn[best] - drawn[worst]),
        )
    return GridStatistics(cells, trend(1, t_f), trend(2, k), extremes, songs, seeds)


def resampled_means(scores: Values, *, resamples: int = RESAMPLES, seed: int = 0) -> Values:
    """Return the cell means `(resamples, A, B)` of bootstrap samples of seeds and songs of `(S, A, B, J)`.

    A sample is how often each seed and each song is drawn, so its means are two products of matrices.
    """
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}; it must be at least 1")
    seeds, rows, columns, songs = scores.shape
    by_song = np.moveaxis(scores, 3, 0).reshape(songs, -1)
    rng = np.random.default_rng(seed)
    found = np.empty((resamples, rows, columns))
    block = max(1, _BLOCK // max(by_song.shape[1], songs))
    for first in range(0, resamples, block):
        size = min(block, resamples - first)
        # A multinomial count is how often n draws with replacement hit each of the n.
        song_weights = rng.multinomial(songs, np.full(songs, 1.0 / songs), size) / songs
        seed_weights = rng.multinomial(seeds, np.full(seeds, 1.0 / seeds), size) / seeds
        means = (song_weights @ by_song).reshape(size, seeds, rows, columns)
        found[first : first + size] = np.einsum("rs,rsab->rab", seed_weights, means)
    return found


def overall_spearman(means: Values, axis: int, values: Sequence[int]) -> Values:
    """Return `(R,)`: Spearman's correlation over all cells of `means` `(R, A, B)` with the `values` of `axis`."""
    shape = [1, 1, 1]
    shape[axis] = len(values)
    spread = np.broadcast_to(np.asarray(values, dtype=np.float64).reshape(shape), (1, *means.shape[1:]))
    return spearman(means.reshape(len(means), -1), spread.reshape(1, -1))


def within_spearman(means: Values, axis: int, values: Sequence[int]) -> Values:
    """Return `(R,)`: the mean over the lines of `means` `(R, A, B)` along `axis` of Spearman's correlation with it."""
    lines = np.moveaxis(means, axis, -1)
    return spearman(lines, np.asarray(values, dtype=np.float64)).mean(axis=-1)


def spearman(x: Values, y: Values) -> Values:
    """Return Spearman's rank correlation over the last axis; ties share their average rank.

    Args:
        x: `(..., n)` numbers.
        y: Numbers that broadcast against `x`.

    Returns:
        `(...)`; 0 where one side is constant: it shows no association.
    """
    from scipy.stats import rankdata

    first, second = rankdata(x, axis=-1), rankdata(y, axis=-1)
    first = first - first.mean(axis=-1, keepdims=True)
    second = second - second.mean(axis=-1, keepdims=True)
    spread = np.sqrt((first**2).sum(axis=-1) * (second**2).sum(axis=-1))
    return np.asarray(np.where(spread > 0.0, (first * second).sum(axis=-1) / np.where(spread > 0.0, spread, 1.0), 0.0))
