"""Look-ahead prediction: an auxiliary head that names input frames which have not been heard yet.

A decoder that is to fit music which it will only hear later has to expect it. From the output stream's state
at frame n the head predicts the first-codebook code of the input frames n, n + 1, ... Frames that are heard by
then tell nothing about expectation, so they do not count; nor do frames past the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Lookahead:
    """Predictions of the N cells (row, output frame, offset) that count.

    Attributes:
        logits: `(N, V)`.
        codes: `(N,)` int64 first-codebook codes that turn out to be there.
    """

    logits: Tensor
    codes: Tensor


def coming_frames(visible: Tensor, at: Tensor, offsets: int) -> tuple[Tensor, Tensor]:
    """Return which input frames are predicted from where, and which of them count.

    Args:
        visible: `(B, T)` number of input frames that each output frame may use.
        at: `(M,)` output frames that predict.
        offsets: L, how many input frames each of them predicts, itself the first.

    Returns:
        `(M, L)` input frames, clipped to T - 1, and the mask `(B, M, L)` of those not heard yet and before T.
    """
    index = at.unsqueeze(1) + torch.arange(offsets, device=at.device)
    frames = visible.shape[1]
    return index.clamp_max(frames - 1), (index >= visible[:, at].unsqueeze(2)) & (index < frames)


class LookaheadHead(nn.Module):
    """Predicts the first code of input frame n + offset from the output stream's state at frame n.

    Args:
        dim: Width C.
        cardinality: V, of the codec.
        offsets: L, how many frames ahead.
    """

    def __init__(self, dim: int, cardinality: int, offsets: int) -> None:
        super().__init__()
        self.offsets = offsets
        self.offset = nn.Embedding(offsets, dim)
        self.norm = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, dim)
        self.head = nn.Linear(dim, cardinality)

    def forward(self, hidden: Tensor, visible: Tensor, codes: Tensor, at: Tensor) -> Lookahead:
        """Predict from the frames `at` `(M,)`.

        Args:
            hidden: `(B, T, C)` of the output stream.
            visible: `(B, T)` number of input frames that each output frame may use.
            codes: `(B, T)` int64 first codebook of the input; only named as what was to be predicted.
            at: `(M,)` output frames.
        """
        index, counts = coming_frames(visible, at, self.offsets)
        # Only the cells that count: with a random t_f about half of them, and the vocabulary is what costs.
        row, frame, offset = counts.nonzero(as_tuple=True)
        x = self.norm(hidden[row, at[frame]] + self.offset(offset))
        return Lookahead(self.head(F.gelu(self.expand(x))), codes[row, index[frame, offset]])
