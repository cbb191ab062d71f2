"""Draw `docs/figures/timeline.png`: when the calls of a short episode are released, run and due.

Every number comes from `jamgym.timing` and `jamgym.playback`, so the figure cannot drift from the code:

    python scripts/draw_timeline.py
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jamgym.playback import ON_TIME, Chunks, LastPlayed, PlaybackRule, resolve_slots
from jamgym.timing import Timing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TIMING = Timing(t_f=-4, k=3, hop_samples=640, sample_rate=16_000, frames=18)
#: Call 3 takes longer than its budget of 0.16 s.
LATENCY_SECONDS = (0.055, 0.075, 0.045, 0.21, 0.05, 0.065)
SHOWN_CALL = 3

INK, PALE, GRID = "#22303c", "#e4e9ed", "#d4dbe1"
HEARD, BUSY, WAIT, BUDGET = "#4c86b8", "#3d4f5f", "#b9c4cd", "#f3e3b3"
PLAYED, LATE = "#4f9d69", "#c8503c"
TOP, BOTTOM, HEIGHT = 7.5, -0.4, 0.72


def compute(timing: Timing, seconds: tuple[float, ...]) -> dict[str, np.ndarray]:
    """Return release, start, finish `(calls,)` in ticks and status, lateness `(frames,)` of the episode."""
    latency = np.array([timing.ticks(value) for value in seconds], dtype=np.int64)
    start, finish = timing.schedule(latency)
    calls = np.arange(timing.num_calls, dtype=np.int64)
    silence = np.zeros(1, dtype=np.int16)
    slots = resolve_slots(
        Chunks(
            emitted=np.zeros((len(calls), timing.k, 1), dtype=np.int16),
            first=calls * timing.k,
            size=np.full(len(calls), timing.k),
            frames=np.full(len(calls), timing.frames),
            finish=finish,
            slip=np.zeros_like(calls),
        ),
        PlaybackRule("silence"),
        timing,
        silence,
        LastPlayed(np.zeros((len(calls), 1), dtype=np.int16), np.full(len(calls), -1)),
    )
    return {
        "release": timing.release(calls),
        "start": start,
        "finish": finish,
        "status": slots.status.reshape(-1)[: timing.frames],
        "lateness": slots.lateness.reshape(-1)[: timing.frames],
    }


def box(axes: Axes, left: float, right: float, y: float, height: float, **style: Any) -> None:
    """Draw a rectangle from `left` to `right`, centred at `y`."""
    axes.barh(y, right - left, height, left=left, **style)


def draw(timing: Timing, seconds: tuple[float, ...], path: Path) -> Path:
    """Draw the episode and save it as PNG; the time axis is in frames."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.4, 5.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    found = compute(timing, seconds)
    hop = timing.hop_samples
    visible = timing.visible(SHOWN_CALL)
    release, start, finish = (found[name] / hop for name in ("release", "start", "finish"))

    for frame in range(timing.frames):
        seen = frame < visible
        box(axes, frame + 0.03, frame + 0.97, TOP, HEIGHT, color=HEARD if seen else PALE, edgecolor="white")
        axes.text(frame + 0.5, TOP, str(frame), ha="center", va="center", size=8, color="white" if seen else INK)
        on_time = found["status"][frame] == ON_TIME
        edge = PLAYED if on_time else LATE
        face = PLAYED if on_time else "white"
        box(axes, frame + 0.06, frame + 0.94, BOTTOM, HEIGHT - 0.04, facecolor=face, edgecolor=edge,
            linestyle="-" if on_time else "--")  # fmt: skip
        axes.text(frame + 0.5, BOTTOM, str(frame), ha="center", va="center", size=8,
                  color="white" if on_time else LATE)  # fmt: skip
        if not on_time:
            late = timing.seconds(int(found["lateness"][frame])) * 1000
            axes.text(frame + 0.5, BOTTOM - 0.52, f"{late:.0f} ms\nlate", ha="center", va="top", size=7.5, color=LATE)

    for call in range(timing.num_calls):
        y = float(timing.num_calls - call)
        due = timing.deadline(timing.chunk(call)[0]) / hop
        box(axes, release[call], due, y, 0.62, color=BUDGET, zorder=1)
        if start[call] > release[call]:
            box(axes, release[call], start[call], y, 0.16, color=WAIT, zorder=2)
        missed = finish[call] > due
        box(axes, start[call], finish[call], y, 0.34, color=LATE if missed else BUSY, zorder=3)
        axes.plot([due, due], [y - 0.36, y + 0.36], color=INK, linewidth=2, zorder=4)
        axes.plot([release[call]], [y], marker="o", markersize=5, color=HEARD, zorder=5)
    annotate(axes, timing, release, start, finish)

    axes.set_yticks([TOP, *range(timing.num_calls, 0, -1), BOTTOM])
    axes.set_yticklabels(["input frames", *(f"call {call}" for call in range(timing.num_calls)), "output slots"])
    axes.set_xticks(range(timing.t_f, timing.frames + 1, 2))
    axes.set_xlabel(f"time in frames of {timing.seconds(hop) * 1000:.0f} ms (frame n sounds from n to n + 1)")
    axes.set_xlim(timing.t_f - 0.4, timing.frames + 0.2)
    axes.set_ylim(BOTTOM - 1.3, TOP + 1.15)
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=INK)
    for side in axes.spines.values():
        side.set_visible(False)
    budget = timing.seconds(timing.budget)
    axes.set_title(
        f"t_f = {timing.t_f} frames, k = {timing.k}: budget {budget:.2f} s. "
        f"Call {SHOWN_CALL} takes {seconds[SHOWN_CALL]:.2f} s.",
        loc="left", size=11, color=INK,
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def annotate(axes: Axes, timing: Timing, release: np.ndarray, start: np.ndarray, finish: np.ndarray) -> None:
    """Name the quantities once: visibility and lateness on the shown call, waiting on the next one."""
    hop, call = timing.hop_samples, SHOWN_CALL
    y = float(timing.num_calls - call)
    visible, due = timing.visible(call), timing.deadline(timing.chunk(call)[0]) / hop
    text = {"size": 8.5, "color": INK, "va": "center"}
    axes.plot([visible, visible], [y, TOP - HEIGHT / 2], color=HEARD, linewidth=1, linestyle=":")
    axes.text(visible / 2, TOP + 0.68, f"heard when call {call} is released: m < V({call}) = {visible}",
              size=8.5, color=HEARD, ha="center", va="center")  # fmt: skip
    axes.text(release[call] - 0.25, y, f"R({call})", ha="right", **text)
    axes.text(finish[call] + 0.2, y, f"F({call}): frames 9 and 10 are late, 11 is not", **text)
    axes.text(due + 0.12, y + 0.5, f"D({call * timing.k})", ha="left", **text)
    below = y - 1
    axes.text(release[call + 1] - 0.25, below, f"R({call + 1})", ha="right", **text)
    next_due = timing.deadline(timing.chunk(call + 1)[0]) / hop
    axes.text(next_due + 0.25, below, f"waited: S({call + 1}) = F({call}) > R({call + 1})", **text)
    first = float(timing.num_calls)
    axes.text(timing.deadline(0) / hop + 0.3, first, "dot: release R; yellow: budget B = D − R; line: deadline D; "
              "dark: at work, S to F", **text)  # fmt: skip


def main() -> None:
    """Draw the figure of the documentation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    default = Path(__file__).resolve().parent.parent / "docs" / "figures" / "timeline.png"
    parser.add_argument("--out", type=Path, default=default, help="PNG file to write")
    print(draw(TIMING, LATENCY_SECONDS, parser.parse_args().out))


if __name__ == "__main__":
    main()
