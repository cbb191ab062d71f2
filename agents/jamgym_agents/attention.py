"""Transformer blocks with grouped keys and rotary positions that are frame times (Su et al. 2021).

*Sinks* are the first frames of a stream, which stay in sight when the window has moved on (Xiao et al. 2024,
arXiv 2309.17453). A query at frame n sees them as if it stood at min(n, window - 1), its *near* place: never farther
away than training has shown. Until then that is its own place.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Cosine and sine `(..., head_dim / 2)` of frame times.
Angles = tuple[Tensor, Tensor]


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

    def project(
        self, x: Tensor, angles: Angles, near: Angles | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return what attention takes from `(B, T, C)`.

        Args:
            x: `(B, T, C)`.
            angles: Of the T frames' own places.
            near: Of their places as the sinks see them; None while all of them are their own.

        Returns:
            Queries `(B, H, T, h)` and keys `(B, G, T, h)` at their own places, values `(B, G, T, h)`, and the queries
            at their near places, or None.
        """
        batch, frames, _ = x.shape
        qkv = self.qkv(self.norm_attention(x)).view(batch, frames, self.heads + 2 * self.kv_heads, self.head_dim)
        turning, value = qkv.transpose(1, 2).split([self.heads + self.kv_heads, self.kv_heads], dim=1)
        q, key = rotate(turning, angles).split([self.heads, self.kv_heads], dim=1)
        return q, key, value, None if near is None else rotate(turning[:, : self.heads], near)

    def attend(
        self,
        q: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor,
        near: Tensor | None = None,
        sinks: tuple[slice, ...] = (),
    ) -> Tensor:
        """Attend with queries `(B, H, T, h)` to `(B, G, M, h)` under an additive `bias` `(..., T, M)`; `(B, T, C)`.

        Sequences are short and their masks irregular: on a processor two products and a softmax are two to
        three times as fast, forward and backward, as the fused kernel, which computes the masked blocks too.

        Args:
            q: Queries at their own places.
            key: Rotated keys.
            value: Values.
            bias: 0 where a query may attend, -inf where not.
            near: Queries at their near places; needed as soon as one has left the first window.
            sinks: Where the sinks' keys lie.
        """
        batch, _, frames, width = q.shape
        scores = self._scores(q, key)
        if near is not None:
            for columns in sinks:
                scores[..., columns] = self._scores(near, key[:, :, columns])
        scores = scores + bias.to(scores.dtype)
        weights = scores.softmax(-1).to(value.dtype).view(batch, self.kv_heads, -1, key.shape[2])
        mixed = (weights @ value).view(batch, self.heads, frames, width)
        return mixed.transpose(1, 2).reshape(batch, frames, self.heads * width)

    def _scores(self, q: Tensor, key: Tensor) -> Tensor:
        """Return the scaled products `(B, H, T, M)` of queries and the keys of their groups."""
        batch, heads, frames, width = q.shape
        grouped = (q * width**-0.5).reshape(batch, self.kv_heads, -1, width)
        return (grouped @ key.transpose(-1, -2)).view(batch, heads, frames, key.shape[2])

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """Add the attention result `mixed` and the MLP to the residual stream `x`, both `(B, T, C)`."""
        x = x + self.dropout(self.out(mixed))
        return x + self.dropout(self.reduce(F.gelu(self.expand(self.norm_mlp(x)))))

    def forward(
        self,
        x: Tensor,
        angles: Angles,
        masks: tuple[Tensor, Tensor],
        near: Angles | None = None,
        sinks: int = 0,
    ) -> Tensor:
        """Pass both streams at once: `(B, 2 T, C)`, the input stream first.

        Args:
            x: `(B, 2 T, C)`.
            angles: `(2 T, h / 2)` of the frame times, once for each stream.
            masks: Biases `(T, T)` of the input stream, which attends to itself alone, and `(B, 1, T, 2 T)` of the
                output stream; 0 where it may attend, -inf where not.
            near: The same of the frame times as the sinks see them; None while T fits into the window.
            sinks: First frames of each stream that are sinks.
        """
        frames = x.shape[1] // 2
        q, key, value, near_q = self.project(x, angles, near)
        input_near, output_near = (None, None) if near_q is None else near_q.split(frames, dim=2)
        input_sinks, output_sinks = slice(sinks), slice(frames, frames + sinks)
        heard = self.attend(
            q[:, :, :frames], key[:, :, :frames], value[:, :, :frames], masks[0], input_near, (input_sinks,)
        )
        played = self.attend(q[:, :, frames:], key, value, masks[1], output_near, (input_sinks, output_sinks))
        return self.finish(x, torch.cat([heard, played], dim=1))
