"""`jamgym/Accompaniment-v0`: play along with music that is still being heard."""

from __future__ import annotations

from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray

from jamgym import rendering
from jamgym.codec import Audio, Codec, Codes
from jamgym.episode import Episode, EpisodeSource
from jamgym.errors import ConfigError, unknown_name_message
from jamgym.playback import EventLog
from jamgym.record import EpisodeRecord
from jamgym.settings import EnvSettings, check_options, make_simulation, make_spaces
from jamgym.simulation import Observation
from jamgym.timing import Timing

RENDER_MODES = ("ansi", "rgb_array", "audio")
_FIRST_ROW = np.zeros(1, dtype=np.int64)


class AccompanimentEnv(gymnasium.Env[Observation, NDArray[np.integer[Any]]]):
    """One accompaniment stream under the simulated clock.

    Each step is one call: the agent emits k frames of Q codes, flattened frame after frame. Frames that
    miss their deadline are not played. The reward scores what was played against what was heard; the
    rewards of an episode sum to its score. An episode is `terminated` if it reaches the song's end and
    `truncated` if it is cut before.

    Args:
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

    def __init__(self, *, render_mode: str | None = None, source: EpisodeSource | None = None, **settings: Any) -> None:
        if render_mode is not None and render_mode not in RENDER_MODES:
            raise ConfigError(unknown_name_message("render_mode", str(render_mode), RENDER_MODES))
        self.settings = EnvSettings.of(**settings)
        self.simulation = make_simulation(1, self.settings, source)
        observation_space, action_space = make_spaces(self.simulation)
        self.observation_space = cast("spaces.Space[Observation]", observation_space)
        self.action_space = cast("spaces.Space[NDArray[np.integer[Any]]]", action_space)
        self.render_mode = render_mode
        timing = self.simulation.timing
        # One frame a call, so a recording runs in the music's time.
        self.metadata = {**type(self).metadata, "render_fps": timing.sample_rate / (timing.hop_samples * timing.k)}
        self._ready = False

    @property
    def timing(self) -> Timing:
        """The clock's constants."""
        return self.simulation.timing

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
        self._ready = True
        return self._observe(), self._info()

    def step(self, action: NDArray[np.integer[Any]]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Make one call. `action` is `(k * Q,)` or `(k, Q)` codes; in the last chunk frames from T on are ignored.

        Raises:
            ActionError: Wrong shape, dtype or value; the environment stays as it was.
            ResetNeeded: There is no episode, or it is over.
        """
        if not self._ready:
            raise ResetNeeded("There is no episode under way: call reset() before step().")
        simulation = self.simulation
        rewards, over = simulation.step(simulation.check_actions(np.asarray(action)[None]))
        info = self._info()
        done = bool(over[0])
        ends_song = bool(simulation.ends_song[0])
        if done:
            simulation.finish(_FIRST_ROW)
            info["episode_score"] = float(simulation.score[0])
            self._ready = False
        return self._observe(), float(rewards[0]), done and ends_song, done and not ends_song, info

    def _observe(self) -> Observation:
        return {key: value[0] for key, value in self.simulation.observe().items()}

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
