"""Baseline policies: silence, random codes, another song's stem, and the true stem.

They bound every table from below and above. Each decides a whole episode's codes when it is reset and
then only reads them out, so what an episode gets depends on neither its row nor its batch. All take the
same keyword arguments, and document those that they do not use.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jamgym.codec import Codec, Codes
from jamgym.corpus import instrument_index
from jamgym.episode import Episode, EpisodeSource
from jamgym.errors import ActionError, ConfigError, CorpusError

#: Crops of another song's stem that are tried until one sounds.
_CROPS = 8


class _Playback:
    """Plays codes that are chosen per episode.

    Args:
        codec: Gives the number of codes and what silence is.
        k: Frames per call.
        source: Where other songs come from.
        seed: Seed of what is random.
        t_f: Unused: nothing here listens.
    """

    name = "playback"
    privileged = False

    def __init__(
        self, codec: Codec, k: int, source: EpisodeSource | None = None, seed: int = 0, t_f: int | None = None
    ) -> None:
        if k < 1:
            raise ConfigError(f"k is {k}; it must be at least 1.")
        self.codec = codec
        self.k = k
        self.source = source
        self.seed = seed
        self._codes: Codes = np.empty((0, 0, codec.num_codebooks), dtype=np.int16)

    def choose(self, episode: Episode) -> Codes:
        """Return the codes `(T, Q)` to play in `episode`."""
        raise NotImplementedError

    def reset(self, rows: NDArray[np.bool_], episodes: Sequence[Episode]) -> None:
        """Choose what to play in the rows of mask `rows` `(N,)`; `episodes` has N entries."""
        rows = np.asarray(rows, dtype=np.bool_)
        if len(rows) != len(episodes):
            raise ConfigError(f"reset got {len(rows)} rows and {len(episodes)} episodes; give one episode per row.")
        chosen = {row: self.choose(episodes[row]) for row in np.flatnonzero(rows).tolist()}
        kept = self._codes if len(self._codes) == len(rows) else self._codes[:0]
        # One chunk of silence beyond the longest episode, so that its last chunk can be read whole.
        length = max([len(codes) for codes in chosen.values()] + [kept.shape[1] - self.k, 0]) + self.k
        if kept.shape[:2] != (len(rows), length):
            self._codes = np.empty((len(rows), length, self.codec.num_codebooks), dtype=np.int16)
            self._codes[:] = self.codec.silence_codes
            self._codes[: len(kept), : kept.shape[1]] = kept
        for row, codes in chosen.items():
            self._codes[row] = self.codec.silence_codes
            self._codes[row, : len(codes)] = codes

    def act(self, observation: Mapping[str, NDArray[Any]]) -> Codes:
        """Return codes `(N, k, Q)` int16; frames beyond the episode are silence."""
        first = np.asarray(observation["frame"]).reshape(-1)
        if len(first) != len(self._codes):
            raise ActionError(
                f"Policy {self.name!r} was reset for {len(self._codes)} rows but got {len(first)}: call reset first."
            )
        slots = np.minimum(first[:, None] + np.arange(self.k), self._codes.shape[1] - 1)
        return self._codes[np.arange(len(first))[:, None], slots]

    def _rng(self, episode: Episode) -> np.random.Generator:
        """Return a generator that depends on the seed and on the episode alone."""
        key = zlib.crc32(f"{episode.song_id}/{episode.target_name}/{episode.start_frame}".encode())
        return np.random.default_rng([self.seed, key])


class SilencePolicy(_Playback):
    """Plays nothing. Uses neither `source` nor `seed`."""

    name = "silence"

    def choose(self, episode: Episode) -> Codes:
        """Return silence codes `(T, Q)`."""
        return np.tile(np.asarray(self.codec.silence_codes, dtype=np.int16), (episode.frames, 1))


class RandomCodesPolicy(_Playback):
    """Plays codes drawn uniformly under `seed`. Does not use `source`."""

    name = "random_codes"

    def choose(self, episode: Episode) -> Codes:
        """Return random codes `(T, Q)`."""
        shape = (episode.frames, self.codec.num_codebooks)
        return self._rng(episode).integers(0, self.codec.cardinality, shape).astype(np.int16)


class TruthPolicy(_Playback):
    """Plays the stem that it replaces, through the codec: the upper anchor. Uses neither `source` nor `seed`."""

    name = "truth"
    privileged = True

    def choose(self, episode: Episode) -> Codes:
        """Return the true codes `(T, Q)`."""
        return episode.target_codes


class RandomStemPolicy(_Playback):
    """Plays a stem of another song: music as good as the truth that has nothing to do with what is heard.

    The stem is of the same instrument class if any other song of the source has one, else of any class,
    and never of the own song. One that is shorter than the episode starts again from its beginning.

    Args:
        codec: Gives the number of codes and what silence is.
        k: Frames per call.
        source: Gives the other songs; needed.
        seed: Seed of the draw.
        t_f: Unused.

    Raises:
        ConfigError: There is no `source`.
    """

    name = "random_stem"
    privileged = True

    def __init__(
        self, codec: Codec, k: int, source: EpisodeSource | None = None, seed: int = 0, t_f: int | None = None
    ) -> None:
        super().__init__(codec, k, source, seed, t_f)
        if source is None:
            raise ConfigError("Policy 'random_stem' needs source=EpisodeSource(...) to draw other songs from.")
        self._source: EpisodeSource = source
        self._classes: dict[str, dict[str, int]] = {}

    def draw(self, episode: Episode) -> Episode:
        """Return the other song's episode that is played along with `episode`.

        Raises:
            CorpusError: The source has no other song with a usable stem.
        """
        rng = self._rng(episode)
        song_id, name = self._draw_stem(episode, rng)
        total = len(self._source.encoded(song_id, name).input_codes)
        for _ in range(_CROPS):
            start = int(rng.integers(max(total - self._source.frames, 0) + 1))
            other = self._source.crop(song_id, name, start)
            if self._source.is_active(other):
                break
        return other

    def choose(self, episode: Episode) -> Codes:
        """Return codes `(T, Q)` of another song's stem."""
        codes = self.draw(episode).target_codes
        return codes[np.arange(episode.frames) % len(codes)]

    def _draw_stem(self, episode: Episode, rng: np.random.Generator) -> tuple[str, str]:
        others = [song for song in self._source.song_ids if song != episode.song_id]
        spare: tuple[str, str] | None = None
        for index in rng.permutation(len(others)).tolist():
            classes = self._stems(others[index])
            same = [name for name, kind in classes.items() if kind == episode.instrument]
            if same:
                return others[index], same[int(rng.integers(len(same)))]
            if spare is None and classes:
                spare = (others[index], list(classes)[int(rng.integers(len(classes)))])
        if spare is None:
            raise CorpusError(
                f"Policy 'random_stem' found no stem in a song other than {episode.song_id!r} in split "
                f"{self._source.split!r} of corpus {self._source.corpus.name!r}. Add songs, or leave the policy out."
            )
        return spare

    def _stems(self, song_id: str) -> dict[str, int]:
        """Return the instrument class of each stem of `song_id` that may be a target."""
        if song_id not in self._classes:
            song = self._source.corpus.load(song_id)
            names = self._source.targets(song_id)
            self._classes[song_id] = {name: instrument_index(song.stem(name).instrument) for name in names}
        return self._classes[song_id]
