"""The sample bank: single recorded notes, resampled to any key, mixed into stems.

Made by ``scripts/make_sample_bank.py`` from FluidR3 GM (MIT licence).
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from jamgym.errors import CorpusError, unknown_name_message


@dataclass(frozen=True)
class Notes:
    """Notes of one stem; all arrays are `(M,)`.

    Attributes:
        start: Onset in seconds.
        duration: Seconds until the release.
        key: MIDI key.
        velocity: Loudness in (0, 1].
    """

    start: NDArray[np.float64]
    duration: NDArray[np.float64]
    key: NDArray[np.int64]
    velocity: NDArray[np.float64]


class SampleBank:
    """Recorded notes of the shipped instruments at 16 kHz mono."""

    def __init__(self) -> None:
        self._folder = files("jamgym") / "assets" / "bank"
        text = (self._folder / "bank.json").read_text()
        self._index = json.loads(text)
        self.sample_rate: int = self._index["sample_rate"]
        self.version = hashlib.sha256(text.encode()).hexdigest()[:12]
        self.drum_keys: dict[str, int] = self._index["drum_keys"]
        self._recordings: dict[str, NDArray[np.float32]] = {}
        self._notes: dict[tuple[str, int], NDArray[np.float32]] = {}

    @property
    def instruments(self) -> dict[str, str]:
        """Return instrument names with their instrument class."""
        return {name: entry["class"] for name, entry in self._index["instruments"].items()}

    def key_range(self, instrument: str) -> tuple[int, int]:
        """Return the lowest and highest key that sounds natural."""
        keys = [note["key"] for note in self._entry(instrument)["notes"]]
        return min(keys) - 2, max(keys) + 2

    def _entry(self, instrument: str) -> dict:
        known = self._index["instruments"]
        if instrument not in known:
            raise CorpusError(unknown_name_message("bank instrument", instrument, known))
        return known[instrument]

    def _recording(self, instrument: str) -> NDArray[np.float32]:
        if instrument not in self._recordings:
            import soundfile

            with (self._folder / self._entry(instrument)["file"]).open("rb") as file:
                self._recordings[instrument] = soundfile.read(file, dtype="float32")[0]
        return self._recordings[instrument]

    def note(self, instrument: str, key: int) -> NDArray[np.float32]:
        """Return one note `(S,)`, transposed from the nearest recorded key and tuned.

        A drum key has to be recorded; a pitched key may lie anywhere.
        """
        if (instrument, key) not in self._notes:
            entry = self._entry(instrument)
            nearest = min(entry["notes"], key=lambda note: abs(note["key"] - key))
            begin = nearest["start"]
            audio = self._recording(instrument)[begin : begin + nearest["length"]]
            semitones = key - nearest["key"] - nearest["cents"] / 100
            if semitones and instrument != "drums":
                positions = np.arange(0, len(audio) - 1, 2.0 ** (semitones / 12))
                audio = np.interp(positions, np.arange(len(audio)), audio).astype(np.float32)
            self._notes[instrument, key] = audio
        return self._notes[instrument, key]

    def render(self, instrument: str, notes: Notes, samples: int, release: float = 0.08) -> NDArray[np.float32]:
        """Mix `notes` into `(samples,)` float32; what would sound after the end is cut."""
        out = np.zeros(samples, dtype=np.float32)
        fade = np.linspace(1.0, 0.0, max(round(release * self.sample_rate), 1), dtype=np.float32)
        sustained = instrument != "drums"
        order = zip(notes.start, notes.duration, notes.key, notes.velocity, strict=True)
        for start, duration, key, velocity in order:
            begin = round(start * self.sample_rate)
            audio = self.note(instrument, int(key))
            if sustained:
                held = round(duration * self.sample_rate)
                if held + len(fade) < len(audio):
                    audio = audio[: held + len(fade)].copy()
                    audio[-len(fade) :] *= fade
            room = min(len(audio), samples - begin)
            if begin >= 0 and room > 0:
                out[begin : begin + room] += np.float32(velocity) * audio[:room]
        return out


@functools.cache
def sample_bank() -> SampleBank:
    """Return the one shared bank."""
    return SampleBank()
