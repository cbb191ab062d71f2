"""Encoded songs on disk: each is encoded once, and what a stopped run has encoded is not lost.

A file's name carries a hash of corpus, codec, songs and label version, so stale data is never read. Until all songs are
encoded, those that are lie in parts in a folder beside it.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from jamgym.checkpoint import load_tensors, save_tensors
from jamgym.codec import Codec
from jamgym.corpus import Corpus, Split, sample_rate_difference
from jamgym.errors import CorpusError
from jamgym_agents.caching import cache_folder
from jamgym_agents.mle.encoding import Pair, encode_songs
from jamgym_agents.mle.token_data import TokenSet

#: Bumped whenever labels or layout change.
LABEL_VERSION = "1"
#: Songs in a part.
PART = 50
#: A mapping of the arrays of a `TokenSet`.
Arrays = dict[str, NDArray]


def _nothing() -> None:
    """Show no progress."""


def _never() -> bool:
    """Go on."""
    return False


def load_tokens(
    corpus: Corpus,
    codec: Codec,
    split: Split,
    songs: int | None = None,
    folder: Path | None = None,
    advance: Callable[[], None] = _nothing,
    processes: int = 1,
    stop: Callable[[], bool] = _never,
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
        stop: Asked after each song whether to stop. What was encoded is kept, and the next call goes on from there.

    Raises:
        CorpusError: The corpus has another sample rate than the codec, or nothing to encode.
        KeyboardInterrupt: `stop` said so.
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
        return TokenSet(**_read(path))
    parts = path.with_suffix(".parts")
    done = _encode_in_parts(parts, corpus, codec, ids, advance, processes, stop)
    arrays = _joined(done)
    if not len(arrays["instrument"]):
        raise CorpusError(f"No song of split {split!r} of corpus {corpus.name!r} has two stems that sound.")
    save_tensors(path, {name: torch.from_numpy(array) for name, array in arrays.items()}, {"kind": "tokens"})
    shutil.rmtree(parts, ignore_errors=True)
    return TokenSet(**arrays)


def _encode_in_parts(
    folder: Path,
    corpus: Corpus,
    codec: Codec,
    ids: Sequence[str],
    advance: Callable[[], None],
    processes: int,
    stop: Callable[[], bool],
) -> list[Arrays]:
    """Encode what `folder` does not hold yet of the songs `ids`, and return all its parts."""
    parts, count = [], 0
    while (path := folder / f"{count:06d}.safetensors").exists():
        arrays = _read(path)
        songs = int(arrays.pop("songs")[0])
        parts.append(arrays)
        count += songs
        for _ in range(songs):
            advance()
    pairs: list[Pair] = []
    numbers: list[int] = []
    begin = count
    for made in encode_songs(corpus, codec, ids[begin:], processes):
        pairs += made
        numbers += [count] * len(made)
        count += 1
        advance()
        stopped = stop()
        if count - begin == PART or count == len(ids) or stopped:
            arrays = _as_arrays(pairs, numbers, codec.num_codebooks)
            kept = {**arrays, "songs": np.array([count - begin])}
            save_tensors(
                folder / f"{begin:06d}.safetensors",
                {name: torch.from_numpy(array) for name, array in kept.items()},
                {"kind": "tokens"},
            )
            parts.append(arrays)
            pairs, numbers, begin = [], [], count
        if stopped:
            raise KeyboardInterrupt
    return parts


def _as_arrays(pairs: list[Pair], numbers: list[int], codebooks: int) -> Arrays:
    """Return the arrays of a `TokenSet` of these pairs, of the songs `numbers`; there may be none."""
    empty: Arrays = {
        "heard": np.zeros((0, codebooks), np.int16),
        "target": np.zeros((0, codebooks), np.int16),
        "root": np.zeros(0, np.int8),
        "chroma": np.zeros((0, 12), np.uint8),
        "instrument": np.zeros(0, np.int64),
    }
    arrays = {name: np.concatenate([none, *(pair[name] for pair in pairs)]) for name, none in empty.items()}
    lengths = [len(pair["heard"]) for pair in pairs]
    arrays["offsets"] = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    arrays["song"] = np.array(numbers, dtype=np.int64)
    return arrays


def _joined(parts: list[Arrays]) -> Arrays:
    """Return the arrays of all parts, one after the other."""
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0] if name != "offsets"}
    lengths = np.concatenate([np.diff(part["offsets"]) for part in parts])
    return {**joined, "offsets": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)}


def _read(path: Path) -> Arrays:
    tensors, _ = load_tensors(path)
    return {name: tensor.numpy() for name, tensor in tensors.items()}
