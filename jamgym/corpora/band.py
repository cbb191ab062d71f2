"""The corpus `band`: songs composed by rule and played by recorded instruments, with exact truth."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from jamgym.corpora.composition import Composition, Part, compose
from jamgym.corpora.sample_bank import sample_bank
from jamgym.corpus import SPLITS, Song, Split, Stem, instrument_index
from jamgym.errors import ConfigError, CorpusError, unknown_name_message

#: Bumped whenever the same id may give other audio.
COMPOSER_VERSION = "1"


class BandCorpus:
    """Endless band music: every id is composed and rendered anew, the same for the same seed.

    Eight of ten songs are for training, one for validation and one for testing.

    Args:
        songs: Number of songs over all splits.
        seconds: Length of a song; it ends on the nearest bar line.
        seed: Other seeds give other songs.
        cache_songs: Rendered songs kept in memory.

    Example:
        >>> corpus = BandCorpus(songs=20)
        >>> song = corpus.load(corpus.song_ids("test")[0])
        >>> song.sample_rate, len(song.stems) >= 3
        (16000, True)
    """

    name = "band"

    def __init__(self, songs: int = 2000, seconds: float = 26.0, seed: int = 0, cache_songs: int = 16) -> None:
        if songs < 10:
            raise ConfigError(f"songs is {songs}; the band needs at least 10, so that every split has one.")
        if not 8.0 <= seconds <= 600.0:
            raise ConfigError(f"seconds is {seconds}; a song of the band lasts 8 to 600 seconds.")
        for key, value in (("seed", seed), ("cache_songs", cache_songs)):
            if value < 0:
                raise ConfigError(f"{key} is {value}; it must be at least 0.")
        self._bank = sample_bank()
        self._songs = songs
        self._seconds = float(seconds)
        self._seed = seed
        self._ranges = {name: self._bank.key_range(name) for name in self._bank.instruments}
        self._cache: OrderedDict[str, Song] = OrderedDict()
        self._cache_size = cache_songs
        self.sample_rate = self._bank.sample_rate
        self.version = f"{COMPOSER_VERSION}-{self._bank.version}-{seconds:g}-{seed}"

    def song_ids(self, split: Split) -> list[str]:
        """Return the ids of `split`."""
        if split not in SPLITS:
            raise CorpusError(unknown_name_message("split", split, SPLITS))
        digit = {"validation": {8}, "test": {9}}.get(split, set(range(8)))
        return [f"band-{index:06d}" for index in range(self._songs) if index % 10 in digit]

    def composition(self, song_id: str) -> Composition:
        """Return the song on paper.

        Raises:
            CorpusError: `song_id` is not an id of this corpus.
        """
        prefix, _, digits = song_id.partition("-")
        valid = prefix == "band" and digits.isdecimal() and int(digits) < self._songs
        if not valid or song_id != f"band-{int(digits):06d}":  # one song, one id
            raise CorpusError(
                f"Unknown song {song_id!r} in corpus 'band'; "
                f"ids run from 'band-000000' to 'band-{self._songs - 1:06d}'."
            )
        rng = np.random.default_rng([self._seed, int(digits)])
        return compose(rng, self._seconds, self._ranges, self._bank.drum_keys)

    def load(self, song_id: str) -> Song:
        """Compose and render `song_id`; a few hundred times faster than real time."""
        if song_id in self._cache:
            self._cache.move_to_end(song_id)
            return self._cache[song_id]
        song = self.load_transposed(song_id, {})
        self._cache[song_id] = song
        while len(self._cache) > self._cache_size:
            self._cache.popitem(last=False)
        return song

    def load_transposed(self, song_id: str, semitones: Mapping[str, int]) -> Song:
        """Render `song_id` with the named stems transposed: known wrong notes, for negatives and tests.

        Drums have no pitch and stay as they are.

        Raises:
            CorpusError: No such song, or no such stem in it.
        """
        paper = self.composition(song_id)
        names = [part.name for part in paper.parts]
        for name in semitones:
            if name not in names:
                raise CorpusError(unknown_name_message(f"stem of song {song_id!r}", name, names))
        samples = round(paper.seconds * self.sample_rate)
        classes = self._bank.instruments
        stems = []
        for part in paper.parts:
            audio = self._render(part, samples, semitones.get(part.name, 0))
            instrument_index(classes[part.instrument])  # the bank's classes are jamgym's
            stems.append(Stem(part.name, classes[part.instrument], audio))
        return Song(song_id, self.sample_rate, tuple(stems), paper.truth)

    def _render(self, part: Part, samples: int, semitones: int) -> NDArray[np.float32]:
        notes = part.notes
        if semitones and part.instrument != "drums":
            notes = replace(notes, key=notes.key + semitones)
        audio = self._bank.render(part.instrument, notes, samples)
        level = float(np.sqrt(np.mean(np.square(audio, dtype=np.float64)))) + 1e-9
        audio *= np.float32(10.0 ** (part.level_db / 20.0) / level)
        return np.clip(audio, -1.0, 1.0)
