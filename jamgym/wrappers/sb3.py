"""The native vector environment as a stable-baselines3 `VecEnv`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from jamgym.errors import ConfigError
from jamgym.vector_env import AccompanimentVectorEnv


class JamgymSB3VecEnv(VecEnv):
    """Gives an `AccompanimentVectorEnv` in mode "SameStep" to stable-baselines3.

    Infos are sparse: a row's dict is empty until its episode ends. Then it holds `terminal_observation`,
    `TimeLimit.truncated`, the final info, and `episode` with return r, length l and seconds t since
    the environment was made, as `Monitor` writes it.

    Args:
        env: The native environment.

    Example:
        >>> from jamgym.testing import ToyCodec, ToyCorpus
        >>> env = AccompanimentVectorEnv(2, corpus=ToyCorpus(), codec=ToyCodec(), reward=None, frames=50)
        >>> JamgymSB3VecEnv(env).reset()["heard"].shape
        (2, 5, 2)
    """

    def __init__(self, env: AccompanimentVectorEnv) -> None:
        if env.autoreset_mode is not AutoresetMode.SAME_STEP:
            raise ConfigError(
                f"stable-baselines3 needs autoreset_mode='SameStep', but the environment has "
                f"{env.autoreset_mode.value!r}. Make it anew with that mode."
            )
        self.env = env
        self._made = time.monotonic()
        self._actions: NDArray[Any] | None = None
        self._returns = np.zeros(env.num_envs, dtype=np.float64)
        self._lengths = np.zeros(env.num_envs, dtype=np.int64)
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> VecEnvObs:
        """Begin an episode in every row, with the seeds and options given before."""
        options: dict[str, Any] | None = None
        if any(self._options):
            options = {"episodes": [row.get("episode") for row in self._options]}
        seeds = None if all(seed is None for seed in self._seeds) else list(self._seeds)
        observation, infos = self.env.reset(seed=seeds, options=options)
        self.reset_infos = [self._row_info(infos, row) for row in range(self.num_envs)]
        self._reset_seeds()
        self._reset_options()
        self._returns[:] = 0.0
        self._lengths[:] = 0
        return observation

    def step_async(self, actions: NDArray[Any]) -> None:
        """Keep `actions` `(N, k * Q)` for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Step and return observations, float32 rewards, dones and one dict per row."""
        if self._actions is None:
            raise RuntimeError("step_wait() without step_async()")
        observation, rewards, terminated, truncated, infos = self.env.step(self._actions)
        self._actions = None
        self._returns += rewards
        self._lengths += 1
        dones = terminated | truncated
        rows: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for row in np.flatnonzero(dones).tolist():
            rows[row] = self._row_info(infos["final_info"], row)
            rows[row]["terminal_observation"] = infos["final_obs"][row]
            rows[row]["TimeLimit.truncated"] = bool(truncated[row] and not terminated[row])
            rows[row]["episode"] = {
                "r": float(self._returns[row]),
                "l": int(self._lengths[row]),
                "t": time.monotonic() - self._made,
            }
            self.reset_infos[row] = self._row_info(infos, row)
        self._returns[dones] = 0.0
        self._lengths[dones] = 0
        return observation, rewards.astype(np.float32), dones, rows

    @staticmethod
    def _row_info(infos: dict[str, Any], row: int) -> dict[str, Any]:
        """Return one row's plain entries of gymnasium vector infos."""
        return {
            key: value[row].item()
            for key, value in infos.items()
            if not key.startswith("_")
            and isinstance(value, np.ndarray)
            and value.dtype != np.object_
            and infos[f"_{key}"][row]
        }

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def pause(self) -> None:
        """Stop the clock, for instance while learning."""
        self.env.pause()

    def resume(self) -> None:
        """Let the clock go on."""
        self.env.resume()

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """Return one picture per row in mode "rgb_array", else None per row."""
        if self.env.render_mode != "rgb_array":
            return [None] * self.num_envs
        return list(self.env.render() or ())

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return the attribute of the environment, once per row; rows share it."""
        value = getattr(self.env, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of the environment. Rows share it, so `indices` must be all of them."""
        if len(list(self._get_indices(indices))) != self.num_envs:
            raise ConfigError(f"{attr_name} is shared by all rows; set it without indices.")
        setattr(self.env, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method that takes a row first, such as `played_audio`, once for each of the rows."""
        method = getattr(self.env, method_name)
        return [method(row, *method_args, **method_kwargs) for row in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type, indices: VecEnvIndices = None) -> list[bool]:
        """Rows have no wrappers, but episode statistics are there, so `Monitor` counts as present."""
        present = wrapper_class.__name__ == "Monitor"
        return [present for _ in self._get_indices(indices)]

    def _get_indices(self, indices: VecEnvIndices) -> Iterable[int]:
        if indices is None:
            return range(self.num_envs)
        return [indices] if isinstance(indices, int) else indices
