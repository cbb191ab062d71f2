"""Estimates with bootstrap intervals. The unit that is resampled is the song, unless a function says otherwise.

No sample is ever dropped: a value that is not finite raises. Resampling is vectorised and seeded, so the
same values give the same interval. Interquartile mean and stratified bootstrap follow Agarwal et al.,
"Deep Reinforcement Learning at the Edge of the Statistical Precipice" (2021, arXiv 2108.13264).

Percentile intervals of few songs are too narrow: of two equal policies one seems better in half of the comparisons
on 2 songs, in one of nine on 8 and in about one of twenty, as it should be, on 64. So an interval of fewer
than `FEWEST_SONGS` songs is shown but claims nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jamgym.errors import RewardError

Values = NDArray[np.float64]
Statistic = Callable[[Values], Values]

RESAMPLES = 10_000
#: Songs from which on an interval may say that there is a difference.
FEWEST_SONGS = 8
#: Most numbers that are resampled at once; bounds memory to some tens of megabytes.
_BLOCK = 2_000_000


@dataclass(frozen=True)
class Interval:
    """An estimate with its bootstrap interval.

    Attributes:
        estimate: The statistic of the sample itself.
        low: Lower end; -inf for a sample of one, from which no spread can be told.
        high: Upper end; inf for a sample of one.
        count: Number of resampled units (songs).
    """

    estimate: float
    low: float
    high: float
    count: int

    @property
    def bounded(self) -> bool:
        """Whether there are ends at all; a sample of one has none."""
        return bool(np.isfinite([self.low, self.high]).all())

    def to_json(self) -> dict[str, float | int]:
        """Return it as plain data."""
        return {"estimate": self.estimate, "low": self.low, "high": self.high, "songs": self.count}

    @property
    def enough(self) -> bool:
        """Whether there are enough songs to claim anything."""
        return self.count >= FEWEST_SONGS

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside [low, high]; False where there are not `enough` songs to say so."""
        return self.enough and (self.low > 0.0 or self.high < 0.0)

    def __str__(self) -> str:
        return f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}]"


def too_few(songs: int) -> str:
    """Return the words that stand in place of a claim.

    >>> too_few(3)
    'too few songs to tell (3; at least 8)'
    """
    return f"too few songs to tell ({songs}; at least {FEWEST_SONGS})"


def mean(values: Values) -> Values:
    """Return the mean over the last axis."""
    return values.mean(axis=-1)


def iqm(values: Values) -> Values:
    """Return the interquartile mean over the last axis: without the lowest and highest quarter.

    Of n values, floor(n / 4) are cut at either end, as `scipy.stats.trim_mean(values, 0.25)` does.

    >>> float(iqm(np.array([0.0, 1.0, 2.0, 100.0])))
    1.5
    """
    cut = values.shape[-1] // 4
    return np.sort(values, axis=-1)[..., cut : values.shape[-1] - cut].mean(axis=-1)


def checked(values: ArrayLike, what: str = "values") -> Values:
    """Return `values` as float64; an empty sample or a number that is not finite raises `RewardError`."""
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise RewardError(f"There are no {what}; an estimate needs at least one.")
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        raise RewardError(
            f"{len(bad)} of {array.size} {what} are not finite; the first is {array[tuple(bad[0])]} at index "
            f"{tuple(bad[0].tolist())}. Samples are never dropped: mend the metric that returned it."
        )
    return array


def by_song(values: ArrayLike, song_ids: Sequence[str]) -> Values:
    """Average `values` `(episodes,)` within each song, in the order in which the songs first appear.

    Episodes of one song are not independent; intervals must count songs.

    >>> by_song([1.0, 3.0, 5.0], ["a", "a", "b"]).tolist()
    [2.0, 5.0]
    """
    array = checked(values)
    if array.shape != (len(song_ids),):
        raise RewardError(f"There are values of shape {array.shape} for {len(song_ids)} episodes; expected one each.")
    place = {song: index for index, song in enumerate(dict.fromkeys(song_ids))}
    owner = np.array([place[song] for song in song_ids])
    return np.bincount(owner, weights=array) / np.bincount(owner)


