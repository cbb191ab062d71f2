"""The clips that codec `spectral` is trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from jamgym.corpus import Corpus, Split
from jamgym.errors import CorpusError


class ClipPool:
    """Stems and mixes of a corpus in memory as int16; draws random clips at random gains.

    Args:
        corpus: Where the songs are.
        split: Which of them.
        songs: How many at most.
        watch: Given the songs' ids, yields them one by one; `Run.loading`, for example, shows progress.
    """

    def __init__(
        self, corpus: Corpus, split: Split, songs: int, watch: Callable[[Sequence[str]], Iterable[str]] = iter
    ) -> None:
        self._songs: list[np.ndarray] = []
        ids = list(corpus.song_ids(split))[:songs]
        if not ids:
            raise CorpusError(
                f"Corpus {corpus.name!r} has no songs in split {split!r}; add some, or name another corpus."
            )
        for song_id in watch(ids):
            song = corpus.load(song_id)
            stems = np.stack([stem.audio for stem in song.stems])
            self._songs.append(np.round(np.clip(stems, -1, 1) * 32767).astype(np.int16))

    def draw(self, rng: np.random.Generator, batch: int, samples: int) -> Tensor:
        """Return `(batch, samples)`: one stem, all but one, or all, at -18 to +6 dB, at most 0.99."""
        clips = np.zeros((batch, samples), dtype=np.float32)
        for row in range(batch):
            stems = self._songs[int(rng.integers(len(self._songs)))]
            start = int(rng.integers(max(stems.shape[1] - samples, 1)))
            part = stems[:, start : start + samples].astype(np.float32) / 32767
            kind = rng.random()
            if kind < 0.5:
                clip = part[int(rng.integers(len(part)))]
            elif kind < 0.9:
                clip = part.sum(0) - part[int(rng.integers(len(part)))]
            else:
                clip = part.sum(0)
            gain = 10.0 ** (rng.uniform(-18.0, 6.0) / 20.0)
            peak = float(np.abs(clip).max()) * gain
            clips[row, : len(clip)] = clip * (gain if peak < 0.99 else gain * 0.99 / peak)
            if rng.random() < 0.1:  # silence has to be a sound of its own: cut in or out somewhere
                cut = int(rng.integers(samples))
                clips[row, :cut] = 0 if rng.random() < 0.5 else clips[row, :cut]
                clips[row, cut:] = 0 if rng.random() < 0.5 else clips[row, cut:]
        return torch.from_numpy(clips)
