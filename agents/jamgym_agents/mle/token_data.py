"""Token data for pretraining: every (song, target) pair of a split, and crops of them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray

from jamgym.errors import CorpusError


@dataclass(frozen=True)
class TokenSet:
    """Encoded pairs, one after the other along the frame axis.

    Attributes:
        heard: `(F, Q)` int16 codes of the inputs of all pairs.
        target: `(F, Q)` int16 codes of the targets.
        root: `(F,)` int8 chord root 0-11, or 12 where there is none.
        chroma: `(F, 12)` uint8, the target's chroma as shares of 255; all zero where it is silent.
        offsets: `(P + 1,)` first frame of each pair.
        instrument: `(P,)` class index of the target.
        song: `(P,)` number of the song.
    """

    heard: NDArray[np.int16]
    target: NDArray[np.int16]
    root: NDArray[np.int8]
    chroma: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    instrument: NDArray[np.int64]
    song: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.instrument)

    def batch(self, rng: np.random.Generator, size: int, frames: int) -> TokenBatch:
        """Draw `size` crops of `frames` frames from pairs that are long enough."""
        usable = np.flatnonzero(np.diff(self.offsets) >= frames)
        if len(usable) == 0:
            raise CorpusError(f"No song has {frames} frames; ask for shorter sequences.")
        pairs = usable[rng.integers(len(usable), size=size)]
        room = np.diff(self.offsets)[pairs] - frames
        starts = self.offsets[pairs] + rng.integers(0, room + 1)
        index = starts[:, None] + np.arange(frames)
        return TokenBatch(
            heard=torch.from_numpy(self.heard[index].astype(np.int64)),
            target=torch.from_numpy(self.target[index].astype(np.int64)),
            root=torch.from_numpy(self.root[index].astype(np.int64)),
            chroma=torch.from_numpy(self.chroma[index].astype(np.float32) / 255.0),
            instrument=torch.from_numpy(self.instrument[pairs]),
            song=self.song[pairs],
        )


@dataclass(frozen=True)
class TokenBatch:
    """B crops of T frames: int64 codes `(B, T, Q)`, labels `(B, T)` and `(B, T, 12)`, conditions `(B,)`."""

    heard: torch.Tensor
    target: torch.Tensor
    root: torch.Tensor
    chroma: torch.Tensor
    instrument: torch.Tensor
    song: NDArray[np.int64]

    def rows(self, part: slice) -> TokenBatch:
        """Return the crops in `part`."""
        return TokenBatch(**{field.name: getattr(self, field.name)[part] for field in fields(self)})

    def to(self, device: torch.device) -> TokenBatch:
        """Return it with all tensors on `device`."""
        tensors = ("heard", "target", "root", "chroma", "instrument")
        return replace(self, **{name: getattr(self, name).to(device) for name in tensors})
