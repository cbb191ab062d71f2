"""Token data for pretraining: every (song, target) pair of a split, encoded once and kept on disk.

The file's name carries a hash of corpus, codec and label version, so stale data is never read.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from jamgym.checkpoint import load_tensors, save_tensors
from jamgym.codec import Codec
from jamgym.corpus import Corpus, Split, sample_rate_difference
from jamgym.errors import CorpusError
from jamgym_agents.mle.encoding import encode_songs

#: Bumped whenever labels or layout change.
LABEL_VERSION = "1"


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


def cache_folder() -> Path:
    """Return the folder for derived data: $JAMGYM_CACHE, else the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("JAMGYM_CACHE") or Path(base) / "jamgym")


def load_tokens(
    corpus: Corpus,
    codec: Codec,
    split: Split,
    songs: int | None = None,
    folder: Path | None = None,
    advance: Callable[[], None] | None = None,
    processes: int = 1,
) -> TokenSet:
    """Return the token set of the first `songs` songs of `split`, from disk if it was made before.

    Args:
        corpus: Where songs come from.
        codec: Encodes them.
        split: "train", "validation" or "test".
        songs: None uses all.
        folder: Cache folder; None uses `cache_folder()`.
        advance: Called after each song, for progress bars.
        processes: That encode, if it was not made before.
    """
    if text := sample_rate_difference(corpus, codec.sample_rate, f"codec {codec.name!r}"):
        raise CorpusError(text)
    ids = list(corpus.song_ids(split))[:songs]
    if not ids:
        raise CorpusError(f"Corpus {corpus.name!r} has no songs in split {split!r}.")
    label = "|".join([LABEL_VERSION, corpus.name, corpus.version, codec.name, codec.version, *ids])
    key = hashlib.sha256(label.encode()).hexdigest()[:16]
    path = (folder or cache_folder()) / f"tokens-{corpus.name}-{split}-{key}.safetensors"
    if path.exists():
        tensors, _ = load_tensors(path)
        return TokenSet(**{name: tensor.numpy() for name, tensor in tensors.items()})
    pairs, numbers = [], []
    for number, made in enumerate(encode_songs(corpus, codec, ids, processes)):
        pairs += made
        numbers += [number] * len(made)
        if advance is not None:
            advance()
    if not pairs:
        raise CorpusError(f"No song of split {split!r} of corpus {corpus.name!r} has two stems that sound.")
    lengths = [len(pair["heard"]) for pair in pairs]
    arrays = {name: np.concatenate([pair[name] for pair in pairs]) for name in pairs[0]}
    arrays["offsets"] = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    arrays["instrument"] = arrays["instrument"].astype(np.int64)
    arrays["song"] = np.array(numbers, dtype=np.int64)
    save_tensors(path, {name: torch.from_numpy(array) for name, array in arrays.items()}, {"kind": "tokens"})
    return TokenSet(**arrays)
