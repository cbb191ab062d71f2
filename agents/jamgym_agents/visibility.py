"""Who may attend to what: future visibility t_f and chunk size k as attention masks.

Both streams lie on one time axis of T frames. Position n of the output stream carries frame n - 1 and
predicts frame n, so it may attend to output positions <= n and to input frames m < V(n // k), where
V(i) = clip(i k + t_f, 0, T) is what has been heard when call i starts.
"""

from __future__ import annotations

import torch
from torch import Tensor


def visible_frames(frames: int, t_f: Tensor, k: Tensor, exist: Tensor | None = None) -> Tensor:
    """Return V(n // k) `(B, T)` for every output frame n.

    Args:
        frames: T.
        t_f: `(B,)` future visibility in frames.
        k: `(B,)` chunk sizes in frames.
        exist: `(B,)` input frames of each row, if those behind them are padding; None takes all T.
    """
    n = torch.arange(frames, device=t_f.device)
    start = torch.div(n, k.unsqueeze(1), rounding_mode="floor") * k.unsqueeze(1)
    visible = (start + t_f.unsqueeze(1)).clamp(0, frames)
    return visible if exist is None else torch.minimum(visible, exist.unsqueeze(1))


def in_reach(frames: Tensor, positions: Tensor, window: int | None, sinks: int) -> Tensor:
    """Return which `frames` a query at `positions` can look back on: those of its window, and the sinks.

    Args:
        frames: Frame times, of any shape that broadcasts with `positions`.
        positions: Frame times of the queries.
        window: Frames, the query's own included; None reaches back to the start.
        sinks: First frames of the stream that always stay in sight.
    """
    if window is None:
        return torch.ones_like(frames, dtype=torch.bool)
    return (frames > positions - window) | (frames < sinks)


def attention_masks(visible: Tensor, window: int | None = None, sinks: int = 0) -> tuple[Tensor, Tensor]:
    """Return additive masks, 0 where a stream may attend and -inf where not.

    Args:
        visible: `(B, T)` number of input frames that each output frame may use.
        window: Frames of either stream that a frame can look back on; None reaches back to the start.
        sinks: First frames of either stream that always stay in sight.

    Returns:
        `(T, T)` of the input stream over itself, and `(B, 1, T, 2T)` of the output stream over [input, output].
    """
    batch, frames = visible.shape
    m = torch.arange(frames, device=visible.device)
    reach = in_reach(m, m.unsqueeze(1), window, sinks)
    causal = (m.unsqueeze(1) >= m) & reach
    heard = (m < visible.unsqueeze(2)) & reach
    both = torch.cat([heard, causal.expand(batch, -1, -1)], dim=2)
    return additive(causal), additive(both).unsqueeze(1)


def additive(allowed: Tensor) -> Tensor:
    """Return 0 where `allowed` and -inf elsewhere."""
    return torch.zeros(allowed.shape, device=allowed.device).masked_fill(~allowed, -torch.inf)
