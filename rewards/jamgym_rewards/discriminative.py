"""The reward `discriminative`: how probable is it that what was played belongs to what was heard?

Convention: the match probability p of one network that reads both windows jointly, mapped so that a random stem of
another song scores 0 and the true stem 1 on average (both through the codec), clipped to [-1, 1.5]; silence, a
whisper or a single burst -0.5. `raw` gives p itself, 0 to 1. Needs: nothing beyond audio. Windows: 4 s every
second, at least 2 s; causal. Source: the discriminative reward of ReaLchords (arXiv 2506.14723), there for symbols:
binary cross-entropy of true pairs against permuted ones, here also against the hard negatives of `coherence`. It
trains on the same half of the songs as `coherence`, so `judge` knows neither. Trained by
`jamgym train-coherence --model discriminative`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import nn

from jamgym_rewards.joint import JointNetwork
from jamgym_rewards.learned import LearnedReward, sigmoid


class DiscriminativeReward(LearnedReward):
    """Match probability of heard and played music; a training reward.

    Example:
        >>> import numpy as np
        >>> from jamgym.reward import Windows
        >>> noise = np.random.default_rng(0).normal(0, 0.1, (2, 64000)).astype(np.float32)
        >>> reward = DiscriminativeReward(network=DiscriminativeReward.build())
        >>> reward.score(Windows(noise, np.zeros_like(noise), 16000)).tolist()
        [-0.5, -0.5]
    """

    name = "discriminative"
    convention = "match probability p, as (p - random) / (truth - random), clipped to the range"

    @classmethod
    def build(cls) -> nn.Module:
        """Return an untrained network."""
        return JointNetwork()

    @classmethod
    def squash(cls, output: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return probabilities of logits."""
        return sigmoid(output)