def bootstrap(
    values: ArrayLike,
    statistic: Statistic = mean,
    *,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Return `statistic` of `values` with its percentile bootstrap interval.

    Args:
        values: `(songs,)` finite numbers.
        statistic: Maps `(..., songs)` to `(...)`; `mean` or `iqm`.
        resamples: Number of bootstrap samples.
        confidence: Coverage of the interval.
        seed: Seed of the resampling.

    Raises:
        RewardError: A value is not finite, or there is none.
    """
    array = checked(values)
    if array.ndim != 1:
        raise RewardError(f"Values have shape {array.shape}; expected one number per song.")
    estimate = float(statistic(array))
    drawn = [statistic(array[index]) for index in _draws(len(array), resamples, seed)]
    return _interval(estimate, drawn, confidence, len(array))


def mean_interval(values: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Return the mean of `values` `(songs,)` with its 95 % interval."""
    return bootstrap(values, mean, resamples=resamples, seed=seed)


def iqm_interval(values: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Return the interquartile mean of `values` `(songs,)` with its 95 % interval."""
    return bootstrap(values, iqm, resamples=resamples, seed=seed)


def paired_difference(
    a: ArrayLike, b: ArrayLike, statistic: Statistic = mean, *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Return `statistic` of a - b with its 95 % interval; entry j of both is the same song.

    Pairing removes what makes one song harder than another, so it finds smaller differences than two
    separate intervals would.
    """
    first, second = checked(a), checked(b)
    if first.shape != second.shape:
        raise RewardError(
            f"Paired values have shapes {first.shape} and {second.shape}; they must be of the same songs."
        )
    return bootstrap(first - second, statistic, resamples=resamples, seed=seed)


def spearman_interval(a: ArrayLike, b: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Return Spearman's rank correlation of paired `a`, `b` `(songs,)` with its 95 % interval.

    A resample in which one side is constant counts as 0: it shows no association.

    Raises:
        RewardError: A value is not finite, the shapes differ, or one side is constant.
    """
    first, second = checked(a), checked(b)
    if first.shape != second.shape or first.ndim != 1:
        raise RewardError(f"Paired values have shapes {first.shape} and {second.shape}; expected (songs,) twice.")
    x, y = (np.unique(part, return_inverse=True)[1] for part in (first, second))
    if not x.any() or not y.any():
        raise RewardError("One side of a rank correlation is constant, so it has no ranks to correlate.")
    estimate = float(_rank_correlation(x[None], y[None])[0])
    drawn = [_rank_correlation(x[index], y[index]) for index in _draws(len(x), resamples, seed)]
    return _interval(estimate, drawn, 0.95, len(x))


def stratified_interval(
    scores: ArrayLike,
    statistic: Statistic = iqm,
    *,
    resample_songs: bool = False,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return `statistic` over all runs and songs with a 95 % stratified bootstrap interval.

    Songs are the strata: within each song the runs (training seeds) are drawn anew, each song by itself,
    so the interval speaks about other training runs on the same songs.

    Args:
        scores: `(runs, songs)` finite numbers.
        statistic: Maps `(..., runs * songs)` to `(...)`.
        resample_songs: Draw songs too, to speak about other songs as well.
        resamples: Number of bootstrap samples.
        seed: Seed of the resampling.
    """
    array = checked(scores)
    if array.ndim != 2:
        raise RewardError(f"Scores have shape {array.shape}; expected (runs, songs).")
    runs, songs = array.shape
    rng = np.random.default_rng(seed)
    drawn = []
    for size in _blocks(resamples, array.size):
        pick = rng.integers(0, runs, (size, runs, songs))
        column = np.arange(songs)[None, :]
        if resample_songs:
            column = rng.integers(0, songs, (size, songs))
        drawn.append(statistic(array[pick, column[:, None, :]].reshape(size, -1)))
    return _interval(float(statistic(array.reshape(-1))), drawn, 0.95, songs if resample_songs else runs)


def _draws(count: int, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Yield blocks `(block, count)` of indices, `resamples` rows in all."""
    rng = np.random.default_rng(seed)
    for size in _blocks(resamples, count):
        yield rng.integers(0, count, (size, count))


def _blocks(resamples: int, width: int) -> Iterator[int]:
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}; it must be at least 1")
    block = max(1, _BLOCK // width)
    for first in range(0, resamples, block):
        yield min(block, resamples - first)


def _interval(estimate: float, drawn: Sequence[Values], confidence: float, count: int) -> Interval:
    if count == 1:
        return Interval(estimate, -np.inf, np.inf, 1)
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(np.concatenate(drawn), [tail, 1.0 - tail])
    return Interval(estimate, float(low), float(high), count)


def _rank_correlation(x: NDArray[np.int64], y: NDArray[np.int64]) -> Values:
    """Return Spearman's correlation of each row of dense ranks `(R, n)`."""
    first, second = (_average_ranks(part) for part in (x, y))
    first -= first.mean(axis=1, keepdims=True)
    second -= second.mean(axis=1, keepdims=True)
    spread = np.sqrt((first**2).sum(axis=1) * (second**2).sum(axis=1))
    return np.where(spread > 0.0, (first * second).sum(axis=1) / np.where(spread > 0.0, spread, 1.0), 0.0)


def _average_ranks(dense: NDArray[np.int64]) -> Values:
    """Return the ranks of each row of small integers `(R, n)`, ties sharing their average."""
    rows = np.arange(len(dense))[:, None]
    width = int(dense.max()) + 1
    counts = np.bincount((dense + rows * width).reshape(-1), minlength=len(dense) * width).reshape(-1, width)
    middle = np.cumsum(counts, axis=1) - (counts - 1) / 2.0
    return middle[rows, dense]
