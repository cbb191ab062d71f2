"""A reward of one's own, found by name: `python examples/custom_reward.py`.

`module:Class` works wherever a reward is named, also on the command line, where the working folder is searched too:
`cd examples && jamgym finetune --reward custom_reward:RestWhereLoud`.
"""

import argparse

import gymnasium
import numpy as np

import jamgym  # noqa: F401 - registers the environment
from jamgym.registry import rewards


class RestWhereLoud:
    """1 minus the correlation of loudness: play in the gaps that the others leave."""

    name, version = "rest_where_loud", "1"
    window_seconds, min_window_seconds, hop_seconds = 2.0, 0.4, 0.4
    causal, needs, range = True, frozenset[str](), (0.0, 1.0)

    def score(self, windows):
        """Return `(N,)` scores in [0, 1]; silence scores 0."""
        block = windows.sample_rate // 20
        heard, played = (
            np.sqrt(np.mean(x[:, : x.shape[1] // block * block].reshape(len(x), -1, block) ** 2, axis=2)) + 1e-9
            for x in (windows.heard, windows.played)
        )
        overlap = (heard * played).sum(1) / (np.linalg.norm(heard, axis=1) * np.linalg.norm(played, axis=1))
        return np.where(played.max(1) > 1e-3, 1.0 - overlap, 0.0).astype(np.float32)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", default="band")
    parser.add_argument("--codec", default="spectral")
    args = parser.parse_args()

    rewards.register("rest_where_loud", "custom_reward:RestWhereLoud")
    env = gymnasium.make("jamgym/Accompaniment-v0", corpus=args.corpus, codec=args.codec, reward="rest_where_loud")
    env.reset(seed=0)
    env.action_space.seed(0)
    over = False
    while not over:
        _, _, terminated, truncated, info = env.step(env.action_space.sample())
        over = terminated or truncated
    print(f"Random codes score {info['episode_score']:.3f}")
