"""What an episode is played under: future visibility, chunk size and latency, fixed or drawn from sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jamgym.codec import Codec
from jamgym.errors import ConfigError
from jamgym.latency import LatencyModel
from jamgym.latency_trace import TraceLatency
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
            ConfigError: A set is empty, a value is impossible, or a latency trace was recorded with another k.
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
        for model in latency:
            # k and latency are drawn independently: what fits some k only would fail in the middle of a training.
            if isinstance(model, TraceLatency):
                model.check_chunks(k)
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
