"""How much of the music a codec keeps: chroma of the decoded audio against the original's."""

from __future__ import annotations

from itertools import islice

import numpy as np
from numpy.typing import NDArray

from jamgym.codec import Codec
from jamgym.corpus import Corpus
from jamgym.errors import CorpusError


def chroma(audio: NDArray[np.float32], sample_rate: int, size: int = 4096, hop: int = 1024) -> NDArray[np.float64]:
    """Return `(T, 12)` chroma energies of `(S,)` audio between 55 and 2000 Hz, C first."""
    frames = np.lib.stride_tricks.sliding_window_view(audio, size)[::hop]
    power = np.abs(np.fft.rfft(frames * np.hanning(size), axis=1)) ** 2
    frequencies = np.fft.rfftfreq(size, 1.0 / sample_rate)
    used = (frequencies >= 55.0) & (frequencies <= 2000.0)
    classes = np.round(12 * np.log2(frequencies[used] / 440.0) + 9).astype(int) % 12
    return np.sqrt(power[:, used]) @ np.eye(12)[classes]


def cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return the mean over frames of the cosine of centred chroma; silent frames of `a` do not count."""
    loud = a.sum(1) > 0.05 * a.sum(1).max() if len(a) else np.zeros(0, bool)
    a, b = a[loud] - a[loud].mean(1, keepdims=True), b[loud] - b[loud].mean(1, keepdims=True)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1) + 1e-9
    return float(((a * b).sum(1) / norms).mean()) if loud.any() else 0.0


def codec_quality(codec: Codec, corpus: Corpus, songs: int = 24, seconds: float = 12.0) -> dict[str, float]:
    """Return per-stem chroma cosines over validation songs.

    Keys: `chroma_cosine` (decoded against original, mean over pitched stems), `chroma_cosine_low` (its
    10th percentile), `chroma_cosine_transposed` (decoded against the original moved by 1 to 11
    semitones, the control), `log_spectral_distance_db`, `used_codes_q`.
    """
    wanted = round(seconds * codec.sample_rate)
    direct, control, distance = [], [], []
    used = [set[int]() for _ in range(codec.num_codebooks)]
    for song_id in islice(corpus.song_ids("validation"), songs):
        song = corpus.load(song_id)
        stems = song.stems
        length = min(wanted, len(stems[0].audio)) // codec.hop_samples * codec.hop_samples
        if length < 4096:  # one window of chroma
            continue
        audio = np.stack([stem.audio[:length] for stem in stems])
        codes = codec.encode(audio)
        decoded = codec.decode(codes)
        for q in range(codec.num_codebooks):
            used[q].update(np.unique(codes[..., q]).tolist())
        for stem, before, after in zip(stems, audio, decoded, strict=True):
            spectra = [np.abs(np.fft.rfft(_frames(x), axis=1)) + 1e-2 for x in (before, after)]
            distance.append(float(np.abs(20 * np.log10(spectra[0] / spectra[1])).mean()))
            if stem.instrument == "drums":
                continue
            a, b = chroma(before, codec.sample_rate), chroma(after, codec.sample_rate)
            direct.append(cosine(a, b))
            control.append(float(np.mean([cosine(np.roll(a, shift, axis=1), b) for shift in range(1, 12)])))
    if not direct:
        raise CorpusError(
            f"Corpus {corpus.name!r} has no pitched validation stem of at least 4096 samples to judge by."
        )
    figures = {
        "chroma_cosine": float(np.mean(direct)),
        "chroma_cosine_low": float(np.quantile(direct, 0.1)),
        "chroma_cosine_transposed": float(np.mean(control)),
        "log_spectral_distance_db": float(np.mean(distance)),
    }
    for q, seen in enumerate(used):
        figures[f"used_codes_{q}"] = float(len(seen))
    return figures


def _frames(audio: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.lib.stride_tricks.sliding_window_view(audio, 1024)[::512] * np.hanning(1024).astype(np.float32)
