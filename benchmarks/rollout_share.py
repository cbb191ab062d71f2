"""The environment's share of the time that PPO takes; `env_throughput.py --rollout` calls it."""

from collections.abc import Callable
from typing import Any

import numpy as np

from jamgym import AccompanimentVectorEnv, EpisodeSource


def encode_all(source: EpisodeSource) -> EpisodeSource:
    """Encode every pair of `source` now, and return it."""
    for song_id in source.song_ids:
        for target in source.targets(song_id):
            source.encoded(song_id, target)
    return source


def rollout_share(envs: int, k: int, frames: int, rollouts: int, clock: Callable[[], float]) -> dict[str, float]:
    """Run PPO with the shipped decoder on `band`, reward=None, and time it.

    Args:
        envs: Rows of the environment.
        k: Frames per call.
        frames: Frames per episode; a rollout is one episode per row.
        rollouts: Rollouts that are kept.
        clock: Returns seconds.

    Returns:
        Rows; steps per second of a rollout; the environment's share of a rollout, and of a rollout with its update.
    """
    from stable_baselines3.common.callbacks import BaseCallback

    from jamgym.wrappers.sb3 import JamgymSB3VecEnv
    from jamgym_agents.checkpoint import load_decoder
    from jamgym_agents.ppo.sequence_ppo import SequencePPO

    class TimedVecEnv(JamgymSB3VecEnv):
        """Adds up the time spent inside the environment."""

        spent = 0.0

        def step_wait(self) -> Any:
            begun = clock()
            result = super().step_wait()
            self.spent += clock() - begun
            return result

    class Stopwatch(BaseCallback):
        """Notes the time and the environment's time at both ends of every rollout."""

        def __init__(self) -> None:
            super().__init__()
            self.begins: list[tuple[float, float]] = []
            self.ends: list[tuple[float, float]] = []

        def _on_rollout_start(self) -> None:
            self.begins.append((clock(), env.spent))

        def _on_rollout_end(self) -> None:
            self.ends.append((clock(), env.spent))

        def _on_step(self) -> bool:
            return True

    env = TimedVecEnv(AccompanimentVectorEnv(envs, reward=None, k=k, frames=frames, max_songs=4))
    encode_all(env.env.source)
    model = SequencePPO(env, load_decoder(None, env.env.codec), seed=0)
    watch = Stopwatch()
    # One rollout more than is kept warms up, and one gives the end of the last update.
    model.learn((rollouts + 2) * model.n_steps * env.num_envs, callback=watch)
    begins, ends = np.array(watch.begins), np.array(watch.ends)
    kept = (ends - begins)[1:-1]
    iterations = np.diff(begins, axis=0)[1:]
    return {
        "envs": env.num_envs,
        "steps_per_second": float(np.median(env.num_envs * model.n_steps / kept[:, 0])),
        "share_of_rollout": float(np.median(kept[:, 1] / kept[:, 0])),
        "share_of_rollout_and_update": float(np.median(iterations[:, 1] / iterations[:, 0])),
    }
