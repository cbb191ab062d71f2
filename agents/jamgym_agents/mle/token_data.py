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
from jamgym.corpus import Corpus, Song, Split, active, instrument_index, sample_rate_difference
from jamgym.errors import CorpusError

#: Bumped whenever labels or layout change.
LABEL_VERSION = "1"
#: Root class of a frame without a known chord.
NO_CHORD = 12


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


def frame_chroma(audio: NDArray[np.float32], sample_rate: int, hop: int, size: int = 4096) -> NDArray[np.uint8]:
    """Return `(T, 12)` chroma shares (of 255) of windows centred on each frame of `(S,)` audio."""
    frames, size = len(audio) // hop, max(size, hop)
    padded = np.pad(audio[: frames * hop], (size // 2 - hop // 2, size // 2))
    windows = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop][:frames]
    magnitude = np.abs(np.fft.rfft(windows * np.hanning(size).astype(np.float32), axis=1)).astype(np.float32)
    frequencies = np.fft.rfftfreq(size, 1.0 / sample_rate)
    used = (frequencies >= 40.0) & (frequencies <= 2000.0)
    classes = np.round(12 * np.log2(frequencies[used] / 440.0) + 9).astype(int) % 12
    power = magnitude[:, used] ** 2 @ np.eye(12, dtype=np.float32)[classes]
    total = power.sum(1, keepdims=True)
    loud = total > 1e-2
    return np.where(loud, np.round(255 * power / np.maximum(total, 1e-9)), 0).astype(np.uint8)


def encode_song(song: Song, codec: Codec, min_active: float = 0.5) -> list[dict[str, NDArray]]:
    """Encode every stem of `song` that may be a target; returns one mapping of arrays per pair."""
    targets = [s for s in song.stems if active(s.audio, song.sample_rate).mean() >= min_active]
    if len(song.stems) < 2 or not targets:
        return []
    hop = codec.hop_samples
    samples = len(song.stems[0].audio) // hop * hop
    mix = np.asarray(np.sum([stem.audio for stem in song.stems], axis=0, dtype=np.float32))
    audio = [mix[:samples] - stem.audio[:samples] for stem in targets] + [stem.audio[:samples] for stem in targets]
    codes = codec.encode(np.stack(audio))
    frames = codes.shape[1]
    root = np.full(frames, NO_CHORD, dtype=np.int8)
    if song.truth is not None:
        index = song.truth.chord_index((np.arange(frames) + 0.5) * hop / song.sample_rate)
        root = np.where(index >= 0, song.truth.chord_roots[index], NO_CHORD).astype(np.int8)
    pairs = []
    for number, stem in enumerate(targets):
        pairs.append(
            {
                "heard": codes[number],
                "target": codes[len(targets) + number],
                "root": root,
                "chroma": frame_chroma(stem.audio[:samples], song.sample_rate, hop),
                "instrument": np.array([instrument_index(stem.instrument)]),
            }
        )
    return pairs


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
) -> TokenSet:
    """Return the token set of the first `songs` songs of `split`, from disk if it was made before.

    Args:
        corpus: Where songs come from.
        codec: Encodes them.
        split: "train", "validation" or "test".
        songs: None uses all.
        folder: Cache folder; None uses `cache_folder()`.
        advance: Called after each song, for progress bars.
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
    for number, song_id in enumerate(ids):
        made = encode_song(corpus.load(song_id), codec)
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
