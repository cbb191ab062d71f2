"""Make the sample bank that the band corpus plays: single notes of FluidR3 GM (MIT) at 16 kHz, as Vorbis.

Needs Debian's packages `fluidsynth` and `fluid-soundfont-gm`, and `pip install mido`. Every note's tuning is measured;
the correction in cents is stored beside the note, and a note that is off by more than 60 cents is refused.

    python scripts/make_sample_bank.py --soundfont /usr/share/sounds/sf2/FluidR3_GM.sf2 --out jamgym/assets/bank
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import mido
import numpy as np
import soundfile
import soxr

RATE = 16_000
RENDER_RATE = 48_000
HOLD = 2.0  # seconds that a key is held
TAIL = 0.4  # seconds kept after the release
SPACING = 4.0  # seconds between notes in the rendered file

# name: (General MIDI program counted from 0, instrument class, lowest and highest sampled key)
PITCHED = {
    "grand_piano": (0, "piano", 36, 92),
    "electric_piano": (4, "piano", 36, 88),
    "vibraphone": (11, "chromatic_percussion", 53, 89),
    "marimba": (12, "chromatic_percussion", 48, 92),
    "drawbar_organ": (16, "organ", 40, 88),
    "nylon_guitar": (24, "guitar", 40, 80),
    "steel_guitar": (25, "guitar", 40, 80),
    "clean_guitar": (27, "guitar", 40, 80),
    "acoustic_bass": (32, "bass", 28, 56),
    "finger_bass": (33, "bass", 28, 56),
    "synth_bass": (38, "bass", 28, 56),
    "cello": (42, "strings", 36, 72),
    "string_ensemble": (48, "strings", 40, 88),
    "trumpet": (56, "brass", 54, 84),
    "brass_section": (61, "brass", 44, 80),
    "alto_sax": (65, "reed", 49, 81),
    "clarinet": (71, "reed", 50, 86),
    "flute": (73, "pipe", 60, 92),
    "saw_lead": (81, "synth", 48, 88),
    "warm_pad": (89, "synth", 44, 84),
}
STEP = 4  # semitones between sampled keys
DRUMS = {
    "kick": 36, "snare": 38, "rim": 37, "clap": 39, "closed_hat": 42, "open_hat": 46,
    "low_tom": 45, "mid_tom": 47, "high_tom": 50, "crash": 49, "ride": 51, "shaker": 70,
}  # fmt: skip


def render(soundfont: Path, program: int, channel: int, keys: list[int], hold: float) -> np.ndarray:
    """Play `keys` one after the other and return mono audio at RENDER_RATE."""
    midi = mido.MidiFile(ticks_per_beat=1000)
    track = mido.MidiTrack()
    midi.tracks.append(track)
    track.append(mido.MetaMessage("set_tempo", tempo=1_000_000))
    if channel != 9:
        track.append(mido.Message("program_change", channel=channel, program=program))
    for key in keys:
        track.append(mido.Message("note_on", channel=channel, note=key, velocity=96))
        track.append(mido.Message("note_off", channel=channel, note=key, time=round(hold * 1000)))
        track.append(mido.Message("note_off", channel=channel, note=key, time=round((SPACING - hold) * 1000)))
    with tempfile.TemporaryDirectory() as folder:
        path, wav = Path(folder) / "in.mid", Path(folder) / "out.wav"
        midi.save(path)
        command = ["fluidsynth", "-ni", "-q", "-R", "0", "-C", "0", "-g", "0.6", "-r", str(RENDER_RATE)]
        subprocess.run([*command, "-F", str(wav), str(soundfont), str(path)], check=True, capture_output=True)
        audio, rate = soundfile.read(wav, dtype="float32", always_2d=True)
    if rate != RENDER_RATE:
        raise RuntimeError(f"fluidsynth rendered at {rate} Hz instead of {RENDER_RATE} Hz")
    return audio.mean(axis=1)


def cents_off(audio: np.ndarray, rate: int, key: int) -> float:
    """Return how far the note sounds from equal temperament, by the best-matching harmonic comb."""
    part = audio[int(0.15 * rate) : int(1.5 * rate)]
    size = 1 << 18
    spectrum = np.abs(np.fft.rfft(part * np.hanning(len(part)), size))
    nominal = 440.0 * 2.0 ** ((key - 69) / 12)
    offsets = np.arange(-150, 151)
    harmonics = np.arange(1, 7)
    frequencies = nominal * 2.0 ** (offsets[:, None] / 1200) * harmonics
    frequencies = np.where(frequencies < rate / 2 - 50, frequencies, 0)
    bins = np.round(frequencies * size / rate).astype(int)
    score = (np.sqrt(spectrum[bins]) * (bins > 0) / np.sqrt(harmonics)).sum(axis=1)
    smooth = np.convolve(score, np.ones(5) / 5, mode="same")
    return float(offsets[int(np.argmax(smooth))])


def trim(audio: np.ndarray) -> np.ndarray:
    """Fade out and cut what is inaudible at the end."""
    loud = np.flatnonzero(np.abs(audio) > 2e-4)
    end = min(len(audio), (loud[-1] if len(loud) else 0) + RATE // 50)
    audio = audio[: max(end, RATE // 10)].copy()
    fade = min(len(audio), RATE // 50)
    audio[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
    return audio


def write_vorbis(path: Path, audio: np.ndarray) -> None:
    """Write in blocks: libsndfile overflows its stack on long Vorbis writes."""
    with soundfile.SoundFile(
        path, "w", samplerate=RATE, channels=1, format="OGG", subtype="VORBIS", compression_level=0.45
    ) as file:
        for start in range(0, len(audio), 16_384):
            file.write(audio[start : start + 16_384])


def pack(out: Path, name: str, notes: list[tuple[int, np.ndarray, float]], kind: str) -> dict:
    """Write one instrument's notes into one file and return its index entry."""
    peak = max(float(np.abs(audio).max()) for _, audio, _ in notes)
    index, parts, position = [], [], 0
    for key, audio, cents in notes:
        audio = trim(audio * (0.7 / peak))
        index.append({"key": key, "start": position, "length": len(audio), "cents": cents})
        parts.append(audio)
        position += len(audio)
    write_vorbis(out / f"{name}.ogg", np.concatenate(parts).astype(np.float32))
    return {"class": kind, "file": f"{name}.ogg", "notes": index}


