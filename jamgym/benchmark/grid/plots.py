"""The figure of a grid: scores over future visibility, one line per chunk size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jamgym.benchmark.grid.report import title
from jamgym.benchmark.grid.results import GridResults
from jamgym.benchmark.plots import save_figure
from jamgym.benchmark.statistics import Interval
from jamgym.benchmark.table import heading

_ANCHOR_STYLES = ("--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))


def plot_grid(results: GridResults, path: Path | str) -> Path:
    """Draw a panel per method and metric; returns the PNG's path.

    Lines run over t_f, one per k, with 95 % intervals as error bars; anchors are horizontal lines; the
    region that can be played live is shaded.
    """
    from matplotlib.figure import Figure

    methods, metrics = list(results.methods), results.metrics
    figure = Figure(figsize=(4.2 * len(metrics) + 1.8, 3.4 * len(methods) + 0.8), layout="constrained")
    axes = figure.subplots(len(methods), len(metrics), sharex=True, sharey="col", squeeze=False)
    for line, method in zip(axes, methods, strict=True):
        for axis, metric in zip(line, metrics, strict=True):
            _draw_cells(axis, results, method, metric)
            axis.set_title(f"{method}: {heading(metric)}" if len(methods) > 1 else heading(metric), fontsize=10)
            axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("future visibility t_f (frames)")
        axis.set_xticks(results.t_f)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8)
    figure.suptitle(f"{title(results)}; mean and 95 % interval", fontsize=9)
    return save_figure(figure, path)


def _draw_cells(axis: Any, results: GridResults, method: str, metric: str) -> None:
    from matplotlib import colormaps

    cells = results.statistics(method, metric).cells
    t_f = np.array(results.t_f, dtype=np.float64)
    span = max(float(np.ptp(t_f)), 1.0)
    colours = colormaps["viridis"](np.linspace(0.0, 0.85, len(results.k)))
    for b, (size, colour) in enumerate(zip(results.k, colours, strict=True)):
        line = [row[b] for row in cells]
        # Lines stand a little beside each other, so that their bars can be told apart.
        place = t_f + (b - (len(results.k) - 1) / 2.0) * 0.008 * span
        means = np.array([interval.estimate for interval in line])
        ends = np.abs(np.array([_ends(interval) for interval in line]).T - means)
        axis.errorbar(place, means, yerr=ends, fmt="o-", markersize=4, capsize=2, color=colour, label=f"k = {size}")
    for index, label in enumerate(results.anchors):
        interval = results.anchor(label, metric)
        style = _ANCHOR_STYLES[index % len(_ANCHOR_STYLES)]
        axis.axhline(interval.estimate, color="0.4", linestyle=style, linewidth=1.2, label=label)
    live = t_f[np.array(results.live)]
    if len(live):
        # The border lies half way to the first oracle; where exactly, the grid does not show.
        oracles = t_f[~np.array(results.live)]
        right = (live.max() + oracles.min()) / 2.0 if len(oracles) else live.max() + 0.05 * span
        axis.axvspan(t_f.min() - 0.05 * span, right, color="tab:green", alpha=0.08, linewidth=0, label="playable live")
    axis.set_xlim(t_f.min() - 0.05 * span, t_f.max() + 0.05 * span)


def _ends(interval: Interval) -> tuple[float, float]:
    """Return the ends; of one song, which has none, the estimate itself."""
    if not interval.bounded:
        return interval.estimate, interval.estimate
    return interval.low, interval.high
