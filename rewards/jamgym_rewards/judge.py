"""The reward `judge`: a second opinion for evaluation, never a training reward.

It differs from `coherence` in songs, seed, features and architecture (one network that sees both sides
at once and says whether they match), so an agent that found holes in `coherence` is found out.
Convention, range, windows and needs are those of `coherence`. Trained by
`jamgym train-coherence --model judge`.
"""

from __future__ import annotations

from torch import nn

from jamgym_rewards.learned import LearnedReward
from jamgym_rewards.towers import FusionNetwork


class JudgeReward(LearnedReward):
    """Held-out match score of heard and played music, for evaluation only."""

    name = "judge"

    @classmethod
    def build(cls) -> nn.Module:
        """Return an untrained network."""
        return FusionNetwork()
