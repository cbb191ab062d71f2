"""A codec, a corpus and a reward of a few lines each: numpy only, exact and fast, for tests and examples."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from jamgym.codec import Audio, Codes
from jamgym.corpus import SPLITS, Song, Split, Stem, Truth
from jamgym.errors import CorpusError, unknown_name_message
from jamgym.reward import Windows


class ToyCodec:
    """Codes a frame as a level and the strongest tone of each of Q - 1 bands; decodes to those tones.

    Level 0 is exact silence. A frame's level looks one frame back and its decoded audio rings into the
    next one, so both directions have a state that a stream must carry and a reset must clear.

    Args:
        num_codebooks: Q, from 2 to 4.
        cardinality: Levels, and tones per band.
        sample_rate: Samples per second.
        hop_samples: Samples per frame.
    """

    name = "toy"
    version = "1"
    lookahead_samples = 0
    decoder_lookahead_samples = 0

    def __init__(
        self, num_codebooks: int = 2, cardinality: int = 16, sample_rate: int = 16_000, hop_samples: int = 640
    ) -> None:
        if not 2 <= num_codebooks <= 4:
            raise ValueError(f"num_codebooks is {num_codebooks}; valid are 2, 3 and 4")
        self.num_codebooks = num_codebooks
        self.cardinality = cardinality
        self.sample_rate = sample_rate
        self.hop_samples = hop_samples
        self.silence_codes: Codes = np.zeros(num_codebooks, dtype=np.int16)
        time = np.arange(hop_samples) / hop_samples
        # Whole periods per frame make tones continuous from frame to frame.
        cycles = 4 + np.arange((num_codebooks - 1) * cardinality)
        self._sine = np.sin(2 * np.pi * cycles[:, None] * time).astype(np.float32)
        self._cosine = np.cos(2 * np.pi * cycles[:, None] * time).astype(np.float32)
        self._amplitude = np.concatenate([[0.0], 10 ** np.linspace(-2.5, -0.3, cardinality - 1)]).astype(np.float32)

    def encode(self, audio: Audio) -> Codes:
        """Encode `(N, S)` into `(N, T, Q)`."""
        return self._encode(audio, np.zeros((len(audio), self.hop_samples), dtype=np.float32))

    def decode(self, codes: Codes) -> Audio:
        """Decode `(N, T, Q)` into `(N, T * hop_samples)`."""
        return self._decode(codes, np.zeros((len(codes), self.hop_samples), dtype=np.float32))[0]

    def encoder(self, batch: int) -> ToyStream:
        """Return a streaming encoder."""
        return ToyStream(self, batch, encode=True)

    def decoder(self, batch: int) -> ToyStream:
        """Return a streaming decoder."""
        return ToyStream(self, batch, encode=False)

    def _encode(self, audio: Audio, before: Audio) -> Codes:
        frames = audio.reshape(len(audio), -1, self.hop_samples)
        past = np.concatenate([before[:, None], frames[:, :-1]], axis=1)
        power = np.mean(np.square(frames), axis=2) + 0.1 * np.mean(np.square(past), axis=2)
        steps = np.searchsorted(self._amplitude[1:], np.sqrt(2 * power) * 1.1, side="right")
        strength = (frames @ self._sine.T) ** 2 + (frames @ self._cosine.T) ** 2
        tones = strength.reshape(*frames.shape[:2], self.num_codebooks - 1, self.cardinality).argmax(axis=3)
        tones[steps == 0] = 0
        return np.concatenate([steps[:, :, None], tones], axis=2).astype(np.int16)

    def _decode(self, codes: Codes, ring: Audio) -> tuple[Audio, Audio]:
        amplitude = self._amplitude[codes[:, :, 0]][:, :, None]
        tone = np.zeros((*codes.shape[:2], self.hop_samples), dtype=np.float32)
        for band in range(self.num_codebooks - 1):
            tone += self._sine[codes[:, :, band + 1] + band * self.cardinality]
        tone *= amplitude / np.float32(self.num_codebooks - 1)
        past = np.concatenate([ring[:, None], tone[:, :-1]], axis=1)
        audio = tone + np.float32(0.1) * past
        return audio.reshape(len(codes), -1), tone[:, -1].copy()


class ToyStream:
    """Streaming state of a `ToyCodec`: the last frame of each row."""

    def __init__(self, codec: ToyCodec, batch: int, encode: bool) -> None:
        self._codec = codec
        self._encode = encode
        self._past = np.zeros((batch, codec.hop_samples), dtype=np.float32)

    def push(self, block: NDArray, rows: NDArray[np.int64] | None = None) -> NDArray:
        """Encode `(N, m * hop_samples)` samples, or decode `(N, m, Q)` codes, of all streams or of `rows`."""
        which = slice(None) if rows is None else rows
        if self._encode:
            codes = self._codec._encode(block, self._past[which])
            self._past[which] = block.reshape(len(block), -1, self._codec.hop_samples)[:, -1]
            return codes
        audio, self._past[which] = self._codec._decode(block, self._past[which])
        return audio

    def reset(self, rows: NDArray[np.bool_] | None = None) -> None:
        """Forget the past of the rows in mask `rows`, or of all."""
        if rows is None:
            self._past[:] = 0.0
        else:
            self._past[rows] = 0.0


class ToyCorpus:
    """Songs of three tones stems over a loop of chords, with exact beats and chords.

    Args:
        songs: Songs per split.
        seconds: Length of each song.
        sample_rate: Samples per second.
    """

    name = "toy"
    version = "1"

    def __init__(self, songs: int = 4, seconds: float = 6.0, sample_rate: int = 16_000) -> None:
        self.songs = songs
        self.seconds = seconds
        self.sample_rate = sample_rate
        # What a song sounds like, for caches; the number of songs changes none of them.
        self.version = f"{self.version}-{seconds:g}s-{sample_rate}"

    def song_ids(self, split: Split) -> Sequence[str]:
        """Return the ids of `split`."""
        if split not in SPLITS:
            raise CorpusError(unknown_name_message("split", str(split), SPLITS))
        return [f"{split}-{index:04d}" for index in range(self.songs)]

    def load(self, song_id: str) -> Song:
        """Return a song, always the same for the same id."""
        known = [name for split in SPLITS for name in self.song_ids(split)]
        if song_id not in known:
            raise CorpusError(unknown_name_message("song", song_id, known))
        rng = np.random.default_rng(zlib.crc32(song_id.encode()))
        beat = float(rng.uniform(0.4, 0.7))
        beats = np.arange(0.0, self.seconds, beat)
        edges = np.append(beats[::4], self.seconds)
        roots = rng.integers(0, 12, 4)[np.arange(len(edges) - 1) % 4]
        chords = np.zeros((len(roots), 12), dtype=np.bool_)
        for third in (0, 4, 7):
            chords[np.arange(len(roots)), (roots + third) % 12] = True
        time = np.arange(round(self.seconds * self.sample_rate)) / self.sample_rate
        chord = np.searchsorted(edges, time, side="right").clip(1, len(roots)) - 1
        # A decay at every beat makes levels move within a bar.
        envelope = 0.2 + 0.8 * np.exp(-3.0 * (time % beat))
        stems = []
        for name, instrument, base, interval in (
            ("bass", "bass", 65.4, 0),
            ("piano", "piano", 261.6, 4),
            ("flute", "pipe", 523.3, 7),
        ):
            pitch = base * 2 ** ((roots + interval) % 12 / 12)
            phase = np.cumsum(pitch[chord]) / self.sample_rate
            audio = 0.2 * envelope * np.sin(2 * np.pi * phase)
            stems.append(Stem(name=name, instrument=instrument, audio=audio.astype(np.float32)))
        truth = Truth(
            beats=beats,
            downbeats=beats[::4],
            chord_times=edges,
            chord_roots=roots.astype(np.int64),
            chord_pitch_classes=chords,
            tempo_bpm=60.0 / beat,
        )
        return Song(id=song_id, sample_rate=self.sample_rate, stems=tuple(stems), truth=truth)


class ToyReward:
    """1 where played and heard are equally loud, 0 where one of them is silent: mean over blocks of 20 ms.

    Args:
        window_seconds: Length of a window.
        hop_seconds: Time between the ends of windows.
        min_window_seconds: Length of the shortest window.
        needs: What else to ask for, to test that it arrives.
    """

    name = "toy"
    version = "1"
    causal = True
    range = (0.0, 1.0)

    def __init__(
        self,
        window_seconds: float = 1.0,
        hop_seconds: float = 0.4,
        min_window_seconds: float = 0.4,
        needs: Sequence[str] = (),
    ) -> None:
        self.window_seconds = window_seconds
        self.hop_seconds = hop_seconds
        self.min_window_seconds = min_window_seconds
        self.needs = frozenset(needs)

    def score(self, windows: Windows) -> NDArray[np.float32]:
        """Return `(N,)` scores in [0, 1]."""
        block = max(1, windows.sample_rate // 50)
        heard, played = (self._levels(audio, block) for audio in (windows.heard, windows.played))
        match = 2 * heard * played / (heard**2 + played**2 + np.float32(1e-12))
        return match.mean(axis=1, dtype=np.float64).astype(np.float32)

    @staticmethod
    def _levels(audio: Audio, block: int) -> NDArray[np.float32]:
        whole = max(audio.shape[1] // block, 1)
        padded = audio[:, : whole * block]
        return np.sqrt(np.mean(np.square(padded).reshape(len(audio), whole, -1), axis=2))
