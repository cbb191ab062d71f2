"""The corpus protocol: songs made of stems, with optional truth, split by song."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from jamgym.errors import CorpusError, unknown_name_message

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

#: Instrument classes, after the General MIDI families. The index is what agents are conditioned on.
INSTRUMENTS: tuple[str, ...] = (
    "other",
    "drums",
    "bass",
    "piano",
    "chromatic_percussion",
    "organ",
    "guitar",
    "strings",
    "brass",
    "reed",
    "pipe",
    "synth",
    "voice",
)


def instrument_index(name: str) -> int:
    """Return the class index of `name`; raises `CorpusError` for an unknown class."""
    if name not in INSTRUMENTS:
        raise CorpusError(unknown_name_message("instrument class", name, INSTRUMENTS))
    return INSTRUMENTS.index(name)


@dataclass(frozen=True)
class Truth:
    """What is known about a song beyond its audio. Times are seconds from the start.

    Attributes:
        beats: `(B,)` beat times, ascending.
        downbeats: `(D,)` times of the first beats of bars.
        chord_times: `(C + 1,)` chord boundaries; chord j sounds in [chord_times[j], chord_times[j + 1]).
        chord_roots: `(C,)` root pitch classes 0-11 (C = 0).
        chord_pitch_classes: `(C, 12)` membership of each pitch class.
        tempo_bpm: Beats per minute.
    """

    beats: NDArray[np.float64]
    downbeats: NDArray[np.float64]
    chord_times: NDArray[np.float64]
    chord_roots: NDArray[np.int64]
    chord_pitch_classes: NDArray[np.bool_]
    tempo_bpm: float

    def crop(self, start: float, end: float) -> Truth:
        """Return the truth of [start, end) seconds with times counted from `start`."""
        inside = (self.beats >= start) & (self.beats < end)
        down = (self.downbeats >= start) & (self.downbeats < end)
        keep = (self.chord_times[1:] > start) & (self.chord_times[:-1] < end)
        # Where no chord sounds, C = 0 and one boundary is left.
        last = self.chord_times[1:][keep][-1] if keep.any() else end
        edges = np.append(self.chord_times[:-1][keep], last)
        return Truth(
            beats=self.beats[inside] - start,
            downbeats=self.downbeats[down] - start,
            chord_times=np.clip(edges, start, end) - start,
            chord_roots=self.chord_roots[keep],
            chord_pitch_classes=self.chord_pitch_classes[keep],
            tempo_bpm=self.tempo_bpm,
        )

    def chord_index(self, times: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return for each of `times` `(M,)` the index of the sounding chord, or -1."""
        index = np.searchsorted(self.chord_times, times, side="right") - 1
        return np.where((index >= 0) & (index < len(self.chord_roots)), index, -1)


@dataclass(frozen=True)
class Stem:
    """One instrument's track: `audio` is mono float32 `(S,)` in [-1, 1]."""

    name: str
    instrument: str
    audio: NDArray[np.float32]


@dataclass(frozen=True)
class Song:
    """Stems of equal length at one sample rate, with truth where it is known."""

    id: str
    sample_rate: int
    stems: tuple[Stem, ...]
    truth: Truth | None = None

    def stem(self, name: str) -> Stem:
        """Return the stem called `name`."""
        for stem in self.stems:
            if stem.name == name:
                return stem
        raise CorpusError(unknown_name_message(f"stem of song {self.id!r}", name, [s.name for s in self.stems]))


@runtime_checkable
class Corpus(Protocol):
    """Songs, split by song.

    Attributes:
        name: Registry name.
        version: Changes whenever the same id may give other audio; part of every cache key.
        sample_rate: Sample rate of every song that `load` returns.
    """

    name: str
    version: str
    sample_rate: int

    def song_ids(self, split: Split) -> Sequence[str]:
        """Return the stable ids of the songs of `split`; splits never share a song."""
        ...

    def load(self, song_id: str) -> Song:
        """Return one song. Raises `CorpusError` if it cannot be read."""
        ...


@dataclass(frozen=True)
class Pair:
    """Input and target of one song: the agent hears `heard` and replaces `target`.

    `heard` is the sum of all other stems, `target` one stem; both `(S,)` float32. `instrument` is
    the target's class index.
    """

    song_id: str
    target_name: str
    instrument: int
    sample_rate: int
    heard: NDArray[np.float32]
    target: NDArray[np.float32]
    truth: Truth | None


def sample_rate_difference(corpus: Corpus, wanted: int, user: str) -> str:
    """Return a sentence that says what to give a corpus whose rate `user` cannot use; "" if it can."""
    if corpus.sample_rate == wanted:
        return ""
    return (
        f"Corpus {corpus.name!r} is at {corpus.sample_rate} Hz but {user} needs {wanted} Hz. "
        f"Give the corpus sample_rate={wanted}."
    )


def active(audio: NDArray[np.float32], sample_rate: int, threshold_db: float = -60.0) -> NDArray[np.bool_]:
    """Return per 20 ms block `(S // block,)` whether its RMS is above `threshold_db` dBFS."""
    block = sample_rate // 50
    whole = audio[: len(audio) // block * block].reshape(-1, block)
    power = np.mean(np.square(whole, dtype=np.float64), axis=1)
    return power > 10.0 ** (threshold_db / 10.0)


def active_share(audio: NDArray[np.float32], sample_rate: int) -> float:
    """Return the share of blocks of `audio` `(S,)` that are `active`; 0 of audio that is shorter than one block."""
    blocks = active(audio, sample_rate)
    return float(blocks.mean()) if len(blocks) else 0.0


def make_pair(song: Song, target_name: str) -> Pair:
    """Pair the stem `target_name` of `song` with the sum of all its other stems.

    Raises:
        CorpusError: The song has fewer than two stems.
    """
    if len(song.stems) < 2:
        raise CorpusError(
            f"Song {song.id!r} has {len(song.stems)} stem; pairing needs at least two: one to hear and one to play."
        )
    target = song.stem(target_name)
    others = [stem.audio for stem in song.stems if stem.name != target_name]
    heard = np.asarray(np.sum(others, axis=0, dtype=np.float32))
    return Pair(
        song_id=song.id,
        target_name=target_name,
        instrument=instrument_index(target.instrument),
        sample_rate=song.sample_rate,
        heard=heard,
        target=target.audio,
        truth=song.truth,
    )
