"""Transformer blocks with grouped keys and rotary positions that are frame times (Su et al. 2021)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def rotary_angles(positions: Tensor, head_dim: int, base: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """Return cosine and sine `(..., head_dim / 2)` of frame times `positions` `(...)`."""
    rates = base ** (-torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim)
    angles = positions.unsqueeze(-1).float() * rates
    return angles.cos(), angles.sin()


def rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
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

    def project(self, x: Tensor, angles: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return rotated queries `(B, H, T, h)`, rotated keys and values `(B, G, T, h)` of `(B, T, C)`."""
        batch, frames, _ = x.shape
        qkv = self.qkv(self.norm_attention(x)).view(batch, frames, self.heads + 2 * self.kv_heads, self.head_dim)
        q, key, value = qkv.transpose(1, 2).split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        return rotate(q, angles), rotate(key, angles), value

    def attend(self, q: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """Attend with queries `(B, H, T, h)` to `(B, G, M, h)` under `mask` `(B, 1, T, M)`; `(B, T, C)`."""
        batch, _, frames, _ = q.shape
        if frames == 1:
            # One query: the heads of a group take the place of time, so keys are read once per group.
            grouped = q.reshape(batch, self.kv_heads, self.heads // self.kv_heads, self.head_dim)
            mixed = F.scaled_dot_product_attention(grouped, key, value, attn_mask=mask)
            return mixed.reshape(batch, 1, self.heads * self.head_dim)
        repeat = self.heads // self.kv_heads
        mixed = F.scaled_dot_product_attention(
            q, key.repeat_interleave(repeat, dim=1), value.repeat_interleave(repeat, dim=1), attn_mask=mask
        )
        return mixed.transpose(1, 2).reshape(batch, frames, self.heads * self.head_dim)

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """Add the attention result `mixed` and the MLP to the residual stream `x`, both `(B, T, C)`."""
        x = x + self.dropout(self.out(mixed))
        return x + self.dropout(self.reduce(F.gelu(self.expand(self.norm_mlp(x)))))

    def attend_all(self, q: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        """Attend as `attend`, with an additive `bias` `(..., T, M)` and explicit products; `(B, T, C)`.

        Whole sequences are short and their masks irregular: on a processor two products and a softmax are two to
        three times as fast, forward and backward, as the fused kernel, which computes the masked blocks too.
        """
        batch, _, frames, width = q.shape
        grouped = (q * width**-0.5).reshape(batch, self.kv_heads, -1, width)
        scores = grouped @ key.transpose(-1, -2)
        scores = scores.view(batch, self.heads, frames, -1) + bias.to(scores.dtype)
        weights = scores.softmax(-1).to(value.dtype).view(batch, self.kv_heads, -1, key.shape[2])
        mixed = (weights @ value).view(batch, self.heads, frames, width)
        return mixed.transpose(1, 2).reshape(batch, frames, self.heads * width)

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor], masks: tuple[Tensor, Tensor]) -> Tensor:
        """Pass both streams at once: `(B, 2 T, C)`, the input stream first.

        Args:
            x: `(B, 2 T, C)`.
            angles: Of the `2 T` frame times.
            masks: Biases `(T, T)` of the input stream, which attends to itself alone, and `(B, 1, T, 2 T)` of the
                output stream; 0 where it may attend, -inf where not.
        """
        frames = x.shape[1] // 2
        q, key, value = self.project(x, angles)
        heard = self.attend_all(q[:, :, :frames], key[:, :, :frames], value[:, :, :frames], masks[0])
        played = self.attend_all(q[:, :, frames:], key, value, masks[1])
        return self.finish(x, torch.cat([heard, played], dim=1))
