"""Progress on stderr: rich bars on a terminal, a plain logged line every half minute elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

_LOG = logging.getLogger(__name__)
LINE_SECONDS = 30.0


class ProgressTask(Protocol):
    """Something that counts steps."""

    def advance(self, n: int = 1, **fields: float | str) -> None:
        """Count `n` more steps; show `fields` beside them from now on."""
        ...


def format_fields(fields: dict[str, float | str]) -> str:
    """Return fields as short text.

    >>> format_fields({"loss": 0.12345, "phase": "eval"})
    'loss 0.1235  phase eval'
    """
    return "  ".join(f"{k} {v}" if isinstance(v, str) else f"{k} {float(v):.4g}" for k, v in fields.items())


def format_seconds(seconds: float) -> str:
    """Return a duration as h:mm:ss.

    >>> format_seconds(3725)
    '1:02:05'
    """
    whole = max(int(seconds), 0)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


class _Silent:
    def advance(self, n: int = 1, **fields: float | str) -> None:
        pass


class LineTask:
    """Logs one line now and then: for files and for continuous integration, where bars are noise."""

    def __init__(self, total: int, description: str, done: int, seconds: float = LINE_SECONDS) -> None:
        self._total, self._description, self._done, self._first = total, description, done, done
        self._seconds = seconds
        self._start = self._last = time.monotonic()
        self._fields: dict[str, float | str] = {}

    def advance(self, n: int = 1, **fields: float | str) -> None:
        """Count `n` steps and log a line if the last one is old enough."""
        self._done += n
        self._fields.update(fields)
        if time.monotonic() - self._last >= self._seconds:
            self.line()

    def line(self) -> None:
        """Log the state now."""
        self._last = time.monotonic()
        elapsed = self._last - self._start
        rate = (self._done - self._first) / elapsed if elapsed > 0 else 0.0
        left = format_seconds((self._total - self._done) / rate) if rate > 0 else "unknown"
        _LOG.info(
            "%s %d/%d, %.3g/s, elapsed %s, left %s  %s",
            self._description,
            self._done,
            self._total,
            rate,
            format_seconds(elapsed),
            left,
            format_fields(self._fields),
        )


class _BarTask:
    def __init__(self, progress: Any, task_id: Any) -> None:
        self._progress, self._id = progress, task_id
        self._fields: dict[str, float | str] = {}

    def advance(self, n: int = 1, **fields: float | str) -> None:
        self._fields.update(fields)
        self._progress.update(self._id, advance=n, note=format_fields(self._fields))


class Bars:
    """The progress bars of one run. Nested tasks share one display.

    Args:
        quiet: Show nothing at all.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._display: Any = None
        self._open = 0

    @contextmanager
    def task(self, total: int, description: str, done: int = 0) -> Iterator[ProgressTask]:
        """Show a task of `total` steps, `done` of them done before, until the block ends."""
        if self._quiet:
            yield _Silent()
            return
        if not sys.stderr.isatty():
            lines = LineTask(total, description, done)
            try:
                yield lines
            finally:
                lines.line()
            return
        display = self._start()
        task_id = display.add_task(description, total=total, completed=done, note="")
        try:
            yield _BarTask(display, task_id)
        finally:
            display.stop_task(task_id)
            self._open -= 1
            if self._open == 0:
                self.close()
            else:
                # An inner task may come a hundred times; its bar goes when it is done.
                display.refresh()
                display.remove_task(task_id)

    def close(self) -> None:
        """Leave the terminal as it should be."""
        if self._display is not None:
            self._display.stop()
            self._display = None

    def _start(self) -> Any:
        self._open += 1
        if self._display is None:
            self._display = _make_display()
            self._display.start()
        return self._display


def _make_display() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        """Steps a second over the last half minute."""

        def render(self, task: Any) -> Text:
            speed = task.finished_speed or task.speed
            return Text("-/s" if speed is None else f"{speed:.3g}/s", style="progress.data.speed")

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),  # names of policies may have brackets
        console=Console(stderr=True),
    )
