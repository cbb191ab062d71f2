"""Clocks: who says how long a call took, and whether anybody waits for the next one.

The simulated clock draws latencies and never waits. The measured clock charges the real time between two
calls of the environment and never waits either, so a rollout runs as fast as the policy. The wall clock
charges real time and paces: the next observation is handed out when its input would be there.
"""

from __future__ import annotations

import time
from typing import Literal, get_args

import numpy as np

from jamgym.errors import ConfigError, JamgymError, unknown_name_message
from jamgym.simulation import Simulation
from jamgym.timing import Ticks

ClockName = Literal["simulated", "measured", "wall"]
CLOCKS: tuple[ClockName, ...] = get_args(ClockName)

#: Seconds before a release at which sleeping ends and spinning begins: more than a sleep usually overruns.
SPIN_SECONDS = 0.002


class SimulatedClock:
    """Time passes as the latency model says; nothing is measured."""

    def begin(self, simulation: Simulation) -> None:
        """Nothing to anchor."""

    def charge(self, simulation: Simulation) -> Ticks | None:
        """Return None: the latency model has drawn what the call takes."""
        return None

    def hand_out(self, simulation: Simulation) -> None:
        """Nobody waits."""

    def pause(self) -> None:
        """Real time does not count anyway."""

    def resume(self) -> None:
        """Real time does not count anyway."""


class _RealClock:
    """Seconds since an instant of this machine's clock, without the time between `pause` and `resume`."""

    def __init__(self) -> None:
        self._zero = 0.0
        self._paused_at: float | None = None

    def pause(self) -> None:
        """Stop the clock, for learning. Pausing twice is pausing once."""
        if self._paused_at is None:
            self._paused_at = time.perf_counter()

    def resume(self) -> None:
        """Go on where it stopped."""
        if self._paused_at is not None:
            self._zero += time.perf_counter() - self._paused_at
            self._paused_at = None

    def _anchor(self, seconds: float = 0.0) -> None:
        """Let the clock show `seconds` now; a clock that is paused stays so."""
        now = time.perf_counter()
        self._zero = now - seconds
        if self._paused_at is not None:
            self._paused_at = now

    def _seconds(self) -> float:
        """Return what the clock shows. Raises `JamgymError` while it is paused."""
        if self._paused_at is not None:
            raise JamgymError("The clock is paused: call resume() before the next step.")
        return time.perf_counter() - self._zero


class MeasuredClock(_RealClock):
    """Charges one stream the real time from the moment an observation is handed out to the next call.

    Time between `pause` and `resume`, and the environment's own work, are not charged.
    """

    def begin(self, simulation: Simulation) -> None:
        """Nothing to anchor before the first observation is handed out."""

    def charge(self, simulation: Simulation) -> Ticks | None:
        """Return the `(1,)` ticks since the last observation, rounded up.

        Raises:
            JamgymError: The clock is paused.
        """
        seconds = max(self._seconds(), 0.0)
        return np.array([int(np.ceil(seconds * simulation.codec.sample_rate))], dtype=np.int64)

    def hand_out(self, simulation: Simulation) -> None:
        """Start counting for the coming call."""
        self._anchor()

    def __setstate__(self, state: dict[str, float | None]) -> None:
        # A pickled instant means nothing elsewhere: counting starts anew where the environment is unpickled.
        self._paused_at = None
        self._anchor()


class WallClock(_RealClock):
    """Paces one stream: tick 0, the start of the music, is -R(0) after `begin`, so a call can run before it.

    All that happens between two releases counts, the environment's own work included, as it would on a stage.
    While it is paused, or pickled, the music stands still.
    """

    def __init__(self) -> None:
        super().__init__()
        #: Seconds by which the last observation was handed out after its due time.
        self.jitter = 0.0

    def begin(self, simulation: Simulation) -> None:
        """Let the first call's release be now."""
        self._anchor(float(simulation.start[0]) / simulation.codec.sample_rate)

    def charge(self, simulation: Simulation) -> Ticks | None:
        """Return the `(1,)` ticks from S(i) to now, rounded up.

        Raises:
            JamgymError: The clock is paused.
        """
        now = self._seconds() * simulation.codec.sample_rate
        return np.maximum(int(np.ceil(now)) - simulation.start, 0)

    def hand_out(self, simulation: Simulation) -> None:
        """Wait until the coming call's start: sleep first, then spin, since a sleep overruns."""
        due = self._zero + float(simulation.start[0]) / simulation.codec.sample_rate
        left = due - time.perf_counter()
        if left > SPIN_SECONDS:
            time.sleep(left - SPIN_SECONDS)
        while (now := time.perf_counter()) < due:
            pass
        self.jitter = now - due

    def __getstate__(self) -> dict[str, float | bool]:
        at = time.perf_counter() if self._paused_at is None else self._paused_at
        return {"seconds": at - self._zero, "paused": self._paused_at is not None, "jitter": self.jitter}

    def __setstate__(self, state: dict[str, float | bool]) -> None:
        # A pickled instant means nothing elsewhere: the music goes on where it was, however long the pickle lay.
        self.jitter = state["jitter"]
        self._paused_at = 0.0 if state["paused"] else None
        self._anchor(state["seconds"])


Clock = SimulatedClock | MeasuredClock | WallClock


def make_clock(name: str, rows: int) -> Clock:
    """Return the clock called `name`.

    Raises:
        ConfigError: No such clock, or real time for more than one stream: the time of a batch is not that of a stream.
    """
    if name not in CLOCKS:
        raise ConfigError(unknown_name_message("clock", str(name), CLOCKS))
    if name != "simulated" and rows != 1:
        raise ConfigError(
            f"clock={name!r} with {rows} streams: the time that a batch takes is not the time that one stream takes. "
            "Use num_envs=1, or clock='simulated' with the latencies of `jamgym profile`."
        )
    made: dict[str, type[Clock]] = {"simulated": SimulatedClock, "measured": MeasuredClock, "wall": WallClock}
    return made[name]()
