"""What an agent sees: newly heard frames or a window, what was played, and how much time there is."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from jamgym.codec import Codes
from jamgym.corpus import INSTRUMENTS
from jamgym.playback import STATUSES
from jamgym.simulation import Simulation

ObservationMode = Literal["new", "window"]
OBSERVATION_MODES: tuple[ObservationMode, ...] = get_args(ObservationMode)
Observation = dict[str, NDArray[Any]]


class Observer:
    """Reads observations off a simulation.

    Args:
        simulation: Its `pad` must be at least `window` in mode "window".
        mode: "new" shows the frames heard since the last call, "window" the last `window` frames.
        window: Frames W of mode "window".
    """

    def __init__(self, simulation: Simulation, mode: ObservationMode = "new", window: int = 100) -> None:
        self.mode = mode
        self.window = window
        conditions = simulation.conditions
        self.new_frames = max(*conditions.k, *conditions.t_f, 1)
        self.new_slots = simulation.chunk
        #: Whether a call may decide other slots than its own chunk's.
        self._irregular = simulation.rule.irregular
        if self._irregular:
            # A jump or a stall may pass any number of frames, and none of them may be lost.
            self.new_frames = max(conditions.base.frames, self.new_frames)
            self.new_slots = max(conditions.base.frames, self.new_slots)
        self._new = np.arange(self.new_frames)
        self._slots = np.arange(self.new_slots)
        self._rows = np.arange(simulation.rows)[:, None]

    @staticmethod
    def pad(mode: str, window: int) -> int:
        """Return the empty frames that a simulation must keep in front."""
        return window if mode == "window" else 0

    def space(self, simulation: Simulation) -> spaces.Dict:
        """Return the observation space of one row.

        Codes are integer Boxes: a MultiDiscrete observation would be one-hot encoded by common libraries.
        """
        codec, conditions = simulation.codec, simulation.conditions
        q, top = codec.num_codebooks, codec.cardinality - 1
        heard = self.window if self.mode == "window" else self.new_frames
        played = self.window if self.mode == "window" else self.new_slots
        most = np.iinfo(np.int32).max

        def number(low: int, high: int) -> spaces.Box:
            return spaces.Box(low, high, (1,), np.int32)

        parts: dict[str, spaces.Space[Any]] = {
            "frame": number(0, most),
            "heard": spaces.Box(0, top, (heard, q), np.int16),
            "heard_count": number(0, heard),
            "instrument": number(0, len(INSTRUMENTS) - 1),
            "k": number(0, max(conditions.k)),
            "latency": spaces.Box(0.0, np.inf, (1,), np.float32),
            "latency_model": number(0, max(len(conditions.latency) - 1, 1)),
            "pending": number(0, most),
            "played": spaces.Box(0, top, (played, q), np.int16),
            "played_count": number(0, played),
            "played_status": spaces.Box(0, STATUSES - 1, (played,), np.int8),
            "skipped": number(0, most),
            "slack": spaces.Box(-np.inf, np.inf, (1,), np.float32),
            "slip": number(0, most),
            "t_f": number(-most, most),
        }
        if self.mode == "window":
            del parts["played_count"]
        return spaces.Dict(parts)

    def observe(self, simulation: Simulation) -> Observation:
        """Return the observation of all rows as fresh arrays, `(N, ...)` each."""
        clock, rate = simulation.clock, simulation.codec.sample_rate
        frame = simulation.call * clock.k
        constant = simulation.constants.copy()
        if self.mode == "window":
            heard, count = self._last_heard(simulation)
            first = simulation.player.cursor + (simulation.pad - self.window)
            played = last_frames(simulation.player.played, first, self.window)
            status = last_frames(simulation.player.log.status, first, self.window)
        else:
            heard, count = self._newly_heard(simulation)
            if self._irregular:
                played, status = self._newly_played(simulation)
            else:
                played, status = simulation.player.chunk_codes.copy(), simulation.player.chunk_status.copy()
        slot = frame + simulation.player.slip
        slack = clock.deadline(slot) - simulation.start
        observation: Observation = {
            "frame": _column(frame),
            "heard": heard,
            "heard_count": _column(count),
            "instrument": constant[:, 0:1],
            "k": constant[:, 1:2],
            "latency": _seconds(simulation.last_latency, rate),
            "latency_model": constant[:, 3:4],
            "pending": _column(np.minimum(np.maximum(slack // clock.hop_samples, 0), slot)),
            "played": played,
            "played_status": status,
            "skipped": _column(simulation.player.skipped),
            "slack": _seconds(slack, rate),
            "slip": _column(simulation.player.slip),
            "t_f": constant[:, 2:3],
        }
        if self.mode == "new":
            observation["played_count"] = _column(simulation.player.cursor - simulation.player.cursor_before)
        return observation

    def _newly_heard(self, simulation: Simulation) -> tuple[Codes, NDArray[np.int64]]:
        before = simulation.visible_before
        count = simulation.visible - before
        heard = simulation.heard[self._rows, before[:, None] + (self._new + simulation.pad)]
        if (count < self.new_frames).any():
            # Frames from V(i) on are still in the future.
            heard[self._new >= count[:, None]] = 0
        return heard, count

    def _newly_played(self, simulation: Simulation) -> tuple[Codes, NDArray[np.int8]]:
        count = simulation.player.cursor - simulation.player.cursor_before
        end = simulation.player.log.status.shape[1] - 1
        at = (self._rows, np.minimum(simulation.player.cursor_before[:, None] + (self._slots + simulation.pad), end))
        played, status = simulation.player.played[at], simulation.player.log.status[at]
        beyond = self._slots >= count[:, None]
        played[beyond], status[beyond] = simulation.silence_codes, 0
        return played, status

    def _last_heard(self, simulation: Simulation) -> tuple[Codes, NDArray[np.int64]]:
        # With at least `window` frames of padding in front, the last W frames before frame m start at pad - W + m.
        first = simulation.visible + (simulation.pad - self.window)
        return last_frames(simulation.heard, first, self.window), np.minimum(simulation.visible, self.window)


def last_frames(frames: NDArray[Any], first: NDArray[np.int64], count: int) -> NDArray[Any]:
    """Return a copy of `count` frames of each row of `frames` `(N, L, ...)`, from frame `first` `(N,)` on.

    Rows are copied block by block through a view whose second axis runs over the first frames: several times as
    fast as an index for every frame.
    """
    rows, length = frames.shape[:2]
    shape = (rows, length - count + 1, count, *frames.shape[2:])
    strides = (*frames.strides[:2], *frames.strides[1:])
    view = np.lib.stride_tricks.as_strided(frames, shape, strides, writeable=False)
    return view[np.arange(rows), first]


def _column(values: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return `(N,)` as a fresh `(N, 1)` int32."""
    return values.astype(np.int32)[:, None]


def _seconds(ticks: NDArray[np.int64], sample_rate: int) -> NDArray[np.float32]:
    """Return `(N,)` ticks as `(N, 1)` float32 seconds."""
    return (ticks / sample_rate).astype(np.float32)[:, None]
