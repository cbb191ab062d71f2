"""What `SequencePPO` needs of an environment, and what of it must stay the same for a model."""

from __future__ import annotations

from stable_baselines3.common.vec_env import VecEnv

from jamgym.errors import ConfigError
from jamgym.settings import EnvSettings, as_set


def check_settings(settings: EnvSettings) -> None:
    """Refuse environments whose episodes one teacher-forced pass cannot recompute.

    Raises:
        ConfigError: Names the setting, and what to set instead.
    """
    for name, wanted in (("observation", "new"), ("action", "tokens"), ("backlog", "queue")):
        if getattr(settings, name) != wanted:
            raise ConfigError(
                f"SequencePPO needs {name}={wanted!r}, not {getattr(settings, name)!r}. "
                "Other learners, such as stable_baselines3.PPO, take it."
            )
    if settings.late_policy == "stall":
        raise ConfigError("SequencePPO needs frames that keep their place, so not late_policy='stall'. Use 'silence'.")
    if len(as_set(settings.k)) > 1:
        raise ConfigError(
            f"SequencePPO trains one k a run, but the environment draws from {settings.k}: where all rows step "
            "together, those with a large k would wait for the others. Sets of t_f and of latency models are fine."
        )


def rollout_shape(env: VecEnv) -> tuple[int, int]:
    """Return the frames per call of `env` and the calls of its longest episode, which are the same at every t_f."""
    base = env.get_attr("simulation")[0].conditions.base
    return int(base.k), int(base.num_calls)


def check_fits(env: VecEnv, k: int, calls: int, codec_version: str) -> None:
    """Refuse an environment that a model with this chunk size, rollout and codec cannot go on with.

    Other t_f are fine, another k, length or codec is not.

    Args:
        env: The environment.
        k: Frames per call of the model.
        calls: Calls in its rollouts.
        codec_version: Of the codec whose codes it plays.

    Raises:
        ConfigError: Names what differs.
    """
    check_settings(env.get_attr("settings")[0])
    found_k, found_calls = rollout_shape(env)
    found = {"k": found_k, "calls per episode": found_calls, "codec": env.get_attr("codec")[0].version}
    wanted = {"k": k, "calls per episode": calls, "codec": codec_version}
    for name, value in found.items():
        if value != wanted[name]:
            raise ConfigError(
                f"The environment has {name} {value!r}, but this model was made for {wanted[name]!r}. Give it such an "
                "environment, or make a new SequencePPO from its decoder: SequencePPO(env, model.policy.decoder)."
            )
