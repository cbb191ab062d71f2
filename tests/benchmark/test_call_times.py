import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jamgym.benchmark.call_times import CallTimes, fit_cost, nearest_live, plain_table, rows, sentences, summarise
from jamgym.errors import ConfigError
from jamgym.latency import CostLatency
from jamgym.timing import Timing


def timing(t_f=-10, k=5):
    return Timing(t_f=t_f, k=k, hop_samples=640, sample_rate=16_000, frames=250, allow_lookahead=True)


def test_percentiles_and_shares_are_those_worked_out_by_hand():
    # 1 to 101 ms: percentiles fall on whole values. A chunk lasts 200 ms, the budget is 400 ms.
    found = summarise(np.arange(1, 102) / 1000, timing())
    assert found.calls == 101
    spread = (found.p50_seconds, found.p95_seconds, found.p99_seconds, found.max_seconds)
    assert spread == pytest.approx((0.051, 0.096, 0.1, 0.101))
    assert found.real_time_factor == pytest.approx(0.051 / 0.2)
    assert found.budget_share == pytest.approx(0.1 / 0.4)
    assert found.slow_calls == 0.0


def test_slow_is_beyond_the_budget_or_the_chunk():
    seconds = np.array([0.01, 0.05, 0.1, 0.3])
    assert summarise(seconds, timing(k=1)).slow_calls == 0.75  # 40 ms a chunk
    assert summarise(seconds, timing(t_f=-2, k=25)).slow_calls == 0.5  # 80 ms of budget
    assert summarise(np.array([0.04]), timing(k=1)).slow_calls == 0.0  # exactly as long is in time


@pytest.mark.parametrize("t_f", [0, 5])
def test_without_a_budget_there_is_no_share_of_it(t_f):
    found = summarise(np.array([0.01]), timing(t_f=t_f))
    assert np.isnan(found.budget_share) and found.slow_calls == 1.0
    assert "no budget" in rows({5: found}, None)[1][0]


def test_the_fit_finds_base_and_slope():
    cost = fit_cost({k: np.full(20, 0.006 + 0.0021 * k) for k in (1, 5, 25)})
    assert (cost.base_seconds, cost.seconds_per_frame) == pytest.approx((0.006, 0.0021))
    assert cost.sigma < 1e-6


def test_the_fit_recovers_jitter_and_survives_outliers():
    rng = np.random.default_rng(0)
    times = {k: (0.006 + 0.002 * k) * np.exp(0.2 * rng.standard_normal(2000)) for k in (1, 5, 25)}
    cost = fit_cost(times)
    assert (cost.base_seconds, cost.seconds_per_frame) == pytest.approx((0.006, 0.002), rel=0.06)
    assert cost.sigma == pytest.approx(0.2, rel=0.03)
    for seconds in times.values():
        seconds[:50] = 10.0
    spoilt = fit_cost(times)
    assert (spoilt.base_seconds, spoilt.seconds_per_frame) == pytest.approx((0.006, 0.002), rel=0.06)


def test_each_chunk_size_weighs_the_same_in_the_jitter():
    rng = np.random.default_rng(0)
    times = {1: np.full(5000, 0.01), 5: 0.05 * np.exp(0.4 * rng.standard_normal(401))}
    assert fit_cost(times).sigma == pytest.approx(0.4 / np.sqrt(2), rel=0.1)


def test_the_fit_is_never_negative():
    # Straight lines through these would have a negative base, or a negative slope.
    rising = fit_cost({1: np.full(3, 0.001), 5: np.full(3, 0.02)})
    assert rising.base_seconds == 0.0 and 0.001 < rising.seconds_per_frame < 0.004
    falling = fit_cost({1: np.full(3, 0.02), 5: np.full(3, 0.01)})
    assert falling.seconds_per_frame == 0.0 and 0.01 < falling.base_seconds < 0.02
    assert fit_cost({1: np.zeros(3), 5: np.zeros(3)}).seconds(5) == pytest.approx(0, abs=1e-8)


def test_one_chunk_size_is_too_few():
    with pytest.raises(ConfigError, match=r"k = \[5\] alone"):
        fit_cost({5: np.full(3, 0.01)})


def test_the_table_is_in_milliseconds_and_says_what_is_late():
    times = CallTimes(100, 0.0123456, 0.02, 0.03, 0.04, 0.25, 0.075, 0.0)
    late = CallTimes(100, 0.5, 0.6, 0.7, 0.8, 2.5, 1.75, 0.255)
    header, body = rows({1: times, 5: late}, CostLatency(0.01, 0.002, 0.1))
    assert all(len(cells) == len(header) for cells in body)
    assert body[0] == ["1", "100", "12.3", "20", "30", "40", "0.25", "7.5 %", "0.0 %", "12"]
    said = sentences({1: times, 5: late}, CostLatency(0.01, 0.002, 0.1))
    assert said[0].startswith("k=1: every") and said[1].startswith("k=5: 25.5 % of the calls exceed")
    assert said[2] == "Cost: 10 ms per call and 2 ms per frame, jitter sigma 0.100."
    assert "No cost.json" in sentences({1: times}, None)[-1]
    assert len({len(line) for line in plain_table(header, body)}) == 1


@given(st.floats(1e-4, 3.0), st.floats(1.0, 5.0), st.integers(0, 2000), st.integers(0, 2000))
def test_the_nearest_t_f_leaves_the_margin_and_the_next_one_does_not(seconds, margin, d_in, d_out):
    shape = {"k": 5, "hop_samples": 640, "sample_rate": 16_000, "frames": 250, "d_in": d_in, "d_out": d_out}
    found = nearest_live(seconds, Timing(t_f=-10, **shape), margin)
    budgets = [Timing(t_f=found + step, **shape, allow_lookahead=True).budget / 16_000 for step in (0, 1)]
    assert budgets[0] >= margin * seconds - 1e-9 and budgets[1] < margin * seconds + 1e-9
