"""The corpus `stems`: a folder of songs made by someone else, one audio file per stem."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jamgym.audio import AUDIO_SUFFIXES, audio_info, read_audio
from jamgym.corpora.stem_names import STEM_NAMES_VERSION, instrument_of
from jamgym.corpus import SPLITS, Song, Split, Stem, instrument_index
from jamgym.errors import AudioError, ConfigError, CorpusError, nearest, unknown_name_message

_LOG = logging.getLogger(__name__)

#: File names (without ending) that are the sum of a song's stems, not one of them.
MIX_NAMES = frozenset({"mix", "mixture", "mixdown", "master", "full_mix", "fullmix"})

LAYOUT = """Expected layout, one folder per song, one file per stem (WAV, FLAC, OGG, AIFF or MP3):
  {root}/
    first_song/
      bass.wav
      drums.wav
      piano.wav
    second_song/
      guitar.flac
      vocals.flac"""


@dataclass(frozen=True)
class _StemFile:
    name: str
    path: Path


class StemsCorpus:
    """Songs from a folder: `song/<stem>.wav` (or FLAC, OGG, AIFF, MP3), of any rate and number of channels.

    Stems are averaged to mono, resampled, and padded with zeros to the song's longest. Levels stay as they
    are. Hidden files and mixes (`mix.wav`, `mixture.wav`) are left out. A song's stems may lie in one
    subfolder of it (`song/stems/*.wav`), and songs may be grouped one level deeper (`train/song/*.wav`).

    The class of a stem comes from the words of its file name ("e-gtr" is a guitar, "bassoon" no bass); what
    the words do not tell is "other". `instruments.yaml` in the folder, or the argument, overrides it.

    Songs are split by a hash of their names, so a song stays in its split when others are added (except
    that a split which would be empty takes a song). With fewer than 3 songs all splits share all songs,
    and a warning says so.

    Args:
        path: The folder.
        sample_rate: Samples per second of the songs that `load` returns.
        validation_share: Share of songs for validation, in (0, 1).
        test_share: Share of songs for testing, in (0, 1).
        seed: Other seeds split differently.
        instruments: Stem name, or "song/stem", to instrument class.
        cache_mb: Megabytes of decoded songs kept in memory.

    Raises:
        CorpusError: The folder is missing or has no songs, songs have fewer than two stems, or files are
            not readable; the message lists all of them.
    """

    name = "stems"

    def __init__(
        self,
        path: str | os.PathLike[str],
        sample_rate: int = 16000,
        validation_share: float = 0.1,
        test_share: float = 0.1,
        seed: int = 0,
        instruments: Mapping[str, str] | None = None,
        cache_mb: float = 512.0,
    ) -> None:
        if sample_rate < 1:
            raise ConfigError(f"sample_rate is {sample_rate}; it must be at least 1 sample per second.")
        if not (0.0 < validation_share < 1.0 and 0.0 < test_share < 1.0 and validation_share + test_share < 1.0):
            raise ConfigError(
                f"validation_share is {validation_share} and test_share {test_share}; both must be above 0 and "
                "their sum below 1, so that something is left to train on."
            )
        if cache_mb < 0:
            raise ConfigError(f"cache_mb is {cache_mb}; it must not be negative.")
        self.path = Path(path).expanduser()
        self.sample_rate = sample_rate
        self._songs = _find_songs(self.path)
        _check(self.path, self._songs)
        overrides = {**_yaml_overrides(self.path), **(instruments or {})}
        self._instruments = self._classify(overrides)
        self.version = self._fingerprint()
        self._splits = split_songs(sorted(self._songs), validation_share, test_share, seed)
        if len(self._songs) < 3:
            _LOG.warning(
                "%s has only %d song(s): every split uses all of them, so held-out figures are meaningless. "
                "Add songs until there are at least 3.",
                self.path,
                len(self._songs),
            )
        self._cache: OrderedDict[str, Song] = OrderedDict()
        self._cache_bytes = int(cache_mb * 1e6)

    def song_ids(self, split: Split) -> tuple[str, ...]:
        """Return the ids (folder names) of the songs of `split`, sorted."""
        if split not in SPLITS:
            raise CorpusError(unknown_name_message("split", split, SPLITS))
        return self._splits[split]

    def load(self, song_id: str) -> Song:
        """Return one song at `sample_rate`.

        Raises:
            CorpusError: There is no such song, or one of its files is broken.
        """
        if song_id in self._cache:
            self._cache.move_to_end(song_id)
            return self._cache[song_id]
        if song_id not in self._songs:
            raise CorpusError(unknown_name_message(f"song in {self.path}", song_id, self._songs))
        audio = []
        for stem in self._songs[song_id]:
            try:
                audio.append(read_audio(stem.path, self.sample_rate))
            except AudioError as error:
                raise CorpusError(f"Song {song_id!r} cannot be used: {error}") from error
        length = max(map(len, audio))
        stems = tuple(
            Stem(stem.name, self._instruments[song_id, stem.name], np.pad(samples, (0, length - len(samples))))
            for stem, samples in zip(self._songs[song_id], audio, strict=True)
        )
        song = Song(id=song_id, sample_rate=self.sample_rate, stems=stems)
        self._cache[song_id] = song
        while self._cache and sum(_size(kept) for kept in self._cache.values()) > self._cache_bytes:
            self._cache.popitem(last=False)
        return song

    def _classify(self, overrides: Mapping[str, str]) -> dict[tuple[str, str], str]:
        wanted = {key.lower(): value for key, value in overrides.items()}
        for value in wanted.values():
            instrument_index(value)
        found: dict[tuple[str, str], str] = {}
        used: set[str] = set()
        for song_id, stems in self._songs.items():
            for stem in stems:
                keys = (f"{song_id}/{stem.name}".lower(), stem.name.lower())
                key = next((key for key in keys if key in wanted), None)
                used.update(set(keys) & set(wanted))
                found[song_id, stem.name] = instrument_of(stem.name) if key is None else wanted[key]
        names = {stem.name.lower() for stems in self._songs.values() for stem in stems}
        for key in sorted(set(wanted) - used):
            close = nearest(key, names)
            _LOG.warning(
                "Instrument mapping: no stem is called %r%s.", key, f"; did you mean {close!r}?" if close else ""
            )
        return found

    def _fingerprint(self) -> str:
        files = [
            [song_id, stem.name, stem.path.name, stat.st_size, stat.st_mtime_ns, self._instruments[song_id, stem.name]]
            for song_id, stems in sorted(self._songs.items())
            for stem in stems
            for stat in [stem.path.stat()]
        ]
        text = json.dumps([STEM_NAMES_VERSION, self.sample_rate, files])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def split_songs(
    song_ids: list[str], validation_share: float, test_share: float, seed: int
) -> dict[Split, tuple[str, ...]]:
    """Split ids by a stable hash; no split is empty, and none share a song unless there are fewer than 3."""
    if len(song_ids) < 3:
        return {split: tuple(song_ids) for split in SPLITS}
    draw = {s: int(hashlib.sha256(f"{seed}:{s}".encode()).hexdigest()[:13], 16) / 16.0**13 for s in song_ids}
    order = sorted(song_ids, key=lambda song_id: (draw[song_id], song_id))
    tests = sum(draw[s] < test_share for s in order)
    validations = sum(test_share <= draw[s] < test_share + validation_share for s in order)
    # An empty split takes its neighbour in hash order; training keeps at least one song.
    tests = min(max(tests, 1), len(order) - 2)
    validations = min(max(validations, 1), len(order) - 1 - tests)
    return {
        "train": tuple(sorted(order[tests + validations :])),
        "validation": tuple(sorted(order[tests : tests + validations])),
        "test": tuple(sorted(order[:tests])),
    }


def _find_songs(root: Path) -> dict[str, list[_StemFile]]:
    layout = LAYOUT.format(root=root)
    if not root.exists():
        siblings = [entry.name for entry in root.parent.iterdir()] if root.parent.is_dir() else []
        close = nearest(root.name, siblings)
        hint = f" Did you mean {str(root.parent / close)!r}?" if close else ""
        raise CorpusError(f"There is no folder {root}.{hint}\n{layout}")
    if not root.is_dir():
        raise CorpusError(f"{root} is a file, not a folder of songs.\n{layout}")
    songs: dict[str, list[_StemFile]] = {}
    for folder in _folders(root):
        inner = [sub for sub in _folders(folder) if _audio_files(sub)]
        if _stem_paths(folder) or not inner:
            songs[folder.name] = _stems(root, folder)
        elif len(inner) == 1:
            songs[folder.name] = _stems(root, inner[0])
        else:
            songs.update({f"{folder.name}/{sub.name}": _stems(root, sub) for sub in inner})
    songs = {song_id: stems for song_id, stems in songs.items() if stems}
    if not songs:
        loose = len(_audio_files(root))
        what = f"{loose} audio file(s) directly in it but no folder with audio" if loose else "no audio in it"
        raise CorpusError(f"{root} has {what}, so no song.\n{layout}")
    return songs


def _check(root: Path, songs: Mapping[str, list[_StemFile]]) -> None:
    """Raise one error that lists every unreadable file and every song that cannot be paired."""
    problems = []
    for song_id, stems in sorted(songs.items()):
        for stem in stems:
            try:
                audio_info(stem.path)
            except AudioError as error:
                problems.append(f"song {song_id!r}: {error}")
        if len(stems) == 1:
            problems.append(
                f"song {song_id!r} has one stem ({stems[0].path.name}); it needs at least two, one to hear and one "
                "to play. Add its other stems (mixes do not count), or remove its folder."
            )
    if problems:
        raise CorpusError(f"{root} has {len(problems)} problem(s):\n" + "\n".join(f"- {text}" for text in problems))


def _stems(root: Path, folder: Path) -> list[_StemFile]:
    stems = [_StemFile(path.stem, path) for path in _stem_paths(folder)]
    for skipped in sorted(set(_audio_files(folder)) - {stem.path for stem in stems}):
        _LOG.warning("%s is a mix, not a stem: left out.", skipped.relative_to(root))
    seen: dict[str, Path] = {}
    for stem in stems:
        if stem.name in seen:
            raise CorpusError(
                f"{folder} has two files for the stem {stem.name!r}: {seen[stem.name].name} and {stem.path.name}. "
                "Remove or rename one of them."
            )
        seen[stem.name] = stem.path
    return stems


def _stem_paths(folder: Path) -> list[Path]:
    return [p for p in _audio_files(folder) if p.stem.lower().replace(" ", "_").replace("-", "_") not in MIX_NAMES]


def _audio_files(folder: Path) -> list[Path]:
    return sorted(
        p for p in folder.iterdir() if p.is_file() and p.suffix.lower() in AUDIO_SUFFIXES and p.name[0] != "."
    )


def _folders(folder: Path) -> list[Path]:
    # __MACOSX is what archives made on a Mac leave behind; its files only look like audio.
    return sorted(p for p in folder.iterdir() if p.is_dir() and p.name[0] != "." and p.name != "__MACOSX")


def _yaml_overrides(root: Path) -> dict[str, str]:
    file = root / "instruments.yaml"
    if not file.exists():
        return {}
    import yaml

    try:
        content: Any = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CorpusError(f"{file} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise CorpusError(f"{file} must map stem names to instrument classes, such as 'S01: piano'.")
    overrides = {str(key): str(value) for key, value in content.items()}
    for key, value in overrides.items():
        try:
            instrument_index(value)
        except CorpusError as error:
            raise CorpusError(f"{file}, {key!r}: {error}") from error
    return overrides


def _size(song: Song) -> int:
    return sum(stem.audio.nbytes for stem in song.stems)
