"""The array core: N rows of episodes advanced together. `Env` is this with one row, the vector env with N."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jamgym.codec import Audio, Codec, Codes
from jamgym.concealment import render_played
from jamgym.conditions import Conditions
from jamgym.episode import Episode, EpisodeSource
from jamgym.errors import ConfigError
from jamgym.event_log import EventLog
from jamgym.playback import PlaybackRule
from jamgym.player import Player
from jamgym.record import EpisodeRecord
from jamgym.reward import RewardModel
from jamgym.scoring import EpisodeScorer
from jamgym.timing import RowTimings, Ticks, Timing

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
        self.frames = np.ones(rows, dtype=np.int64)
        self.calls = np.ones(rows, dtype=np.int64)
        #: Index of the coming call.
        self.call = np.zeros(rows, dtype=np.int64)
        self.score = np.zeros(rows, dtype=np.float64)
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
        self.capacity = 0
        #: `(N, pad + frames + room, Q)` codes of the input; nothing from V(i) on may be shown.
        self.heard: Codes
        self._latencies: NDArray[np.int64]
        self._rewards: NDArray[np.float64]
        self.player = Player(self.clock, self.rule, self.chunk, len(conditions.k) == 1, self.silence_codes, pad)
        self.scorer = (
            None
            if reward is None
            else EpisodeScorer(reward, self.codec, rows, conditions.base.frames, self.rule.late_policy == "conceal")
        )
        self._grow(conditions.base.frames)

    @property
    def timing(self) -> Timing:
        """The clock's constants. Raises `ConfigError` if each episode draws its own: ask `row_timings[row]`."""
        if not self.conditions.fixed_timing:
            raise ConfigError(
                f"Each episode draws t_f from {self.conditions.t_f} and k from {self.conditions.k}, so there is no "
                "common timing. Ask timing_of(row) of the environment, or the observation's t_f and k."
            )
        return self.conditions.base

    # ------------------------------------------------------------------ storage

    def _grow(self, frames: int) -> None:
        """Make room for episodes of `frames` frames; episodes under way are kept."""
        q, n = self.codec.num_codebooks, self.rows
        calls = -(-frames // min(self.conditions.k)) + 2
        # One observation beyond the end stays inside the arrays, so no step needs a bound check.
        longest = max(frames, self.chunk, self.pad, *self.conditions.t_f)
        heard = np.zeros((n, self.pad + frames + longest, q), dtype=np.int16)
        latencies = np.zeros((n, calls), dtype=np.int64)
        rewards = np.zeros((n, calls), dtype=np.float64)
        if self.capacity:
            for old, new in (
                (self.heard, heard),
                (self._latencies, latencies),
                (self._rewards, rewards),
            ):
                new[:, : old.shape[1]] = old
            if self.scorer is not None:
                self.scorer.grow(frames)
        self.player.grow(frames, calls)
        self.capacity = frames
        self.heard, self._latencies, self._rewards = heard, latencies, rewards

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
        self.player.reset(rows)
        self._rewards[rows] = 0.0
        for counter in (self.call, self.last_latency, self.visible_before, self.score):
            counter[rows] = 0
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
        most = self.conditions.base.frames
        if self.rule.irregular and episode.frames > most:
            raise ConfigError(
                f"The episode of song {episode.song_id!r} has {episode.frames} frames, but observations have room for "
                f"{most}, and {self.rule} may pass any number of them in one call. Set frames={episode.frames}."
            )
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
        clock, call, player = self.clock, self.call, self.player
        if latency is None:
            latency = self._latencies[self._row_index, call]
        finish = self.start + latency
        following = player.play(call, emitted, self.start, finish, self.last_latency, self.frames, self.calls)
        if self.scorer is None:
            rewards = np.zeros(self.rows, dtype=np.float64)
        else:
            slots = slice(self.pad, None)
            rewards = self.scorer.advance(
                player.played[:, slots], player.log.status[:, slots], player.cursor_before, player.cursor
            )
            self._rewards[self._row_index, player.log.count - 1] = rewards
            self.score += rewards
        self.call = following
        self.last_latency = latency
        self.start = np.maximum(clock.release(following), finish)
        self.visible_before = self.visible
        self.visible = clock.visible(following, self.frames)
        return rewards, following * clock.k + player.slip >= self.frames

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
                rewards=self._rewards[row, : self.player.log.count[row]].copy(),
                played_audio=None if self.scorer is None else self.scorer.audio(row, episode.frames),
                log=log,
                timing=self.row_timings[row],
                components={name: float(values[row]) for name, values in self._component_means().items()},
            )

    # ------------------------------------------------------------------ what is known

    def info(self) -> dict[str, NDArray[Any]]:
        """Return `(N,)` arrays that describe each row's episode so far."""
        player = self.player
        return {
            "call": self.call.copy(),
            "late_frames": player.late_frames.copy(),
            "lookahead_oracle": self.oracle.copy(),
            "score_so_far": self.score.copy(),
            "skipped_frames": player.skipped_frames.copy(),
            "slip": player.slip.copy(),
            "song": self.song.copy(),
            "underruns": player.underruns.copy(),
        }

    def final_info(self) -> dict[str, NDArray[np.float64]]:
        """Return `(N,)` arrays that belong to the info of an episode's end: its score, and its parts in a mixture."""
        parts = {f"reward/{name}": values.copy() for name, values in self._component_means().items()}
        return {"episode_score": self.score.copy(), **parts}

    def _component_means(self) -> dict[str, NDArray[np.float64]]:
        """Return per component of a mixture its mean scores `(N,)`; no entry for other rewards."""
        return {} if self.scorer is None else dict(zip(self.scorer.components, self.scorer.means.T, strict=True))

    def played_codes(self, row: int) -> Codes:
        """Return a copy `(frames so far, Q)` of what `row` has played."""
        return self.player.played[row, self.pad : self.pad + self.player.cursor[row]].copy()

    def played_audio(self, row: int) -> Audio:
        """Return a copy `(samples so far,)` of what `row` has played."""
        frames = int(self.player.cursor[row])
        if self.scorer is not None:
            return self.scorer.audio(row, frames)
        return render_played(self.codec, self.played_codes(row)[None], self.event_log(row).status[None])[0]

    def event_log(self, row: int) -> EventLog:
        """Return a copy of the log of `row`."""
        return self.player.log.row(row, int(self.player.cursor[row]), self.row_timings[row])
