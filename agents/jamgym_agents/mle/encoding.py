"""Encoding songs into pairs of input and target with their labels, in one process or several."""

from __future__ import annotations

import pickle
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import torch
from numpy.typing import NDArray

from jamgym.codec import Codec
from jamgym.corpus import Corpus, Song, active_share, instrument_index
from jamgym.errors import ConfigError

#: Root class of a frame without a known chord.
NO_CHORD = 12
#: Arrays of one pair, by the names of `TokenSet`.
Pair = dict[str, NDArray]


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


def encode_song(song: Song, codec: Codec, min_active: float = 0.5) -> list[Pair]:
    """Encode every stem of `song` that may be a target; returns one mapping of arrays per pair.

    A song shorter than a frame has none.
    """
    targets = [s for s in song.stems if active_share(s.audio, song.sample_rate) >= min_active]
    if len(song.stems) < 2 or not targets:
        return []
    hop = codec.hop_samples
    samples = len(song.stems[0].audio) // hop * hop
    if samples == 0:
        return []
    mix = np.asarray(np.sum([stem.audio for stem in song.stems], axis=0, dtype=np.float32))
    audio = [mix[:samples] - stem.audio[:samples] for stem in targets] + [stem.audio[:samples] for stem in targets]
    codes = codec.encode(np.stack(audio))
    frames = codes.shape[1]
    root = np.full(frames, NO_CHORD, dtype=np.int8)
    if song.truth is not None:
        index = song.truth.chord_index((np.arange(frames) + 0.5) * hop / song.sample_rate)
        # Index -1 is "no chord", and a song may have none at all.
        root = np.append(song.truth.chord_roots, NO_CHORD)[index].astype(np.int8)
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


def encode_songs(corpus: Corpus, codec: Codec, ids: Sequence[str], processes: int = 1) -> Iterator[list[Pair]]:
    """Encode songs `ids` of `corpus`; yields what `encode_song` returns, in the order of `ids`.

    Args:
        corpus: Where songs come from; with several processes each has a copy.
        codec: Encodes them; with several processes each has a copy, on the same device.
        ids: Song ids.
        processes: How many work at the same time, each with one thread; 1 works in this process.

    Raises:
        ConfigError: There are several processes, and corpus or codec cannot be copied to them.
    """
    if processes == 1:
        for song_id in ids:
            yield encode_song(corpus.load(song_id), codec)
        return
    try:
        # As bytes: torch would share the tensors' memory with the other processes, which few systems allow for long.
        tools = pickle.dumps((corpus, codec))
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"Corpus {corpus.name!r} and codec {codec.name!r} cannot be copied to {processes} processes ({error}). "
            "Encode in one: encode_processes: 1."
        ) from error
    # Fresh interpreters: a fork of a process in which torch has threads can hang.
    with ProcessPoolExecutor(processes, get_context("spawn"), initializer=_begin, initargs=(tools,)) as pool:
        try:
            yield from pool.map(_encode, ids, chunksize=4)
        finally:
            pool.shutdown(cancel_futures=True)  # whoever stops early does not wait for the rest


_TOOLS: list[tuple[Corpus, Codec]] = []


def _begin(tools: bytes) -> None:
    # Ctrl-C reaches all processes of a terminal; the one that was started decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    _TOOLS.append(pickle.loads(tools))


def _encode(song_id: str) -> list[Pair]:
    corpus, codec = _TOOLS[0]
    return encode_song(corpus.load(song_id), codec)
