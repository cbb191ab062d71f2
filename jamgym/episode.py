"""Episodes: what an agent will hear and what it should have played, encoded and cropped.

Codes are made once per (song, target) from the whole song and kept, so a crop costs a slice. Audio is kept for fewer
pairs, and loaded again where it is gone, which takes less time than encoding.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jamgym.codec import Codec, Codes
from jamgym.corpus import (
    INSTRUMENTS,
    Corpus,
    Pair,
    Split,
    Truth,
    active,
    active_share,
    instrument_index,
    make_pair,
    sample_rate_difference,
)
from jamgym.errors import ConfigError, CorpusError

_LOG = logging.getLogger(__name__)
#: Targets and starts that are tried in each song before all of them are given up.
_DRAWS = 8
#: Passes over all songs without a find after which no more episodes are looked for.
_EMPTY_PASSES = 4
#: Pairs whose codes are kept, for each that is kept whole; audio takes some 300 times as much memory.
_CODES_PER_PAIR = 16


@dataclass(frozen=True)
class Episode:
    """One crop of one song. T frames, S = T * hop_samples samples.

    Attributes:
        song_id: The song; splits and confidence intervals count songs.
        target_name: The stem that the agent replaces.
        instrument: Its class index.
        start_frame: First frame of the crop in the song.
        input_codes: `(T, Q)` codes of what is heard.
        target_codes: `(T, Q)` codes of the replaced stem.
        heard: `(S,)` float32 audio of the input.
        target: `(S,)` float32 audio of the replaced stem.
        truth: Beats and chords of the crop, or None.
        ends_song: Whether the crop reaches the song's end (termination) or is cut (truncation).
    """

    song_id: str
    target_name: str
    instrument: int
    start_frame: int
    input_codes: Codes
    target_codes: Codes
    heard: NDArray[np.float32]
    target: NDArray[np.float32]
    truth: Truth | None
    ends_song: bool

    @property
    def frames(self) -> int:
        """Number of frames T."""
        return len(self.input_codes)


@dataclass(frozen=True)
class EncodedPair:
    """A whole song's pair with its codes.

    Attributes:
        pair: Audio, instrument and truth of the song.
        input_codes: `(T, Q)` codes of what is heard.
        target_codes: `(T, Q)` codes of the replaced stem.
        active_before: `(blocks + 1,)` number of 20 ms blocks before each block in which input and target both
            sound; differences of it count the active blocks of any stretch without looking at audio again.
    """

    pair: Pair
    input_codes: Codes
    target_codes: Codes
    active_before: NDArray[np.int64]


class EpisodeSource:
    """Draws episodes of one split of a corpus.

    Args:
        corpus: Where songs come from; its sample rate must be the codec's.
        codec: Encodes input and target.
        split: "train", "validation" or "test".
        frames: Frames per episode T; a shorter song gives a shorter episode that ends the song.
        instruments: Allowed target classes, or a single one; None allows all.
        min_active: Least share of 20 ms blocks in which input or target sound (> -60 dBFS) together.
        cache_songs: Number of encoded pairs kept in memory; of 16 times as many the codes alone are kept, which take
            little room, and the audio is loaded again.
        max_songs: Use only the first so many songs of the split; None uses all.
    """

    def __init__(
        self,
        corpus: Corpus,
        codec: Codec,
        split: Split = "train",
        frames: int = 250,
        instruments: str | Sequence[str] | None = None,
        min_active: float = 0.5,
        cache_songs: int = 512,
        max_songs: int | None = None,
    ) -> None:
        if text := sample_rate_difference(corpus, codec.sample_rate, f"codec {codec.name!r}"):
            raise ConfigError(text)
        if frames < 1:
            raise ConfigError(f"frames is {frames}; an episode needs at least 1 frame.")
        if max_songs is not None and max_songs < 1:
            raise ConfigError(f"max_songs is {max_songs}; use at least 1 song, or None for all.")
        if cache_songs < 0:
            raise ConfigError(f"cache_songs is {cache_songs}; it must be at least 0, which keeps nothing.")
        names = (instruments,) if isinstance(instruments, str) else instruments
        if names is not None and len(names) == 0:
            raise ConfigError("instruments is empty; name the classes that may be the target, or give None for all.")
        self.corpus = corpus
        self.codec = codec
        self.split = split
        self.frames = frames
        self.min_active = min_active
        self._allowed = None if names is None else {instrument_index(name) for name in names}
        self.song_ids: tuple[str, ...] = tuple(corpus.song_ids(split))[:max_songs]
        if not self.song_ids:
            raise CorpusError(f"Corpus {corpus.name!r} has no songs in split {split!r}.")
        self._cache: OrderedDict[tuple[str, str], EncodedPair] = OrderedDict()
        self._codes: OrderedDict[tuple[str, str], Codes] = OrderedDict()
        self._targets: dict[str, tuple[str, ...]] = {}
        # Of the songs that were looked at: what an error says when there is no episode in any of them.
        self._classes: set[str] = set()
        self._longest = 0
        self._cache_size = cache_songs

    def targets(self, song_id: str) -> tuple[str, ...]:
        """Return the stem names of `song_id` that may be the target."""
        if song_id not in self._targets:
            song = self.corpus.load(song_id)
            self._classes.update(stem.instrument for stem in song.stems)
            self._longest = max([self._longest, *(len(stem.audio) for stem in song.stems)])
            names = [
                stem.name
                for stem in song.stems
                if (self._allowed is None or instrument_index(stem.instrument) in self._allowed)
                and active_share(stem.audio, song.sample_rate) >= self.min_active
            ]
            self._targets[song_id] = tuple(names) if len(song.stems) > 1 else ()
        return self._targets[song_id]

    def encoded(self, song_id: str, target_name: str) -> EncodedPair:
        """Return the encoded pair, from memory if it was made before."""
        key = (song_id, target_name)
        if key in self._cache:
            self._cache.move_to_end(key)
            self._codes.move_to_end(key)
            return self._cache[key]
        pair = make_pair(self.corpus.load(song_id), target_name)
        hop = self.codec.hop_samples
        samples = len(pair.heard) // hop * hop
        if samples == 0:
            raise CorpusError(
                f"Song {song_id!r} lasts {len(pair.heard)} samples, shorter than one frame of {hop}. Remove it."
            )
        codes = self._codes.pop(key, None)
        if codes is None:
            codes = self.codec.encode(np.stack([pair.heard[:samples], pair.target[:samples]]))
        both_sound = active(pair.heard, pair.sample_rate) & active(pair.target, pair.sample_rate)
        made = EncodedPair(
            pair=pair,
            input_codes=codes[0],
            target_codes=codes[1],
            active_before=np.concatenate([[0], np.cumsum(both_sound)]),
        )
        self._cache[key], self._codes[key] = made, codes
        while len(self._cache) > self._cache_size:
            self._cache.popitem(last=False)
        while len(self._codes) > _CODES_PER_PAIR * self._cache_size:
            self._codes.popitem(last=False)
        return made

    def crop(self, song_id: str, target_name: str, start_frame: int) -> Episode:
        """Return the episode that starts at `start_frame` of the pair."""
        made = self.encoded(song_id, target_name)
        hop, rate = self.codec.hop_samples, self.codec.sample_rate
        end_frame = min(start_frame + self.frames, len(made.input_codes))
        part = slice(start_frame * hop, end_frame * hop)
        truth = made.pair.truth
        return Episode(
            song_id=song_id,
            target_name=target_name,
            instrument=made.pair.instrument,
            start_frame=start_frame,
            input_codes=made.input_codes[start_frame:end_frame],
            target_codes=made.target_codes[start_frame:end_frame],
            heard=made.pair.heard[part],
            target=made.pair.target[part],
            truth=None if truth is None else truth.crop(start_frame * hop / rate, end_frame * hop / rate),
            ends_song=end_frame == len(made.input_codes),
        )

    def sample(self, rng: np.random.Generator, tries: int = 64) -> Episode:
        """Draw a song, a target and a start such that both streams are active enough.

        Where `tries` draws find none, as with a class that few songs have, all songs are gone through in random order.

        Raises:
            CorpusError: No song has a target, or no crop was active enough; the message says which.
        """
        for _ in range(tries):
            song_id = self.song_ids[int(rng.integers(len(self.song_ids)))]
            if (episode := self._draw(rng, song_id)) is not None:
                return episode
        for index in rng.permutation(len(self.song_ids)).tolist():
            for _ in range(_DRAWS):
                if (episode := self._draw(rng, self.song_ids[index])) is not None:
                    return episode
        raise CorpusError(self._why_none())

    def _draw(self, rng: np.random.Generator, song_id: str) -> Episode | None:
        """Draw a target and a start of `song_id`; None if it has no target or the crop is not active enough."""
        names = self.targets(song_id)
        if not names:
            return None
        name = names[int(rng.integers(len(names)))]
        made = self.encoded(song_id, name)
        start = int(rng.integers(max(len(made.input_codes) - self.frames, 0) + 1))
        return self.crop(song_id, name, start) if self._is_active_at(made, start) else None

    def is_active(self, episode: Episode) -> bool:
        """Whether input and target sound together for at least `min_active` of the crop."""
        rate = self.codec.sample_rate
        both = active(episode.heard, rate) & active(episode.target, rate)
        return bool(both.mean() >= self.min_active) if len(both) else False

    def _is_active_at(self, made: EncodedPair, start_frame: int) -> bool:
        """Return what `is_active` says of the crop at `start_frame`, from the sums where blocks line up."""
        hop, block = self.codec.hop_samples, self.codec.sample_rate // 50
        end_frame = min(start_frame + self.frames, len(made.input_codes))
        if start_frame * hop % block:
            return self.is_active(self.crop(made.pair.song_id, made.pair.target_name, start_frame))
        first, count = start_frame * hop // block, (end_frame - start_frame) * hop // block
        if count == 0:
            return False
        return bool((made.active_before[first + count] - made.active_before[first]) / count >= self.min_active)

    def fixed(self, count: int, seed: int) -> list[Episode]:
        """Return `count` episodes of distinct songs (as far as there are), the same for the same seed."""
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(self.song_ids)).tolist()
        found: list[Episode] = []
        empty = 0
        while len(found) < count and empty < _EMPTY_PASSES:
            before = len(found)
            for index in order:
                if len(found) < count and (episode := self._draw(rng, self.song_ids[index])) is not None:
                    found.append(episode)
            empty = empty + 1 if len(found) == before else 0
        if not found:
            raise CorpusError(self._why_none())
        if len(found) < count:
            _LOG.warning(
                "Split %r of corpus %r gave %d episode(s) instead of %d: input and target seldom sound together there.",
                self.split,
                self.corpus.name,
                len(found),
                count,
            )
        return found

    def _why_none(self) -> str:
        """Say why there is no episode, once every song has been looked at."""
        hop, rate = self.codec.hop_samples, self.codec.sample_rate
        text = f"Split {self.split!r} of corpus {self.corpus.name!r} has no usable episode: "
        if self._allowed is not None and not self._allowed & {instrument_index(name) for name in self._classes}:
            wanted = " or ".join(repr(INSTRUMENTS[index]) for index in sorted(self._allowed))
            there = ", ".join(sorted(self._classes))
            return text + (
                f"no stem of class {wanted} in any of its {len(self.song_ids)} songs; classes there are: {there}. Put "
                "one of these into instruments, or allow all with None."
            )
        if self._longest < max(hop, rate // 50):
            return text + (
                f"its longest song lasts {self._longest / rate:.3f} s, less than a frame of {hop / rate:.3f} s or than "
                "the 20 ms over which loudness is measured. Add longer songs."
            )
        return text + (
            f"no crop of {self.frames} frames has input and target sounding together for {self.min_active:.0%} of the "
            "time. Check that songs have two stems or more that are not silent, or make an EpisodeSource with a lower "
            "min_active."
        )
