import numpy as np
import pytest
from scipy import stats

from jamgym.benchmark.statistics import (
    Interval,
    bootstrap,
    by_song,
    iqm,
    iqm_interval,
    mean_interval,
    paired_difference,
    spearman_interval,
    stratified_interval,
)
from jamgym.errors import RewardError


def test_mean_interval_matches_the_closed_form():
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    found = mean_interval(values)
    error = 1.96 * values.std() / np.sqrt(len(values))
    assert found.estimate == pytest.approx(values.mean())
    assert found.count == 400
    assert found.low == pytest.approx(values.mean() - error, abs=0.02)
    assert found.high == pytest.approx(values.mean() + error, abs=0.02)


def test_coverage_is_near_95_percent():
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(400):
        found = mean_interval(rng.normal(0.0, 1.0, 40), resamples=500, seed=trial)
        hits += found.low <= 0.0 <= found.high
    assert 0.90 <= hits / 400 <= 0.98


@pytest.mark.parametrize("count", [1, 3, 4, 5, 17, 64])
def test_iqm_is_scipys_trimmed_mean(count):
    values = np.random.default_rng(count).normal(size=count)
    assert iqm(values) == pytest.approx(stats.trim_mean(values, 0.25))
    assert iqm(np.stack([values, values + 1]))[1] == pytest.approx(stats.trim_mean(values, 0.25) + 1)


def test_iqm_interval_ignores_outliers_that_move_the_mean():
    values = np.random.default_rng(2).normal(size=100)
    values[:5] = 1000.0
    assert abs(iqm_interval(values).estimate) < 0.5 < mean_interval(values).estimate


def test_pairing_finds_what_two_intervals_cannot():
    rng = np.random.default_rng(3)
    song = rng.normal(0.0, 5.0, 60)
    a, b = song + 0.5 + rng.normal(0, 0.2, 60), song + rng.normal(0, 0.2, 60)
    difference = paired_difference(a, b)
    assert difference.estimate == pytest.approx(float(np.mean(a - b)))
    assert difference.excludes_zero and difference.low > 0.3
    assert mean_interval(a).low < mean_interval(b).high
    assert not paired_difference(a, a + rng.permutation(a - a.mean())).excludes_zero


def test_same_seed_same_interval():
    values = np.random.default_rng(4).normal(size=20)
    assert mean_interval(values, seed=5) == mean_interval(values, seed=5)
    assert mean_interval(values, seed=5) != mean_interval(values, seed=6)


@pytest.mark.parametrize("ties", [False, True])
def test_spearman_is_scipys(ties):
    rng = np.random.default_rng(5)
    a = rng.normal(size=50)
    b = a + rng.normal(size=50)
    if ties:
        a, b = np.round(a), np.round(b)
    found = spearman_interval(a, b, resamples=4000)
    assert found.estimate == pytest.approx(stats.spearmanr(a, b).statistic)
    drawn = []
    for _ in range(1000):
        index = rng.integers(0, 50, 50)
        drawn.append(stats.spearmanr(a[index], b[index]).statistic)
    assert found.low == pytest.approx(np.quantile(drawn, 0.025), abs=0.05)
    assert found.high == pytest.approx(np.quantile(drawn, 0.975), abs=0.05)


def test_spearman_refuses_a_constant_side():
    with pytest.raises(RewardError, match="constant"):
        spearman_interval([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])


def test_stratified_resamples_runs_within_songs():
    # All runs agree on each song, so other runs would have given the same: no width, though songs differ.
    agreed = np.tile(np.arange(10.0), (5, 1))
    found = stratified_interval(agreed, resamples=200)
    assert found.low == found.high == pytest.approx(found.estimate)
    wide = stratified_interval(agreed, resamples=200, resample_songs=True)
    assert wide.high - wide.low > 1.0
    # Runs that differ give a width of the mean of runs x songs independent draws.
    noise = np.random.default_rng(6).normal(size=(8, 50))
    spread = stratified_interval(noise, statistic=lambda x: x.mean(axis=-1))
    assert (spread.high - spread.low) / 2 == pytest.approx(1.96 / np.sqrt(400), rel=0.2)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nothing_is_dropped(bad):
    values = np.array([1.0, bad, 2.0])
    for function in (mean_interval, iqm_interval, bootstrap):
        with pytest.raises(RewardError, match=r"index \(1,\).*never dropped"):
            function(values)
    with pytest.raises(RewardError):
        paired_difference(values, np.zeros(3))
    with pytest.raises(RewardError):
        stratified_interval(values[None])


def test_shapes_and_empty_samples_are_refused():
    with pytest.raises(RewardError, match="no values"):
        mean_interval([])
    with pytest.raises(RewardError, match="same songs"):
        paired_difference([1.0], [1.0, 2.0])
    with pytest.raises(RewardError, match="expected one each"):
        by_song([1.0], ["a", "b"])


def test_one_song_tells_no_spread():
    assert mean_interval([0.5]) == Interval(0.5, -np.inf, np.inf, 1)
    assert not mean_interval([0.5]).excludes_zero


@pytest.mark.parametrize("count", [2, 3, 5, 7])
def test_few_songs_claim_nothing(count):
    """Of equal policies on 2 songs, the interval alone leaves out zero half of the time."""
    values = np.arange(1.0, count + 1.0)
    found = [f(values) for f in (mean_interval, iqm_interval)] + [paired_difference(values, -values)]
    found.append(spearman_interval(values, values))
    assert all(interval.low > 0.0 for interval in found[:3])
    assert not any(interval.excludes_zero or interval.enough for interval in found)


def test_eight_songs_may_claim():
    assert mean_interval(np.arange(1.0, 9.0)).excludes_zero and mean_interval(-np.arange(1.0, 9.0)).excludes_zero


def test_by_song_counts_songs_once():
    assert by_song([1.0, 5.0, 3.0], ["b", "a", "b"]).tolist() == [2.0, 5.0]
