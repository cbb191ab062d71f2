"""What measured call times say: percentiles, shares of the budget, and the cost model a + b * k. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jamgym.errors import ConfigError
from jamgym.latency import CostLatency
from jamgym.timing import Timing

#: Times below the resolution of clocks count as this much where their logarithm is taken.
_SHORTEST_SECONDS = 1e-9
#: How many times a call's p99 fits into what live play leaves, where a machine keeps up for sure.
MARGIN = 2.0


@dataclass(frozen=True)
class CallTimes:
    """The times of the calls of one chunk size.

    Attributes:
        calls: Number of measured calls.
        p50_seconds: Median time per call.
        p95_seconds: 95th percentile.
        p99_seconds: 99th percentile.
        max_seconds: Longest call.
        real_time_factor: Median time per call over the time that a chunk lasts; from 1 on, calls fall behind.
        budget_share: 99th percentile over the latency budget; NaN without a budget (B <= 0).
        slow_calls: Share of calls longer than the budget or than a chunk lasts; at 0 no frame is ever late.
    """

    calls: int
    p50_seconds: float
    p95_seconds: float
    p99_seconds: float
    max_seconds: float
    real_time_factor: float
    budget_share: float
    slow_calls: float


def summarise(seconds: NDArray[np.float64], timing: Timing) -> CallTimes:
    """Return what `(C,)` times per call mean under `timing`, C >= 1.

    Example:
        >>> timing = Timing(t_f=-10, k=5, hop_samples=640, sample_rate=16000, frames=250)
        >>> found = summarise(np.array([0.05, 0.1, 0.1, 0.3]), timing)
        >>> found.p50_seconds, found.real_time_factor, found.slow_calls
        (0.1, 0.5, 0.25)
    """
    p50, p95, p99 = np.percentile(seconds, [50, 95, 99]).tolist()
    chunk, budget = timing.seconds(timing.k * timing.hop_samples), timing.seconds(timing.budget)
    return CallTimes(
        calls=len(seconds),
        p50_seconds=p50,
        p95_seconds=p95,
        p99_seconds=p99,
        max_seconds=float(seconds.max()),
        real_time_factor=p50 / chunk,
        budget_share=p99 / budget if budget > 0 else float("nan"),
        slow_calls=float(np.mean(seconds > min(budget, chunk))),
    )


def nearest_live(p99_seconds: float, timing: Timing, margin: float = MARGIN) -> int:
    """Return the largest t_f whose latency budget is at least `margin` times `p99_seconds`.

    Example:
        >>> timing = Timing(t_f=-25, k=5, hop_samples=640, sample_rate=16000, frames=250)
        >>> nearest_live(0.042, timing)  # frames of 40 ms
        -3
    """
    needed = margin * p99_seconds * timing.sample_rate + timing.d_in + timing.d_out
    return -math.ceil(needed / timing.hop_samples)


def fit_cost(times: Mapping[int, NDArray[np.float64]]) -> CostLatency:
    """Fit a + b * k to the medians by least squares of relative errors, a and b >= 0.

    Medians, because a few calls always meet another program; relative errors, because else the largest k
    would decide alone. The jitter is the root mean square of log(time / (a + b * k)), each k weighing the same.

    Args:
        times: Chunk size k to `(C,)` seconds per call, for at least two k.

    Raises:
        ConfigError: There are fewer than two chunk sizes.

    Example:
        >>> fit_cost({1: np.full(9, 0.012), 5: np.full(9, 0.02), 25: np.full(9, 0.06)}).seconds(10)
        0.03
    """
    from scipy.optimize import nnls

    if len(times) < 2:
        raise ConfigError(f"A cost a + b * k cannot be fitted to k = {list(times)} alone; measure at least two k.")
    chunks = np.array(list(times), dtype=np.float64)
    medians = np.array([max(float(np.median(seconds)), _SHORTEST_SECONDS) for seconds in times.values()])
    design = np.stack([np.ones_like(chunks), chunks], axis=1) / medians[:, None]
    base, per_frame = nnls(design, np.ones_like(chunks))[0].tolist()
    squares = [
        np.mean(np.square(np.log(np.maximum(seconds, _SHORTEST_SECONDS) / (base + per_frame * k))))
        for k, seconds in times.items()
    ]
    # Twelve digits: more would be noise of the solver.
    return CostLatency(*(float(f"{value:.12g}") for value in (base, per_frame, float(np.sqrt(np.mean(squares))))))


def rows(found: Mapping[int, CallTimes], cost: CostLatency | None) -> tuple[list[str], list[list[str]]]:
    """Return the header and one row of cells per chunk size; times in milliseconds."""
    header = ["k", "calls", "p50 ms", "p95 ms", "p99 ms", "max ms", "real-time factor", "p99 of budget", "slow calls"]
    if cost is not None:
        header.append("a + b k ms")
    body = []
    for k, times in found.items():
        spread = (times.p50_seconds, times.p95_seconds, times.p99_seconds, times.max_seconds)
        share = f"{100 * times.budget_share:.3g} %" if np.isfinite(times.budget_share) else "no budget"
        cells = [str(k), str(times.calls), *map(_ms, spread), f"{times.real_time_factor:.3g}", share]
        cells.append(f"{100 * times.slow_calls:.1f} %")
        body.append(cells if cost is None else [*cells, _ms(cost.seconds(k))])
    return header, body


def sentences(found: Mapping[int, CallTimes], cost: CostLatency | None) -> list[str]:
    """Say what was found, one sentence each."""
    lines = []
    for k, times in found.items():
        if times.slow_calls == 0:
            lines.append(f"k={k}: every measured call fits the budget and its chunk, so no frame would be late.")
        else:
            lines.append(f"k={k}: {100 * times.slow_calls:.1f} % of the calls exceed the budget or their chunk.")
    if cost is not None:
        lines.append(
            f"Cost: {_ms(cost.base_seconds)} ms per call and {_ms(cost.seconds_per_frame)} ms per frame, "
            f"jitter sigma {cost.sigma:.3f}."
        )
    else:
        lines.append("No cost.json: a + b * k needs at least two chunk sizes.")
    return lines


def plain_table(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table for a terminal, columns flush right.

    >>> plain_table(["k", "p50 ms"], [["25", "3"]])
    [' k  p50 ms', '25       3']
    """
    widths = [max(map(len, column)) for column in zip(header, *body, strict=True)]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)) for cells in (header, *body)
    ]


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g}"
