"""Figures as PNG files. Matplotlib is imported when a figure is made, and without any global state."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from jamgym.benchmark.comparison import Comparison
from jamgym.benchmark.file_scores import FileScores
from jamgym.benchmark.table import heading, title
from jamgym.codec import Audio, Codec
from jamgym.files import atomic_path
from jamgym.playback import CONCEALED, DELAYED, GAP, ON_TIME, REPEATED
from jamgym.record import EpisodeRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WINDOW = 1024
_HOP = 256
_FLOOR_DB = -80.0
#: A picture is no wider than this, so longer audio is looked at in larger steps.
_COLUMNS = 4000
#: An axis of a comparison spans no less, so that noise in what is all but 0 is not blown up.
_LEAST_SPAN = 0.2
_STATUS_COLOURS: Mapping[int, str] = {GAP: "red", REPEATED: "orange", CONCEALED: "peru", DELAYED: "tab:blue"}


def plot_comparison(comparison: Comparison, path: Path | str) -> Path:
    """Draw mean and 95 % interval of every policy, one panel per metric; returns the PNG's path."""
    from matplotlib.figure import Figure

    measures = [*comparison.metrics, "late_frames"]
    figure = Figure(figsize=(2.6 * len(measures) + 1.5, 0.45 * len(comparison.labels) + 1.6), layout="constrained")
    axes = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
    place = np.arange(len(comparison.labels))[::-1]
    for axis, measure in zip(axes, measures, strict=True):
        for y, label in zip(place, comparison.labels, strict=True):
            interval = comparison.interval(label, measure)
            colour = "0.5" if label in comparison.anchors else "tab:blue"
            if interval.bounded:
                axis.plot([interval.low, interval.high], [y, y], color=colour, linewidth=2)
            axis.plot([interval.estimate], [y], "o", color=colour)
        axis.set_title(heading(measure), fontsize=10)
        axis.grid(axis="x", alpha=0.3)
        axis.margins(y=0.15)
        low, high = axis.get_xlim()
        spare = max(_LEAST_SPAN - (high - low), 0.0) / 2
        axis.set_xlim(low - spare, high + spare)
    axes[0].set_yticks(place, comparison.labels)
    figure.suptitle(f"{title(comparison)}; mean and 95 % interval", fontsize=9)
    return save_figure(figure, path)


def plot_episode(record: EpisodeRecord, codec: Codec, played: Audio, path: Path | str, label: str = "played") -> Path:
    """Draw the spectrograms of what was heard and played, with chord changes as lines and late slots marked.

    Args:
        record: The played episode.
        codec: Gives the sample rate and the samples per frame.
        played: `(S,)` played audio.
        path: PNG to write.
        label: The policy's name.
    """
    from matplotlib.figure import Figure

    episode = record.episode
    figure = Figure(figsize=(11, 5.5), layout="constrained")
    axes = figure.subplots(2, 1, sharex=True)
    for axis, audio, name in zip(axes, (episode.heard, played), ("heard", label), strict=True):
        _draw_spectrogram(axis, audio, codec.sample_rate, f"{name}\nkHz")
        if episode.truth is not None:
            for change in episode.truth.chord_times:
                axis.axvline(float(change), color="white", linewidth=0.8, alpha=0.6)
    for start, end, status in late_runs(record.status):
        span = np.array([start, end]) * codec.hop_samples / codec.sample_rate
        axes[1].axvspan(*span, ymin=0.94, color=_STATUS_COLOURS.get(status, "red"), linewidth=0)
    axes[1].set_xlabel(
        "seconds (lines: chord changes; late slots red: silent; orange: repeated; brown: concealed; blue: stalled)"
    )
    axes[0].set_title(f"{episode.song_id}, {episode.target_name}", fontsize=10)
    return save_figure(figure, path)


