"""The network of COCOLA (Ciranni et al., arXiv 2404.16969) with the public checkpoint's names.

EfficientNet-B0 (Tan and Le, arXiv 1905.11946) on two channels, global average, linear layer, layer norm,
tanh: an embedding h of 512 numbers in -1 to 1. The score of a context x and a stem y is h_x^T W h_y: not
symmetric and not bounded. Layer names are those of the public weights (363 tensors, 4.93 million weights),
so they load as they are. Padding is "same" as for images of 224 x 224 whatever the input's size: nothing
or one cell more at the end where the stride is 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Mode = Literal["both", "harmonic", "percussive"]
MODES: tuple[Mode, ...] = ("both", "harmonic", "percussive")
EMBEDDING = 512
_CHANNELS = 2
_EPS = 1e-3
_MOMENTUM = 0.01


@dataclass(frozen=True)
class Stage:
    """A row of EfficientNet-B0: `repeats` blocks, the first of which changes width and stride."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    width_in: int
    width_out: int


STAGES = (
    Stage(1, 3, 1, 1, 32, 16),
    Stage(2, 3, 2, 6, 16, 24),
    Stage(2, 5, 2, 6, 24, 40),
    Stage(3, 3, 2, 6, 40, 80),
    Stage(3, 5, 1, 6, 80, 112),
    Stage(4, 5, 2, 6, 112, 192),
    Stage(1, 3, 1, 6, 192, 320),
)


class SameConv(nn.Conv2d):
    """Convolution padded to "same" for an even input size, which 224 and its halves are."""

    def __init__(self, width_in: int, width_out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(width_in, width_out, kernel, stride=stride, groups=groups, bias=False)
        total = kernel - stride
        self._edges = (total // 2, total - total // 2) * 2

    def forward(self, x: Tensor) -> Tensor:
        """Return `(N, width_out, ...)` of `(N, width_in, F, T)`."""
        if any(self._edges):
            x = functional.pad(x, self._edges)
        return super().forward(x)


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=_EPS, momentum=_MOMENTUM)


class Block(nn.Module):
    """Inverted bottleneck with squeeze and excitation."""

    def __init__(self, stage: Stage, first: bool) -> None:
        super().__init__()
        width_in = stage.width_in if first else stage.width_out
        stride = stage.stride if first else 1
        wide, squeezed = width_in * stage.expansion, width_in // 4
        self._expanded = stage.expansion != 1
        self._skips = stride == 1 and width_in == stage.width_out
        if self._expanded:
            self._expand_conv = SameConv(width_in, wide, 1)
            self._bn0 = _norm(wide)
        self._depthwise_conv = SameConv(wide, wide, stage.kernel, stride, groups=wide)
        self._bn1 = _norm(wide)
        self._se_reduce = nn.Conv2d(wide, squeezed, 1)
        self._se_expand = nn.Conv2d(squeezed, wide, 1)
        self._project_conv = SameConv(wide, stage.width_out, 1)
        self._bn2 = _norm(stage.width_out)

    def forward(self, x: Tensor) -> Tensor:
        """Return `(N, width_out, F / stride, T / stride)` of `(N, width_in, F, T)`."""
        found = x
        if self._expanded:
            found = functional.silu(self._bn0(self._expand_conv(found)))
        found = functional.silu(self._bn1(self._depthwise_conv(found)))
        squeezed = functional.silu(self._se_reduce(found.mean(dim=(2, 3), keepdim=True)))
        found = found * torch.sigmoid(self._se_expand(squeezed))
        found = self._bn2(self._project_conv(found))
        return found + x if self._skips else found


class EfficientNetB0(nn.Module):
    """EfficientNet-B0 without its classifier; layer names as in the package efficientnet_pytorch."""

    def __init__(self, channels: int = _CHANNELS) -> None:
        super().__init__()
        self._conv_stem = SameConv(channels, STAGES[0].width_in, 3, 2)
        self._bn0 = _norm(STAGES[0].width_in)
        self._blocks = nn.ModuleList(Block(stage, index == 0) for stage in STAGES for index in range(stage.repeats))
        self._conv_head = SameConv(STAGES[-1].width_out, 1280, 1)
        self._bn1 = _norm(1280)

    def forward(self, x: Tensor) -> Tensor:
        """Return `(N, 1280)` averages over the whole of `(N, channels, F, T)`."""
        x = functional.silu(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        return functional.silu(self._bn1(self._conv_head(x))).mean(dim=(2, 3))


class _Backbone(nn.Module):
    """EfficientNet and dropout under the checkpoint's name `model`."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.model = nn.Sequential(EfficientNetB0(), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class _Encoder(nn.Module):
    """Backbone and projection."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.encoder = _Backbone(dropout)
        self.projection = nn.Linear(1280, EMBEDDING)

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(self.encoder(x))


class _Similarity(nn.Module):
    """The matrix W of the score h_x^T W h_y."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(EMBEDDING, EMBEDDING) * 0.05)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return ((x @ self.w) * y).sum(dim=-1)


class CocolaNetwork(nn.Module):
    """Features to COCOLA scores.

    Args:
        dropout: Dropout before the projection; only training uses it.
    """

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        self.encoder = _Encoder(dropout)
        self.layer_norm = nn.LayerNorm(EMBEDDING)
        self.similarity = _Similarity()

    def embed(self, features: Tensor, mode: Mode = "both") -> Tensor:
        """Return embeddings `(N, 512)` in -1 to 1 of features `(N, 2, 64, T)`.

        Args:
            features: Harmonic and percussive decibels.
            mode: The other channel is filled with zeros for "harmonic" and "percussive".
        """
        if mode != "both":
            features = features.clone()
            features[:, 1 if mode == "harmonic" else 0] = 0.0
        return torch.tanh(self.layer_norm(self.encoder(features)))

    def forward(self, context: Tensor, stem: Tensor, mode: Mode = "both") -> Tensor:
        """Return `(N,)` scores of stems beside contexts, both `(N, 2, 64, T)` features."""
        return self.similarity(self.embed(context, mode), self.embed(stem, mode))
