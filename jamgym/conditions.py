"""What an episode is played under: future visibility, chunk size and latency, fixed or drawn from sets.

Each row of a simulation may have its own; the formulas of `jamgym.timing` hold row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jamgym.codec import Codec
from jamgym.errors import ConfigError
from jamgym.latency import LatencyModel
from jamgym.timing import Timing


@dataclass(frozen=True)
class Conditions:
    """The sets from which each episode draws, uniformly and independently, its t_f, k and latency model.

    Attributes:
        timings: `timings[a][b]` has the a-th t_f and the b-th k.
        latency: Latency models.
    """

    timings: tuple[tuple[Timing, ...], ...]
    latency: tuple[LatencyModel, ...]

    @classmethod
    def make(
        cls,
        codec: Codec,
        t_f: Sequence[int],
        k: Sequence[int],
        latency: Sequence[LatencyModel],
        frames: int,
        *,
        capture_samples: int = 0,
        output_samples: int = 0,
        allow_lookahead: bool = False,
    ) -> Conditions:
        """Build every combination, so that an impossible one is refused at once.

        Raises:
            ConfigError: A set is empty, or a value is impossible.
            LookaheadError: A t_f cannot be played live and look-ahead is not allowed.
        """
        for name, values in (("t_f", t_f), ("k", k), ("latency", latency)):
            if len(values) == 0:
                raise ConfigError(f"The set of {name} is empty; give at least one value to draw from.")
        timings = tuple(
            tuple(
                Timing.of(
                    codec,
                    ahead,
                    size,
                    frames,
                    capture_samples=capture_samples,
                    output_samples=output_samples,
                    allow_lookahead=allow_lookahead,
                )
                for size in k
            )
            for ahead in t_f
        )
        return cls(timings, tuple(latency))

    @property
    def base(self) -> Timing:
        """The first combination; hop, rate, d_in, d_out and T are those of all."""
        return self.timings[0][0]

    @property
    def fixed_timing(self) -> bool:
        """Whether all episodes have the same t_f and k."""
        return len(self.timings) * len(self.timings[0]) == 1

    @property
    def t_f(self) -> tuple[int, ...]:
        """The future visibilities."""
        return tuple(row[0].t_f for row in self.timings)

    @property
    def k(self) -> tuple[int, ...]:
        """The chunk sizes."""
        return tuple(timing.k for timing in self.timings[0])

    def draw(self, rng: np.random.Generator) -> tuple[Timing, int]:
        """Draw the timing and the number of the latency model of one episode."""
        if self.fixed_timing and len(self.latency) == 1:
            return self.base, 0
        a, b, c = (int(rng.integers(size)) for size in (len(self.timings), len(self.timings[0]), len(self.latency)))
        return self.timings[a][b], c


class RowTimings:
    """The clock of N rows, each with its own t_f and k: the formulas of `Timing` over arrays.

    Args:
        rows: Number of rows N.
        base: Gives hop, d_in and d_out, and the t_f and k that rows start with.
    """

    def __init__(self, rows: int, base: Timing) -> None:
        self.hop_samples, self.d_in, self.d_out = base.hop_samples, base.d_in, base.d_out
        self.t_f = np.full(rows, base.t_f, dtype=np.int64)
        self.k = np.full(rows, base.k, dtype=np.int64)
        self._derive()

    def set(self, row: int, timing: Timing) -> None:
        """Give `row` the t_f and k of `timing`."""
        if self.t_f[row] != timing.t_f or self.k[row] != timing.k:
            self.t_f[row], self.k[row] = timing.t_f, timing.k
            self._derive()

    def _derive(self) -> None:
        self._ticks = self.k * self.hop_samples
        self._early = np.minimum(self.t_f * self.hop_samples + self.d_in, -self.d_out)

    def visible(self, call: NDArray[np.int64], frames: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return V(i) `(N,)` of call i `(N,)` of episodes of `frames` `(N,)` frames."""
        return np.minimum(np.maximum(call * self.k + self.t_f, 0), frames)

    def release(self, call: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return R(i) `(N,)` in ticks; for oracles see `Timing.release`."""
        return call * self._ticks + self._early

    def deadline(self, frame: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return D(n) `(N,)` in ticks."""
        return frame * self.hop_samples - self.d_out

    def newest_released(self, now: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the newest call `(N,)` with R(i) <= `now`; -1 or less where there is none."""
        return (now - self._early) // self._ticks

    def calls(self, frames: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of calls `(N,)` that emit `frames` `(N,)` frames."""
        return -(-frames // self.k)
