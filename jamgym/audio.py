"""Audio files in and out: mono float32 at the rate that is asked for, with errors that name the file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from jamgym.errors import AudioError, nearest

#: File name endings that jamgym looks for in a folder of stems.
AUDIO_SUFFIXES: tuple[str, ...] = (".wav", ".flac", ".ogg", ".mp3", ".aif", ".aiff")

#: libsndfile's length of a file whose header leaves it open, such as a FLAC that was written to a pipe.
_OPEN_LENGTH = 2**63 - 1
#: From here on the size of a chunk is what programs write that do not know it: 0xFFFFFFFF, or just below 2 GiB.
_PLACEHOLDER_BYTES = 0x7FFFF000
#: First bytes of files made of chunks to their byte order, and the chunks that hold samples.
_CHUNK_ORDER: dict[bytes, Literal["little", "big"]] = {b"RIFF": "little", b"RF64": "little", b"FORM": "big"}
_SAMPLE_CHUNKS = (b"data", b"SSND")
#: So few bytes are missing from whole files too: some programs count a header or a padding among the samples.
_MISCOUNTED_BYTES = 64


@dataclass(frozen=True)
class AudioInfo:
    """What a file's header says, before any resampling.

    Attributes:
        frames: Samples per channel.
        sample_rate: Samples per second.
        channels: Number of channels.
        estimated: Whether `frames` is an estimate of libsndfile, as it is for MP3.
    """

    frames: int
    sample_rate: int
    channels: int
    estimated: bool = False

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return self.frames / self.sample_rate


def audio_info(path: str | os.PathLike[str]) -> AudioInfo:
    """Read only the header of an audio file; one that leaves the length open is read to its end.

    Raises:
        AudioError: The file is missing, empty, not audio, a WAV or AIFF that is cut off, or has no samples.
    """
    import soundfile

    file = _existing(Path(path))
    try:
        info = soundfile.info(str(file))
        frames = _count(file) if info.frames == _OPEN_LENGTH else int(info.frames)
    except Exception as error:
        raise _unreadable(file, error) from error
    # libsndfile takes the bytes that are there for all that were ever written.
    promised, found = _sample_bytes(file)
    if found < promised - _MISCOUNTED_BYTES:
        raise _cut_off(file, promised, found, "bytes of samples")
    if frames <= 0 or info.samplerate <= 0:
        raise AudioError(f"{file} has a valid header but no samples. Export it again, or remove it.")
    return AudioInfo(frames, int(info.samplerate), int(info.channels), estimated=info.subtype.startswith("MPEG"))


def read_audio(path: str | os.PathLike[str], sample_rate: int) -> NDArray[np.float32]:
    """Read an audio file as mono float32 `(S,)` at `sample_rate` samples per second.

    Any number of channels is averaged to one, and any rate is resampled (soxr, high quality). Levels
    are not changed, so a floating-point file may exceed [-1, 1].

    Raises:
        AudioError: The file is missing, empty, not audio, cut off, without samples, or contains NaN
            or infinite values.
    """
    if sample_rate < 1:
        raise AudioError(f"sample_rate is {sample_rate}; it must be at least 1 sample per second.")
    info = audio_info(path)
    file = Path(path)
    try:
        with _reading(file) as stream:
            samples, rate = stream.read(info.frames, dtype="float32", always_2d=True), stream.samplerate
    except Exception as error:
        raise _unreadable(file, error) from error
    if len(samples) == 0:
        raise AudioError(f"{file} has a valid header but no samples. Export it again, or remove it.")
    if len(samples) < info.frames and not info.estimated:
        raise _cut_off(file, info.frames, len(samples), "samples")
    if not np.isfinite(samples).all():
        where = int(np.flatnonzero(~np.isfinite(samples).all(axis=1))[0])
        raise AudioError(
            f"{file} contains a NaN or infinite value, first at sample {where} ({where / rate:.3f} s). Export it again."
        )
    mono = samples.mean(axis=1, dtype=np.float32)
    return resample(mono, int(rate), sample_rate)


def within_full_scale(audio: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return `audio` `(S,)`, turned down where it would clip: a sum of stems may exceed [-1, 1]."""
    return audio / np.float32(max(1.0, float(np.abs(audio).max(initial=0.0))))


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
    try:
        if file.is_dir():
            raise AudioError(f"{file} is a folder, not an audio file.")
        if not file.exists():
            siblings = [entry.name for entry in file.parent.iterdir()] if file.parent.is_dir() else []
            close = nearest(file.name, siblings)
            hint = f" Did you mean {close!r}?" if close else ""
            if not file.parent.is_dir():
                hint = f" Its folder {file.parent} does not exist either."
            raise AudioError(f"There is no file {file}.{hint}")
        # libsndfile does not say why it could not open a file.
        with file.open("rb") as stream:
            if not stream.read(1):
                raise AudioError(f"{file} is empty (0 bytes). Copy or export it again, or remove it.")
    except PermissionError as error:
        raise AudioError(
            f"{file} may not be read: {error.strerror}. Give yourself permission to read it and to open the folders "
            "that it is in, or remove it."
        ) from error
    return file


def _reading(file: Path) -> Any:
    """Open `file` to be read in order, without the seeking after each read that needs a known length."""
    import soundfile

    class Reading(soundfile.SoundFile):
        def seekable(self) -> bool:
            return False

    return Reading(str(file))


def _count(file: Path) -> int:
    """Read `file` to its end and return its samples per channel."""
    frames = 0
    with _reading(file) as stream:
        while read := len(stream.read(65536, dtype="float32")):
            frames += read
    return frames


def _sample_bytes(file: Path) -> tuple[int, int]:
    """Return how many bytes of samples a WAV or AIFF promises and how many there are; (0, 0) where that is open."""
    with file.open("rb") as stream:
        order = _CHUNK_ORDER.get(stream.read(12)[:4])
        wide = 0
        while order and len(head := stream.read(8)) == 8:
            size = int.from_bytes(head[4:], order)
            begin = stream.tell()
            if head[:4] in _SAMPLE_CHUNKS:
                promised = wide or (0 if size >= _PLACEHOLDER_BYTES else size)
                return promised, min(promised, file.stat().st_size - begin)
            if head[:4] == b"ds64":  # the sizes of a WAV above 4 GiB: of the file, then of the samples
                wide = int.from_bytes(stream.read(16)[8:], order)
            stream.seek(begin + size + size % 2)
    return 0, 0


def _cut_off(file: Path, promised: int, found: int, what: str) -> AudioError:
    return AudioError(
        f"{file} is cut off: its header promises {promised} {what} but {found} could be read. Copy or export it again."
    )


def _unreadable(file: Path, error: Exception) -> AudioError:
    return AudioError(
        f"{file} could not be read as audio: {error}. It is broken or not one of WAV, FLAC, OGG, AIFF or MP3. "
        "Export it again, or remove it."
    )
