"""The reward `coherence`: does what was played belong, moment by moment, to what was heard?

Convention: random stem of another song 0, true stem 1 (both through the codec), clipped to [-1, 1.5];
silence, a whisper or a single burst -0.5. Needs: nothing beyond audio. Windows: 4 s every second, at
least 2 s; causal. Source: own two-tower network, contrastive as in COCOLA (arXiv 2404.16969), but with
time-resolved embeddings and hard negatives; trained by `jamgym train-coherence`.
"""

from __future__ import annotations

from torch import nn

from jamgym_rewards.learned import LearnedReward
from jamgym_rewards.towers import TwoTowers


class CoherenceReward(LearnedReward):
    """Contrastive coherence of heard and played music; the training reward.

    Example:
        >>> import numpy as np
        >>> from jamgym.reward import Windows
        >>> noise = np.random.default_rng(0).normal(0, 0.1, (2, 64000)).astype(np.float32)
        >>> scores = CoherenceReward().score(Windows(noise, np.zeros_like(noise), 16000))
        >>> scores.tolist()
        [-0.5, -0.5]
    """

    name = "coherence"

    @classmethod
    def build(cls) -> nn.Module:
        """Return an untrained network."""
        return TwoTowers()
