"""The array core: N rows of episodes advanced together. `Env` is this with one row, the vector env with N."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from jamgym.codec import Audio, Codec, Codes
from jamgym.episode import Episode, EpisodeSource
from jamgym.errors import ActionError, ConfigError, unknown_name_message
from jamgym.latency import LatencyModel
from jamgym.playback import (
    GAP,
    ON_TIME,
    EventLog,
    EventLogBook,
    LatePolicy,
    Slots,
    resolve_slots,
)
from jamgym.record import EpisodeRecord
from jamgym.reward import RewardModel
from jamgym.scoring import EpisodeScorer
from jamgym.timing import Timing

ObservationMode = Literal["new", "window"]
OBSERVATION_MODES: tuple[ObservationMode, ...] = get_args(ObservationMode)
Observation = dict[str, NDArray[Any]]


class RowStreams:
    """Random streams of one row. Songs and latency have their own, so other latencies meet the same songs."""

    def __init__(self, seed: int | None) -> None:
        songs, latency, env = np.random.SeedSequence(seed).spawn(3)
        self.songs = np.random.default_rng(songs)
        self.latency = np.random.default_rng(latency)
        self.env = np.random.default_rng(env)


class Simulation:
    """N rows of the accompaniment process under the simulated clock.

    Args:
        rows: Number of rows N.
        source: Draws episodes; gives the codec.
        timing: The clock. Its `frames` is the room that is made at first.
        reward: Scores what is played; None gives rewards of 0 and decodes nothing.
        latency: Says how long calls take.
        late_policy: "silence" or "repeat".
        observation: "new" shows the frames heard since the last call, "window" the last `window` frames.
        window: Frames W of mode "window".
    """

    def __init__(
        self,
        rows: int,
        source: EpisodeSource,
        timing: Timing,
        reward: RewardModel | None,
        latency: LatencyModel,
        late_policy: LatePolicy = "silence",
        observation: ObservationMode = "new",
        window: int = 100,
    ) -> None:
        if rows < 1:
            raise ConfigError(f"num_envs is {rows}; it must be at least 1.")
        if observation not in OBSERVATION_MODES:
            raise ConfigError(unknown_name_message("observation mode", str(observation), OBSERVATION_MODES))
        if window < 1:
            raise ConfigError(f"window is {window} frames; it must be at least 1.")
        self.rows = rows
        self.source = source
        self.codec: Codec = source.codec
        self.timing = timing
        self.latency = latency
        self.late_policy = late_policy
        self.mode = observation
        self.window = window
        self.new_frames = max(timing.k, timing.t_f, 1)
        self.silence_codes: Codes = np.asarray(self.codec.silence_codes, dtype=np.int16)
        self.streams: list[RowStreams | None] = [None] * rows
        self.episodes: list[Episode | None] = [None] * rows
        self.records: list[EpisodeRecord | None] = [None] * rows
        self._song_index = {song_id: index for index, song_id in enumerate(source.song_ids)}
        self._row_index = np.arange(rows, dtype=np.int64)
        self._zeros = np.zeros(rows, dtype=np.int64)
        # Frames kept before frame 0, so that a window that reaches back beyond the start needs no mask.
        self._pad = window if observation == "window" else 0
        q = self.codec.num_codebooks
        self.frames = np.ones(rows, dtype=np.int64)
        self.calls = np.ones(rows, dtype=np.int64)
        self.call = np.zeros(rows, dtype=np.int64)
        self.score = np.zeros(rows, dtype=np.float64)
        self.late_frames = np.zeros(rows, dtype=np.int64)
        self.underruns = np.zeros(rows, dtype=np.int64)
        self.song = np.full(rows, -1, dtype=np.int64)
        self.ends_song = np.zeros(rows, dtype=np.bool_)
        self._instrument = np.zeros((rows, 1), dtype=np.int32)
        self._start = np.zeros(rows, dtype=np.int64)
        self._last_latency = np.zeros(rows, dtype=np.int64)
        self._visible = np.zeros(rows, dtype=np.int64)
        self._visible_before = np.zeros(rows, dtype=np.int64)
        self._last_codes: Codes = np.zeros((rows, q), dtype=np.int16)
        self._last_source = np.full(rows, -1, dtype=np.int64)
        self._chunk_played: Codes = np.zeros((rows, timing.k, q), dtype=np.int16)
        self._chunk_status = np.zeros((rows, timing.k), dtype=np.int8)
        self.capacity = 0
        self._heard: Codes
        self._played: Codes
        self._status: NDArray[np.int8]
        self._latencies: NDArray[np.int64]
        self._rewards: NDArray[np.float64]
        self.log: EventLogBook
        self.scorer = None if reward is None else EpisodeScorer(reward, self.codec, rows, timing.frames, timing.k)
        self._grow(timing.frames)

    # ------------------------------------------------------------------ storage

    def _grow(self, frames: int) -> None:
        """Make room for episodes of `frames` frames; episodes under way are kept."""
        k, q, n = self.timing.k, self.codec.num_codebooks, self.rows
        calls = -(-frames // k) + 1
        # One chunk and one observation beyond the end stay inside the arrays, so no step needs a bound check.
        length = self._pad + calls * k + max(self.new_frames, self.window)
        heard = np.zeros((n, length, q), dtype=np.int16)
        played = np.empty((n, self._pad + calls * k, q), dtype=np.int16)
        played[:] = self.silence_codes
        status = np.zeros((n, self._pad + calls * k), dtype=np.int8)
        latencies = np.zeros((n, calls), dtype=np.int64)
        rewards = np.zeros((n, calls), dtype=np.float64)
        log = EventLogBook(n, calls, k)
        if self.capacity:
            for old, new in (
                (self._heard, heard),
                (self._played, played),
                (self._status, status),
                (self._latencies, latencies),
                (self._rewards, rewards),
            ):
                new[:, : old.shape[1]] = old
            log.copy_from(self.log)
            if self.scorer is not None:
                self.scorer.grow(frames)
        self.capacity = frames
        self._heard, self._played, self._status = heard, played, status
        self._latencies, self._rewards, self.log = latencies, rewards, log

    # ------------------------------------------------------------------ reset

    def seed(self, row: int, seed: int | None) -> None:
        """Give `row` fresh random streams; None takes entropy from the system."""
        self.streams[row] = RowStreams(seed)

    def reset(self, rows: NDArray[np.int64], episodes: Sequence[Episode | None] | None = None) -> None:
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
            frames = episode.frames
            calls = -(-frames // self.timing.k)
            self.episodes[row] = episode
            self._heard[row, self._pad : self._pad + frames] = episode.input_codes
            self._heard[row, self._pad + frames :] = 0
            latency = np.asarray(self.latency.draw(self._stream(row).latency, calls, self.timing), dtype=np.int64)
            if latency.shape != (calls,) or (latency < 0).any():
                raise ConfigError(
                    f"The latency model {self.latency!r} returned shape {latency.shape} with least value "
                    f"{latency.min(initial=0)}; expected ({calls},) ticks >= 0."
                )
            self._latencies[row, :calls] = latency
            self._latencies[row, calls:] = 0
            self.frames[row], self.calls[row] = frames, calls
            self.song[row] = self._song_index.get(episode.song_id, -1)
            self.ends_song[row] = episode.ends_song
            self._instrument[row] = episode.instrument
        self._played[rows] = self.silence_codes
        self._status[rows] = 0
        self._rewards[rows] = 0.0
        self.log.clear(rows)
        for counter in (self.call, self.late_frames, self.underruns, self._last_latency, self._visible_before):
            counter[rows] = 0
        self.score[rows] = 0.0
        self._last_source[rows] = -1
        self._last_codes[rows] = self.silence_codes
        self._chunk_played[rows] = self.silence_codes
        self._chunk_status[rows] = 0
        self._start[rows] = self.timing.release(0)
        self._visible[rows] = self.timing.visible(self._zeros, self.frames)[rows]
        if self.scorer is not None:
            self.scorer.start(rows, drawn)

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

    def check_actions(self, actions: Any) -> Codes:
        """Return `actions`, `(N, k * Q)` or `(N, k, Q)` integers in [0, cardinality), as `(N, k, Q)`.

        Raises:
            ActionError: Wrong shape, dtype or value. Nothing has changed; step again or reset.
        """
        array = np.asarray(actions)
        n, k, q = self.rows, self.timing.k, self.codec.num_codebooks
        if array.shape not in ((n, k * q), (n, k, q)):
            raise ActionError(
                f"The action has shape {array.shape}; expected {(n, k * q)} or {(n, k, q)}: "
                f"{n} rows, k={k} frames, Q={q} codebooks, frame after frame."
            )
        if array.dtype.kind not in "iu":
            raise ActionError(
                f"The action has dtype {array.dtype}; expected integers (codes). Round or argmax before stepping."
            )
        low, high = array.min(), array.max()
        if low < 0 or high >= self.codec.cardinality:
            raise ActionError(
                f"The action holds {int(low if low < 0 else high)}; codes of codec {self.codec.name!r} are in "
                f"[0, {self.codec.cardinality})."
            )
        return array.reshape(n, k, q)

    def step(self, emitted: Codes) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Make one call in every row.

        Args:
            emitted: `(N, k, Q)` checked codes.

        Returns:
            Rewards `(N,)` and whether each row's episode is over `(N,)`.
        """
        timing, rows, call = self.timing, self._row_index, self.call
        latency = self._latencies[rows, call]
        finish = self._start + latency
        first = call * timing.k
        slots = resolve_slots(
            finish,
            first,
            emitted,
            self.frames,
            timing,
            self.late_policy,
            self.silence_codes,
            self._last_codes,
            self._last_source,
        )
        self.log.append(timing.release(call), self._start, finish, latency, slots)
        at = (rows[:, None], first[:, None] + np.arange(self._pad, self._pad + timing.k))
        self._played[at] = slots.codes
        self._status[at] = slots.status
        self._chunk_played, self._chunk_status = slots.codes, slots.status
        if self.late_policy == "repeat":
            self._remember(first, slots)
        if slots.lateness.any():
            self.late_frames += np.count_nonzero(slots.lateness, axis=1)
            self.underruns += np.count_nonzero(slots.status == GAP, axis=1)
        if self.scorer is None:
            rewards = np.zeros(self.rows, dtype=np.float64)
        else:
            rewards = self.scorer.step(call, slots.codes)
            self._rewards[rows, call] = rewards
            self.score += rewards
        self.call = following = call + 1
        self._last_latency = latency
        self._start = np.maximum(timing.release(following), finish)
        self._visible_before = self._visible
        self._visible = timing.visible(following, self.frames)
        over = following >= self.calls
        return rewards, over

    def _remember(self, first: NDArray[np.int64], slots: Slots) -> None:
        """Keep each row's newest on-time frame; frames are late from the front, so it is the chunk's last one."""
        last = np.clip(self.frames - first, 1, self.timing.k) - 1
        fresh = slots.status[self._row_index, last] == ON_TIME
        self._last_codes = np.where(fresh[:, None], slots.codes[self._row_index, last], self._last_codes)
        self._last_source = np.where(fresh, first + last, self._last_source)

    def finish(self, rows: NDArray[np.int64]) -> None:
        """Keep the records of `rows`, whose episodes are over."""
        for row in rows.tolist():
            episode = self.episodes[row]
            assert episode is not None
            log = self.log.row(row, episode.frames)
            self.records[row] = EpisodeRecord(
                episode=episode,
                played_codes=self.played_codes(row),
                status=log.status,
                lateness=log.lateness,
                rewards=self._rewards[row, : self.calls[row]].copy(),
                played_audio=None if self.scorer is None else self.scorer.audio(row, episode.frames),
                log=log,
            )

    # ------------------------------------------------------------------ what is seen

    def observe(self) -> Observation:
        """Return the observation of all rows as fresh arrays."""
        timing, visible = self.timing, self._visible
        first = self.call * timing.k
        if self.mode == "window":
            heard, played, status, count = self._windowed(first, visible)
        else:
            heard, count = self._newly_heard(visible)
            played, status = self._chunk_played.copy(), self._chunk_status.copy()
        return {
            "frame": first[:, None].astype(np.int32),
            "heard": heard,
            "heard_count": count[:, None].astype(np.int32),
            "instrument": self._instrument.copy(),
            "latency": _seconds(self._last_latency, timing.sample_rate),
            "played": played,
            "played_status": status,
            "slack": _seconds(timing.deadline(first) - self._start, timing.sample_rate),
        }

    def _newly_heard(self, visible: NDArray[np.int64]) -> tuple[Codes, NDArray[np.int64]]:
        before = self._visible_before
        count = visible - before
        width = np.arange(self.new_frames)
        heard = self._heard[self._row_index[:, None], before[:, None] + width]
        if (count < self.new_frames).any():
            # Frames from V(i) on are still in the future.
            heard[width >= count[:, None]] = 0
        return heard, count

    def _windowed(
        self, first: NDArray[np.int64], visible: NDArray[np.int64]
    ) -> tuple[Codes, Codes, NDArray[np.int8], NDArray[np.int64]]:
        rows, width = self._row_index[:, None], np.arange(self.window)
        # With `window` frames of padding in front, the last W frames before frame m start at index m.
        heard = self._heard[rows, visible[:, None] + width]
        past = first[:, None] + width
        return heard, self._played[rows, past], self._status[rows, past], np.minimum(visible, self.window)

    def info(self) -> dict[str, NDArray[Any]]:
        """Return `(N,)` arrays that describe each row's episode so far."""
        return {
            "call": self.call.copy(),
            "late_frames": self.late_frames.copy(),
            "lookahead_oracle": np.full(self.rows, not self.timing.playable_live),
            "score_so_far": self.score.copy(),
            "song": self.song.copy(),
            "underruns": self.underruns.copy(),
        }

    def decided_frames(self, row: int) -> int:
        """Return how many output slots of `row` are decided."""
        return min(int(self.call[row]) * self.timing.k, int(self.frames[row]))

    def played_codes(self, row: int) -> Codes:
        """Return a copy `(frames so far, Q)` of what `row` has played."""
        return self._played[row, self._pad : self._pad + self.decided_frames(row)].copy()

    def played_audio(self, row: int) -> Audio:
        """Return a copy `(samples so far,)` of what `row` has played."""
        frames = self.decided_frames(row)
        if self.scorer is not None:
            return self.scorer.audio(row, frames)
        if frames == 0:
            return np.zeros(0, dtype=np.float32)
        return self.codec.decode(self.played_codes(row)[None])[0]

    def event_log(self, row: int) -> EventLog:
        """Return a copy of the log of `row`."""
        return self.log.row(row, int(self.frames[row]))


def _seconds(ticks: NDArray[np.int64], sample_rate: int) -> NDArray[np.float32]:
    """Return `(N,)` ticks as `(N, 1)` float32 seconds."""
    return (ticks[:, None] / sample_rate).astype(np.float32)
