"""`jamgym rewards score`: what a reward says about two audio files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jamgym.audio import audio_info
from jamgym.benchmark.file_scores import FileScores, score_files
from jamgym.files import plain, write_text
from jamgym.registry import rewards
from jamgym.specs import create_from_spec


@dataclass(frozen=True)
class ScoreConfig:
    """Settings of `jamgym rewards score`.

    Attributes:
        reward: Reward name, or a mapping with `name` and its arguments; may be given without its name.
            Required.
        heard: Audio file of what was heard: the others. Any sample rate; mono, stereo or more. Required.
        played: Audio file of what was played to it, from the same moment on. Required.
        target: Audio file of the stem that was replaced, for rewards that need it.
        out: Folder for scores.json and scores.png; None writes nothing.
        sample_rate: Samples per second that everything is resampled to; that of codec `spectral`.
    """

    reward: str | dict[str, Any]
    heard: str
    played: str
    target: str | None = None
    out: str | None = None
    sample_rate: int = 16_000


def score(config: ScoreConfig) -> str:
    """Score the files, write what was asked for, and return the table."""
    reward = create_from_spec(rewards, config.reward)
    found = score_files(reward, config.heard, config.played, config.target, config.sample_rate)
    lines = [table(found, _about_files(config, found))]
    if config.target is not None and "target" not in reward.needs:
        lines.append(f"{config.target} was not used: reward {found.reward!r} does not look at the target.")
    if config.out is None:
        lines.append("Give --out DIR to write scores.json and a picture, scores.png.")
    else:
        lines += [f"Wrote {path}" for path in write(found, config)]
    return "\n".join(lines)


def table(found: FileScores, about: list[str]) -> str:
    """Return the scores as text, one line per window, the mean last."""
    rows = [
        f"{start:>9.2f} {end:>9.2f} {value:>9.3f}"
        for start, end, value in zip(found.starts, found.ends, found.scores, strict=True)
    ]
    low, high = found.range
    return "\n".join(
        [
            f"Reward {found.reward}, version {found.version}, range {low:g} to {high:g}",
            *about,
            "",
            f"{'from (s)':>9} {'to (s)':>9} {'score':>9}",
            *rows,
            f"{'mean':>19} {found.mean:>9.3f}",
        ]
    )


def write(found: FileScores, config: ScoreConfig) -> list[Path]:
    """Write scores.json and scores.png into the folder `config.out`; returns their paths."""
    from jamgym.benchmark.plots import plot_scores

    folder = Path(str(config.out))
    files = {"heard": config.heard, "played": config.played, "target": config.target}
    text = json.dumps(plain({**found.as_json(), "spec": config.reward, "files": files}), indent=2) + "\n"
    write_text(folder / "scores.json", text)
    return [folder / "scores.json", plot_scores(found, folder / "scores.png")]


def _about_files(config: ScoreConfig, found: FileScores) -> list[str]:
    """Return one line per file that was scored, and one if something of it was left out."""
    named = {"heard": config.heard, "played": config.played}
    infos = {name: audio_info(path) for name, path in named.items()}
    lines = [
        f"{name:<6}  {named[name]}  ({info.seconds:.2f} s, {info.sample_rate} Hz, "
        f"{info.channels} channel{'s' if info.channels > 1 else ''})"
        for name, info in infos.items()
    ]
    left = max(info.seconds for info in infos.values()) - found.seconds
    if left > 0.04:
        lines.append(f"The last {left:.2f} s of the longer file were not scored.")
    return lines
