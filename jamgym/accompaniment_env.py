"""`jamgym/Accompaniment-v0` and `AccompanimentLive-v0`: play along with music that is still being heard."""

from __future__ import annotations

from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray

from jamgym import rendering
from jamgym.actions import make_actions
from jamgym.clocks import Clock, make_clock
from jamgym.codec import Audio, Codec, Codes
from jamgym.episode import Episode, EpisodeSource
from jamgym.errors import ConfigError, unknown_name_message
from jamgym.event_log import EventLog
from jamgym.observation import Observation, Observer
from jamgym.record import EpisodeRecord
from jamgym.settings import EnvSettings, check_options, make_simulation
from jamgym.timing import Timing

RENDER_MODES = ("ansi", "rgb_array", "audio")
_FIRST_ROW = np.zeros(1, dtype=np.int64)


class AccompanimentEnv(gymnasium.Env[Observation, NDArray[Any]]):
    """One accompaniment stream.

    Each step is one call: the agent emits k frames of Q codes, flattened frame after frame (or k frames of
    audio). Frames that miss their deadline are not played. The reward scores what was played against what was
    heard; the rewards of an episode sum to its score. An episode is `terminated` if it reaches the song's end
    and `truncated` if it is cut before.

    Args:
        clock: "simulated" (latencies are drawn, deterministic under a seed), "measured" (real time between calls is
            charged) or "wall" (that, and paced by real time). `Accompaniment-v0` simulates, `AccompanimentLive-v0`
            measures.
        render_mode: "ansi" (timeline), "rgb_array" (spectrograms), "audio" (stereo: left heard, right played).
        source: Draws episodes; replaces the settings corpus, codec, split, frames, instruments, max_songs, cache_songs.
        **settings: The fields of `jamgym.settings.EnvSettings`.

    Raises:
        ConfigError: A setting is unknown or impossible.
        LookaheadError: t_f cannot be played live and `allow_lookahead` is not set.

    Example:
        >>> import gymnasium, jamgym
        >>> from jamgym.testing import ToyCodec, ToyCorpus
        >>> env = gymnasium.make("jamgym/Accompaniment-v0", corpus=ToyCorpus(), codec=ToyCodec(), reward=None)
        >>> observation, info = env.reset(seed=0)
        >>> observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        >>> info["call"]
        1
    """

    metadata: dict[str, Any] = {"render_modes": list(RENDER_MODES), "render_fps": 5}

    def __init__(
        self,
        *,
        clock: str = "simulated",
        render_mode: str | None = None,
        source: EpisodeSource | None = None,
        **settings: Any,
    ) -> None:
        if render_mode is not None and render_mode not in RENDER_MODES:
            raise ConfigError(unknown_name_message("render_mode", str(render_mode), RENDER_MODES))
        self.settings = EnvSettings.of(**settings)
        self.clock: Clock = make_clock(clock, 1)
        self.simulation = make_simulation(1, self.settings, source)
        self.observer = Observer(self.simulation, self.settings.observation, self.settings.window)  # type: ignore[arg-type]
        self.actions = make_actions(self.settings.action, self.simulation)  # type: ignore[arg-type]
        self.observation_space = cast("spaces.Space[Observation]", self.observer.space(self.simulation))
        self.action_space = self.actions.space(self.simulation)
        self.render_mode = render_mode
        # One frame a call, so a recording runs in the music's time.
        fps = self.codec.sample_rate / (self.codec.hop_samples * self.simulation.chunk)
        self.metadata = {**type(self).metadata, "render_fps": fps}
        self._ready = False

    @property
    def timing(self) -> Timing:
        """The clock's constants in the current episode."""
        return self.simulation.row_timings[0]

    @property
    def codec(self) -> Codec:
        """The codec that heard and played audio goes through."""
        return self.simulation.codec

    @property
    def source(self) -> EpisodeSource:
        """Where episodes come from."""
        return self.simulation.source

    @property
    def episode(self) -> Episode:
        """The current episode. Raises `ResetNeeded` before the first reset."""
        episode = self.simulation.episodes[0]
        if episode is None:
            raise ResetNeeded("There is no episode yet: call reset() first.")
        return episode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode.

        Args:
            seed: Restarts the streams of songs and latencies; without it they go on.
            options: {"episode": Episode} plays that episode instead of a drawn one.
        """
        super().reset(seed=seed)
        episode = check_options(options, ("episode",)).get("episode")
        if seed is not None:
            self.simulation.seed(0, seed)
        self.simulation.reset(_FIRST_ROW, [episode])
        self.actions.reset(_FIRST_ROW)
        self._ready = True
        self.clock.begin(self.simulation)
        shown = self._observe(), self._info()
        self.clock.hand_out(self.simulation)
        return shown

    def step(self, action: NDArray[Any]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Make one call.

        Args:
            action: `(k * Q,)` or `(k, Q)` codes, or `(k * hop,)` samples; what lies beyond the episode's k or T
                is ignored.

        Raises:
            ActionError: Wrong shape, dtype or value; the environment stays as it was.
            ResetNeeded: There is no episode, or it is over.
        """
        if not self._ready:
            raise ResetNeeded("There is no episode under way: call reset() before step().")
        simulation = self.simulation
        latency = self.clock.charge(simulation)
        rewards, over = simulation.step(self.actions.read(simulation, np.asarray(action)[None]), latency)
        info = self._info()
        done = bool(over[0])
        ends_song = bool(simulation.ends_song[0])
        if done:
            simulation.finish(_FIRST_ROW)
            info.update({key: float(value[0]) for key, value in simulation.final_info().items()})
            self._ready = False
        observation = self._observe()
        if not done:
            self.clock.hand_out(simulation)
        return observation, float(rewards[0]), done and ends_song, done and not ends_song, info

    def pause(self) -> None:
        """Stop the clock, for instance while learning. The simulated clock stands still anyway."""
        self.clock.pause()

    def resume(self) -> None:
        """Let the clock go on."""
        self.clock.resume()

    def _observe(self) -> Observation:
        return {key: value[0] for key, value in self.observer.observe(self.simulation).items()}

    def _info(self) -> dict[str, Any]:
        return {key: value[0].item() for key, value in self.simulation.info().items()}

    def played_codes(self) -> Codes:
        """Return what has been played so far, `(frames, Q)`."""
        return self.simulation.played_codes(0)

    def played_audio(self) -> Audio:
        """Return what has been played so far, `(samples,)`."""
        return self.simulation.played_audio(0)

    def event_log(self) -> EventLog:
        """Return the calls and slots so far."""
        return self.simulation.event_log(0)

    def final_record(self) -> EpisodeRecord | None:
        """Return the last finished episode, or None."""
        return self.simulation.records[0]

    def render(self) -> Any:
        """Return the current picture in `render_mode`, or None without one."""
        if self.render_mode is None:
            gymnasium.logger.warn('render() needs a mode: make the environment with render_mode="ansi".')
            return None
        return rendering.render(self.simulation, 0, self.render_mode)
