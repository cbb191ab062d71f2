import numpy as np
import pytest
from scipy import stats

from jamgym.benchmark.grid.report import describe_extremes, describe_trend
from jamgym.benchmark.grid.statistics import (
    grid_statistics,
    overall_spearman,
    resampled_means,
    spearman,
    within_spearman,
)
from jamgym.benchmark.statistics import mean_interval
from jamgym.errors import RewardError

T_F, K = (-50, -25, -12, 0, 12, 25), (1, 5, 12, 25)


def scores(slope_t_f, slope_k, seeds=3, songs=60, seed=0, spread=0.0):
    rng = np.random.default_rng(seed)
    planted = slope_t_f * np.array(T_F)[:, None] / 75 - slope_k * np.array(K) / 24
    noise = rng.normal(0.0, 0.1, (seeds, len(T_F), len(K), songs)) + rng.normal(0.0, 0.5, songs)
    return planted[None, :, :, None] + noise + rng.normal(0.0, spread, (seeds, 1, 1, 1))


def test_spearman_is_scipys_also_with_ties():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 6, (20, 24)).astype(float)
    y = np.repeat(np.arange(6.0), 4)
    found = spearman(x, y)
    assert found == pytest.approx([stats.spearmanr(row, y).statistic for row in x])
    assert spearman(np.ones((1, 4)), np.arange(4.0)) == 0.0


def test_correlations_over_cells_and_within_lines():
    means = np.random.default_rng(1).normal(size=(5, len(T_F), len(K)))
    t_f, k = np.meshgrid(T_F, K, indexing="ij")
    for axis, values, full in ((1, T_F, t_f), (2, K, k)):
        overall = [stats.spearmanr(grid.ravel(), full.ravel()).statistic for grid in means]
        assert overall_spearman(means, axis, values) == pytest.approx(overall)
        within = [
            np.mean([stats.spearmanr(line, values).statistic for line in (grid.T if axis == 1 else grid)])
            for grid in means
        ]
        assert within_spearman(means, axis, values) == pytest.approx(within)


def test_by_hand():
    # Two seeds, two t_f, two k, two songs.
    values = np.zeros((2, 2, 2, 2))
    values[:, 1, :, :] = 1.0
    values[:, :, 0, :] += 0.25
    found = grid_statistics(values, (-5, 5), (1, 4), resamples=50)
    assert [[cell.estimate for cell in row] for row in found.cells] == [[0.25, 0.0], [1.25, 1.0]]
    # Ranks 2 1 4 3 against 1.5 1.5 3.5 3.5: covariance 4, deviations 5 and 4.
    assert found.by_t_f.overall.estimate == pytest.approx(4.0 / np.sqrt(5.0 * 4.0))
    assert found.by_t_f.within.estimate == 1.0 and found.by_k.within.estimate == -1.0
    assert found.extremes.difference.estimate == pytest.approx(1.25) and not found.extremes.touch
    assert found.seeds == found.songs == 2 and found.by_k.cells == 4


def test_resampled_means_are_those_of_drawn_seeds_and_songs():
    values = np.random.default_rng(2).normal(size=(2, 1, 2, 3))
    every = {
        tuple(np.round(values[list(seeds)][..., list(songs)].mean(axis=(0, 3)).ravel(), 9))
        for seeds in np.ndindex(2, 2)
        for songs in np.ndindex(3, 3, 3)
    }
    drawn = {tuple(np.round(row.ravel(), 9)) for row in resampled_means(values, resamples=2000)}
    # The same seeds and songs in both cells: no other pairs of means come up, and all of these do.
    assert drawn == every


def test_one_seed_gives_the_interval_over_songs():
    values = scores(0.0, 0.0, seeds=1)
    cell = grid_statistics(values, T_F, K, resamples=4000).cells[0][0]
    alone = mean_interval(values[0, 0, 0], resamples=4000)
    assert cell.estimate == pytest.approx(alone.estimate)
    assert [cell.low, cell.high] == pytest.approx([alone.low, alone.high], abs=0.02)


def test_seeds_that_differ_widen_the_interval():
    same, apart = (grid_statistics(scores(0, 0, spread=s), T_F, K, resamples=500).cells[0][0] for s in (0.0, 2.0))
    assert apart.high - apart.low > 2.0 * (same.high - same.low)


def test_planted_trends_are_found():
    found = grid_statistics(scores(1.0, 0.5), T_F, K, resamples=1000)
    assert found.by_t_f.overall.low > 0.5 and found.by_t_f.within.low > 0.9
    assert found.by_k.overall.high < 0.0 and found.by_k.within.high < -0.9
    assert found.extremes.difference.excludes_zero
    assert found.extremes.difference.estimate == pytest.approx(1.5, abs=0.1)
    # Pairing takes out what makes songs differ.
    best, difference = found.extremes.best, found.extremes.difference
    assert difference.high - difference.low < 0.5 * (best.high - best.low)


def test_nothing_is_found_where_nothing_is():
    sure = [
        trend.within.excludes_zero
        for seed in range(20)
        for found in [grid_statistics(scores(0.0, 0.0, seed=seed, seeds=1), T_F, K, resamples=300)]
        for trend in (found.by_t_f, found.by_k)
    ]
    assert np.mean(sure) <= 0.15


def test_few_songs_claim_nothing():
    few, enough = (grid_statistics(scores(1.0, 0.5)[..., :n], T_F, K, resamples=300) for n in (7, 8))
    for found, claims in ((few, False), (enough, True)):
        assert found.by_t_f.within.low > 0.0 and found.extremes.difference.low > 0.0
        assert found.by_t_f.within.excludes_zero == found.extremes.difference.excludes_zero == claims
    trend = describe_trend("mle", "judge", "t_f", few.by_t_f, "k")
    corners = describe_extremes("mle", "judge", "here", "there", few.extremes)
    for sentence in (trend, corners):
        assert sentence.endswith("too few songs to tell (7; at least 8).")
        assert not any(word in sentence for word in ("rises", "falls", "trend", "touch"))
    assert "rises" in describe_trend("mle", "judge", "t_f", enough.by_t_f, "k")
    assert "do not touch" in describe_extremes("mle", "judge", "here", "there", enough.extremes)


def test_lines_of_one_cell_have_no_trend():
    found = grid_statistics(scores(1, 1)[:, :1, :1], (-5,), (1,), resamples=10)
    assert found.by_t_f is None and found.by_k is None and found.extremes is None
    one_song = grid_statistics(scores(1, 1)[..., :1], T_F, K, resamples=10)
    assert one_song.by_t_f.overall.count == 1 and not one_song.by_t_f.overall.excludes_zero


def test_wrong_values_are_refused():
    values = scores(0, 0)
    with pytest.raises(RewardError, match="expected"):
        grid_statistics(values, T_F, K[:2])
    values[0, 0, 0, 0] = np.nan
    with pytest.raises(RewardError, match="never dropped"):
        grid_statistics(values, T_F, K)
