"""Tables and sentences of a grid, for markdown and for the terminal; they claim no more than was found."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from jamgym.benchmark.grid.results import GridResults
from jamgym.benchmark.grid.statistics import Extremes, Trend
from jamgym.benchmark.statistics import FEWEST_SONGS, Interval, too_few
from jamgym.benchmark.table import LATE, ORACLE, format_interval, heading, markdown_grid

if TYPE_CHECKING:
    from rich.table import Table


def title(results: GridResults) -> str:
    """Return one line that says what was played."""
    setting = results.setting
    where = f"{setting['corpus_name']} {setting['split']}, " if setting else ""
    return f"{where}{results.songs} songs, {len(results.t_f)} t_f x {len(results.k)} k"


def notes(results: GridResults) -> list[str]:
    """Return what a reader must know: what the intervals speak about, and what cannot be played live."""
    few = "" if results.songs >= FEWEST_SONGS else f"; {too_few(results.songs)}"
    found = [f"Mean [95 % bootstrap interval]; every cell is the same songs{few}."]
    for method in results.methods:
        seeds = results.seeds(method)
        found.append(
            f"{method}: {seeds} training seeds; intervals draw seeds and songs anew."
            if seeds > 1
            else f"{method}: one training seed; intervals draw songs anew and say nothing about other trainings."
        )
    oracles = [f"{ahead:+d}" for ahead, live in zip(results.t_f, results.live, strict=True) if not live]
    if oracles:
        found.append(
            f"t_f = {', '.join(oracles)} cannot be played live: these rows are look-ahead oracles, marked {ORACLE}."
        )
    return found


def rows(results: GridResults, method: str, measure: str) -> tuple[list[str], list[list[str]]]:
    """Return the header and a row per t_f with a cell per k."""
    cells = results.statistics(method, measure).cells
    header = ["t_f", *(f"k={size}" for size in results.k)]
    body = []
    for ahead, live, line in zip(results.t_f, results.live, cells, strict=True):
        name = f"{ahead:+d}" if live else f"{ahead:+d} {ORACLE}"
        body.append([name, *(format_interval(interval, percent=measure == LATE) for interval in line)])
    return header, body


def anchor_sentence(results: GridResults, measure: str) -> str:
    """Return the anchors' means in one line; empty if there are none."""
    parts = [
        f"{label} {format_interval(results.anchor(label, measure), percent=measure == LATE)}"
        for label in results.anchors
    ]
    return f"Anchors (the same for every t_f and k): {', '.join(parts)}." if parts else ""


def sentences(results: GridResults, method: str, metric: str) -> list[str]:
    """Return the trends with t_f and with k, and how the corners compare."""
    statistics = results.statistics(method, metric)
    name = heading(metric)
    found = [
        describe_trend(method, name, axis, trend, other)
        for axis, trend, other in (("t_f", statistics.by_t_f, "k"), ("k", statistics.by_k, "t_f"))
        if trend is not None
    ]
    if statistics.extremes is not None:
        best = f"t_f={results.t_f[-1]:+d}, k={results.k[0]}" + ("" if results.live[-1] else f" ({ORACLE})")
        worst = f"t_f={results.t_f[0]:+d}, k={results.k[-1]}" + ("" if results.live[0] else f" ({ORACLE})")
        found.append(describe_extremes(method, name, best, worst, statistics.extremes))
    return found


