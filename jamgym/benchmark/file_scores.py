"""Scores of audio files: any two that start together, cut into the windows that an environment would score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from jamgym.audio import read_audio
from jamgym.codec import Audio, Codec
from jamgym.episode import Episode
from jamgym.errors import AudioError, ConfigError
from jamgym.reward import RewardModel
from jamgym.scoring import check_reward, plan_windows, score_windows

#: Windows begin and end at whole frames; this many a second, as with codec `spectral`.
FRAMES_PER_SECOND = 25
#: Files may differ in length by so much: encoders pad and cut a little.
TOLERANCE_SECONDS = 0.1


@dataclass(frozen=True)
class FileScores:
    """Scores of W windows of a pair of files.

    Attributes:
        reward: Name of the reward.
        version: Its version.
        range: Its lowest and highest score.
        heard: `(S,)` float32 audio, as it was scored.
        played: `(S,)` float32 audio, as it was scored.
        sample_rate: Samples per second of both.
        starts: `(W,)` start of each window in seconds.
        ends: `(W,)` end of each window in seconds.
        scores: `(W,)` scores.
    """

    reward: str
    version: str
    range: tuple[float, float]
    heard: Audio
    played: Audio
    sample_rate: int
    starts: NDArray[np.float64]
    ends: NDArray[np.float64]
    scores: NDArray[np.float32]

    @property
    def mean(self) -> float:
        """Mean over the windows: the score that an episode of this audio would have."""
        return float(self.scores.mean(dtype=np.float64))

    @property
    def seconds(self) -> float:
        """Duration of what was scored."""
        return len(self.heard) / self.sample_rate

    def as_json(self) -> dict[str, Any]:
        """Return everything but the audio as plain data; times in seconds."""
        rows = zip(self.starts.tolist(), self.ends.tolist(), self.scores.tolist(), strict=True)
        return {
            "reward": self.reward,
            "version": self.version,
            "range": list(self.range),
            "sample_rate": self.sample_rate,
            "seconds": self.seconds,
            "mean": self.mean,
            "windows": [{"start": start, "end": end, "score": score} for start, end, score in rows],
        }


@dataclass(frozen=True)
class _Frames:
    """All that the windows of an episode need to know of a codec."""

    sample_rate: int
    hop_samples: int


def score_files(
    reward: RewardModel,
    heard: Path | str,
    played: Path | str,
    target: Path | str | None = None,
    sample_rate: int = 16_000,
) -> FileScores:
    """Score the file `played` beside the file `heard`, window by window.

    Args:
        reward: The reward model.
        heard: Audio file of what the player heard; any rate, any number of channels.
        played: Audio file of what was played, from the same moment on.
        target: Audio file of the stem that was replaced, for rewards that need it.
        sample_rate: Everything is resampled to so many samples per second first.

    Returns:
        The scores of the windows that an environment would score: those of whole frames of 40 ms.

    Raises:
        AudioError: A file is missing or broken, they differ in length by more than 0.1 s, or they are too short.
        ConfigError: The reward needs what was not given, or something that no audio file has.
        RewardError: The reward raised or gave a score that is not finite.
    """
    check_reward(reward)
    _check_needs(reward, target)
    if sample_rate < 1000:
        raise ConfigError(f"sample_rate is {sample_rate}; give samples per second, such as 16000.")
    files: dict[str, Path | str] = {"heard": heard, "played": played}
    if target is not None and "target" in reward.needs:
        files["target"] = target
    audio = {name: read_audio(path, sample_rate) for name, path in files.items()}
    _check_lengths(audio, files, sample_rate, reward)
    hop = round(sample_rate / FRAMES_PER_SECOND)
    count = min(map(len, audio.values())) // hop
    audio = {name: samples[: count * hop] for name, samples in audio.items()}
    no_codes = np.zeros((count, 0), dtype=np.int16)
    episode = Episode(
        song_id=str(heard),
        target_name=str(played),
        instrument=0,
        start_frame=0,
        input_codes=no_codes,
        target_codes=no_codes,
        heard=audio["heard"],
        target=audio.get("target", audio["heard"]),
        truth=None,
        ends_song=True,
    )
    frames = cast(Codec, _Frames(sample_rate, hop))
    plan = plan_windows(reward, frames, count)
    scores = score_windows(reward, frames, [episode] * len(plan), [audio["played"]] * len(plan), plan.starts, plan.ends)
    return FileScores(
        reward=reward.name,
        version=str(reward.version),
        range=(float(reward.range[0]), float(reward.range[1])),
        heard=audio["heard"],
        played=audio["played"],
        sample_rate=sample_rate,
        starts=plan.starts * np.float64(hop / sample_rate),
        ends=plan.ends * np.float64(hop / sample_rate),
        scores=scores,
    )


def _check_needs(reward: RewardModel, target: Path | str | None) -> None:
    if "truth" in reward.needs:
        raise ConfigError(
            f"Reward {reward.name!r} needs truth (known beats and chords), which audio files do not have. Score them "
            "with one that judges audio alone, such as 'coherence', or use a corpus that knows the truth, such as "
            "'band', with `jamgym evaluate`."
        )
    if "target" in reward.needs and target is None:
        raise ConfigError(f"Reward {reward.name!r} needs the stem that was replaced; give it with --target FILE.")


def _check_lengths(
    audio: Mapping[str, Audio], files: Mapping[str, Path | str], sample_rate: int, reward: RewardModel
) -> None:
    seconds = {name: len(samples) / sample_rate for name, samples in audio.items()}
    shown = ", ".join(f"{name} {files[name]} lasts {length:.2f} s" for name, length in seconds.items())
    if max(seconds.values()) - min(seconds.values()) > TOLERANCE_SECONDS:
        raise AudioError(
            f"The files differ in length: {shown}. They must start together and may differ by {TOLERANCE_SECONDS} s; "
            "cut or pad them to one length."
        )
    shortest = max(reward.min_window_seconds, 1 / FRAMES_PER_SECOND)
    if min(seconds.values()) < shortest:
        raise AudioError(
            f"The files are too short: {shown}; the shortest window of reward {reward.name!r} has {shortest:g} s."
        )
