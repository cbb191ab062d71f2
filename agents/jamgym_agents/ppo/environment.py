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
    for name in ("t_f", "k"):
        if len(as_set(getattr(settings, name))) > 1:
            raise ConfigError(
                f"SequencePPO trains one {name} a run, but the environment draws from {getattr(settings, name)}. "
                "Sets of latency models are fine."
            )


def check_fits(env: VecEnv, k: int, calls: int, codec_version: str) -> None:
    """Refuse an environment that a model with this chunk size, rollout and codec cannot go on with.

    Another t_f is fine, another k, length or codec is not.

    Args:
        env: The environment.
        k: Frames per call of the model.
        calls: Calls in its rollouts.
        codec_version: Of the codec whose codes it plays.

    Raises:
        ConfigError: Names what differs.
    """
    check_settings(env.get_attr("settings")[0])
    timing, codec = env.get_attr("timing")[0], env.get_attr("codec")[0]
    found = {"k": int(timing.k), "calls per episode": int(timing.num_calls), "codec": codec.version}
    wanted = {"k": k, "calls per episode": calls, "codec": codec_version}
    for name, value in found.items():
        if value != wanted[name]:
            raise ConfigError(
                f"The environment has {name} {value!r}, but this model was made for {wanted[name]!r}. Give it such an "
                "environment, or make a new SequencePPO from its decoder: SequencePPO(env, model.policy.decoder)."
            )
