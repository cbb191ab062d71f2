"""What `reward_validity.py` scores: the true stem of a song, wrong versions of it, and attacks on a reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from jamgym.corpora.band import BandCorpus
from jamgym.corpora.sample_bank import sample_bank
from jamgym.corpus import Truth, active, make_pair
from jamgym_rewards.validation import TRANSPOSITIONS

Audio = NDArray[np.float32]

SECONDS = 12.0
DELAYS = (0.1, 0.25, 0.5, 1.0, 2.0)
#: Wrong versions: what a reward has to tell from the truth. Drums have no transposed ones.
WRONG = (
    "random_stem",
    "other_time",
    *(f"transposed_{semitones:+d}" for semitones in TRANSPOSITIONS),
    "half_beat_early",
    "half_beat_late",
    "tempo",
)
#: Attacks: what an agent might find out that pays.
ATTACKS = (
    "silence",
    "white_noise",
    "truth_-40_dB",
    "truth_+12_dB",
    "truth_half_the_time",
    "truth_in_shreds",
    "copy_of_input",
    "one_chord_held",
    "one_bar_looped",
    *(f"delayed_{seconds:g}_s" for seconds in DELAYS),
)


@dataclass(frozen=True)
class Case:
    """One song with everything that may be played beside it; all audio is 12 s at the corpus's rate.

    Attributes:
        song_id: The song.
        instrument: Class of the target.
        sample_rate: Samples per second.
        heard: The sum of the other stems.
        truth: Beats and chords.
        played: "truth" and the names in `WRONG` and `ATTACKS` to audio; what does not exist is left out.
    """

    song_id: str
    instrument: str
    sample_rate: int
    heard: Audio
    truth: Truth
    played: dict[str, Audio]


def make_cases(corpus: BandCorpus, song_ids: Sequence[str], seed: int = 0) -> list[Case]:
    """Return a case for each of `song_ids`, which are at least two; the next song gives the random stem."""
    rng = np.random.default_rng(seed)
    targets = [_draw_target(corpus, song_id, rng) for song_id in song_ids]
    starts = [float(rng.uniform(2.5, corpus.load(song_id).truth.beats[-1] - SECONDS - 2.5)) for song_id in song_ids]  # type: ignore[union-attr]
    cases = []
    for index, song_id in enumerate(song_ids):
        other = (index + 1) % len(song_ids)
        stranger = corpus.load(song_ids[other]).stem(targets[other]).audio
        random_stem = _cut(stranger, starts[other], corpus.sample_rate)
        cases.append(_make_case(corpus, song_id, targets[index], starts[index], random_stem, rng))
    return cases


def _make_case(
    corpus: BandCorpus, song_id: str, target: str, start: float, random_stem: Audio, rng: np.random.Generator
) -> Case:
    song, rate = corpus.load(song_id), corpus.sample_rate
    pair = make_pair(song, target)
    truth = song.truth
    assert truth is not None
    own = pair.target
    beat = 60.0 / truth.tempo_bpm
    heard, true = _cut(pair.heard, start, rate), _cut(own, start, rate)
    instrument = song.stem(target).instrument
    played = {
        "truth": true,
        "random_stem": random_stem,
        "other_time": _cut(own, _other_start(rng, start, len(own) / rate - SECONDS), rate),
        "half_beat_early": _cut(own, start + beat / 2, rate),
        "half_beat_late": _cut(own, start - beat / 2, rate),
        "tempo": _at_tempo(corpus, song_id, target, start, 1.0 + float(rng.choice([-1, 1]) * rng.uniform(0.1, 0.25))),
    }
    if instrument != "drums":
        for semitones in TRANSPOSITIONS:
            other = corpus.load_transposed(song_id, {target: semitones}).stem(target).audio
            played[f"transposed_{semitones:+d}"] = _cut(other, start, rate)
    cropped = truth.crop(start, start + SECONDS)
    played |= _attacks(heard, true, own, start, rate, cropped, rng)
    return Case(song_id, instrument, rate, heard, cropped, played)


def _attacks(
    heard: Audio, true: Audio, own: Audio, start: float, rate: int, truth: Truth, rng: np.random.Generator
) -> dict[str, Audio]:
    level = float(np.sqrt(np.mean(np.square(true, dtype=np.float64))))
    bar = true[: round(240.0 / truth.tempo_bpm * rate)]
    found = {
        "silence": np.zeros_like(true),
        "white_noise": rng.normal(0.0, level, len(true)),
        "truth_-40_dB": true * 0.01,
        "truth_+12_dB": np.clip(true * 10 ** (12 / 20), -1.0, 1.0),
        "truth_half_the_time": true * (np.arange(len(true)) // rate % 2 == 0),
        "truth_in_shreds": _shredded(true, rate, rng.spawn(1)[0]),  # what else is drawn stays as it was
        "copy_of_input": heard,
        "one_chord_held": _held_chord(np.flatnonzero(truth.chord_pitch_classes[0]), len(true), rate, level),
        "one_bar_looped": np.resize(bar, len(true)),
        **{f"delayed_{seconds:g}_s": _cut(own, start - seconds, rate) for seconds in DELAYS},
    }
    return {name: audio.astype(np.float32) for name, audio in found.items()}


def _draw_target(corpus: BandCorpus, song_id: str, rng: np.random.Generator) -> str:
    song = corpus.load(song_id)
    names = [stem.name for stem in song.stems if active(stem.audio, song.sample_rate).mean() >= 0.5]
    return names[int(rng.integers(len(names)))]


def _cut(audio: Audio, start: float, rate: int) -> Audio:
    first = max(round(start * rate), 0)
    part = audio[first : first + round(SECONDS * rate)]
    return np.pad(part, (0, round(SECONDS * rate) - len(part)))


def _other_start(rng: np.random.Generator, start: float, last: float, least: float = 2.0) -> float:
    """Return another start in [0, last] seconds, at least `least` away."""
    while True:
        other = float(rng.uniform(0.0, last))
        if abs(other - start) >= least:
            return other


def _at_tempo(corpus: BandCorpus, song_id: str, target: str, start: float, speed: float) -> Audio:
    """Return the stem from `start` on, played `speed` times as fast from there; pitches stay."""
    part = next(part for part in corpus.composition(song_id).parts if part.name == target)
    notes = part.notes
    after = notes.start + notes.duration > start
    moved = replace(
        notes,
        start=np.maximum((notes.start[after] - start) / speed, 0.0),
        duration=notes.duration[after] / speed,
        key=notes.key[after],
        velocity=notes.velocity[after],
    )
    audio = sample_bank().render(part.instrument, moved, round(SECONDS * corpus.sample_rate))
    level = float(np.sqrt(np.mean(np.square(audio, dtype=np.float64)))) + 1e-9
    return np.clip(audio * np.float32(10.0 ** (part.level_db / 20.0) / level), -1.0, 1.0)


def _shredded(audio: Audio, rate: int, rng: np.random.Generator, frame: float = 0.04, within: float = 0.48) -> Audio:
    """Return the frames of 40 ms in random order, within each half second or so: the right notes, none of them held."""
    size, group = round(frame * rate), round(within / frame)
    count = len(audio) // size // group * group
    frames = audio[: count * size].reshape(-1, group, size)
    order = rng.permuted(np.tile(np.arange(group), (len(frames), 1)), axis=1)
    return np.concatenate([np.take_along_axis(frames, order[:, :, None], axis=1).ravel(), audio[count * size :]])


def _held_chord(pitch_classes: NDArray[np.int64], samples: int, rate: int, level: float) -> NDArray[np.float64]:
    """Return an organ-like chord in the octave from middle C that never changes."""
    time = np.arange(samples) / rate
    hertz = 440.0 * 2.0 ** ((60 + pitch_classes - 69) / 12.0)
    sound = np.sum([np.sin(2 * np.pi * hz * m * time) / m for hz in hertz for m in (1, 2, 3)], axis=0)
    return sound * (level / np.sqrt(np.mean(sound**2)))
