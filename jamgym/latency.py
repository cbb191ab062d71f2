"""Latency models: how many ticks each call of an episode takes, drawn in one block.

Another model needs only a class with `draw` and a line in `MODELS`. Recorded latencies are in `jamgym.latency_trace`.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from jamgym.errors import ConfigError, UnknownNameError, unknown_name_message
from jamgym.latency_trace import LONGEST_SECONDS, TraceLatency, read_text
from jamgym.timing import Ticks, Timing

Model = TypeVar("Model")


@runtime_checkable
class LatencyModel(Protocol):
    """Says how long the calls of an episode take."""

    def draw(self, rng: np.random.Generator, calls: int, timing: Timing) -> Ticks:
        """Return `(calls,)` int64 ticks >= 0. `timing` gives k and the sample rate; use no randomness but `rng`."""
        ...


@dataclass(frozen=True)
class NoLatency:
    """Every call takes no time."""

    def draw(self, rng: np.random.Generator, calls: int, timing: Timing) -> Ticks:
        """Return zeros `(calls,)`."""
        return np.zeros(calls, dtype=np.int64)


@dataclass(frozen=True)
class ConstantLatency:
    """Every call takes the same time.

    Args:
        seconds: Time per call, finite and >= 0; rounded to the nearest tick.
    """

    seconds: float

    def __post_init__(self) -> None:
        _require("constant", "seconds", self.seconds, positive=False)

    def draw(self, rng: np.random.Generator, calls: int, timing: Timing) -> Ticks:
        """Return `(calls,)` equal ticks."""
        return np.full(calls, timing.ticks(min(self.seconds, LONGEST_SECONDS)), dtype=np.int64)


@dataclass(frozen=True)
class LognormalLatency:
    """Independent log-normal times: right-skewed, as inference times are.

    Args:
        median_seconds: Median time per call, > 0.
        sigma: Standard deviation of the logarithm, >= 0.
    """

    median_seconds: float
    sigma: float

    def __post_init__(self) -> None:
        _require("lognormal", "median_seconds", self.median_seconds, positive=True)
        _require("lognormal", "sigma", self.sigma, positive=False)

    def draw(self, rng: np.random.Generator, calls: int, timing: Timing) -> Ticks:
        """Return `(calls,)` ticks."""
        return _lognormal_ticks(self.median_seconds, self.sigma, rng.standard_normal(calls), timing)


@dataclass(frozen=True)
class MarkovLatency:
    """Log-normal times with spikes that last: another program, a garbage collection, a busy disk.

    A two-state chain that is in equilibrium from the first call on, so that any call is in a spike with
    probability enter / (enter + leave); a spike lasts 1 / leave calls on average.

    Args:
        median_seconds: Median time per call outside of spikes, > 0.
        spike_median_seconds: Median time per call in a spike, at least `median_seconds`.
        enter_probability: Chance that a call begins a spike when the one before was in none, 0 to 1.
        leave_probability: Chance that a call ends the spike that the one before was in, above 0, at most 1.
        sigma: Standard deviation of the logarithm outside of spikes, >= 0.
        spike_sigma: Standard deviation of the logarithm in a spike, >= 0.
    """

    median_seconds: float
    spike_median_seconds: float
    enter_probability: float
    leave_probability: float
    sigma: float = 0.0
    spike_sigma: float = 0.0

    def __post_init__(self) -> None:
        for key in ("median_seconds", "spike_median_seconds", "leave_probability"):
            _require("markov", key, getattr(self, key), positive=True)
        for key in ("enter_probability", "sigma", "spike_sigma"):
            _require("markov", key, getattr(self, key), positive=False)
        for key in ("enter_probability", "leave_probability"):
            if getattr(self, key) > 1:
                raise ConfigError(f"{key} of latency model 'markov' is {getattr(self, key)!r}; it must be at most 1.")
        if self.spike_median_seconds < self.median_seconds:
            raise ConfigError(
                f"spike_median_seconds of latency model 'markov' is {self.spike_median_seconds!r}, less than "
                f"median_seconds={self.median_seconds!r}; a spike is the slower state."
            )

    def spikes(self, rng: np.random.Generator, calls: int) -> NDArray[np.bool_]:
        """Return `(calls,)`: which calls are in a spike."""
        chance = rng.random(calls)
        from_base, from_spike = chance < self.enter_probability, chance < 1 - self.leave_probability
        equilibrium = self.enter_probability / (self.enter_probability + self.leave_probability)
        from_base[:1] = from_spike[:1] = chance[:1] < equilibrium
        # Most draws lead to one state from both states: what was before the last of these does not matter.
        # After it, a draw keeps the state or (if enter + leave > 1) turns it. So no loop over calls.
        index = np.arange(calls)
        last = np.maximum.accumulate(np.where(from_base == from_spike, index, 0))
        turns = np.cumsum(from_base & ~from_spike)
        return np.logical_xor(from_base[last], (turns - turns[last]) % 2)

    def draw(self, rng: np.random.Generator, calls: int, timing: Timing) -> Ticks:
        """Return `(calls,)` ticks."""
        spikes, normal = self.spikes(rng, calls), rng.standard_normal(calls)
        median = np.where(spikes, self.spike_median_seconds, self.median_seconds)
        return _lognormal_ticks(median, np.where(spikes, self.spike_sigma, self.sigma), normal, timing)


@dataclass(frozen=True)
class CostLatency:
    """Time that grows with the chunk: (a + b * k) times a log-normal jitter.

    Args:
        base_seconds: a, time per call, >= 0.
        seconds_per_frame: b, time per frame of the chunk, >= 0.
        sigma: Standard deviation of the jitter's logarithm, >= 0.
    """

    base_seconds: float
    seconds_per_frame: float
    sigma: float = 0.0

    def __post_init__(self) -> None:
        for key in ("base_seconds", "seconds_per_frame", "sigma"):
            _require("cost", key, getattr(self, key), positive=False)

    @classmethod
    def read(cls, path: str | Path) -> CostLatency:
        """Return the model in a JSON file, as `jamgym profile` writes it; what is under "measured" is not read.

        Raises:
            ConfigError: The file cannot be read, or a value in it is unknown, missing or impossible.
        """
        text = read_text(path, "cost model")
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"The cost model {path} is not JSON: {error}. Write it anew, or correct it.") from error
        if not isinstance(found, dict):
            raise ConfigError(f"The cost model {path} is a {type(found).__name__}; expected an object.")
        found.pop("measured", None)
        try:
            return _build("cost", cls, found)
        except ConfigError as error:
            raise ConfigError(f"In the cost model {path}: {error}") from error

    def seconds(self, k: int) -> float:
        """Return the median time of a call of `k` frames."""
        return self.base_seconds + self.seconds_per_frame * k

    def draw(self, rng: np.random.Generator, calls: int, timing: Timing) -> Ticks:
        """Return `(calls,)` ticks. The last chunk is charged in full, even where the episode cuts it."""
        return _lognormal_ticks(self.seconds(timing.k), self.sigma, rng.standard_normal(calls), timing)


def _make_cost(
    path: str | None = None,
    base_seconds: float | None = None,
    seconds_per_frame: float | None = None,
    sigma: float | None = None,
) -> CostLatency:
    """Return the cost model in a file, or that of the given numbers."""
    given = {"base_seconds": base_seconds, "seconds_per_frame": seconds_per_frame, "sigma": sigma}
    numbers = {key: value for key, value in given.items() if value is not None}
    if path is not None:
        if numbers:
            raise ConfigError(f"latency model 'cost' has a path and {', '.join(numbers)}; give one or the other.")
        return CostLatency.read(path)
    if not numbers:
        raise ConfigError("latency model 'cost' needs path, or base_seconds and seconds_per_frame.")
    return _build("cost", CostLatency, numbers)


MODELS: dict[str, Callable[..., LatencyModel]] = {
    "none": NoLatency,
    "constant": ConstantLatency,
    "lognormal": LognormalLatency,
    "markov": MarkovLatency,
    "cost": _make_cost,
    "trace": TraceLatency,
}


def make_latency(spec: str | Mapping[str, Any] | LatencyModel) -> LatencyModel:
    """Build a latency model from a name, a mapping with "name" and arguments, or return a model as it is.

    Raises:
        UnknownNameError: No such model.
        ConfigError: An argument is unknown, missing or impossible.

    Example:
        >>> make_latency({"name": "constant", "seconds": 0.05})
        ConstantLatency(seconds=0.05)
    """
    if isinstance(spec, str):
        spec = {"name": spec}
    if not isinstance(spec, Mapping):
        if isinstance(spec, LatencyModel):
            return spec
        raise ConfigError(f"latency is a {type(spec).__name__}; give a name, a mapping with 'name', or a LatencyModel.")
    arguments = dict(spec)
    name = arguments.pop("name", None)
    if name is None:
        raise ConfigError(f"latency has no 'name'. Known: {', '.join(sorted(MODELS))}.")
    if name not in MODELS:
        raise UnknownNameError(unknown_name_message("latency model", str(name), MODELS))
    return _build(str(name), MODELS[name], arguments)


def _build(name: str, model: Callable[..., Model], arguments: Mapping[str, Any]) -> Model:
    """Call `model` after checking that it knows all `arguments` and misses none."""
    known = inspect.signature(model).parameters
    for key in arguments:
        if key not in known:
            raise ConfigError(unknown_name_message(f"key of latency model {name!r}", str(key), known))
    missing = [key for key, value in known.items() if value.default is value.empty and key not in arguments]
    if missing:
        raise ConfigError(f"latency model {name!r} needs {', '.join(missing)}.")
    return model(**arguments)


def _lognormal_ticks(
    median: float | NDArray[np.float64], sigma: float | NDArray[np.float64], normal: NDArray[np.float64], timing: Timing
) -> Ticks:
    """Return median * exp(sigma * normal) seconds `(calls,)` in ticks."""
    with np.errstate(over="ignore"):
        seconds = np.minimum(median * np.exp(sigma * normal), LONGEST_SECONDS)
    return np.rint(seconds * timing.sample_rate).astype(np.int64)


def _require(model: str, key: str, value: float, *, positive: bool) -> None:
    """Raise `ConfigError` unless `value` is a finite number >= 0, or > 0."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    # Written so that NaN, infinity and an int beyond floats fail.
    if not number or not 0 <= value <= sys.float_info.max or (positive and value == 0):
        bound = "> 0" if positive else ">= 0"
        raise ConfigError(f"{key} of latency model {model!r} is {value!r}; it must be a finite number {bound}.")
