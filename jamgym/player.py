"""The player: decides what each output slot plays, writes it down, and counts what was missed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from jamgym.codec import Codes
from jamgym.event_log import EventLogBook
from jamgym.playback import (
    GAP,
    NEVER_EMITTED,
    NOTHING,
    ON_TIME,
    Chunks,
    LastPlayed,
    PlaybackRule,
    Slots,
    fill_of,
    resolve_slots,
)
from jamgym.timing import RowTimings, Ticks

Rows = NDArray[np.int64]


class Player:
    """The loudspeaker side of N rows.

    Args:
        clock: The rows' t_f, k and delays.
        rule: What happens to late frames.
        chunk: Largest k of all rows, K.
        one_size: Whether every episode has this k.
        silence_codes: `(Q,)` codes that stand for a gap.
        pad: Empty slots kept before slot 0, for observations that reach back beyond the start.
    """

    def __init__(
        self, clock: RowTimings, rule: PlaybackRule, chunk: int, one_size: bool, silence_codes: Codes, pad: int
    ) -> None:
        rows, q = len(clock.k), len(silence_codes)
        self.rule = rule
        self.pad = pad
        self.chunk = chunk
        self.silence_codes = silence_codes
        self._clock = clock
        self._one_size = one_size
        self._row_index = np.arange(rows, dtype=np.int64)
        self._offsets = np.arange(pad, pad + chunk, dtype=np.int64)
        self._all_on_time = np.full((rows, chunk), ON_TIME, dtype=np.int8)
        #: Output slots that are decided, now and before the last call.
        self.cursor = np.zeros(rows, dtype=np.int64)
        self.cursor_before = np.zeros(rows, dtype=np.int64)
        #: Frames by which a stalled player is behind; frames skipped just before the coming call.
        self.slip = np.zeros(rows, dtype=np.int64)
        self.skipped = np.zeros(rows, dtype=np.int64)
        self.late_frames = np.zeros(rows, dtype=np.int64)
        self.skipped_frames = np.zeros(rows, dtype=np.int64)
        self.underruns = np.zeros(rows, dtype=np.int64)
        #: Codes `(N, K, Q)` and status `(N, K)` of the last chunk's slots.
        self.chunk_codes: Codes = np.zeros((rows, chunk, q), dtype=np.int16)
        self.chunk_status = np.zeros((rows, chunk), dtype=np.int8)
        self._last = LastPlayed(np.zeros((rows, q), dtype=np.int16), np.full(rows, -1, dtype=np.int64))
        #: Codes `(N, pad + slots, Q)` of every slot, and the log of calls and slots.
        self.played: Codes = np.zeros((rows, 0, q), dtype=np.int16)
        self.log = EventLogBook(rows, 0, 0, pad)

    def grow(self, frames: int, calls: int) -> None:
        """Make room for episodes of `frames` frames in `calls` calls; episodes under way are kept."""
        # Two chunks beyond the end stay inside the arrays, so no step needs a bound check.
        rows, slots = len(self._row_index), frames + 2 * self.chunk
        played = np.empty((rows, self.pad + slots, len(self.silence_codes)), dtype=np.int16)
        played[:] = self.silence_codes
        played[:, : self.played.shape[1]] = self.played
        log = EventLogBook(rows, calls, slots, self.pad)
        log.copy_from(self.log)
        self.played, self.log = played, log

    def reset(self, rows: Rows) -> None:
        """Forget what `rows` have played."""
        self.played[rows] = self.silence_codes
        self.log.clear(rows)
        for counter in (
            self.cursor,
            self.cursor_before,
            self.slip,
            self.skipped,
            self.late_frames,
            self.skipped_frames,
            self.underruns,
        ):
            counter[rows] = 0
        # Copies, since each of these may be an array that is shared.
        self.chunk_codes, self.chunk_status = self.chunk_codes.copy(), self.chunk_status.copy()
        self.chunk_codes[rows], self.chunk_status[rows] = self.silence_codes, NOTHING
        self._last = LastPlayed(self._last.codes.copy(), self._last.source.copy())
        self._last.codes[rows], self._last.source[rows] = self.silence_codes, -1

    def play(
        self, call: Rows, emitted: Codes, start: Ticks, finish: Ticks, latency_before: Ticks, frames: Rows, calls: Rows
    ) -> Rows:
        """Play what one call of every row emitted.

        Args:
            call: `(N,)` index of the call.
            emitted: `(N, K, Q)` codes.
            start: `(N,)` ticks at which it began.
            finish: `(N,)` ticks at which it was ready.
            latency_before: `(N,)` ticks that the call before took.
            frames: `(N,)` frames of each row's episode.
            calls: `(N,)` calls of each row's episode.

        Returns:
            `(N,)` index of the coming call.
        """
        clock = self._clock
        first = call * clock.k
        self.log.append(call, self.cursor, start, finish)
        if self._one_size and not self.slip.any() and self._in_time(first, finish, frames):
            after = self._play_as_emitted(emitted, first)
        else:
            after = self._play(Chunks(emitted, first, clock.k, frames, finish, self.slip))
        following = call + 1
        if self.rule.backlog == "skip":
            following = self._skip(following, finish, np.minimum(finish - start, latency_before), calls)
            after = np.maximum(after, np.minimum(following * clock.k, frames))
        self.cursor, self.cursor_before = after, self.cursor
        return following

    def _in_time(self, first: Rows, finish: Ticks, frames: Rows) -> bool:
        """Whether every frame of every chunk lies in its episode and meets its deadline."""
        due = (finish <= self._clock.deadline(first)).all()
        return bool(due) and bool((first + self.chunk <= frames).all())

    def _play_as_emitted(self, emitted: Codes, first: Rows) -> Rows:
        """Play whole chunks in their own slots, which is what the log says until it is told otherwise."""
        codes = emitted.astype(np.int16)
        self.played[self._row_index[:, None], first[:, None] + self._offsets] = codes
        self.chunk_codes, self.chunk_status = codes, self._all_on_time
        after = first + self.chunk
        if self.rule.repeats:
            self._last = LastPlayed(codes[:, -1], after - 1)
        return after

    def _play(self, chunks: Chunks) -> Rows:
        """Decide frame by frame what plays, write it, and return the slots `(N,)` that are decided now."""
        clock = self._clock
        slots = resolve_slots(chunks, self.rule, clock, self.silence_codes, self._last)
        self._write(slots)
        if self.rule.repeats:
            self._remember(chunks, slots)
        return np.minimum(slots.first + clock.k, chunks.frames)

    def _write(self, slots: Slots) -> None:
        """Put one call's slots where they belong, and count what was late."""
        if slots.stalled.any():
            rows = len(self._row_index)
            nothing = (self.silence_codes, np.full(rows, -1), np.full(rows, GAP, dtype=np.int8))
            self.slip = self.slip + slots.stalled
            self._fill(slots.first - slots.stalled, slots.first, *nothing, self.slip * self._clock.hop_samples)
            self.late_frames = self.late_frames + slots.stalled
            self.underruns = self.underruns + slots.stalled
        at = (self._row_index[:, None], slots.first[:, None] + self._offsets)
        self.played[at] = slots.codes
        self.log.status[at] = slots.status
        self.log.source[at] = slots.source
        self.log.lateness[at] = slots.lateness
        self.chunk_codes, self.chunk_status = slots.codes, slots.status
        if slots.lateness.any():
            self.late_frames = self.late_frames + np.count_nonzero(slots.lateness, axis=1)
            self.underruns = self.underruns + np.count_nonzero(slots.status == GAP, axis=1)

    def _remember(self, chunks: Chunks, slots: Slots) -> None:
        """Keep each row's newest on-time frame; frames are late from the front, so it is the chunk's last one."""
        last = np.clip(chunks.frames - chunks.first, 1, self._clock.k) - 1
        codes = slots.codes[self._row_index, last]
        fresh = slots.status[self._row_index, last] == ON_TIME
        self._last = LastPlayed(
            np.where(fresh[:, None], codes, self._last.codes), np.where(fresh, chunks.first + last, self._last.source)
        )

    def _skip(self, following: Rows, finish: Ticks, expected: Ticks, calls: Rows) -> Rows:
        """Return the coming calls `(N,)`: later ones where `following` would miss its deadline.

        `expected` is the shorter latency of the last two calls: what a lasting load costs, but not a lone spike.
        """
        clock = self._clock
        hopeless = finish + expected > clock.deadline(following * clock.k)
        newest = np.minimum(clock.newest_released(finish), calls - 1)
        coming = np.where(hopeless, np.maximum(newest, following), following)
        self.skipped = (coming - following) * clock.k
        if self.skipped.any():
            fill = fill_of(self.rule, self.silence_codes, self._last)
            flag = np.full(len(coming), NEVER_EMITTED, dtype=np.int64)
            self._fill(following * clock.k, coming * clock.k, *fill, flag)
            self.skipped_frames = self.skipped_frames + self.skipped
            self.underruns = self.underruns + np.where(fill[2] == GAP, self.skipped, 0)
        return coming

    def _fill(
        self, first: Rows, end: Rows, codes: Codes, source: Rows, status: NDArray[np.int8], lateness: Ticks
    ) -> None:
        """Give the slots [first, end) of each row one content: `codes` `(N, Q)`, the rest `(N,)`."""
        rows = np.flatnonzero(end > first)
        codes = np.broadcast_to(codes, (len(first), codes.shape[-1]))
        slot = first[rows, None] + np.arange(int((end - first)[rows].max()))
        which, where = np.nonzero(slot < end[rows, None])
        row, at = rows[which], slot[which, where] + self.pad
        self.played[row, at] = codes[row]
        self.log.source[row, at] = source[row]
        self.log.status[row, at] = status[row]
        self.log.lateness[row, at] = lateness[row]