def describe_trend(method: str, metric: str, axis: str, trend: Trend, other: str) -> str:
    """Say how a score follows an axis, and whether that can be told from no trend.

    >>> trend = Trend(Interval(0.91, 0.85, 0.95, 104), Interval(0.97, 0.9, 1.0, 104), 24)
    >>> first, second = describe_trend("decoder", "judge", "t_f", trend, "k").split("; ")
    >>> first
    'decoder: judge rises with t_f: Spearman 0.91 [0.85, 0.95] over 24 cells'
    >>> second
    'at fixed k it rises: 0.97 [0.90, 1.00] on average.'
    """
    overall, within = trend.overall, trend.within
    if overall.count == 1:
        return f"{method}: {metric} and {axis}: Spearman {overall.estimate:.2f} over {trend.cells} cells, on one song."
    if not overall.enough:
        return (
            f"{method}: {metric} with {axis}: Spearman {_short(overall)} over {trend.cells} cells; at fixed {other} "
            f"{_short(within)} on average: {too_few(overall.count)}."
        )
    return (
        f"{method}: {metric} {_direction(overall)} with {axis}: Spearman {_short(overall)} over {trend.cells} cells; "
        f"at fixed {other} it {_direction(within)}: {_short(within)} on average."
    )


def describe_extremes(method: str, metric: str, best: str, worst: str, extremes: Extremes) -> str:
    """Say how far apart the two corners are, and whether their intervals touch."""
    a, b, difference = extremes.best, extremes.worst, extremes.difference
    if difference.count == 1:
        return f"{method}: {metric} at {best} is {a.estimate:.3f}, at {worst} {b.estimate:.3f}, on one song."
    if not difference.enough:
        return (
            f"{method}: {metric} at {best} is {a}, at {worst} {b}; the paired difference is {difference}: "
            f"{too_few(difference.count)}."
        )
    touch = "touch" if extremes.touch else "do not touch"
    sure = "" if difference.excludes_zero else ", which cannot be told from none"
    return (
        f"{method}: {metric} at {best} is {a}, at {worst} {b}: the intervals {touch}; "
        f"the paired difference is {difference} on {difference.count} songs{sure}."
    )


def markdown(results: GridResults) -> str:
    """Return the whole report as markdown: per method and measure a table t_f x k, anchors, trends."""
    parts = [f"# {title(results)}", "", *(f"- {note}" for note in notes(results))]
    for method in results.methods:
        for measure in results.measures:
            parts += ["", f"## {method}: {heading(measure)}", "", *markdown_grid(*rows(results, method, measure))]
            for line in _below(results, method, measure):
                parts += ["", line]
    for sentence in results.left_out:
        parts += ["", sentence]
    return "\n".join(parts) + "\n"


def report(results: GridResults) -> str:
    """Return the tables and sentences as plain text for a terminal."""
    from rich.console import Console

    stream = io.StringIO()
    console = Console(file=stream, width=max(120, 40 + 26 * len(results.k)), color_system=None)
    console.print(title(results), markup=False, highlight=False)
    for method in results.methods:
        for measure in results.measures:
            console.print()
            console.print(_rich_table(results, method, measure))
            for line in _below(results, method, measure):
                console.print(line, soft_wrap=True, markup=False, highlight=False)
    text = stream.getvalue().rstrip()
    return "\n".join([text, "", *notes(results), *results.left_out]) + "\n"


def _below(results: GridResults, method: str, measure: str) -> list[str]:
    lines = [anchor_sentence(results, measure)]
    if measure in results.metrics:
        lines += sentences(results, method, measure)
    return [line for line in lines if line]


def _rich_table(results: GridResults, method: str, measure: str) -> Table:
    from rich.table import Table
    from rich.text import Text

    header, body = rows(results, method, measure)
    # As Text, brackets in a name are not taken for markup.
    table = Table(title=Text(f"{method}: {heading(measure)}", style="table.title"), title_justify="left")
    for index, name in enumerate(header):
        table.add_column(Text(name), justify="left" if index == 0 else "right", no_wrap=True)
    for cells in body:
        table.add_row(*map(Text, cells))
    return table


def _direction(correlation: Interval) -> str:
    if not correlation.excludes_zero:
        return "shows no clear trend"
    return "rises" if correlation.estimate > 0.0 else "falls"


def _short(interval: Interval) -> str:
    if not interval.bounded:
        return f"{interval.estimate:.2f}"
    return f"{interval.estimate:.2f} [{interval.low:.2f}, {interval.high:.2f}]"
