"""Pairs in memory as features, and the wrong versions of a stem that a reward has to tell from it.

All wrong versions are cut from the features of whole songs: another time and a shifted one start
elsewhere, a transposed one is cut higher or lower on the log-frequency axis, a wrong tempo is read at
another speed. So they cost nothing and need no knowledge of the corpus.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from jamgym.codec import Codec
from jamgym.corpus import Corpus, Song, active_share
from jamgym_rewards.features import FLOOR_DB, SAMPLE_RATE, Analysis, FeatureSpec, pack
from jamgym_rewards.separation import Part, separate

#: Wrong versions of the played stem in each training example, in this order.
KINDS = ("other_time", "transposed", "half_beat", "tempo_or_transposed")
#: Semitones by which both sides are transposed together in training.
JOINT_SEMITONES = 3
MAX_SEMITONES = 6
#: How often training draws 1 to 6 semitones. Thirds share the most with what they replace and are learnt last: a
#: tower first finds chroma's strongest Fourier component, which for triads has a period of four semitones.
_SEMITONE_SHARES = (0.15, 0.1, 0.2, 0.3, 0.15, 0.1)

Packed = NDArray[np.uint8]


@dataclass(frozen=True)
class FeaturePair:
    """One song's input and target as packed decibels `(rows, frames)`.

    Attributes:
        song_id: The song.
        heard: What is heard: the sum of the other stems, original audio.
        played: The target's versions: original and, if there is a codec, through the codec.
        transposed: The target transposed by the corpus itself, with its semitones, or None.
        pitched: False for drums, which no transposition makes wrong.
        beat_seconds: Time between beats, or None if it is not known.
    """

    song_id: str
    heard: Packed
    played: tuple[Packed, ...]
    transposed: tuple[Packed, int] | None
    pitched: bool
    beat_seconds: float | None


def make_feature_pair(
    song: Song,
    target: str,
    analysis: Analysis,
    codec: Codec | None = None,
    rng: Generator | None = None,
    transposed: tuple[NDArray[np.float32], int] | None = None,
    part: Part = "both",
) -> FeaturePair:
    """Compute the features of `song` with stem `target` played.

    Args:
        song: At 16 kHz.
        target: Name of the played stem.
        analysis: Computes the features.
        codec: Colours the played stem.
        rng: Draws a gain per stem: -12 to +6 dB for those heard, -20 to +6 dB for the played one; None: no gains.
        transposed: The target's audio transposed, and by how many semitones.
        part: What is kept of both sides.
    """
    others = [stem.audio for stem in song.stems if stem.name != target]
    own = song.stem(target).audio
    gains = np.ones(len(others) + 1) if rng is None else 10.0 ** (rng.uniform(-12.0, 6.0, len(others) + 1) / 20.0)
    if rng is not None:
        gains[-1] = 10.0 ** (rng.uniform(-20.0, 6.0) / 20.0)
    heard = np.sum([audio * gain for audio, gain in zip(others, gains, strict=False)], axis=0)
    sources = [own] if transposed is None else [own, transposed[0]]
    tracks = [_limited(audio * gains[-1]) for audio in sources]
    if codec is not None:
        samples = len(own) // codec.hop_samples * codec.hop_samples
        coded = codec.decode(codec.encode(np.stack([track[:samples] for track in tracks])))
        tracks += [np.pad(audio, (0, len(own) - samples)) for audio in coded]
    with torch.no_grad():
        audio = torch.from_numpy(np.stack([heard, *tracks]).astype(np.float32))
        decibels = pack(analysis(separate(audio, part)))
    played = (decibels[1],) if codec is None else (decibels[1], decibels[1 + len(sources)])
    beat = None if song.truth is None or song.truth.tempo_bpm <= 0 else 60.0 / song.truth.tempo_bpm
    return FeaturePair(
        song_id=song.id,
        heard=decibels[0],
        played=played,
        transposed=None if transposed is None else (decibels[-1], transposed[1]),
        pitched=song.stem(target).instrument != "drums",
        beat_seconds=beat,
    )


def render_pair(
    corpus: Corpus,
    song_id: str,
    analysis: Analysis,
    codec: Codec | None,
    rng: Generator,
    natural: bool,
    part: Part = "both",
) -> FeaturePair | None:
    """Load a song, draw a target and return the pair; None if no stem sounds for a third of the song.

    Args:
        corpus: At 16 kHz. If it can transpose a stem exactly (`load_transposed`, as `band` does), that is used too.
        song_id: The song.
        analysis: Computes the features.
        codec: Colours the played stem.
        rng: Draws the target, gains and the transposition.
        natural: Keep the song's own levels, for validation.
        part: What is kept of both sides.
    """
    song = corpus.load(song_id)
    names = [s.name for s in song.stems if active_share(s.audio, SAMPLE_RATE) >= 0.33] if len(song.stems) > 1 else []
    if not names:
        return None
    target = names[int(rng.integers(len(names)))]
    exact = getattr(corpus, "load_transposed", None)
    transposed = None
    if exact is not None and song.stem(target).instrument != "drums" and not natural:
        semitones = wrong_semitones(rng)
        transposed = (exact(song_id, {target: semitones}).stem(target).audio, semitones)
    return make_feature_pair(song, target, analysis, codec, None if natural else rng, transposed, part)


def wrong_semitones(rng: Generator) -> int:
    """Draw a transposition of 1 to 6 semitones either way."""
    return int(rng.choice([-1, 1])) * (1 + int(rng.choice(MAX_SEMITONES, p=_SEMITONE_SHARES)))


def _limited(audio: NDArray[np.float32]) -> NDArray[np.float32]:
    peak = float(np.abs(audio).max(initial=0.0))
    return (audio * (0.99 / peak) if peak > 0.99 else audio).astype(np.float32)


def window(
    packed: Packed, spec: FeatureSpec, start: float, frames: int, semitones: int = 0, speed: float = 1.0
) -> NDArray[np.float32]:
    """Cut decibels `(pitch_bins + bands, frames)` out of a song.

    Args:
        packed: `(rows, T)` of the whole song.
        spec: Says how rows are laid out.
        start: First frame; moved so that the window lies inside the song.
        frames: Length; a song that is shorter is filled with silence.
        semitones: Transposition.
        speed: Source frames per frame: above 1 is faster.
    """
    length = int(np.ceil(frames * speed)) + (speed != 1.0)
    first = int(np.clip(round(start), 0, max(packed.shape[1] - length, 0)))
    low = (spec.margin_semitones - semitones) * spec.bins_per_semitone
    part = packed[:, first : first + length]
    values = np.concatenate([part[low : low + spec.pitch_bins], part[spec.stored_bins :]]).astype(np.float32)
    values = values * np.float32(0.5) + np.float32(FLOOR_DB)
    if speed != 1.0:
        position = np.minimum(np.arange(frames) * speed, values.shape[1] - 1)
        left = np.minimum(position.astype(np.int64), max(values.shape[1] - 2, 0))
        right = np.minimum(left + 1, values.shape[1] - 1)
        share = (position - left).astype(np.float32)
        values = values[:, left] * (1 - share) + values[:, right] * share
    if values.shape[1] < frames:
        values = np.pad(values, ((0, 0), (0, frames - values.shape[1])), constant_values=FLOOR_DB)
    return values[:, :frames]


def shifted_start(rng: Generator, start: int, shift: float, total: int, frames: int) -> float:
    """Return `start` moved by `shift` frames either way, at random, but inside the song if possible."""
    sign = -1.0 if rng.random() < 0.5 else 1.0
    moved = start + sign * shift
    return moved if 0 <= moved <= total - frames else start - sign * shift


def half_beat_frames(pair: FeaturePair, spec: FeatureSpec, rng: Generator) -> float:
    """Return half a beat in frames; 0.15 to 0.4 s where the beat is not known."""
    seconds = rng.uniform(0.15, 0.4) if pair.beat_seconds is None else pair.beat_seconds / 2
    return seconds * spec.frame_rate


def other_start(rng: Generator, start: int, total: int, frames: int, least: float) -> float:
    """Return a random start that is at least `least` frames away, if the song is long enough."""
    starts = np.arange(max(total - frames, 0) + 1)
    away = starts[np.abs(starts - start) >= least]
    return float(rng.choice(away)) if len(away) else start + least


def sounding_start(pair: FeaturePair, spec: FeatureSpec, frames: int, rng: Generator, tries: int = 8) -> int:
    """Return a start at which both sides sound above -60 dBFS for a third of the window, if one is found."""
    total = pair.heard.shape[1]
    threshold = int((-60.0 - FLOOR_DB) * 2)
    start = 0
    for _ in range(tries):
        start = int(rng.integers(max(total - frames, 0) + 1))
        sides = (pair.heard[:, start : start + frames], pair.played[-1][:, start : start + frames])
        if all((side.max(0) > threshold).mean() >= 0.33 for side in sides):
            break
    return start


@dataclass(frozen=True)
class PairBatch:
    """B examples as cut decibels.

    Attributes:
        heard: `(B, R, T)`.
        played: `(B, 1 + K, R, T)`: the true window, then one wrong version for each of `KINDS`.
    """

    heard: Tensor
    played: Tensor


def draw_batch(
    pairs: Sequence[FeaturePair], spec: FeatureSpec, rng: Generator, batch: int, seconds: tuple[float, float]
) -> PairBatch:
    """Draw examples of distinct pairs with windows of one random length.

    Args:
        pairs: The pool; at least two.
        spec: The features' layout.
        rng: Draws everything.
        batch: Number of examples; at most the number of pairs.
        seconds: Shortest and longest window.
    """
    frames = spec.frames(round(rng.uniform(*seconds) * SAMPLE_RATE))
    chosen = rng.choice(len(pairs), size=min(batch, len(pairs)), replace=False)
    heard, played = [], []
    for index in chosen:
        pair = pairs[int(index)]
        total = pair.heard.shape[1]
        start = sounding_start(pair, spec, frames, rng)
        joint = int(rng.integers(-JOINT_SEMITONES, JOINT_SEMITONES + 1)) if pair.pitched else 0
        version = int(rng.integers(len(pair.played)))
        own = pair.played[version]
        # The exactly transposed stem has the last version's colour; beside another one, colour would tell.
        exact = pair.transposed if version == len(pair.played) - 1 else None
        heard.append(window(pair.heard, spec, start, frames, joint))
        rows = [
            window(own, spec, start, frames, joint),
            window(own, spec, other_start(rng, start, total, frames, spec.frame_rate), frames, joint),
            _transposed(pair, own, exact, spec, rng, start, frames, joint),
            window(own, spec, shifted_start(rng, start, _delay(pair, spec, rng), total, frames), frames, joint),
            _off_tempo(own, spec, rng, start, frames, joint)
            if not pair.pitched or rng.random() < 0.5
            else _transposed(pair, own, exact, spec, rng, start, frames, joint),
        ]
        played.append(np.stack(rows))
    return PairBatch(torch.from_numpy(np.stack(heard)), torch.from_numpy(np.stack(played)))


def _transposed(
    pair: FeaturePair,
    own: Packed,
    exact: tuple[Packed, int] | None,
    spec: FeatureSpec,
    rng: Generator,
    start: int,
    frames: int,
    joint: int,
) -> NDArray[np.float32]:
    if not pair.pitched:  # drums have no wrong key: take another shift in time instead
        moved = shifted_start(rng, start, half_beat_frames(pair, spec, rng), own.shape[1], frames)
        return window(own, spec, moved, frames, joint)
    if exact is not None and rng.random() < 0.5:
        return window(exact[0], spec, start, frames, joint)
    semitones = wrong_semitones(rng)
    return window(own, spec, start, frames, joint + semitones)


def _off_tempo(
    own: Packed, spec: FeatureSpec, rng: Generator, start: int, frames: int, joint: int
) -> NDArray[np.float32]:
    change = float(rng.choice([-1, 1]) * rng.uniform(0.07, 0.25))
    return window(own, spec, start, frames, joint, speed=1.0 + change)


def _delay(pair: FeaturePair, spec: FeatureSpec, rng: Generator) -> float:
    """Return half a beat, or sometimes any delay from 0.1 to 2 s, in frames."""
    if rng.random() < 0.65:
        return half_beat_frames(pair, spec, rng)
    return rng.uniform(0.1, 2.0) * spec.frame_rate
