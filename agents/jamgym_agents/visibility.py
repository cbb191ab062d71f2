"""Who may attend to what: future visibility t_f and chunk size k as attention masks.

Both streams lie on one time axis of T frames. Position n of the output stream carries frame n - 1 and
predicts frame n, so it may attend to output positions <= n and to input frames m < V(n // k), where
V(i) = clip(i k + t_f, 0, T) is what has been heard when call i starts.
"""

from __future__ import annotations

import torch
from torch import Tensor


def visible_frames(frames: int, t_f: Tensor, k: Tensor) -> Tensor:
    """Return V(n // k) `(B, T)` for every output frame n.

    Args:
        frames: T.
        t_f: `(B,)` future visibility in frames.
        k: `(B,)` chunk sizes in frames.
    """
    n = torch.arange(frames, device=t_f.device)
    start = torch.div(n, k.unsqueeze(1), rounding_mode="floor") * k.unsqueeze(1)
    return (start + t_f.unsqueeze(1)).clamp(0, frames)


def attention_masks(visible: Tensor) -> tuple[Tensor, Tensor]:
    """Return additive masks, 0 where a stream may attend and -inf where not.

    Args:
        visible: `(B, T)` number of input frames that each output frame may use.

    Returns:
        `(T, T)` of the input stream over itself, and `(B, 1, T, 2T)` of the output stream over [input, output].
    """
    batch, frames = visible.shape
    m = torch.arange(frames, device=visible.device)
    causal = m.unsqueeze(1) >= m
    heard = m < visible.unsqueeze(2)
    both = torch.cat([heard, causal.expand(batch, -1, -1)], dim=2)
    return _bias(causal), _bias(both).unsqueeze(1)


def _bias(allowed: Tensor) -> Tensor:
    return torch.zeros(allowed.shape, device=allowed.device).masked_fill(~allowed, -torch.inf)
