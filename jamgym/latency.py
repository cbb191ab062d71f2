"""Latency models: how many ticks each call of an episode takes, drawn in one block.

More models (spikes, recorded traces, a fitted cost a + b*k) need only a class with `draw` and a line in `MODELS`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jamgym.errors import ConfigError, UnknownNameError, unknown_name_message
from jamgym.timing import Ticks, Timing


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
        return np.full(calls, timing.ticks(self.seconds), dtype=np.int64)


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
        seconds = self.median_seconds * np.exp(self.sigma * rng.standard_normal(calls))
        # A day is later than late; the bound keeps sums of ticks inside int64 for any sigma.
        return np.rint(np.minimum(seconds, 86_400.0) * timing.sample_rate).astype(np.int64)


MODELS: dict[str, type] = {"none": NoLatency, "constant": ConstantLatency, "lognormal": LognormalLatency}


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
    model = MODELS[name]
    known = [key for key in inspect.signature(model).parameters if key != "self"]
    for key in arguments:
        if key not in known:
            raise ConfigError(unknown_name_message(f"key of latency model {name!r}", key, known))
    missing = [key for key in known if key not in arguments]
    if missing:
        raise ConfigError(f"latency model {name!r} needs {', '.join(missing)}.")
    made: LatencyModel = model(**arguments)
    return made


def _require(model: str, key: str, value: float, *, positive: bool) -> None:
    """Raise `ConfigError` unless `value` is a finite number >= 0, or > 0."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not np.isfinite(value) or value < 0 or (positive and value == 0):
        bound = "> 0" if positive else ">= 0"
        raise ConfigError(f"{key} of latency model {model!r} is {value!r}; it must be a finite number {bound}.")
