"""Tables and sentences of a comparison: for the terminal, for markdown, and in plain words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jamgym.benchmark.comparison import Comparison
from jamgym.benchmark.statistics import FEWEST_SONGS, Interval, too_few

if TYPE_CHECKING:
    from rich.table import Table

LATE = "late_frames"
#: What a setting that cannot be played live is called wherever it is shown.
ORACLE = "LOOK-AHEAD ORACLE"
_HEADINGS = {LATE: "late frames"}
#: Measures that fit beside each other with their intervals in the same line, in a report of 150 columns.
_IN_ONE_LINE = 5


def heading(measure: str) -> str:
    """Return a measure's name for people.

    >>> heading("note_in_chord")
    'note in chord'
    """
    return _HEADINGS.get(measure, measure.replace("_", " "))


def format_interval(interval: Interval, percent: bool = False) -> str:
    """Return "mean [low, high]".

    >>> format_interval(Interval(0.5, 0.25, 0.75, 64))
    '0.500 [0.250, 0.750]'
    >>> format_interval(Interval(-0.0001, -0.25, -0.0, 64))
    '0.000 [-0.250, 0.000]'
    """

    def number(value: float) -> str:
        # Rounded first: adding 0 then takes the sign from a zero.
        return f"{100 * value:.1f} %" if percent else f"{round(value, 3) + 0.0:.3f}"

    if not interval.bounded:
        return f"{number(interval.estimate)} (one song)"
    return f"{number(interval.estimate)} [{number(interval.low)}, {number(interval.high)}]"


def rows(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return the header and one row of cells per policy."""
    measures = [*comparison.metrics, LATE]
    header = ["policy", *(heading(measure) for measure in measures)]
    body = []
    for label in comparison.labels:
        cells = [format_interval(comparison.interval(label, name), percent=name == LATE) for name in measures]
        body.append([f"{label} (anchor)" if label in comparison.anchors else label, *cells])
    return header, body


def title(comparison: Comparison) -> str:
    """Return one line that says what was played; a look-ahead oracle is always called one."""
    setting = comparison.setting
    text = f"{comparison.songs} songs"
    if setting:
        text = f"{setting['corpus']} {setting['split']}, {text}, t_f={setting['t_f']:+d}, k={setting['k']}"
    if comparison.lookahead:
        text += f": {ORACLE}, cannot be played live"
    return text


def legend(songs: int) -> str:
    """Return what the cells of a table are, and whether they are enough to tell policies apart.

    >>> legend(64)
    'mean over songs [95 % bootstrap interval]'
    >>> legend(3)
    'mean over songs [95 % bootstrap interval]; too few songs to tell (3; at least 8)'
    """
    text = "mean over songs [95 % bootstrap interval]"
    return text if songs >= FEWEST_SONGS else f"{text}; {too_few(songs)}"


def rich_table(comparison: Comparison) -> Table:
    """Return the comparison as a `rich` table."""
    from rich.table import Table
    from rich.text import Text

    header, body = rows(comparison)
    # As Text, brackets in a name are not taken for markup.
    above = Text(title(comparison), style="table.title")
    # A line each, so that a narrow table does not break them anywhere.
    narrow = len(header) - 1 > _IN_ONE_LINE
    table = Table(title=above, caption=legend(comparison.songs).replace("]; ", "]\n"), show_lines=narrow)
    for index, name in enumerate(header):
        table.add_column(Text(name), justify="left" if index == 0 else "right")
    for cells in body:
        shown = [cells[0], *(cell.replace(" [", "\n[") if narrow else cell for cell in cells[1:])]
        table.add_row(*map(Text, shown), style="dim" if cells[0].endswith("(anchor)") else "bold")
    return table


def markdown(comparison: Comparison) -> str:
    """Return the whole report as markdown: policies x metrics, paired differences, what was left out."""
    header, body = rows(comparison)
    parts = [
        f"# {title(comparison)}",
        "",
        f"{legend(comparison.songs).capitalize()}.",
        "",
        *markdown_grid(header, body),
    ]
    pairs = comparison.pairs()
    if pairs and comparison.metrics:
        grid = [
            [f"{a} - {b}", *(format_interval(comparison.difference(a, b, name)) for name in comparison.metrics)]
            for a, b in pairs
        ]
        parts += ["", "## Paired differences (same songs)", ""]
        parts += markdown_grid(["difference", *(heading(name) for name in comparison.metrics)], grid)
        parts += ["", *sentences(comparison)]
    if comparison.left_out:
        parts += ["", *comparison.left_out]
    return "\n".join(parts) + "\n"


def sentences(comparison: Comparison, pairs: Sequence[tuple[str, str]] | None = None) -> list[str]:
    """Return one honest sentence per pair of policies and metric."""
    return [
        describe_difference(heading(metric), a, b, comparison.difference(a, b, metric))
        for a, b in (comparison.pairs() if pairs is None else pairs)
        for metric in comparison.metrics
    ]


def describe_difference(metric: str, a: str, b: str, interval: Interval, unit: str = "held-out songs") -> str:
    """Say what the paired difference a - b shows, and no more.

    >>> describe_difference("coherence", "PPO", "MLE", Interval(0.12, 0.05, 0.19, 64))
    "PPO's coherence is 0.12 above MLE's [0.05, 0.19] on 64 held-out songs."
    >>> describe_difference("judge", "PPO", "MLE", Interval(0.01, -0.03, 0.05, 64))
    'PPO and MLE cannot be told apart by judge: the difference is 0.01 [-0.03, 0.05] on 64 held-out songs.'
    >>> describe_difference("judge", "PPO", "MLE", Interval(0.12, 0.05, 0.19, 3))
    "PPO's judge differs from MLE's by 0.12 [0.05, 0.19]: too few songs to tell (3; at least 8)."
    """
    on = f"on {interval.count} {unit}"
    if interval.count == 1:
        return f"{a}'s {metric} differs from {b}'s by {interval.estimate:.2f} on one song, which tells nothing more."
    digits = _digits(interval)
    span = f"[{interval.low:.{digits}f}, {interval.high:.{digits}f}]"
    if not interval.enough:
        return f"{a}'s {metric} differs from {b}'s by {interval.estimate:.{digits}f} {span}: {too_few(interval.count)}."
    if interval.excludes_zero:
        side = "above" if interval.estimate > 0 else "below"
        return f"{a}'s {metric} is {abs(interval.estimate):.{digits}f} {side} {b}'s {span} {on}."
    return (
        f"{a} and {b} cannot be told apart by {metric}: the difference is {interval.estimate:.{digits}f} {span} {on}."
    )


def _digits(interval: Interval) -> int:
    """Return 2 decimals, or as many more (up to 4) as keep an end from being rounded to zero."""
    ends = [abs(value) for value in (interval.estimate, interval.low, interval.high) if value != 0.0]
    for digits in (2, 3):
        if all(value >= 0.5 * 10.0**-digits for value in ends):
            return digits
    return 4


def markdown_grid(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return lines + ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in body]
