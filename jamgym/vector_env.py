"""Native vector environment: N streams in arrays, bit-identical to N single ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from jamgym import rendering
from jamgym.accompaniment_env import RENDER_MODES
from jamgym.actions import make_actions
from jamgym.clocks import Clock, make_clock
from jamgym.codec import Audio, Codec, Codes
from jamgym.episode import Episode, EpisodeSource
from jamgym.errors import ConfigError, unknown_name_message
from jamgym.event_log import EventLog
from jamgym.observation import Observation, Observer
from jamgym.record import EpisodeRecord
from jamgym.settings import EnvSettings, check_options, make_simulation, require_whole
from jamgym.timing import Ticks, Timing


class AccompanimentVectorEnv(VectorEnv[Observation, NDArray[Any], NDArray[Any]]):
    """N accompaniment streams; `gymnasium.make_vec("jamgym/Accompaniment-v0", num_envs=N)` makes one.

    Row j seeded with s behaves as `AccompanimentEnv` seeded with s + j, bit for bit.

    Args:
        num_envs: Number of rows N.
        autoreset_mode: "SameStep" (default), "NextStep" or "Disabled", or the enum member.
        clock: As in `AccompanimentEnv`; real time takes one row only.
        render_mode: As in `AccompanimentEnv`; `render` returns one picture per row.
        source: As in `AccompanimentEnv`.
        **settings: The fields of `jamgym.settings.EnvSettings`.

    Raises:
        ConfigError: A setting is unknown or impossible.
        LookaheadError: t_f cannot be played live and `allow_lookahead` is not set.
    """

    metadata: dict[str, Any] = {
        "render_modes": list(RENDER_MODES),
        "render_fps": 5,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        *,
        autoreset_mode: str | AutoresetMode = "SameStep",
        clock: str = "simulated",
        render_mode: str | None = None,
        source: EpisodeSource | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        if render_mode is not None and render_mode not in RENDER_MODES:
            raise ConfigError(unknown_name_message("render_mode", str(render_mode), RENDER_MODES))
        self.autoreset_mode = _autoreset_mode(autoreset_mode)
        self.settings = EnvSettings.of(**settings)
        self.clock: Clock = make_clock(clock, num_envs)
        self.simulation = make_simulation(num_envs, self.settings, source)
        self.observer = Observer(self.simulation, self.settings.observation, self.settings.window)  # type: ignore[arg-type]
        self.actions = make_actions(self.settings.action, self.simulation)  # type: ignore[arg-type]
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.single_observation_space = self.observer.space(self.simulation)
        self.single_action_space = self.actions.space(self.simulation)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.metadata = {
            **type(self).metadata,
            "render_fps": self.codec.sample_rate / (self.codec.hop_samples * self.simulation.chunk),
            "autoreset_mode": self.autoreset_mode,
        }
        self._over = np.zeros(num_envs, dtype=np.bool_)
        self._ready = False

    @property
    def timing(self) -> Timing:
        """The clock's constants; `frames` is the most that the source draws.

        Raises:
            ConfigError: Each episode draws its own t_f or k; see `timing_of`.
        """
        return self.simulation.timing

    def timing_of(self, row: int) -> Timing:
        """Return the clock's constants in the current episode of `row`."""
        return self.simulation.row_timings[row]

    @property
    def codec(self) -> Codec:
        """The codec that heard and played audio goes through."""
        return self.simulation.codec

    @property
    def source(self) -> EpisodeSource:
        """Where episodes come from."""
        return self.simulation.source

    @property
    def episodes(self) -> list[Episode]:
        """The current episode of each row. Raises `ResetNeeded` before the first reset."""
        episodes = [episode for episode in self.simulation.episodes if episode is not None]
        if len(episodes) < self.num_envs:
            raise ResetNeeded("Some rows have no episode yet: call reset() first.")
        return episodes

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin episodes in all rows, or in those of a mask.

        Args:
            seed: s gives row j the seed s + j; a sequence has one seed or None per row; None lets the streams go on.
            options: "reset_mask" `(N,)` bool: only these rows begin anew. "episodes": N episodes to play;
                None entries are drawn.
        """
        options = dict(check_options(options, ("episodes", "reset_mask")))
        n = self.num_envs
        if isinstance(seed, (int, np.integer)):
            super().reset(seed=int(seed))
            seeds: list[int | None] = [int(seed) + row for row in range(n)]
        else:
            seeds = [None] * n if seed is None else _seeds_of(seed, n)
        mask = options.get("reset_mask")
        rows = np.arange(n) if mask is None else _rows_of(mask, n)
        if len(rows) < n and not self._ready:
            raise ResetNeeded("Reset all rows once before resetting some of them.")
        given = options.get("episodes")
        given = [None] * n if given is None else list(given)
        if len(given) != n:
            raise ConfigError(f"options['episodes'] has {len(given)} entries for {n} rows; use None for rows to draw.")
        for row in rows.tolist():
            if seeds[row] is not None:
                self.simulation.seed(row, seeds[row])
        self._begin(rows, [given[row] for row in rows.tolist()])
        self._over[rows] = False
        self._ready = True
        chosen = np.zeros(n, dtype=np.bool_)
        chosen[rows] = True
        shown = self.observer.observe(self.simulation), _masked(self.simulation.info(), chosen)
        self.clock.hand_out(self.simulation)
        return shown

    def _begin(self, rows: NDArray[np.int64], episodes: Sequence[Episode | None] | None = None) -> None:
        """Begin new episodes in `rows`."""
        self.simulation.reset(rows, episodes)
        self.actions.reset(rows)
        self.clock.begin(self.simulation)

    def pause(self) -> None:
        """Stop the clock, for instance while learning. The simulated clock stands still anyway."""
        self.clock.pause()

    def resume(self) -> None:
        """Let the clock go on."""
        self.clock.resume()

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[Observation, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Make one call in every row. `actions` is `(N, k * Q)` or `(N, k, Q)` codes, or `(N, k * hop)` samples.

        In mode "NextStep" a row whose episode is over ignores its action, begins anew and returns reward 0.

        Raises:
            ActionError: Wrong shape, dtype or value; the environment stays as it was.
            ResetNeeded: No reset yet, or mode "Disabled" and the episode of a row is over.
        """
        if not self._ready:
            raise ResetNeeded("There are no episodes under way: call reset() before step().")
        if self.autoreset_mode is AutoresetMode.DISABLED and self._over.any():
            raise ResetNeeded(
                f"The episodes of rows {np.flatnonzero(self._over).tolist()} are over: reset them with "
                "options={'reset_mask': mask}."
            )
        latency = self.clock.charge(self.simulation)
        codes = self.actions.read(self.simulation, actions)
        if self.autoreset_mode is AutoresetMode.NEXT_STEP:
            result = self._next_step(codes, latency)
        else:
            result = self._step(codes, latency)
        if not self._over.all():  # after the last call there is nothing to wait for
            self.clock.hand_out(self.simulation)
        return result

    def _step(
        self, codes: Codes, latency: Ticks | None
    ) -> tuple[Observation, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        simulation = self.simulation
        rewards, over = simulation.step(codes, latency)
        terminated, truncated = over & simulation.ends_song, over & ~simulation.ends_song
        everyone = np.ones(self.num_envs, dtype=np.bool_)
        observation = self.observer.observe(simulation)
        if not over.any():
            return observation, rewards, terminated, truncated, _masked(simulation.info(), everyone)
        rows = np.flatnonzero(over)
        simulation.finish(rows)
        if self.autoreset_mode is AutoresetMode.DISABLED:
            self._over = over
            infos = _masked(simulation.info(), everyone)
            infos.update(_masked(_where(over, simulation.final_info()), over))
            return observation, rewards, terminated, truncated, infos
        final_info = _masked(_where(over, {**simulation.info(), **simulation.final_info()}), over)
        final_obs = np.full(self.num_envs, None, dtype=object)
        for row in rows.tolist():
            final_obs[row] = {key: value[row].copy() for key, value in observation.items()}
        self._begin(rows)
        infos = _masked(simulation.info(), everyone)
        infos.update(final_obs=final_obs, _final_obs=over.copy(), final_info=final_info, _final_info=over.copy())
        return self.observer.observe(simulation), rewards, terminated, truncated, infos

    def _next_step(
        self, codes: Codes, latency: Ticks | None
    ) -> tuple[Observation, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        simulation, ended = self.simulation, self._over
        # Rows that are over go through the step into room that is kept for that, and then begin anew.
        rewards, over = simulation.step(codes, latency)
        over = over & ~ended
        terminated, truncated = over & simulation.ends_song, over & ~simulation.ends_song
        if over.any():
            simulation.finish(np.flatnonzero(over))
        if ended.any():
            rewards = np.where(ended, 0.0, rewards)
            self._begin(np.flatnonzero(ended))
        infos = _masked(simulation.info(), np.ones(self.num_envs, dtype=np.bool_))
        if over.any():
            infos.update(_masked(_where(over, simulation.final_info()), over))
        self._over = over
        return self.observer.observe(simulation), rewards, terminated, truncated, infos

    def played_codes(self, row: int) -> Codes:
        """Return what `row` has played so far, `(frames, Q)`."""
        return self.simulation.played_codes(row)

    def played_audio(self, row: int) -> Audio:
        """Return what `row` has played so far, `(samples,)`."""
        return self.simulation.played_audio(row)

    def event_log(self, row: int) -> EventLog:
        """Return the calls and slots of `row` so far."""
        return self.simulation.event_log(row)

    def final_record(self, row: int) -> EpisodeRecord | None:
        """Return the last finished episode of `row`, or None. It stays after the row has begun anew."""
        return self.simulation.records[row]

    def render(self) -> tuple[Any, ...] | None:
        """Return one picture per row in `render_mode`, or None without one."""
        if self.render_mode is None:
            return None
        return tuple(rendering.render(self.simulation, row, self.render_mode) for row in range(self.num_envs))


def _autoreset_mode(mode: str | AutoresetMode) -> AutoresetMode:
    if isinstance(mode, AutoresetMode):
        return mode
    known = [member.value for member in AutoresetMode]
    if mode not in known:
        raise ConfigError(unknown_name_message("autoreset_mode", str(mode), known))
    return AutoresetMode(mode)


def _seeds_of(seeds: Any, num_envs: int) -> list[int | None]:
    """Return a seed or None per row, or raise `ConfigError`."""
    if not isinstance(seeds, (Sequence, np.ndarray)) or isinstance(seeds, str):
        raise ConfigError(f"seed is {seeds!r}; give a whole number, or a sequence with one or None per row.")
    found = list(seeds)
    if len(found) != num_envs:
        raise ConfigError(f"{len(found)} seeds for {num_envs} rows; give one per row, or a single int.")
    for seed in found:
        if seed is not None:
            require_whole("A seed", seed)
    return [None if seed is None else int(seed) for seed in found]


def _rows_of(mask: Any, num_envs: int) -> NDArray[np.int64]:
    """Return the rows of a reset mask, or raise `ConfigError`."""
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.shape != (num_envs,) or not mask.any():
        raise ConfigError(f"options['reset_mask'] must be a bool array ({num_envs},) with a True in it; got {mask!r}.")
    return np.flatnonzero(mask)


def _where(mask: NDArray[np.bool_], values: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return each entry with 0 in the rows outside `mask`."""
    return {key: np.where(mask, value, value.dtype.type(0)) for key, value in values.items()}


def _masked(values: dict[str, NDArray[Any]], mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Add to each entry the mask of the rows that have it, as gymnasium's vector infos do."""
    infos: dict[str, Any] = {}
    for key, value in values.items():
        infos[key] = value
        infos[f"_{key}"] = mask.copy()
    return infos
