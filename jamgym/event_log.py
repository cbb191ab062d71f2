"""The event log: every call and every output slot of an episode. One log serves every clock."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jamgym.playback import GAP, NEVER_EMITTED, ON_TIME, PLAYED_AS_EMITTED
from jamgym.timing import Ticks, Timing


@dataclass(frozen=True)
class EventLog:
    """One episode's calls and slots so far. All times are ticks.

    Attributes:
        call: `(calls,)` index i of each call made; indices that are missing were skipped.
        first_slot: `(calls,)` first output slot that each call decided.
        release, start, finish, latency: `(calls,)` of each call made.
        source: `(slots,)` frame played in each slot, or -1.
        status: `(slots,)` int8, see `jamgym.playback`.
        lateness: `(slots,)` ticks by which the emitted frame was late; NEVER_EMITTED (-1) where its call was skipped.
    """

    call: NDArray[np.int64]
    first_slot: NDArray[np.int64]
    release: Ticks
    start: Ticks
    finish: Ticks
    latency: Ticks
    source: NDArray[np.int64]
    status: NDArray[np.int8]
    lateness: Ticks

    @property
    def late_frames(self) -> int:
        """Number of slots whose frame missed its deadline."""
        return int(np.count_nonzero(self.lateness > 0))

    @property
    def underruns(self) -> int:
        """Number of slots with nothing to play."""
        return int(np.count_nonzero(self.status == GAP))

    @property
    def skipped_frames(self) -> int:
        """Number of frames that were never asked for, because their call was skipped."""
        return int(np.count_nonzero(self.lateness == NEVER_EMITTED))

    @property
    def longest_gap(self) -> int:
        """Slots of the longest run in which nothing was played as it was emitted."""
        bad = np.concatenate([[False], ~np.isin(self.status, PLAYED_AS_EMITTED), [False]]).astype(np.int8)
        edges = np.flatnonzero(np.diff(bad))
        return int((edges[1::2] - edges[::2]).max(initial=0))

    @property
    def response(self) -> Ticks:
        """`(calls,)` ticks from release to finish: waiting counts, as coordinated omission would hide it."""
        return self.finish - self.release

    def slots_of(self, position: int) -> slice:
        """Return the slots that the call at `position` of the log decided, skipped ones after it included."""
        last = position + 1 == len(self.call)
        return slice(int(self.first_slot[position]), len(self.status) if last else int(self.first_slot[position + 1]))


class EventLogBook:
    """Append-only log of N rows, in preallocated arrays.

    A slot counts as played on time, from its own frame, until something else is written; so the common case
    writes nothing. Slots lie behind `pad` slots that stay empty, so that a window that reaches back beyond the
    start needs no mask.

    Args:
        rows: Number of rows N.
        calls: Room for so many calls a row.
        slots: Room for so many slots a row.
        pad: Empty slots in front.
    """

    def __init__(self, rows: int, calls: int, slots: int, pad: int = 0) -> None:
        self.pad = pad
        self._calls = np.zeros((rows, calls, 4), dtype=np.int64)
        self.source = np.full((rows, pad + slots), -1, dtype=np.int64)
        self.status = np.zeros((rows, pad + slots), dtype=np.int8)
        self.lateness = np.zeros((rows, pad + slots), dtype=np.int64)
        self.count = np.zeros(rows, dtype=np.int64)
        self._rows = np.arange(rows)
        self.clear(self._rows)

    def append(self, call: NDArray[np.int64], first_slot: NDArray[np.int64], start: Ticks, finish: Ticks) -> None:
        """Add one call to every row; all arrays are `(N,)`."""
        self._calls[self._rows, self.count] = np.array((call, first_slot, start, finish)).T
        self.count += 1

    def copy_from(self, other: EventLogBook) -> None:
        """Take over the calls and slots of a smaller book of as many rows."""
        self._calls[:, : other._calls.shape[1]] = other._calls
        for mine, old in ((self.source, other.source), (self.status, other.status), (self.lateness, other.lateness)):
            mine[:, : old.shape[1]] = old
        self.count[:] = other.count

    def clear(self, rows: NDArray[np.int64]) -> None:
        """Forget the calls and slots of `rows`."""
        self.count[rows] = 0
        self.source[rows, self.pad :] = np.arange(self.source.shape[1] - self.pad)
        self.status[rows, self.pad :] = ON_TIME
        self.lateness[rows] = 0

    def row(self, row: int, slots: int, timing: Timing) -> EventLog:
        """Return a copy of one row's calls and of its first `slots` slots; `timing` is that of its episode."""
        call, first_slot, start, finish = self._calls[row, : self.count[row]].T.copy()
        decided = slice(self.pad, self.pad + slots)
        return EventLog(
            call=call,
            first_slot=first_slot,
            release=timing.release(call),
            start=start,
            finish=finish,
            latency=finish - start,
            source=self.source[row, decided].copy(),
            status=self.status[row, decided].copy(),
            lateness=self.lateness[row, decided].copy(),
        )
