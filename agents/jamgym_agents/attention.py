"""Transformer blocks with grouped keys and rotary positions that are frame times (Su et al. 2021).

*Sinks* are the first frames of a stream, which stay in sight when the window has moved on (Xiao et al. 2024,
arXiv 2309.17453). A query at frame n sees them as if it stood at min(n, window - 1), its *near* place: never farther
away than training has shown. Until then that is its own place.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Cosine and signed sine `(..., head_dim)` of frame times, as `rotary_angles` returns them.
Angles = tuple[Tensor, Tensor]
#: Of the rates at which pairs rotate.
_BASE = 10_000.0


def rotary_angles(positions: Tensor, head_dim: int) -> Angles:
    """Return what `rotate` needs for frame times `positions` `(...)`.

    In double precision: after ten hours a single-precision angle is wrong by a twentieth of a radian.

    Returns:
        The cosines `(..., head_dim)` of both halves, and the sines, negative in the first half.
    """
    angles = positions.unsqueeze(-1) * rotary_rates(head_dim, positions.device)
    cos, sin = angles.cos().float(), angles.sin().float()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


@cache
def rotary_rates(head_dim: int, device: torch.device) -> Tensor:
    """Return radians per frame `(head_dim / 2,)` of each pair."""
    return _BASE ** (-torch.arange(0, head_dim, 2, device=device, dtype=torch.float64) / head_dim)


@cache
def _views(heads: int, kv_heads: int, device: torch.device) -> Tensor:
    """Return which of (near, own) each head of `project` is rotated by: near queries, then queries and keys."""
    return torch.tensor([0] * heads + [1] * (heads + kv_heads), device=device)


def rotate(x: Tensor, angles: Angles) -> Tensor:
    """Rotate pairs of `x` `(B, H, T, head_dim)`, one of each half, by angles that broadcast to it."""
    cos, sin = angles
    first, second = x.chunk(2, dim=-1)
    # Three operations: a step decodes one frame, and its time is their number.
    return torch.addcmul(x * cos, torch.cat([second, first], dim=-1), sin).to(x.dtype)


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

    def both_angles(self, positions: Tensor, near: Tensor) -> Angles:
        """Return the angles with which `project` gives queries at their near places too.

        Args:
            positions: `(..., T)` the frames' own places.
            near: The same of their near places.
        """
        cos, sin = rotary_angles(torch.stack([near, positions], dim=-2), self.head_dim)
        heads = _views(self.heads, self.kv_heads, positions.device)
        return cos.index_select(-3, heads), sin.index_select(-3, heads)

    def project(self, x: Tensor, angles: Angles) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return what attention takes from `(B, T, C)`.

        Args:
            x: `(B, T, C)`.
            angles: `(..., 1, T, h)` of the T frames' own places, or `both_angles`.

        Returns:
            Scaled queries `(B, H, T, h)` and keys `(B, G, T, h)` at their own places, values `(B, G, T, h)`, and the
            scaled queries at their near places, or None.
        """
        batch, frames, _ = x.shape
        qkv = self.qkv(self.norm_attention(x)).view(batch, frames, self.heads + 2 * self.kv_heads, self.head_dim)
        turning, value = qkv.transpose(1, 2).split([self.heads + self.kv_heads, self.kv_heads], dim=1)
        both = angles[0].shape[-3] > 1
        if both:
            # One rotation and one product with the scale for both views of a query.
            turning = torch.cat([turning[:, : self.heads], turning], dim=1)
        queries, key = rotate(turning, angles).split([turning.shape[1] - self.kv_heads, self.kv_heads], dim=1)
        queries = queries * self.head_dim**-0.5
        near, q = queries.split(self.heads, dim=1) if both else (None, queries)
        return q, key, value, near

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
            q: Scaled queries at their own places.
            key: Rotated keys.
            value: Values.
            bias: 0 where a query may attend, -inf where not.
            near: Scaled queries at their near places; needed as soon as one has left the first window.
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
        """Return the products `(B, H, T, M)` of queries and the keys of their groups."""
        batch, heads, frames, width = q.shape
        grouped = q.reshape(batch, self.kv_heads, -1, width)
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
        sinks: int = 0,
    ) -> Tensor:
        """Pass both streams at once: `(B, 2 T, C)`, the input stream first.

        Args:
            x: `(B, 2 T, C)`.
            angles: `(1, 2 T, h)` of the frame times, once for each stream; `both_angles` if T does not fit into the
                window.
            masks: Biases `(T, T)` of the input stream, which attends to itself alone, and `(B, 1, T, 2 T)` of the
                output stream; 0 where it may attend, -inf where not.
            sinks: First frames of each stream that are sinks.
        """
        frames = x.shape[1] // 2
        q, key, value, near = self.project(x, angles)
        input_near, output_near = (None, None) if near is None else near.split(frames, dim=2)
        input_sinks, output_sinks = slice(sinks), slice(frames, frames + sinks)
        heard = self.attend(
            q[:, :, :frames], key[:, :, :frames], value[:, :, :frames], masks[0], input_near, (input_sinks,)
        )
        played = self.attend(q[:, :, frames:], key, value, masks[1], output_near, (input_sinks, output_sinks))
        return self.finish(x, torch.cat([heard, played], dim=1))
