"""Songs composed by rule: keys, tempi, chord loops, forms that repeat with variation, and surprises.

A loop of two or four chords lasts two to eight seconds, so within an episode its continuation can be
anticipated; a surprise (a borrowed chord, or a lift of the key) cannot. Pure functions of a generator.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from jamgym.corpora.sample_bank import Notes
from jamgym.corpus import Truth

BEATS_PER_BAR = 4
MAJOR = (0, 2, 4, 5, 7, 9, 11)
MINOR = (0, 2, 3, 5, 7, 8, 10)
#: Loops as scale degrees, the common ones of popular music.
MAJOR_LOOPS = (
    (0, 4, 5, 3), (0, 5, 3, 4), (5, 3, 0, 4), (0, 3, 4, 3), (0, 3, 0, 4), (1, 4, 0, 5),
    (3, 0, 4, 5), (0, 2, 3, 4), (0, 4), (0, 3), (5, 4, 3, 4), (3, 4, 2, 5),
)  # fmt: skip
MINOR_LOOPS = (
    (0, 5, 2, 6), (0, 6, 5, 6), (0, 3, 4, 0), (0, 5, 3, 4), (0, 3, 6, 2), (0, 6), (0, 3),
    (5, 6, 0, 0), (0, 2, 6, 3), (0, 4, 5, 3),
)  # fmt: skip


@dataclass(frozen=True)
class Part:
    """One stem on paper: an instrument of the sample bank and its notes."""

    name: str
    instrument: str
    notes: Notes
    level_db: float


@dataclass(frozen=True)
class Composition:
    """A whole song on paper."""

    parts: tuple[Part, ...]
    truth: Truth
    seconds: float


@dataclass(frozen=True)
class Harmony:
    """Chords on a grid of beats: `roots` `(beats,)` pitch classes, `qualities` `(beats,)` as intervals."""

    roots: NDArray[np.int64]
    thirds: NDArray[np.int64]
    fifths: NDArray[np.int64]
    key_root: NDArray[np.int64]
    section: NDArray[np.int64]
    minor: bool

    def pitch_classes(self, beat: int) -> tuple[int, int, int]:
        """Return the chord's root, third and fifth at `beat`."""
        root = int(self.roots[beat])
        return root, (root + int(self.thirds[beat])) % 12, (root + int(self.fifths[beat])) % 12


