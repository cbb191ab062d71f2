"""Transformer blocks with grouped keys and rotary positions that are frame times (Su et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Cosine and sine `(..., head_dim / 2)` of frame times.
Angles = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Sinks:
    """How queries see the first frames of a stream, which stay in sight when the window has moved on.

    A query at frame n sees them as if it stood at min(n, window - 1): never farther away than training has
    shown (attention sinks, Xiao et al. 2024, arXiv 2309.17453). Until then that is its own place.

    Attributes:
        angles: `(..., 2 T, h / 2)` of the T queries' own places, and then of their places as the sinks see them.
        columns: Where the sinks' keys lie.
    """

    angles: Angles
    columns: tuple[slice, ...]

    @classmethod
    def of(cls, angles: Angles, seen: Angles, *columns: slice) -> Sinks:
        """Join the angles of the queries' own places with those `seen` from the sinks."""
        cos, sin = (torch.cat(pair, dim=-2) for pair in zip(angles, seen, strict=True))
        return cls((cos, sin), columns)


def rotary_angles(positions: Tensor, head_dim: int, base: float = 10_000.0) -> Angles:
    """Return cosine and sine `(..., head_dim / 2)` of frame times `positions` `(...)`.

    In double precision: after ten hours a single-precision angle is wrong by a twentieth of a radian.
    """
    rates = base ** (-torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float64) / head_dim)
    angles = positions.unsqueeze(-1) * rates
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, angles: Angles) -> Tensor:
    """Rotate pairs of `x` `(B, H, T, head_dim)` by `angles` that broadcast to `(B, H, T, head_dim / 2)`."""
    cos, sin = angles
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1).to(x.dtype)


class Block(nn.Module):
    """Pre-norm attention and MLP. Both streams go through the same weights.

    Args:
        dim: Width.
        heads: Query heads.
        kv_heads: Key and value heads; fewer make the streaming cache smaller (Ainslie et al. 2023).
        dropout: Of attention and MLP outputs.
    """

    def __init__(self, dim: int, heads: int, kv_heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, dim // heads
        self.norm_attention = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, (heads + 2 * kv_heads) * self.head_dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.norm_mlp = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, 4 * dim)
        self.reduce = nn.Linear(4 * dim, dim)
        self.dropout = nn.Dropout(dropout)

    def project(self, x: Tensor, angles: Angles) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries `(B, H, T, h)`, not rotated yet, rotated keys and values `(B, G, T, h)` of `(B, T, C)`."""
        batch, frames, _ = x.shape
        qkv = self.qkv(self.norm_attention(x)).view(batch, frames, self.heads + 2 * self.kv_heads, self.head_dim)
        q, key, value = qkv.transpose(1, 2).split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        return q, rotate(key, angles), value

    def attend(
        self, q: Tensor, key: Tensor, value: Tensor, bias: Tensor, angles: Angles, sinks: Sinks | None = None
    ) -> Tensor:
        """Attend with queries `(B, H, T, h)` to `(B, G, M, h)` under an additive `bias` `(..., T, M)`; `(B, T, C)`.

        Sequences are short and their masks irregular: on a processor two products and a softmax are two to
        three times as fast, forward and backward, as the fused kernel, which computes the masked blocks too.

        Args:
            q: As `project` returns them.
            key: Rotated keys.
            value: Values.
            bias: 0 where a query may attend, -inf where not.
            angles: Of the queries' own places.
            sinks: Needed as soon as a query has left the first window.
        """
        batch, _, frames, width = q.shape
        # Both views of a query in one product: keys are read once.
        turned = rotate(q, angles) if sinks is None else rotate(torch.cat([q, q], dim=2), sinks.angles)
        grouped = (turned * width**-0.5).reshape(batch, self.kv_heads, -1, width)
        both = (grouped @ key.transpose(-1, -2)).view(batch, self.heads, -1, key.shape[2])
        scores = both[:, :, :frames]
        for columns in () if sinks is None else sinks.columns:
            scores[..., columns] = both[:, :, frames:, columns]
        scores = scores + bias.to(scores.dtype)
        weights = scores.softmax(-1).to(value.dtype).view(batch, self.kv_heads, -1, key.shape[2])
        mixed = (weights @ value).view(batch, self.heads, frames, width)
        return mixed.transpose(1, 2).reshape(batch, frames, self.heads * width)

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """Add the attention result `mixed` and the MLP to the residual stream `x`, both `(B, T, C)`."""
        x = x + self.dropout(self.out(mixed))
        return x + self.dropout(self.reduce(F.gelu(self.expand(self.norm_mlp(x)))))

    def forward(
        self,
        x: Tensor,
        angles: Angles,
        masks: tuple[Tensor, Tensor],
        sinks: tuple[Sinks, Sinks] | None = None,
    ) -> Tensor:
        """Pass both streams at once: `(B, 2 T, C)`, the input stream first.

        Args:
            x: `(B, 2 T, C)`.
            angles: Of the T frame times, which both streams share.
            masks: Biases `(T, T)` of the input stream, which attends to itself alone, and `(B, 1, T, 2 T)` of the
                output stream; 0 where it may attend, -inf where not.
            sinks: Of the input and of the output stream; None while T fits into the window.
        """
        frames = x.shape[1] // 2
        q, key, value = self.project(x, (angles[0].repeat(2, 1), angles[1].repeat(2, 1)))
        heard_sinks, played_sinks = sinks or (None, None)
        heard = self.attend(q[:, :, :frames], key[:, :, :frames], value[:, :, :frames], masks[0], angles, heard_sinks)
        played = self.attend(q[:, :, frames:], key, value, masks[1], angles, played_sinks)
        return self.finish(x, torch.cat([heard, played], dim=1))
