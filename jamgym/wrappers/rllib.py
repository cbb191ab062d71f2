"""The environments as RLlib asks for them: `register_env("jamgym", make_env)`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

from jamgym.accompaniment_env import AccompanimentEnv
from jamgym.errors import ConfigError
from jamgym.observation import Observation
from jamgym.vector_env import AccompanimentVectorEnv


class RllibVectorEnv(AccompanimentVectorEnv):
    """The native vector environment in mode "NextStep", with seeds that no two env runners share.

    RLlib seeds its env runner w with s + w. Row j of a plain vector environment takes s + w + j, so rows
    of neighbouring runners would hear the same songs with the same latencies. Here the seeds of the rows
    are drawn from s + w instead.

    Args:
        num_envs: Number of rows N.
        **settings: Of `AccompanimentVectorEnv`.

    Raises:
        ConfigError: Another autoreset mode is asked for; RLlib would mistake first observations for last ones.
    """

    def __init__(self, num_envs: int = 1, **settings: Any) -> None:
        super().__init__(num_envs, **{"autoreset_mode": AutoresetMode.NEXT_STEP, **settings})
        if self.autoreset_mode is not AutoresetMode.NEXT_STEP:
            raise ConfigError(
                f"RLlib needs autoreset_mode='NextStep', but env_config asks for "
                f"{self.autoreset_mode.value!r}. Leave it out."
            )

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """Begin episodes; an int `seed` gives each row a seed drawn from it."""
        if isinstance(seed, (int, np.integer)):
            seed = np.random.SeedSequence(int(seed)).generate_state(self.num_envs).tolist()
        return super().reset(seed=seed, options=options)


def make_env(config: Mapping[str, Any]) -> RllibVectorEnv | AccompanimentEnv:
    """Return the environment for an RLlib `env_config`.

    Args:
        config: Fields of `jamgym.settings.EnvSettings`, also `render_mode`. With
            `gym_env_vectorize_mode="vector_entry_point"` RLlib adds "num_envs" and takes the native vector
            environment; without it, it asks for single environments and vectorises them itself.

    Raises:
        ConfigError: A setting is unknown or impossible.

    Example:
        >>> from jamgym.testing import ToyCodec, ToyCorpus
        >>> env = make_env({"corpus": ToyCorpus(), "codec": ToyCodec(), "reward": None, "num_envs": 3})
        >>> env.num_envs, env.autoreset_mode.value
        (3, 'NextStep')
    """
    settings = dict(config)
    num_envs = settings.pop("num_envs", None)
    return AccompanimentEnv(**settings) if num_envs is None else RllibVectorEnv(num_envs, **settings)
