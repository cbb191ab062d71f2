"""The networks: two towers that meet in an inner product per moment, and one that sees both at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jamgym_rewards.features import FeatureSpec, Prepared


class ChannelNorm(nn.Module):
    """Divides each frame by its root mean square over channels; needs no batch statistics."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `(N, C, ...)`."""
        scale = torch.rsqrt(x.float().square().mean(1, keepdim=True) + 1e-6)
        # Back in the input's type: under autocast everything between convolutions stays in bfloat16.
        return x * (scale * self.gain.view(1, -1, *[1] * (x.dim() - 2))).to(x.dtype)


class Block(nn.Module):
    """Residual pair of convolutions over time."""

    def __init__(self, channels: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.first = nn.Conv1d(channels, channels, 3, padding=dilation, dilation=dilation)
        self.second = nn.Conv1d(channels, channels, 3, padding=1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, C, T)` to `(N, C, T)`."""
        return x + self.second(self.dropout(nn.functional.gelu(self.first(self.norm(x)))))


def halve(weight: Tensor) -> Tensor:
    """Return frame weights `(N, T)` for a stride of two: `(N, ceil(T / 2))`."""
    return nn.functional.avg_pool1d(weight[:, None], 2, ceil_mode=True)[:, 0]


class Tower(nn.Module):
    """Features to a sequence of unit vectors at a quarter of the feature rate.

    Args:
        inputs: Rows of the features.
        channels: Width.
        embedding: Size of the unit vectors.
        dropout: Share of inner activations dropped in training.
    """

    def __init__(self, inputs: int, channels: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.inlet = nn.Conv1d(inputs, channels, 3, stride=2, padding=1)
        self.fast = nn.Sequential(Block(channels, 1, dropout), Block(channels, 2, dropout))
        self.down = nn.Conv1d(channels, channels, 3, stride=2, padding=1)
        self.slow = nn.Sequential(Block(channels, 2, dropout), Block(channels, 4, dropout))
        self.norm = ChannelNorm(channels)
        self.outlet = nn.Conv1d(channels, embedding, 1)

    def forward(self, values: Tensor) -> Tensor:
        """Map `(N, rows, T)` to unit vectors `(N, embedding, ceil(T / 4))`."""
        x = self.fast(self.inlet(values - 0.3))
        x = self.slow(self.down(nn.functional.gelu(x)))
        return nn.functional.normalize(self.outlet(self.norm(x)).float(), dim=1)


@dataclass(frozen=True)
class TowersConfig:
    """Sizes of `TwoTowers`."""

    features: FeatureSpec = FeatureSpec()
    channels: int = 160
    embedding: int = 96
    dropout: float = 0.1


class TwoTowers(nn.Module):
    """Scores a pair by the mean over time of inner products of what is heard and what is played.

    Because the product is taken moment by moment, a stem in the right key at the wrong time scores low.
    Moments in which either side is silent weigh little.
    """

    def __init__(self, config: TowersConfig | None = None) -> None:
        super().__init__()
        self.config = config or TowersConfig()
        rows = self.config.features.pitch_bins + self.config.features.bands
        sizes = (rows, self.config.channels, self.config.embedding, self.config.dropout)
        self.heard = Tower(*sizes)
        self.played = Tower(*sizes)
        self.log_scale = nn.Parameter(torch.tensor(3.0))

    def forward(self, heard: Prepared, played: Prepared) -> Tensor:
        """Return `(N,)` scores in [-1, 1] of N pairs."""
        a, b = self.heard(heard.values), self.played(played.values)
        weight = halve(halve(heard.weight)) * halve(halve(played.weight)) + 1e-4
        return ((a * b).sum(1) * weight).sum(1) / weight.sum(1)

    @staticmethod
    def all_pairs(a: Tensor, a_weight: Tensor, b: Tensor, b_weight: Tensor) -> Tensor:
        """Return `(N, M)` scores of every `a` `(N, D, T)` with every `b` `(M, D, T)`; weights `(., T)`."""
        top = (a * a_weight[:, None]).flatten(1) @ (b * b_weight[:, None]).flatten(1).T
        frames = a.shape[2]
        # The same 1e-4 a frame as in `forward`: it only matters where nothing sounds.
        plain = a.flatten(1) @ b.flatten(1).T
        return (top + 1e-4 * plain) / (a_weight @ b_weight.T + 1e-4 * frames)


@dataclass(frozen=True)
class FusionConfig:
    """Sizes of `FusionNetwork`; its features are a semitone axis and plain mel bands at another hop."""

    features: FeatureSpec = FeatureSpec(bins_per_octave=12, hop=384, long_window=768, bands=24, flux=False)
    channels: int = 40
    width: int = 128
    dropout: float = 0.1


class FusionNetwork(nn.Module):
    """Sees both sides at once: convolutions on a pitch-class circle times time, octaves as channels.

    Turning the circle transposes both sides together, which changes nothing about how they fit: the
    convolution has that for free.
    """

    def __init__(self, config: FusionConfig | None = None) -> None:
        super().__init__()
        self.config = config or FusionConfig()
        spec, channels, width = self.config.features, self.config.channels, self.config.width
        if spec.bins_per_octave != 12:
            raise ValueError("FusionNetwork needs 12 bins an octave.")
        self.rhythm = nn.Conv1d(2 * spec.bands, 16, 3, padding=1)
        self.first = nn.Conv2d(2 * spec.octaves + 16, channels, (5, 5), stride=(1, 2), padding=(0, 2))
        self.first_norm = ChannelNorm(channels)
        self.second = nn.Conv2d(channels, channels, (7, 5), stride=(1, 2), padding=(0, 2))
        self.second_norm = ChannelNorm(channels)
        self.third = nn.Conv2d(channels, channels, (5, 3), padding=(0, 1))
        self.inlet = nn.Conv1d(2 * channels, width, 1)
        self.blocks = nn.Sequential(Block(width, 1, self.config.dropout), Block(width, 3, self.config.dropout))
        self.norm = ChannelNorm(width)
        self.outlet = nn.Conv1d(width, 1, 1)

    def forward(self, heard: Prepared, played: Prepared) -> Tensor:
        """Return `(N,)` match logits of N pairs."""
        spec = self.config.features
        both = torch.stack([heard.values, played.values], dim=1) - 0.3
        count, _, _, frames = both.shape
        circle = both[:, :, : spec.pitch_bins].reshape(count, 2 * spec.octaves, 12, frames)
        rhythm = self.rhythm(both[:, :, spec.pitch_bins :].flatten(1, 2))
        x = torch.cat([circle.to(rhythm.dtype), rhythm[:, :, None].expand(-1, -1, 12, -1)], dim=1)
        x = nn.functional.gelu(self.first_norm(_turn(x, self.first)))
        x = nn.functional.gelu(self.second_norm(_turn(x, self.second)))
        x = x + nn.functional.gelu(_turn(x, self.third))
        x = self.inlet(torch.cat([x.mean(2), x.amax(2)], dim=1))
        moments = self.outlet(self.norm(self.blocks(x))).float()[:, 0]
        weight = halve(halve(heard.weight)) * halve(halve(played.weight)) + 1e-4
        return (moments * weight).sum(1) / weight.sum(1)


def _turn(x: Tensor, layer: nn.Conv2d) -> Tensor:
    """Apply `layer` with circular padding on the pitch-class axis."""
    reach = layer.kernel_size[0] // 2
    # By concatenation, which is several times faster on CPU than circular padding.
    return layer(torch.cat([x[:, :, -reach:], x, x[:, :, :reach]], dim=2).contiguous(memory_format=torch.channels_last))
