"""Recorded latencies: a file with one line per call, written whole, read strictly, replayed exactly.

A line is a JSON object such as ``{"call": 0, "seconds": 0.0123125, "ticks": 197, "sample_rate": 16000, "k": 5}``.
``seconds`` alone is enough; ``ticks`` with ``sample_rate`` is exact. Other keys are ignored.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jamgym.errors import ConfigError, nearest, unknown_name_message
from jamgym.files import atomic_path
from jamgym.timing import Ticks, Timing

#: A day is later than late; the bound keeps sums of ticks inside int64.
LONGEST_SECONDS = 86_400.0
STARTS = ("beginning", "random")
_EXAMPLE = '{"seconds": 0.0123, "k": 5}'


@dataclass(frozen=True, eq=False)
class Trace:
    """The latencies of C recorded calls.

    Attributes:
        seconds: `(C,)` float64 seconds >= 0, in the order of the calls.
        k: Frames per call, or None if the file does not say.
    """

    seconds: NDArray[np.float64]
    k: int | None

    def ticks(self, sample_rate: int) -> Ticks:
        """Return `(C,)` int64 ticks of `sample_rate`; at the rate of the recording, exactly the recorded ones."""
        # (n / rate) * rate is off by less than 2**-51 n, so rounding gives n back for all n within a day.
        return np.rint(self.seconds * sample_rate).astype(np.int64)


@dataclass(frozen=True)
class TraceLatency:
    """Replays recorded latencies call by call; an episode with more calls than the trace begins it again.

    Args:
        path: File that `write_trace` or `jamgym profile` has written.
        start: "beginning" starts each episode at the first line, "random" at a line drawn for the episode.

    Raises:
        ConfigError: The file cannot be read or a line is wrong; the message names both.
    """

    path: str | Path
    start: str = "beginning"
    trace: Trace = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.start not in STARTS:
            raise ConfigError(unknown_name_message("start of latency model 'trace'", str(self.start), STARTS))
        object.__setattr__(self, "trace", read_trace(self.path))

    def check_chunks(self, sizes: Iterable[int]) -> None:
        """Refuse a set of chunk `sizes` that is not the one size with which the trace was recorded, if it says one.

        Raises:
            ConfigError: Episodes may be played with another chunk size.
        """
        recorded, asked = self.trace.k, sorted(set(sizes))
        if recorded is None or asked == [recorded]:
            return
        if len(asked) > 1:
            here, mend = f"is drawn from {asked}", f"Give k={recorded} alone, which every episode then has,"
        else:
            here, mend = f"is {asked[0]}", "Take the trace of that k (`jamgym profile` writes one per k)"
        raise ConfigError(
            f"The latency trace {self.path} was recorded with k={recorded} frames per call, but here k {here}. {mend} "
            "or the latency model 'cost'; without 'k' in its lines a trace fits any k."
        )

    def draw(self, rng: np.random.Generator, calls: int, timing: Timing) -> Ticks:
        """Return `(calls,)` ticks.

        Raises:
            ConfigError: The trace was recorded with another chunk size.
        """
        self.check_chunks([timing.k])
        ticks = self.trace.ticks(timing.sample_rate)
        first = int(rng.integers(len(ticks))) if self.start == "random" else 0
        return ticks[(first + np.arange(calls)) % len(ticks)]


def write_trace(path: str | Path, ticks: ArrayLike, sample_rate: int, k: int) -> None:
    """Write a trace, whole or not at all.

    Args:
        path: Where to; an older file is replaced.
        ticks: `(C,)` integer ticks >= 0 of C >= 1 calls.
        sample_rate: Ticks per second.
        k: Frames per call.

    Raises:
        ConfigError: `ticks` has another shape, dtype or range.
        RunError: The file cannot be written.
    """
    values = np.asarray(ticks)
    if min(sample_rate, k) < 1:
        raise ConfigError(f"sample_rate is {sample_rate} and k is {k}; both must be at least 1.")
    if values.ndim != 1 or not values.size or values.dtype.kind not in "iu":
        raise ConfigError(f"ticks are {values.dtype} {values.shape}; expected (C,) integers with C >= 1.")
    if values.min() < 0 or values.max() > LONGEST_SECONDS * sample_rate:
        raise ConfigError(f"ticks are from {values.min()} to {values.max()}; expected 0 to a day of {sample_rate} Hz.")
    rate, frames = int(sample_rate), int(k)
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as stream:
        for call, value in enumerate(values.tolist()):
            row = {"call": call, "seconds": value / rate, "ticks": value, "sample_rate": rate, "k": frames}
            stream.write(json.dumps(row) + "\n")


def read_trace(path: str | Path) -> Trace:
    """Return the trace in the file `path`; empty lines are skipped.

    Raises:
        ConfigError: There is no such file, nothing in it, or a line is broken, negative or not finite.
    """
    text = read_text(path, "latency trace")
    seconds: list[float] = []
    chunk: int | None = None
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"Line {number} of the latency trace {path}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise ConfigError(f"{where} is {_short(line)}; expected one JSON object per line, such as {_EXAMPLE}.")
        seconds.append(_seconds_of(row, where))
        k = _whole(row["k"], "k", 1, where) if row.get("k") is not None else chunk
        if len(seconds) > 1 and k != chunk:
            raise ConfigError(f"{where} has k={k}, but those before have k={chunk}. Put each k into a file of its own.")
        chunk = k
    if not seconds:
        raise ConfigError(f"The latency trace {path} has no lines. Record it again, for example with `jamgym profile`.")
    return Trace(np.array(seconds, dtype=np.float64), chunk)


def read_text(path: str | Path, what: str) -> str:
    """Return the text of the file `path`.

    Raises:
        ConfigError: It cannot be read; the message says that it is a `what` and who writes such files.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise ConfigError(f"The path of the {what} is {path!r}; it must be text.")
    try:
        # A byte that is not UTF-8 becomes a character that no JSON parser accepts outside of strings.
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"Cannot read the {what} {path}: {reason}. Check the path, or write such a file with `jamgym profile`."
        ) from error


def _seconds_of(row: dict[str, Any], where: str) -> float:
    """Return the time in a line's object; ticks come before seconds, because they are exact."""
    given = row.get("seconds")
    number = isinstance(given, (int, float)) and not isinstance(given, bool)
    # Written so that NaN fails too.
    if given is not None and not (number and 0 <= given <= LONGEST_SECONDS):
        raise ConfigError(
            f"{where} has seconds={_short(given)}; expected a finite number from 0 to {LONGEST_SECONDS:.0f}. Correct "
            "or delete the line."
        )
    if row.get("ticks") is None:
        if given is None:
            close = nearest("seconds", row)
            hint = f" Is {close!r} meant to be 'seconds'?" if close else ""
            raise ConfigError(f"{where} has neither 'seconds' nor 'ticks'.{hint} Expected a line such as {_EXAMPLE}.")
        return float(given)
    rate = _whole(row.get("sample_rate"), "sample_rate", 1, where)
    ticks = _whole(row["ticks"], "ticks", 0, where)
    if ticks > LONGEST_SECONDS * rate:
        raise ConfigError(f"{where} has ticks={_short(ticks)}, longer than a day. Correct or delete the line.")
    if given is not None and abs(given - ticks / rate) > 1 / rate:
        raise ConfigError(f"{where} has seconds={given}, but {ticks} ticks are {ticks / rate} s. Delete one of them.")
    return ticks / rate


def _whole(value: Any, key: str, least: int, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(
            f"{where} has {key}={_short(value)}; expected a whole number >= {least}. Correct or delete the line."
        )
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
