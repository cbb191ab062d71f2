"""A stable-baselines3 callback that keeps learning time out of a measured or wall clock."""

from __future__ import annotations

from stable_baselines3.common.callbacks import BaseCallback


class PauseClock(BaseCallback):
    """Pauses the environment's clock between rollouts, so that an update is not charged as the policy's latency.

    Works with `JamgymSB3VecEnv` and with stable-baselines3's own vector environments around `AccompanimentEnv`.
    Under the simulated clock it changes nothing. Learners without rollouts, such as DQN, need `env.pause()` and
    `env.resume()` around their own updates.

    Example:
        >>> from jamgym.testing import ToyCodec, ToyCorpus
        >>> from jamgym.vector_env import AccompanimentVectorEnv
        >>> from jamgym.wrappers.sb3 import JamgymSB3VecEnv
        >>> from stable_baselines3 import PPO
        >>> toys = dict(corpus=ToyCorpus(), codec=ToyCodec(), reward=None, frames=50)
        >>> env = AccompanimentVectorEnv(1, clock="measured", **toys)
        >>> model = PPO("MultiInputPolicy", JamgymSB3VecEnv(env), n_steps=8, batch_size=8, device="cpu")
        >>> _ = model.learn(8, callback=PauseClock())
    """

    def _on_training_start(self) -> None:
        self._call("pause")

    def _on_rollout_start(self) -> None:
        self._call("resume")

    def _on_rollout_end(self) -> None:
        self._call("pause")

    def _on_training_end(self) -> None:
        self._call("resume")

    def _on_step(self) -> bool:
        return True

    def _call(self, name: str) -> None:
        env = self.training_env.unwrapped
        method = getattr(env, name, None)
        if method is None:
            env.env_method(name)
        else:
            method()
