"""What comes out of the speaker: which frames are on time, what fills the other slots, and the log of both.

A late frame is never played late. Frames of a late chunk whose own deadline is still met are played.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from jamgym.codec import Codes
from jamgym.errors import ConfigError, unknown_name_message
from jamgym.timing import Ticks, Timing

LatePolicy = Literal["silence", "repeat"]
LATE_POLICIES: tuple[LatePolicy, ...] = get_args(LatePolicy)

NOTHING, ON_TIME, GAP, REPEATED = 0, 1, 2, 3
"""Status of an output slot: not decided yet, played as emitted, silent, filled with the last played frame."""


@dataclass(frozen=True)
class Slots:
    """Output slots of one call in N rows.

    Attributes:
        codes: `(N, k, Q)` what is played; a gap holds the codec's silence codes.
        source: `(N, k)` int64 frame that is played, or -1 for a gap.
        status: `(N, k)` int8, one of NOTHING (frame >= T), ON_TIME, GAP, REPEATED.
        lateness: `(N, k)` int64 ticks by which the emitted frame missed its deadline; 0 if on time.
    """

    codes: Codes
    source: NDArray[np.int64]
    status: NDArray[np.int8]
    lateness: Ticks


def check_late_policy(name: str) -> LatePolicy:
    """Return `name` if it is a late policy, else raise `ConfigError`."""
    if name not in LATE_POLICIES:
        raise ConfigError(unknown_name_message("late_policy", name, LATE_POLICIES))
    return name


def resolve_slots(
    finish: Ticks,
    first_frame: NDArray[np.int64],
    emitted: Codes,
    frames: NDArray[np.int64],
    timing: Timing,
    late_policy: LatePolicy,
    silence_codes: Codes,
    last_codes: Codes,
    last_source: NDArray[np.int64],
) -> Slots:
    """Decide what one call's slots play in N rows.

    Args:
        finish: `(N,)` ticks at which the call's output is ready.
        first_frame: `(N,)` first frame of each chunk.
        emitted: `(N, k, Q)` codes from the agent; never changed.
        frames: `(N,)` length T of each row's episode; slots from T on are NOTHING.
        timing: Gives k and the deadlines.
        late_policy: "silence" leaves a late slot silent; "repeat" plays the last played frame again.
        silence_codes: `(Q,)` codes that stand for a gap.
        last_codes: `(N, Q)` codes of the last frame that was played on time, for "repeat".
        last_source: `(N,)` index of that frame, or -1 if there is none yet.
    """
    offsets = np.arange(emitted.shape[1], dtype=np.int64)
    slots = first_frame[:, None] + offsets
    lateness = finish[:, None] - timing.deadline(slots)
    late = lateness > 0
    beyond = slots >= frames[:, None]
    if not late.any():
        # The common case copies nothing but the codes.
        codes = emitted.astype(np.int16)
        status = np.full(slots.shape, ON_TIME, dtype=np.int8)
        source = slots
        lateness = np.zeros_like(slots)
    else:
        lateness = np.where(late, lateness, 0)
        if late_policy == "repeat":
            can_repeat = last_source >= 0
            fill = np.where(can_repeat[:, None], last_codes, silence_codes)
            fill_status = np.where(can_repeat, REPEATED, GAP).astype(np.int8)
            fill_source = last_source
        else:
            fill = np.broadcast_to(silence_codes, last_codes.shape)
            fill_status = np.full(len(finish), GAP, dtype=np.int8)
            fill_source = np.full(len(finish), -1, dtype=np.int64)
        codes = np.where(late[:, :, None], fill[:, None, :], emitted).astype(np.int16)
        status = np.where(late, fill_status[:, None], np.int8(ON_TIME))
        source = np.where(late, fill_source[:, None], slots)
    if beyond.any():
        codes[beyond] = silence_codes
        status[beyond] = NOTHING
        source[beyond] = -1
        lateness[beyond] = 0
    return Slots(codes=codes, source=source, status=status, lateness=lateness)


@dataclass(frozen=True)
class EventLog:
    """One episode's calls and slots so far. All times are ticks; the same log serves every clock.

    Attributes:
        release, start, finish, latency: `(calls,)` of each call made.
        source: `(slots,)` frame played in each slot, or -1.
        status: `(slots,)` int8 ON_TIME, GAP or REPEATED.
        lateness: `(slots,)` ticks by which the emitted frame was late.
    """

    release: Ticks
    start: Ticks
    finish: Ticks
    latency: Ticks
    source: NDArray[np.int64]
    status: NDArray[np.int8]
    lateness: Ticks

    @property
    def late_frames(self) -> int:
        """Number of emitted frames that missed their deadline."""
        return int(np.count_nonzero(self.lateness))

    @property
    def underruns(self) -> int:
        """Number of slots with nothing to play."""
        return int(np.count_nonzero(self.status == GAP))

    @property
    def longest_gap(self) -> int:
        """Slots of the longest run without an on-time frame."""
        bad = np.concatenate([[False], self.status != ON_TIME, [False]]).astype(np.int8)
        edges = np.flatnonzero(np.diff(bad))
        return int((edges[1::2] - edges[::2]).max(initial=0))

    @property
    def response(self) -> Ticks:
        """`(calls,)` ticks from release to finish: waiting counts, as coordinated omission would hide it."""
        return self.finish - self.release


class EventLogBook:
    """Append-only log of N rows, in preallocated arrays.

    Args:
        rows: Number of rows N.
        calls: Room for so many calls a row.
        k: Slots per call.
    """

    def __init__(self, rows: int, calls: int, k: int) -> None:
        self.k = k
        self.call_ticks = np.zeros((4, rows, calls), dtype=np.int64)
        self.source = np.full((rows, calls, k), -1, dtype=np.int64)
        self.status = np.zeros((rows, calls, k), dtype=np.int8)
        self.lateness = np.zeros((rows, calls, k), dtype=np.int64)
        self.count = np.zeros(rows, dtype=np.int64)
        self._rows = np.arange(rows)

    def append(self, release: Ticks, start: Ticks, finish: Ticks, latency: Ticks, slots: Slots) -> None:
        """Add one call to every row; each time array is `(N,)`."""
        at = (self._rows, self.count)
        for part, value in zip(self.call_ticks, (release, start, finish, latency), strict=True):
            part[at] = value
        self.source[at] = slots.source
        self.status[at] = slots.status
        self.lateness[at] = slots.lateness
        self.count += 1

    def copy_from(self, other: EventLogBook) -> None:
        """Take over the calls of a smaller book of as many rows."""
        calls = other.source.shape[1]
        self.call_ticks[:, :, :calls] = other.call_ticks
        self.source[:, :calls] = other.source
        self.status[:, :calls] = other.status
        self.lateness[:, :calls] = other.lateness
        self.count[:] = other.count

    def clear(self, rows: NDArray[np.int64]) -> None:
        """Forget the calls of `rows`."""
        self.count[rows] = 0

    def row(self, row: int, frames: int) -> EventLog:
        """Return a copy of one row's log of an episode of `frames` frames."""
        calls = min(int(self.count[row]), -(-frames // self.k))
        slots = min(calls * self.k, frames)
        release, start, finish, latency = self.call_ticks[:, row, :calls].copy()
        return EventLog(
            release=release,
            start=start,
            finish=finish,
            latency=latency,
            source=self.source[row, :calls].reshape(-1)[:slots].copy(),
            status=self.status[row, :calls].reshape(-1)[:slots].copy(),
            lateness=self.lateness[row, :calls].reshape(-1)[:slots].copy(),
        )