def plot_scores(scores: FileScores, path: Path | str) -> Path:
    """Draw waveform and spectrogram of heard and played over the score of each window; returns the PNG's path."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    axes = figure.subplots(5, 1, sharex=True, height_ratios=(1, 2, 1, 2, 2.5))
    for row, (name, audio) in enumerate((("heard", scores.heard), ("played", scores.played))):
        time, low, high = envelope(audio, scores.sample_rate)
        axes[2 * row].fill_between(time, low, high, linewidth=0.5)
        axes[2 * row].set_ylabel(name)
        _draw_spectrogram(axes[2 * row + 1], audio, scores.sample_rate, "kHz")
    below = axes[4]
    for start, end, value in zip(scores.starts, scores.ends, scores.scores, strict=True):
        below.plot([start, end], [value, value], color="tab:blue", linewidth=1, alpha=0.25)
    below.plot(scores.ends, scores.scores, "o-", color="tab:blue", markersize=4)
    below.axhline(scores.mean, color="0.4", linestyle="--", linewidth=1)
    low_end, high_end = scores.range
    if np.isfinite([low_end, high_end]).all():
        margin = 0.05 * (high_end - low_end)
        below.set_ylim(low_end - margin, high_end + margin)
    below.set_xlim(0.0, scores.seconds)
    below.set_ylabel(scores.reward)
    below.grid(alpha=0.3)
    below.set_xlabel("seconds (each score stands at its window's end, with a line over the window; dashed: mean)")
    figure.suptitle(f"{scores.reward}: mean {scores.mean:.3f} over {len(scores.scores)} windows", fontsize=10)
    return save_figure(figure, path)


def envelope(audio: Audio, sample_rate: int) -> tuple[NDArray[np.float64], NDArray[np.float32], NDArray[np.float32]]:
    """Return times in seconds, and the least and the largest sample around each: a waveform to draw."""
    first = np.arange(0, len(audio), max(1, len(audio) // _COLUMNS))
    return first / sample_rate, np.minimum.reduceat(audio, first), np.maximum.reduceat(audio, first)


def _draw_spectrogram(axis: Any, audio: Audio, sample_rate: int, label: str) -> None:
    axis.imshow(
        spectrogram(audio, max(_HOP, len(audio) // _COLUMNS)).T,
        origin="lower",
        aspect="auto",
        extent=(0.0, len(audio) / sample_rate, 0.0, sample_rate / 2000.0),
        vmin=_FLOOR_DB,
        vmax=0.0,
        cmap="magma",
    )
    axis.set_ylim(0.0, min(4.0, sample_rate / 2000.0))
    axis.set_ylabel(label)


def late_runs(status: NDArray[np.int8]) -> list[tuple[int, int, int]]:
    """Return runs (first frame, frame after the last, status) of slots that did not play what was emitted."""
    edges = np.flatnonzero(np.diff(status, prepend=-1, append=-1))
    runs = [(int(a), int(b), int(status[a])) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    return [run for run in runs if run[2] != ON_TIME]


def spectrogram(audio: Audio, hop: int = _HOP) -> NDArray[np.float32]:
    """Return levels `(frames, bins)`, a frame every `hop` samples, in dB below the loudest one, at least -80."""
    padded = np.pad(np.asarray(audio, dtype=np.float32), (_WINDOW // 2, _WINDOW // 2))
    frames = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::hop]
    power = np.square(np.abs(np.fft.rfft(frames * np.hanning(_WINDOW).astype(np.float32), axis=-1)))
    peak = max(float(power.max()), 1e-12)
    level: NDArray[Any] = 10.0 * np.log10(np.maximum(power / peak, 10.0 ** (_FLOOR_DB / 10.0)))
    return level.astype(np.float32)


def save_figure(figure: Figure, path: Path | str) -> Path:
    """Write `figure` as a PNG, atomically; returns its path."""
    with atomic_path(path) as temporary:
        figure.savefig(str(temporary), format="png", dpi=110)
    return Path(path)
