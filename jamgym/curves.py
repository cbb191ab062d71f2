"""The curves of a run: scalars and audio for TensorBoard, with errors like those of every other file of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jamgym.files import write_error


class Curves:
    """A TensorBoard folder that is made with the first thing that is added to it.

    TensorBoard writes in a thread of its own. What goes wrong there, as on a full disk, is raised by a later call,
    and every method here may therefore raise what an earlier one has caused.

    Args:
        folder: Where the event files are written.

    Example:
        >>> import tempfile
        >>> curves = Curves(Path(tempfile.mkdtemp()) / "tensorboard")
        >>> curves.close()
        >>> curves.folder.exists()
        False
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer: Any = None
        self._purge_step: int | None = None

    def add_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add one point at `step` to the curve of each name.

        Raises:
            RunError: The folder cannot be written.
        """
        with self._writing() as writer:
            for name, value in values.items():
                writer.add_scalar(name, value, step)

    def add_audio(self, step: int, tag: str, mono: NDArray[np.float32], sample_rate: int) -> None:
        """Add mono audio `(S,)` in [-1, 1].

        Raises:
            RunError: The folder cannot be written.
        """
        with self._writing() as writer:
            writer.add_audio(tag, mono[None], step, sample_rate=sample_rate)

    def forget_after(self, step: int) -> None:
        """Let TensorBoard show nothing that was added after `step`, once something new is added.

        Raises:
            RunError: The folder cannot be written.
        """
        self.close()
        self._purge_step = step + 1

    def close(self) -> None:
        """Write what is still in memory. Adding something afterwards begins another event file.

        Raises:
            RunError: Something that was added could not be written.
        """
        writer, self._writer = self._writer, None
        if writer is not None:
            with self._told():
                writer.close()

    @contextmanager
    def _writing(self) -> Iterator[Any]:
        with self._told():
            if self._writer is None:
                from torch.utils.tensorboard import SummaryWriter

                self._writer = SummaryWriter(str(self.folder), purge_step=self._purge_step)
                self._purge_step = None
            yield self._writer

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise write_error(self.folder, error) from error
