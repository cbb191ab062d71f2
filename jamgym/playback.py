"""What comes out of the speaker: which frames are on time, and what fills the other slots.

A late frame is never played at its own time. Under the late policies "silence", "repeat" and "conceal" its
slot is filled and the music goes on; under "stall" the player waits, and everything after it plays later.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from jamgym.codec import Codes
from jamgym.errors import ConfigError, unknown_name_message
from jamgym.timing import RowTimings, Ticks, Timing

LatePolicy = Literal["silence", "repeat", "conceal", "stall"]
LATE_POLICIES: tuple[LatePolicy, ...] = get_args(LatePolicy)
Salvage = Literal["frame", "chunk"]
SALVAGES: tuple[Salvage, ...] = get_args(Salvage)
Backlog = Literal["queue", "skip"]
BACKLOGS: tuple[Backlog, ...] = get_args(Backlog)

NOTHING, ON_TIME, GAP, REPEATED, CONCEALED, DELAYED = range(6)
"""Status of an output slot: not decided yet (or beyond the end), played as emitted, silent, filled with the last
played frame, the same faded out, played as emitted but after a stall."""
STATUSES = 6
PLAYED_AS_EMITTED = (ON_TIME, DELAYED)

NEVER_EMITTED = -1
"""Lateness of a slot whose frame was never asked for, because its call was skipped."""


@dataclass(frozen=True)
class PlaybackRule:
    """What happens to frames that are not ready in time.

    Attributes:
        late_policy: "silence" leaves a late slot silent; "repeat" plays the last frame that was on time again;
            "conceal" does so with a fade and cross-fades at both ends; "stall" stops the player until the frame
            is there, so that the rest of the episode plays later (the slip is reported).
        salvage: "frame" plays those frames of a late chunk that still meet their own deadline; "chunk" drops a
            chunk whose first frame is late.
        backlog: "queue" makes every call, however late; "skip" jumps to the newest call whose input is there when
            the next one would miss its first deadline, if it took as long as the shorter of the last two. The
            frames between are flagged.

    Raises:
        ConfigError: A value is unknown, or "stall" is combined with a rule that drops frames.
    """

    late_policy: LatePolicy = "silence"
    salvage: Salvage = "frame"
    backlog: Backlog = "queue"

    def __post_init__(self) -> None:
        check_late_policy(self.late_policy)
        if self.salvage not in SALVAGES:
            raise ConfigError(unknown_name_message("salvage", str(self.salvage), SALVAGES))
        if self.backlog not in BACKLOGS:
            raise ConfigError(unknown_name_message("backlog", str(self.backlog), BACKLOGS))
        if self.late_policy == "stall" and (self.salvage, self.backlog) != ("frame", "queue"):
            raise ConfigError(
                f"late_policy='stall' waits for every frame, so salvage={self.salvage!r} and backlog={self.backlog!r} "
                "would never act. Use salvage='frame' and backlog='queue', or another late policy."
            )

    @property
    def fill_status(self) -> int:
        """Status of a late slot once there is a frame to repeat."""
        return {"repeat": REPEATED, "conceal": CONCEALED}.get(self.late_policy, GAP)

    @property
    def irregular(self) -> bool:
        """Whether a call may decide other slots than those of its own chunk."""
        return self.backlog == "skip" or self.late_policy == "stall"

    @property
    def repeats(self) -> bool:
        """Whether a slot without a frame of its own plays the last one that was on time."""
        return self.late_policy in ("repeat", "conceal")


def check_late_policy(name: str) -> LatePolicy:
    """Return `name` if it is a late policy, else raise `ConfigError`."""
    if name not in LATE_POLICIES:
        raise ConfigError(unknown_name_message("late_policy", str(name), LATE_POLICIES))
    return name


@dataclass(frozen=True)
class Chunks:
    """One call of N rows: K is the largest chunk of all rows.

    Attributes:
        emitted: `(N, K, Q)` codes from the agent; never changed.
        first: `(N,)` first frame of each chunk.
        size: `(N,)` frames k of each row, at most K; what lies beyond is padding.
        frames: `(N,)` length T of each row's episode.
        finish: `(N,)` ticks at which the call's output is ready.
        slip: `(N,)` frames by which the player is behind since earlier stalls.
    """

    emitted: Codes
    first: NDArray[np.int64]
    size: NDArray[np.int64]
    frames: NDArray[np.int64]
    finish: Ticks
    slip: NDArray[np.int64]


@dataclass(frozen=True)
class LastPlayed:
    """The newest frame of each row that was on time: `codes` `(N, Q)`, `source` `(N,)`, -1 if there is none yet."""

    codes: Codes
    source: NDArray[np.int64]


@dataclass(frozen=True)
class Slots:
    """Output slots of one call in N rows.

    Attributes:
        first: `(N,)` first of the K slots that follow; after a stall it lies behind the chunk's own first frame.
        codes: `(N, K, Q)` int16, what is played; a gap holds the codec's silence codes.
        source: `(N, K)` int64 frame that is played, or -1 for a gap.
        status: `(N, K)` int8, one of NOTHING (slot >= T, or padding), ON_TIME, GAP, REPEATED, CONCEALED, DELAYED.
        lateness: `(N, K)` int64 ticks by which the emitted frame missed its deadline; 0 if on time.
        stalled: `(N,)` slots that the player has waited before `first`.
    """

    first: NDArray[np.int64]
    codes: Codes
    source: NDArray[np.int64]
    status: NDArray[np.int8]
    lateness: Ticks
    stalled: NDArray[np.int64]


def resolve_slots(
    chunks: Chunks, rule: PlaybackRule, clock: Timing | RowTimings, silence_codes: Codes, last: LastPlayed
) -> Slots:
    """Decide what one call's slots play in N rows.

    Args:
        chunks: What was emitted, and when it was ready.
        rule: What happens to late frames.
        clock: Gives the deadlines.
        silence_codes: `(Q,)` codes that stand for a gap.
        last: For the policies that repeat.
    """
    offsets = np.arange(chunks.emitted.shape[1], dtype=np.int64)
    frame = chunks.first[:, None] + offsets
    nobody = np.zeros(len(chunks.first), dtype=np.int64)
    lateness = chunks.finish[:, None] - clock.deadline(frame)
    if rule.salvage == "chunk":
        # The chunk is due as a whole when its first frame is.
        lateness = np.broadcast_to(lateness[:, :1], frame.shape)
    padding = (offsets >= chunks.size[:, None]) | (frame >= chunks.frames[:, None])
    if rule.late_policy == "stall":
        return _stall(chunks, frame, lateness, clock.hop_samples, silence_codes)
    late = lateness > 0
    codes: Codes = chunks.emitted.astype(np.int16)
    status = np.full(frame.shape, ON_TIME, dtype=np.int8)
    source = frame
    if late.any():
        lateness = np.where(late, lateness, 0)
        fill_codes, fill_source, fill_status = fill_of(rule, silence_codes, last)
        codes = np.where(late[:, :, None], fill_codes[:, None, :], codes)
        status = np.where(late, fill_status[:, None], status)
        source = np.where(late, fill_source[:, None], frame)
    else:
        lateness = np.zeros_like(frame)
    if padding.any():
        codes, status, source, lateness = _blank(padding, codes, status, source, lateness, silence_codes)
    return Slots(chunks.first, codes, source, status, lateness, nobody)


def fill_of(
    rule: PlaybackRule, silence_codes: Codes, last: LastPlayed
) -> tuple[Codes, NDArray[np.int64], NDArray[np.int8]]:
    """Return codes `(N, Q)`, source `(N,)` and status `(N,)` of a slot without a frame of its own."""
    known = (last.source >= 0) & rule.repeats
    codes = np.where(known[:, None], last.codes, silence_codes).astype(np.int16)
    return codes, np.where(known, last.source, -1), np.where(known, rule.fill_status, GAP).astype(np.int8)


def _stall(chunks: Chunks, frame: NDArray[np.int64], lateness: Ticks, hop_samples: int, silence_codes: Codes) -> Slots:
    """Let the player wait, in whole frames, until the chunk's first frame is there; then play all of it."""
    behind = lateness[:, 0] - chunks.slip * hop_samples
    stalled = np.maximum(-(-behind // hop_samples), 0)
    # Waiting ends with the episode: there are T slots, whatever was emitted.
    stalled = np.minimum(stalled, np.maximum(chunks.frames - chunks.first - chunks.slip, 0))
    slip = chunks.slip + stalled
    offsets = frame - chunks.first[:, None]
    padding = (
        (offsets >= chunks.size[:, None])
        | (frame >= chunks.frames[:, None])
        | (frame + slip[:, None] >= chunks.frames[:, None])
    )
    status = np.broadcast_to(np.where(slip > 0, DELAYED, ON_TIME).astype(np.int8)[:, None], frame.shape).copy()
    late = np.broadcast_to((slip * hop_samples)[:, None], frame.shape)
    codes: Codes = chunks.emitted.astype(np.int16)
    codes, status, source, late = _blank(padding, codes, status, frame, late, silence_codes)
    return Slots(chunks.first + slip, codes, source, status, late, stalled)


def _blank(
    padding: NDArray[np.bool_],
    codes: Codes,
    status: NDArray[np.int8],
    source: NDArray[np.int64],
    lateness: Ticks,
    silence_codes: Codes,
) -> tuple[Codes, NDArray[np.int8], NDArray[np.int64], Ticks]:
    """Return the arrays with NOTHING in the slots of mask `padding` `(N, K)`."""
    return (
        np.where(padding[:, :, None], silence_codes, codes).astype(np.int16),
        np.where(padding, np.int8(NOTHING), status),
        np.where(padding, -1, source),
        np.where(padding, 0, lateness),
    )