def _triad(degree: int, scale: tuple[int, ...]) -> tuple[int, int, int]:
    """Return root, third and fifth of a scale degree as semitones above the key."""
    tones = [scale[(degree + step) % 7] + 12 * ((degree + step) // 7) for step in (0, 2, 4)]
    return tones[0] % 12, tones[1] - tones[0], tones[2] - tones[0]


def compose_harmony(rng: Generator, bars: int) -> Harmony:
    """Draw key, mode, form and loops for `bars` bars."""
    minor = bool(rng.random() < 0.4)
    scale = MINOR if minor else MAJOR
    loops = MINOR_LOOPS if minor else MAJOR_LOOPS
    key = int(rng.integers(12))
    chosen = rng.choice(len(loops), size=2, replace=False)
    beats_per_chord = [int(rng.choice([2, 4], p=[0.5, 0.5])) for _ in range(2)]
    form = [(0, 0, 1, 0), (0, 0, 0, 0), (0, 1, 0, 1), (0, 0, 1, 1)][int(rng.integers(4))]
    section_bars = 4
    lift_at = bars  # first bar of a lifted key
    if rng.random() < 0.15:
        lift_at = int(rng.integers(bars // 2, bars))
    lift = int(rng.choice([1, 2]))
    beats = bars * BEATS_PER_BAR
    roots, thirds, fifths = (np.zeros(beats, dtype=np.int64) for _ in range(3))
    keys, sections = np.zeros(beats, dtype=np.int64), np.zeros(beats, dtype=np.int64)
    for beat in range(beats):
        bar = beat // BEATS_PER_BAR
        section = form[(bar // section_bars) % len(form)]
        loop = loops[int(chosen[section])]
        position = (beat - (bar // section_bars) * section_bars * BEATS_PER_BAR) // beats_per_chord[section]
        root, third, fifth = _triad(loop[position % len(loop)], scale)
        here = (key + (lift if bar >= lift_at else 0)) % 12
        roots[beat], thirds[beat], fifths[beat] = (root + here) % 12, third, fifth
        keys[beat], sections[beat] = here, section
    for bar in range(4, bars):  # surprises: a chord borrowed from outside the loop
        if rng.random() < 0.05:
            root, third, fifth = _triad(int(rng.integers(7)), MAJOR if minor else MINOR)
            first = bar * BEATS_PER_BAR + int(rng.choice([0, 2]))
            end = (bar + 1) * BEATS_PER_BAR
            roots[first:end] = (root + keys[first]) % 12
            thirds[first:end], fifths[first:end] = third, fifth
    return Harmony(roots, thirds, fifths, keys, sections, minor)


class _Writer:
    """Collects notes in beats and turns them into seconds with slight human timing."""

    def __init__(self, rng: Generator, beat_seconds: float, lead_in: float, swing: float) -> None:
        self._rng = rng
        self._beat = beat_seconds
        self._lead_in = lead_in
        self._swing = swing
        self._rows: list[tuple[float, float, int, float]] = []

    def add(self, beat: float, beats: float, key: int, velocity: float) -> None:
        offbeat = self._swing if abs(beat % 1.0 - 0.5) < 1e-6 else 0.0
        start = self._lead_in + (beat + offbeat) * self._beat + float(self._rng.normal(0.0, 0.004))
        loudness = velocity * float(self._rng.uniform(0.85, 1.15))
        self._rows.append((max(start, 0.0), max(beats * self._beat * 0.95, 0.05), key, loudness))

    def notes(self) -> Notes:
        rows = np.array(sorted(self._rows) or np.zeros((0, 4)), dtype=np.float64).reshape(-1, 4)
        return Notes(rows[:, 0], rows[:, 1], rows[:, 2].astype(np.int64), rows[:, 3])


def _near(pitch_class: int, centre: int) -> int:
    """Return the key of `pitch_class` that is nearest to `centre`."""
    return centre + (pitch_class - centre + 6) % 12 - 6


def _rhythm(rng: Generator, density: float) -> list[tuple[float, float]]:
    """Draw one bar of (start beat, length) that tends to fall on the beat."""
    slots = np.arange(0, 4, 0.5)
    weight = np.where(slots % 2 == 0, 1.6, np.where(slots % 1 == 0, 1.1, 0.6))
    chosen = [float(s) for s, w in zip(slots, weight, strict=True) if rng.random() < density * w]
    chosen = chosen if chosen and chosen[0] == 0.0 else [0.0, *chosen]
    ends = [*chosen[1:], 4.0]
    return [(start, end - start) for start, end in zip(chosen, ends, strict=True)]


def write_bass(rng: Generator, harmony: Harmony, writer: _Writer, low: int, high: int) -> None:
    """Root on each chord change, roots, fifths and octaves between."""
    style = int(rng.integers(4))
    pattern = [_rhythm(rng, 0.45) for _ in range(2)]
    centre = int(np.clip(rng.integers(36, 44), low + 6, high - 6))
    for bar in range(len(harmony.roots) // BEATS_PER_BAR):
        first = bar * BEATS_PER_BAR
        if style == 0:
            steps = [(0.0, 2.0), (2.0, 2.0)]
        elif style == 1:
            steps = [(s * 0.5, 0.5) for s in range(8)]
        elif style == 2:
            steps = [(float(s), 1.0) for s in range(4)]
        else:
            steps = pattern[int(harmony.section[first])]
        for start, length in steps:
            beat = first + int(start)
            root, _, fifth = harmony.pitch_classes(beat)
            on_change = start % 2 == 0
            tone = fifth if (not on_change and style in (2, 3) and rng.random() < 0.3) else root
            writer.add(first + start, length, _near(tone, centre), 0.9 if on_change else 0.75)


def write_chords(rng: Generator, harmony: Harmony, writer: _Writer, low: int, high: int) -> None:
    """Voiced triads: held, comped in a rhythm, or broken."""
    style = int(rng.integers(3))
    pattern = [_rhythm(rng, 0.4) for _ in range(2)]
    centre = int(np.clip(rng.integers(56, 66), low + 8, high - 10))
    order = rng.permutation([0, 1, 2, 1])
    for bar in range(len(harmony.roots) // BEATS_PER_BAR):
        first = bar * BEATS_PER_BAR
        if style == 0:
            changed = harmony.roots[first + 2] != harmony.roots[first]
            steps = [(0.0, 2.0), (2.0, 2.0)] if changed or rng.random() < 0.3 else [(0.0, 4.0)]
        elif style == 1:
            steps = pattern[int(harmony.section[first])]
        else:
            steps = [(s * 0.5, 0.5) for s in range(8)]
        for turn, (start, length) in enumerate(steps):
            tones = harmony.pitch_classes(first + int(start))
            keys = sorted(_near(tone, centre + 4) for tone in tones)
            if style == 2:
                writer.add(first + start, length * 1.5, keys[int(order[turn % 4])], 0.8)
                continue
            for key in keys:
                writer.add(first + start, length, key, 0.6)


def write_melody(rng: Generator, harmony: Harmony, writer: _Writer, low: int, high: int) -> None:
    """A motif per section, bent to the chord on strong beats and to the scale between."""
    motif = {section: [_rhythm(rng, 0.5) for _ in range(2)] for section in (0, 1)}
    contour = {section: rng.integers(-2, 3, size=16) for section in (0, 1)}
    centre = int(np.clip(rng.integers(66, 76), low + 7, high - 7))
    scale = MINOR if harmony.minor else MAJOR
    for bar in range(len(harmony.roots) // BEATS_PER_BAR):
        first = bar * BEATS_PER_BAR
        section = int(harmony.section[first])
        key = centre
        for turn, (start, length) in enumerate(motif[section][bar % 2]):
            beat = first + int(start)
            key = int(np.clip(key + 2 * int(contour[section][turn % 16]), centre - 9, centre + 9))
            if start % 1 == 0:
                tones: tuple[int, ...] = harmony.pitch_classes(beat)
            else:
                tones = tuple((int(harmony.key_root[beat]) + step) % 12 for step in scale)
            key = min((_near(tone, key) for tone in tones), key=lambda k: abs(k - key))
            if rng.random() < 0.08 and start > 0:
                continue  # variation: a rest
            writer.add(first + start, length, key, 0.9 if start % 2 == 0 else 0.75)


def write_drums(rng: Generator, harmony: Harmony, writer: _Writer, keys: dict[str, int]) -> None:
    """A groove with backbeat, hats and a fill at the end of every fourth bar."""
    backbeat = keys["snare"] if rng.random() < 0.75 else keys[str(rng.choice(["rim", "clap"]))]
    hat = keys[str(rng.choice(["closed_hat", "closed_hat", "ride", "shaker"]))]
    hat_step = float(rng.choice([0.5, 0.5, 1.0]))
    kicks = sorted({0.0, float(rng.choice([2.0, 2.5, 1.5])), float(rng.choice([2.0, 3.5, 0.0]))})
    toms = [keys["high_tom"], keys["mid_tom"], keys["low_tom"], keys["snare"]]
    for bar in range(len(harmony.roots) // BEATS_PER_BAR):
        first = bar * BEATS_PER_BAR
        fill = bar % 4 == 3 and rng.random() < 0.6
        for beat in kicks:
            writer.add(first + beat, 0.25, keys["kick"], 1.0)
        for beat in (1.0, 3.0):
            if not (fill and beat == 3.0):
                writer.add(first + beat, 0.25, backbeat, 0.9)
        for step in np.arange(0, 3.0 if fill else 4.0, hat_step):
            writer.add(first + float(step), 0.25, hat, 0.5 if step % 1 == 0 else 0.35)
        if fill:
            for turn, step in enumerate((3.0, 3.25, 3.5, 3.75)):
                writer.add(first + step, 0.25, toms[turn], 0.8)
        if bar % 8 == 0 and bar and rng.random() < 0.5:
            writer.add(first, 0.5, keys["crash"], 0.6)


#: Role: (probability, bank instruments that may play it).
ROLES = {
    "drums": (0.85, ("drums",)),
    "bass": (0.9, ("acoustic_bass", "finger_bass", "synth_bass")),
    "chords": (0.95, ("grand_piano", "electric_piano", "drawbar_organ", "nylon_guitar", "steel_guitar",
                      "clean_guitar", "vibraphone")),
    "pad": (0.5, ("string_ensemble", "warm_pad", "brass_section", "drawbar_organ", "clean_guitar", "electric_piano")),
    "melody": (0.75, ("alto_sax", "trumpet", "flute", "clarinet", "cello", "saw_lead", "vibraphone", "marimba",
                      "grand_piano")),
}  # fmt: skip


def compose(
    rng: Generator, seconds: float, bank_ranges: dict[str, tuple[int, int]], drums: dict[str, int]
) -> Composition:
    """Compose one song of about `seconds` seconds with three to five stems.

    Args:
        rng: All chance comes from here.
        seconds: Wished length; the song ends on a bar line.
        bank_ranges: Lowest and highest key per instrument.
        drums: Key per drum.
    """
    tempo = float(rng.uniform(84.0, 144.0))
    beat_seconds = 60.0 / tempo
    bars = max(8, round(seconds / (beat_seconds * BEATS_PER_BAR)))
    lead_in = float(rng.uniform(0.05, 0.3))
    swing = float(rng.choice([0.0, 0.0, 0.0, 0.12]))
    harmony = compose_harmony(rng, bars)
    present = [role for role, (chance, _) in ROLES.items() if rng.random() < chance]
    for role in ("chords", "bass", "drums"):  # at least three stems, the backbone first
        if len(present) < 3 and role not in present:
            present.append(role)
    parts: list[Part] = []
    taken: set[str] = set()
    for role in [role for role in ROLES if role in present]:
        choices = [name for name in ROLES[role][1] if name not in taken]
        instrument = str(rng.choice(choices))
        taken.add(instrument)
        writer = _Writer(rng, beat_seconds, lead_in, swing)
        low, high = bank_ranges[instrument]
        if role == "drums":
            write_drums(rng, harmony, writer, drums)
        elif role == "bass":
            write_bass(rng, harmony, writer, low, high)
        elif role == "melody":
            write_melody(rng, harmony, writer, low, high)
        else:
            write_chords(rng, harmony, writer, low, high)
        parts.append(Part(role, instrument, writer.notes(), float(rng.uniform(-27.0, -20.0))))
    beats = lead_in + np.arange(bars * BEATS_PER_BAR, dtype=np.float64) * beat_seconds
    end = lead_in + bars * BEATS_PER_BAR * beat_seconds
    return Composition(tuple(parts), _truth(harmony, beats, end, tempo), end)


def _truth(harmony: Harmony, beats: NDArray[np.float64], end: float, tempo: float) -> Truth:
    """Merge equal neighbouring beats into chords."""
    chords = np.stack([harmony.roots, harmony.thirds, harmony.fifths], axis=1)
    first = np.flatnonzero(np.r_[True, (np.diff(chords, axis=0) != 0).any(axis=1)])
    members = np.zeros((len(first), 12), dtype=bool)
    for row, beat in enumerate(first):
        members[row, list(harmony.pitch_classes(int(beat)))] = True
    return Truth(
        beats=beats,
        downbeats=beats[::BEATS_PER_BAR],
        chord_times=np.append(beats[first], end),
        chord_roots=harmony.roots[first],
        chord_pitch_classes=members,
        tempo_bpm=tempo,
    )
