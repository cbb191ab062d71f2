"""The run of a process that helps another one: torchrun starts several, and only the first may write."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike

from jamgym.run import Run


def launched_workers() -> tuple[int, int]:
    """Return this process's rank and how many torchrun started together; (0, 1) without it."""
    rank, count = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    # Some schedulers set WORLD_SIZE for programs that run alone; torchrun always sets all three.
    if not (rank.isdigit() and count.isdigit() and "MASTER_ADDR" in os.environ):
        return 0, 1
    return int(rank), int(count)


class WorkerRun(Run):
    """A run that can be asked to stop, and that writes and shows nothing.

    It knows the folder, so that the program can read the checkpoint in it.

    Args:
        folder: Run folder of the process that writes.
        command: Name of the command.
        config: Resolved settings.
        seed: Seed of the run.
        resumed: Whether the run is continued.

    Example:
        >>> run = WorkerRun(Path("runs/shared"), "pretrain", {}, seed=0)
        >>> with run:
        ...     run.log(1, {"loss": 0.5})
        >>> run.folder.exists()
        False
    """

    def __init__(self, folder: Path, command: str, config: Mapping[str, Any], seed: int, resumed: bool = False):
        super().__init__(Path(folder), command, dict(config), seed, resumed=resumed, quiet=True)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write nothing."""

    def truncate(self, step: int) -> None:
        """Write nothing."""

    def add_audio(self, step: int, tag: str, audio: ArrayLike, sample_rate: int) -> None:
        """Write nothing."""

    def write_json(self, name: str, obj: Any) -> Path:
        """Write nothing; return the path that it would have."""
        return self._inside(name)

    def write_audio(self, name: str, audio: ArrayLike, sample_rate: int) -> Path:
        """Write nothing; return the path that it would have."""
        return self._inside(name)
