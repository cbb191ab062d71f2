"""Audio files in and out: mono float32 at the rate that is asked for, with errors that name the file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from jamgym.errors import AudioError, nearest

#: File name endings that jamgym looks for in a folder of stems.
AUDIO_SUFFIXES: tuple[str, ...] = (".wav", ".flac", ".ogg", ".mp3", ".aif", ".aiff")


@dataclass(frozen=True)
class AudioInfo:
    """What a file's header says, before any resampling.

    Attributes:
        frames: Samples per channel.
        sample_rate: Samples per second.
        channels: Number of channels.
    """

    frames: int
    sample_rate: int
    channels: int

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return self.frames / self.sample_rate


def audio_info(path: str | os.PathLike[str]) -> AudioInfo:
    """Read only the header of an audio file.

    Raises:
        AudioError: The file is missing, empty, not audio, or has no samples.
    """
    import soundfile

    file = _existing(Path(path))
    try:
        info = soundfile.info(str(file))
    except Exception as error:
        raise _unreadable(file, error) from error
    if info.frames <= 0 or info.samplerate <= 0:
        raise AudioError(f"{file} has a valid header but no samples. Export it again, or remove it.")
    return AudioInfo(frames=int(info.frames), sample_rate=int(info.samplerate), channels=int(info.channels))


def read_audio(path: str | os.PathLike[str], sample_rate: int) -> NDArray[np.float32]:
    """Read an audio file as mono float32 `(S,)` at `sample_rate` samples per second.

    Any number of channels is averaged to one, and any rate is resampled (soxr, high quality). Levels
    are not changed, so a floating-point file may exceed [-1, 1].

    Raises:
        AudioError: The file is missing, empty, not audio, cut off, without samples, or contains NaN
            or infinite values.
    """
    import soundfile

    if sample_rate < 1:
        raise AudioError(f"sample_rate is {sample_rate}; it must be at least 1 sample per second.")
    info = audio_info(path)
    file = Path(path)
    try:
        samples, rate = soundfile.read(str(file), dtype="float32", always_2d=True)
    except Exception as error:
        raise _unreadable(file, error) from error
    if len(samples) == 0:
        raise AudioError(f"{file} has a valid header but no samples. Export it again, or remove it.")
    if len(samples) < info.frames:
        raise AudioError(
            f"{file} is cut off: its header promises {info.frames} samples but {len(samples)} could be read. "
            "Copy or export it again."
        )
    if not np.isfinite(samples).all():
        where = int(np.flatnonzero(~np.isfinite(samples).all(axis=1))[0])
        raise AudioError(
            f"{file} contains a NaN or infinite value, first at sample {where} ({where / rate:.3f} s). Export it again."
        )
    mono = samples.mean(axis=1, dtype=np.float32)
    return resample(mono, int(rate), sample_rate)


def resample(audio: NDArray[np.float32], source_rate: int, target_rate: int) -> NDArray[np.float32]:
    """Resample mono audio `(S,)` to `(round(S * target_rate / source_rate),)` float32, at least 1 sample."""
    if source_rate == target_rate:
        return np.ascontiguousarray(audio, dtype=np.float32)
    import soxr

    length = max(round(len(audio) * target_rate / source_rate), 1)
    made = np.asarray(soxr.resample(audio, source_rate, target_rate, quality="HQ"), dtype=np.float32)[:length]
    return np.pad(made, (0, length - len(made)))


def write_audio(
    path: str | os.PathLike[str],
    audio: NDArray[np.floating],
    sample_rate: int,
    subtype: Literal["PCM_16", "FLOAT"] = "PCM_16",
) -> Path:
    """Write mono audio `(S,)` as WAV such that the file is either complete or not there.

    Args:
        path: File to write; its folder is made if it is missing.
        audio: Samples in [-1, 1]. "PCM_16" clips what lies outside; "FLOAT" keeps it.
        sample_rate: Samples per second.
        subtype: "PCM_16" or "FLOAT".

    Returns:
        The path.

    Raises:
        AudioError: `audio` is not one finite mono signal.
    """
    import soundfile

    file = Path(path)
    samples = np.asarray(audio)
    if samples.ndim != 1 or len(samples) == 0:
        raise AudioError(f"Audio for {file} has shape {samples.shape}; expected mono (S,) with at least one sample.")
    if not np.isfinite(samples).all():
        raise AudioError(f"Audio for {file} contains NaN or infinite values.")
    if subtype not in ("PCM_16", "FLOAT"):
        raise AudioError(f"subtype is {subtype!r}; valid are 'PCM_16' and 'FLOAT'.")
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        soundfile.write(str(partial), samples.astype(np.float32), sample_rate, format="WAV", subtype=subtype)
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)
    return file


def _existing(file: Path) -> Path:
    if file.is_dir():
        raise AudioError(f"{file} is a folder, not an audio file.")
    if not file.exists():
        siblings = [entry.name for entry in file.parent.iterdir()] if file.parent.is_dir() else []
        close = nearest(file.name, siblings)
        hint = f" Did you mean {close!r}?" if close else ""
        if not file.parent.is_dir():
            hint = f" Its folder {file.parent} does not exist either."
        raise AudioError(f"There is no file {file}.{hint}")
    if file.stat().st_size == 0:
        raise AudioError(f"{file} is empty (0 bytes). Copy or export it again, or remove it.")
    return file


def _unreadable(file: Path, error: Exception) -> AudioError:
    return AudioError(
        f"{file} could not be read as audio: {error}. It is broken or not one of WAV, FLAC, OGG, AIFF or MP3. "
        "Export it again, or remove it."
    )
