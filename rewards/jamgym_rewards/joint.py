"""A network that reads what is heard and what is played jointly and says, moment by moment, whether they match.

Each side is turned into channels by two convolutions of its own; from there on one stack of convolutions sees
both sides and their product. Unlike two towers, it can compare a note with what was heard a moment before, and
unlike `towers.FusionNetwork`, the network of the held-out judge, it knows nothing of octaves or pitch classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jamgym_rewards.features import FeatureSpec, Prepared
from jamgym_rewards.towers import Block, ChannelNorm, halve


@dataclass(frozen=True)
class JointConfig:
    """Sizes of `JointNetwork`.

    Attributes:
        features: What both sides are.
        channels: Width of each side.
        width: Width of the joint stack.
        dropout: Share of inner activations dropped in training.
    """

    features: FeatureSpec = FeatureSpec()
    channels: int = 128
    width: int = 128
    dropout: float = 0.1


class JointNetwork(nn.Module):
    """Match logit of a pair.

    Args:
        config: Sizes.
    """

    def __init__(self, config: JointConfig | None = None) -> None:
        super().__init__()
        self.config = config or JointConfig()
        rows = self.config.features.pitch_bins + self.config.features.bands
        channels, width, dropout = self.config.channels, self.config.width, self.config.dropout
        self.heard = _side(rows, channels, dropout)
        self.played = _side(rows, channels, dropout)
        self.fuse = nn.Conv1d(3 * channels, width, 1)
        self.fast = Block(width, 1, dropout)
        self.down = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.slow = nn.Sequential(Block(width, 2, dropout), Block(width, 4, dropout))
        self.norm = ChannelNorm(width)
        self.outlet = nn.Conv1d(width, 1, 1)

    def forward(self, heard: Prepared, played: Prepared) -> Tensor:
        """Return `(N,)` match logits of N pairs."""
        return self.join(self.hear(heard), self.play(played), moments(heard) * moments(played))

    def hear(self, side: Prepared) -> Tensor:
        """Return what the joint stack sees of the heard side, `(N, channels, ceil(T / 2))`."""
        return self.heard(side.values - 0.3)

    def play(self, side: Prepared) -> Tensor:
        """Return what the joint stack sees of the played side, `(N, channels, ceil(T / 2))`."""
        return self.played(side.values - 0.3)

    def join(self, heard: Tensor, played: Tensor, weight: Tensor) -> Tensor:
        """Return `(N,)` logits: the mean over moments, in which moments of silence weigh little.

        Args:
            heard: Of `hear`.
            played: Of `play`.
            weight: `(N, ceil(T / 4))` product of both sides' `moments`.
        """
        x = self.fast(self.fuse(torch.cat([heard, played, heard * played], dim=1)))
        x = self.slow(self.down(nn.functional.gelu(x)))
        logits = self.outlet(self.norm(x)).float()[:, 0]
        weight = weight + 1e-4
        return (logits * weight).sum(1) / weight.sum(1)


def moments(side: Prepared) -> Tensor:
    """Return how much each moment of the joint stack sounds, `(N, ceil(T / 4))` in 0 to 1."""
    return halve(halve(side.weight))


def _side(rows: int, channels: int, dropout: float) -> nn.Sequential:
    inlet = nn.Conv1d(rows, channels, 3, stride=2, padding=1)
    return nn.Sequential(inlet, Block(channels, 1, dropout), ChannelNorm(channels))