def main() -> None:
    """Render, measure, pack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--soundfont", type=Path, default=Path("/usr/share/sounds/sf2/FluidR3_GM.sf2"))
    parser.add_argument("--out", type=Path, default=Path("jamgym/assets/bank"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    bank: dict = {"sample_rate": RATE, "source": "FluidR3 GM by Frank Wen, MIT licence", "instruments": {}}
    length = round((HOLD + TAIL) * RENDER_RATE)
    for name, (program, kind, low, high) in PITCHED.items():
        keys = list(range(low, high + 1, STEP))
        audio = render(args.soundfont, program, 0, keys, HOLD)
        notes = []
        for turn, key in enumerate(keys):
            start = round(turn * SPACING * RENDER_RATE)
            note = audio[start : start + length]
            cents = cents_off(note, RENDER_RATE, key)
            if abs(cents) > 60:
                raise RuntimeError(f"{name} key {key} is {cents:+.0f} cents out of tune")
            notes.append((key, soxr.resample(note, RENDER_RATE, RATE, quality="VHQ").astype(np.float32), cents))
        bank["instruments"][name] = pack(args.out, name, notes, kind)
        print(f"{name}: {len(notes)} notes, tuning {[int(n[2]) for n in notes]}")
    hits = render(args.soundfont, 0, 9, list(DRUMS.values()), 0.5)
    notes = []
    for turn, key in enumerate(DRUMS.values()):
        start = round(turn * SPACING * RENDER_RATE)
        hit = soxr.resample(hits[start : start + int(1.5 * RENDER_RATE)], RENDER_RATE, RATE, quality="VHQ")
        notes.append((key, hit.astype(np.float32), 0.0))
    bank["instruments"]["drums"] = pack(args.out, "drums", notes, "drums")
    bank["drum_keys"] = DRUMS
    (args.out / "bank.json").write_text(json.dumps(bank, indent=1) + "\n")
    (args.out / "LICENSE.txt").write_text(
        "The recordings in this folder are single notes of the sound font FluidR3 GM by Frank Wen,\n"
        "released under the MIT licence. Copyright (c) 2000-2002, 2008 Frank Wen.\n"
    )


if __name__ == "__main__":
    main()
