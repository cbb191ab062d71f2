"""The array core: N rows of episodes advanced together. `Env` is this with one row, the vector env with N."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jamgym.codec import Audio, Codec, Codes
from jamgym.concealment import render_played
from jamgym.conditions import Conditions, RowTimings
from jamgym.episode import Episode, EpisodeSource
from jamgym.errors import ConfigError
from jamgym.event_log import EventLog, EventLogBook
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
from jamgym.record import EpisodeRecord
from jamgym.reward import RewardModel
from jamgym.scoring import EpisodeScorer
from jamgym.timing import Ticks, Timing

Rows = NDArray[np.int64]


class RowStreams:
    """Random streams of one row. Songs have their own, so other latencies and conditions meet the same songs."""

    def __init__(self, seed: int | None) -> None:
        songs, latency, conditions = np.random.SeedSequence(seed).spawn(3)
        self.songs = np.random.default_rng(songs)
        self.latency = np.random.default_rng(latency)
        self.conditions = np.random.default_rng(conditions)


class Simulation:
    """N rows of the accompaniment process.

    Args:
        rows: Number of rows N.
        source: Draws episodes; gives the codec.
        conditions: Sets of t_f, k and latency that episodes draw from.
        reward: Scores what is played; None gives rewards of 0 and decodes nothing.
        rule: What happens to late frames.
        pad: Empty frames kept before frame 0, for observations that reach back beyond the start.
    """

    def __init__(
        self,
        rows: int,
        source: EpisodeSource,
        conditions: Conditions,
        reward: RewardModel | None,
        rule: PlaybackRule | None = None,
        pad: int = 0,
    ) -> None:
        if rows < 1:
            raise ConfigError(f"num_envs is {rows}; it must be at least 1.")
        self.rows = rows
        self.source = source
        self.codec: Codec = source.codec
        self.conditions = conditions
        self.rule = rule or PlaybackRule()
        self.pad = pad
        self.chunk = max(conditions.k)
        self.silence_codes: Codes = np.asarray(self.codec.silence_codes, dtype=np.int16)
        self.streams: list[RowStreams | None] = [None] * rows
        self.episodes: list[Episode | None] = [None] * rows
        self.records: list[EpisodeRecord | None] = [None] * rows
        self.clock = RowTimings(rows, conditions.base)
        self.row_timings = [conditions.base] * rows
        self._song_index = {song_id: index for index, song_id in enumerate(source.song_ids)}
        self._row_index = np.arange(rows, dtype=np.int64)
        self._offsets = np.arange(pad, pad + self.chunk, dtype=np.int64)
        self._one_size = len(conditions.k) == 1
        self._all_on_time = np.full((rows, self.chunk), ON_TIME, dtype=np.int8)
        q = self.codec.num_codebooks
        self.frames = np.ones(rows, dtype=np.int64)
        self.calls = np.ones(rows, dtype=np.int64)
        #: Index of the coming call, and the output slots that are decided before it.
        self.call = np.zeros(rows, dtype=np.int64)
        self.cursor = np.zeros(rows, dtype=np.int64)
        self.cursor_before = np.zeros(rows, dtype=np.int64)
        #: Frames by which a stalled player is behind; frames skipped just before the coming call.
        self.slip = np.zeros(rows, dtype=np.int64)
        self.skipped = np.zeros(rows, dtype=np.int64)
        self.score = np.zeros(rows, dtype=np.float64)
        self.late_frames = np.zeros(rows, dtype=np.int64)
        self.skipped_frames = np.zeros(rows, dtype=np.int64)
        self.underruns = np.zeros(rows, dtype=np.int64)
        self.song = np.full(rows, -1, dtype=np.int64)
        self.ends_song = np.zeros(rows, dtype=np.bool_)
        self.oracle = np.full(rows, not conditions.base.playable_live)
        #: `(N, 4)` what an episode's observations always show: instrument, k, t_f, latency model.
        self.constants = np.zeros((rows, 4), dtype=np.int32)
        #: S(i) of the coming call, and V(i) of it and of the one before.
        self.start = np.zeros(rows, dtype=np.int64)
        self.last_latency = np.zeros(rows, dtype=np.int64)
        self.visible = np.zeros(rows, dtype=np.int64)
        self.visible_before = np.zeros(rows, dtype=np.int64)
        self._last = LastPlayed(np.zeros((rows, q), dtype=np.int16), np.full(rows, -1, dtype=np.int64))
        self.chunk_codes: Codes = np.zeros((rows, self.chunk, q), dtype=np.int16)
        self.chunk_status = np.zeros((rows, self.chunk), dtype=np.int8)
        self.capacity = 0
        self.heard: Codes
        self.played: Codes
        self._latencies: NDArray[np.int64]
        self._rewards: NDArray[np.float64]
        self.log: EventLogBook
        self.scorer = (
            None
            if reward is None
            else EpisodeScorer(reward, self.codec, rows, conditions.base.frames, self.rule.late_policy == "conceal")
        )
        self._grow(conditions.base.frames)

    @property
    def timing(self) -> Timing:
        """The clock's constants. Raises `ConfigError` if each episode draws its own: ask `row_timings[row]` then."""
        if not self.conditions.fixed_timing:
            raise ConfigError(
                f"Each episode draws t_f from {self.conditions.t_f} and k from {self.conditions.k}, so there is no "
                "common timing. Ask timing_of(row), or the observation's t_f and k."
            )
        return self.conditions.base

    # ------------------------------------------------------------------ storage

    def _grow(self, frames: int) -> None:
        """Make room for episodes of `frames` frames; episodes under way are kept."""
        q, n = self.codec.num_codebooks, self.rows
        calls = -(-frames // min(self.conditions.k)) + 2
        # Two chunks and one observation beyond the end stay inside the arrays, so no step needs a bound check.
        slots = frames + 2 * self.chunk
        longest = max(frames, self.chunk, self.pad, *self.conditions.t_f)
        heard = np.zeros((n, self.pad + frames + longest, q), dtype=np.int16)
        played = np.empty((n, self.pad + slots, q), dtype=np.int16)
        played[:] = self.silence_codes
        latencies = np.zeros((n, calls), dtype=np.int64)
        rewards = np.zeros((n, calls), dtype=np.float64)
        log = EventLogBook(n, calls, slots, self.pad)
        if self.capacity:
            for old, new in (
                (self.heard, heard),
                (self.played, played),
                (self._latencies, latencies),
                (self._rewards, rewards),
            ):
                new[:, : old.shape[1]] = old
            log.copy_from(self.log)
            if self.scorer is not None:
                self.scorer.grow(frames)
        self.capacity = frames
        self.heard, self.played = heard, played
        self._latencies, self._rewards, self.log = latencies, rewards, log

    # ------------------------------------------------------------------ reset

    def seed(self, row: int, seed: int | None) -> None:
        """Give `row` fresh random streams; None takes entropy from the system."""
        self.streams[row] = RowStreams(seed)

    def reset(self, rows: Rows, episodes: Sequence[Episode | None] | None = None) -> None:
        """Begin a new episode in each of `rows`: the given one, or where that is None a drawn one."""
        given = [None] * len(rows) if episodes is None else list(episodes)
        drawn: list[Episode] = []
        listed = rows.tolist()
        for row, episode in zip(listed, given, strict=True):
            if self.streams[row] is None:
                self.seed(row, None)
            drawn.append(self._checked(episode) if episode is not None else self.source.sample(self._stream(row).songs))
        longest = max(episode.frames for episode in drawn)
        if longest > self.capacity:
            self._grow(longest)
        for row, episode in zip(listed, drawn, strict=True):
            self._begin(row, episode)
        self.played[rows] = self.silence_codes
        self._rewards[rows] = 0.0
        self.log.clear(rows)
        for counter in (
            self.call,
            self.cursor,
            self.cursor_before,
            self.slip,
            self.skipped,
            self.late_frames,
            self.skipped_frames,
            self.underruns,
            self.last_latency,
            self.visible_before,
            self.score,
        ):
            counter[rows] = 0
        self.chunk_status = self.chunk_status.copy()  # it may be the shared one
        self.chunk_status[rows] = NOTHING
        self._last = LastPlayed(self._last.codes.copy(), self._last.source.copy())
        self._last.source[rows] = -1
        self._last.codes[rows] = self.silence_codes
        self.chunk_codes = self.chunk_codes.copy()
        self.chunk_codes[rows] = self.silence_codes
        self.start[rows] = self.clock.release(self.call)[rows]
        self.visible[rows] = self.clock.visible(self.call, self.frames)[rows]
        if self.scorer is not None:
            self.scorer.start(rows, drawn)

    def _begin(self, row: int, episode: Episode) -> None:
        """Take over `episode`, and draw what it is played under."""
        timing, number = self.conditions.draw(self._stream(row).conditions)
        self.clock.set(row, timing)
        self.row_timings[row] = timing
        frames = episode.frames
        calls = -(-frames // timing.k)
        self.episodes[row] = episode
        self.heard[row, self.pad : self.pad + frames] = episode.input_codes
        self.heard[row, self.pad + frames :] = 0
        model = self.conditions.latency[number]
        latency = np.asarray(model.draw(self._stream(row).latency, calls, timing), dtype=np.int64)
        if latency.shape != (calls,) or (latency < 0).any():
            raise ConfigError(
                f"The latency model {model!r} returned shape {latency.shape} with least value "
                f"{latency.min(initial=0)}; expected ({calls},) ticks >= 0."
            )
        self._latencies[row, :calls] = latency
        self._latencies[row, calls:] = 0
        self.frames[row], self.calls[row] = frames, calls
        self.song[row] = self._song_index.get(episode.song_id, -1)
        self.ends_song[row] = episode.ends_song
        self.oracle[row] = not timing.playable_live
        self.constants[row] = episode.instrument, timing.k, timing.t_f, number

    def _stream(self, row: int) -> RowStreams:
        stream = self.streams[row]
        assert stream is not None
        return stream

    def _checked(self, episode: Episode) -> Episode:
        """Return `episode` if it fits the codec."""
        if not isinstance(episode, Episode):
            raise ConfigError(f"options gave a {type(episode).__name__} where a jamgym.episode.Episode belongs.")
        shape = (episode.frames, self.codec.num_codebooks)
        samples = episode.frames * self.codec.hop_samples
        if episode.frames < 1 or episode.input_codes.shape != shape or len(episode.heard) != samples:
            raise ConfigError(
                f"The episode of song {episode.song_id!r} has input codes {episode.input_codes.shape} and "
                f"{len(episode.heard)} samples; codec {self.codec.name!r} needs (T, {self.codec.num_codebooks}) "
                f"with T >= 1 and T * {self.codec.hop_samples} samples."
            )
        return episode

    # ------------------------------------------------------------------ step

    def step(self, emitted: Codes, latency: Ticks | None = None) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Make one call in every row.

        Args:
            emitted: `(N, K, Q)` checked codes, K the largest k; what lies beyond a row's k is ignored.
            latency: `(N,)` ticks that the call took, from a clock; None takes what the latency model drew.

        Returns:
            Rewards `(N,)` and whether each row's episode is over `(N,)`.
        """
        clock, call, before = self.clock, self.call, self.cursor
        if latency is None:
            latency = self._latencies[self._row_index, call]
        finish = self.start + latency
        first = call * clock.k
        self.log.append(call, before, self.start, finish)
        if self._one_size and not self.slip.any() and self._in_time(first, finish):
            after = self._play_as_emitted(emitted, first)
        else:
            after = self._play(Chunks(emitted, first, clock.k, self.frames, finish, self.slip))
        following = call + 1
        if self.rule.backlog == "skip":
            following = self._skip(following, finish, np.minimum(latency, self.last_latency))
            after = np.maximum(after, np.minimum(following * clock.k, self.frames))
        if self.scorer is None:
            rewards = np.zeros(self.rows, dtype=np.float64)
        else:
            decided = slice(self.pad, None)
            rewards = self.scorer.advance(self.played[:, decided], self.log.status[:, decided], before, after)
            self._rewards[self._row_index, self.log.count - 1] = rewards
            self.score += rewards
        self.call, self.cursor, self.cursor_before = following, after, before
        self.last_latency = latency
        self.start = np.maximum(clock.release(following), finish)
        self.visible_before = self.visible
        self.visible = clock.visible(following, self.frames)
        return rewards, following * clock.k + self.slip >= self.frames

    def _in_time(self, first: Rows, finish: Ticks) -> bool:
        """Whether every frame of every chunk lies in its episode and meets its deadline."""
        due = (finish <= self.clock.deadline(first)).all()
        return bool(due) and bool((first + self.chunk <= self.frames).all())

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
        """Decide chunk by chunk what plays, write it, and return the slots `(N,)` that are decided now."""
        clock = self.clock
        slots = resolve_slots(chunks, self.rule, clock.hop_samples, clock.d_out, self.silence_codes, self._last)
        self._write(slots)
        if self.rule.repeats:
            self._remember(chunks.first, slots)
        return np.minimum(slots.first + clock.k, self.frames)

    def _write(self, slots: Slots) -> None:
        """Put one call's slots where they belong, and count what was late."""
        if slots.stalled.any():
            nothing = (self.silence_codes, np.full(self.rows, -1), np.full(self.rows, GAP, dtype=np.int8))
            self.slip = self.slip + slots.stalled
            self._fill(slots.first - slots.stalled, slots.first, *nothing, self.slip * self.clock.hop_samples)
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

    def _skip(self, following: Rows, finish: Ticks, expected: Ticks) -> Rows:
        """Return the coming calls `(N,)`: later ones where `following` would miss its deadline.

        `expected` is the shorter latency of the last two calls: what a lasting load costs, but not a lone spike.
        """
        clock = self.clock
        hopeless = finish + expected > clock.deadline(following * clock.k)
        newest = np.minimum(clock.newest_released(finish), self.calls - 1)
        coming = np.where(hopeless, np.maximum(newest, following), following)
        self.skipped = (coming - following) * clock.k
        if self.skipped.any():
            fill = fill_of(self.rule, self.silence_codes, self._last)
            flag = np.full(self.rows, NEVER_EMITTED, dtype=np.int64)
            self._fill(following * clock.k, coming * clock.k, *fill, flag)
            self.skipped_frames = self.skipped_frames + self.skipped
            self.underruns = self.underruns + np.where(fill[2] == GAP, self.skipped, 0)
        return coming

    def _fill(
        self, first: Rows, end: Rows, codes: Codes, source: Rows, status: NDArray[np.int8], lateness: Ticks
    ) -> None:
        """Give the slots [first, end) of each row one content: `codes` `(N, Q)`, the rest `(N,)`."""
        rows = np.flatnonzero(end > first)
        codes = np.broadcast_to(codes, (self.rows, codes.shape[-1]))
        slot = first[rows, None] + np.arange(int((end - first)[rows].max()))
        which, where = np.nonzero(slot < end[rows, None])
        row, at = rows[which], slot[which, where] + self.pad
        self.played[row, at] = codes[row]
        self.log.source[row, at] = source[row]
        self.log.status[row, at] = status[row]
        self.log.lateness[row, at] = lateness[row]

    def _remember(self, first: Rows, slots: Slots) -> None:
        """Keep each row's newest on-time frame; frames are late from the front, so it is the chunk's last one."""
        last = np.clip(self.frames - first, 1, self.clock.k) - 1
        codes = slots.codes[self._row_index, last]
        fresh = slots.status[self._row_index, last] == ON_TIME
        self._last = LastPlayed(
            np.where(fresh[:, None], codes, self._last.codes), np.where(fresh, first + last, self._last.source)
        )

    def finish(self, rows: Rows) -> None:
        """Keep the records of `rows`, whose episodes are over."""
        for row in rows.tolist():
            episode = self.episodes[row]
            assert episode is not None
            log = self.event_log(row)
            self.records[row] = EpisodeRecord(
                episode=episode,
                played_codes=self.played_codes(row),
                status=log.status,
                lateness=log.lateness,
                rewards=self._rewards[row, : self.log.count[row]].copy(),
                played_audio=None if self.scorer is None else self.scorer.audio(row, episode.frames),
                log=log,
                timing=self.row_timings[row],
            )

    # ------------------------------------------------------------------ what is known

    def info(self) -> dict[str, NDArray[Any]]:
        """Return `(N,)` arrays that describe each row's episode so far."""
        return {
            "call": self.call.copy(),
            "late_frames": self.late_frames.copy(),
            "lookahead_oracle": self.oracle.copy(),
            "score_so_far": self.score.copy(),
            "skipped_frames": self.skipped_frames.copy(),
            "slip": self.slip.copy(),
            "song": self.song.copy(),
            "underruns": self.underruns.copy(),
        }

    def played_codes(self, row: int) -> Codes:
        """Return a copy `(frames so far, Q)` of what `row` has played."""
        return self.played[row, self.pad : self.pad + self.cursor[row]].copy()

    def played_audio(self, row: int) -> Audio:
        """Return a copy `(samples so far,)` of what `row` has played."""
        frames = int(self.cursor[row])
        if self.scorer is not None:
            return self.scorer.audio(row, frames)
        return render_played(self.codec, self.played_codes(row), self.event_log(row).status)

    def event_log(self, row: int) -> EventLog:
        """Return a copy of the log of `row`."""
        timing = self.row_timings[row]
        return self.log.row(row, int(self.cursor[row]), timing)
