"""The run folder: everything one long command writes, and how it shows progress and stops.

A run folder holds::

    config.yaml      resolved settings; `--config` reads it again
    run.json         command, seed, status, times
    versions.json    versions of Python and of the libraries that matter
    metrics.jsonl    one JSON object per logged step
    tensorboard/     the same scalars, and audio
    *.safetensors, *.json, *.wav   what the command itself writes

Every file is replaced atomically, so a crash or a full disk leaves the older version intact. A run that is resumed
writes its settings with the first thing of its own: one that is refused before, or killed, leaves those that worked.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from jamgym.config import read_yaml
from jamgym.curves import Curves
from jamgym.errors import AudioError, ConfigError
from jamgym.files import atomic_path, library_versions, plain, write_error, write_text
from jamgym.progress import Bars, ProgressTask
from jamgym.run_files import FIRST_FILES, ended_at_start, read_metrics, read_status

_LOG = logging.getLogger(__name__)
_Item = TypeVar("_Item")


class Run:
    """One run folder, its logs, its progress bars and its Ctrl-C.

    Make one with `Run.create` and work inside ``with run:``. There, the first Ctrl-C only sets
    `stop_requested`, so that the program can finish its step and save; a second one raises
    KeyboardInterrupt. The earlier handler is restored on exit.

    Attributes:
        folder: Where everything is written.
        command: Name of the command, such as "finetune".
        config: Resolved settings as plain data.
        seed: Seed of the run.
        resumed: Whether the folder held a run that is continued.
        quiet: Whether to show no progress.
        stop_requested: Whether somebody pressed Ctrl-C.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> run = Run.create(Path(tempfile.mkdtemp()) / "r", command="demo", config={}, seed=0, quiet=True)
        >>> run.write_json("result.json", {"score": 1.0}).name
        'result.json'
    """

    def __init__(self, folder: Path, command: str, config: dict[str, Any], seed: int, resumed: bool, quiet: bool):
        self.folder = folder
        self.command = command
        self.config = config
        self.seed = seed
        self.resumed = resumed
        self.quiet = quiet
        self.stop_requested = False
        self._curves = Curves(folder / "tensorboard")
        self._bars = Bars(quiet=quiet)
        self._previous_handler: Callable[[int, FrameType | None], Any] | int | None = None
        self._handles_interrupt = False
        self._started = time.time()
        self._part_of: Run | None = None
        self._settings_due = False
        #: Settings that this run was begun with, where it goes on with others.
        self._settings_before: dict[str, Any] | None = None

    @classmethod
    def create(
        cls,
        folder: Path | str,
        *,
        command: str,
        config: Mapping[str, Any],
        seed: int,
        resume: bool = False,
        quiet: bool = False,
        part_of: Run | None = None,
    ) -> Run:
        """Make the folder and write config, versions and seed, or continue the run that is in it.

        A run that is continued keeps the config it has until it writes something, or ends well.

        Args:
            folder: Where to write.
            command: Name of the command.
            config: Resolved settings; dataclasses, tuples and numpy scalars are made plain.
            seed: Seed of the run.
            resume: Continue the run in `folder`; there must be one, of the same command and seed.
            quiet: Show no progress.
            part_of: The run that this one is a part of; what this one writes counts as written by both.

        Raises:
            ConfigError: The folder already has a run, has none to resume, or has another one.
            RunError: The folder cannot be written.
        """
        folder = Path(folder)
        settings = plain(config)
        exists = (folder / "run.json").exists()
        if exists and not resume and not ended_at_start(folder):
            raise ConfigError(
                f"{folder} already holds a run. Continue it with --resume, or choose another folder with --out."
            )
        if resume and not exists:
            raise ConfigError(f"There is no run to resume in {folder}. Start one there without --resume.")
        run = cls(folder, command, settings, seed, resumed=resume, quiet=quiet)
        run._part_of = part_of
        if resume:
            run._check_resumable()
            # The program may still refuse the settings, and then the next resume needs the ones that worked.
            run._settings_due = True
        else:
            run._write_settings()
        run._write_status("running")
        return run

    @property
    def metrics_path(self) -> Path:
        """The file of logged metrics, one JSON object a line."""
        return self.folder / "metrics.jsonl"

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append `metrics` to metrics.jsonl and, as scalars, to TensorBoard.

        Args:
            step: Non-negative step number; also the x axis in TensorBoard.
            metrics: Name to number. Use "group/name" to group. Non-finite values are kept as null.
        """
        self.keep_settings()
        values = {name: float(value) for name, value in metrics.items()}
        line = json.dumps({"step": int(step), **plain(values)})
        try:
            with open(self.metrics_path, "a", encoding="utf-8") as stream:
                stream.write(line + "\n")
        except OSError as error:
            raise write_error(self.metrics_path, error) from error
        self._curves.add_scalars(int(step), values)

    def truncate(self, step: int) -> None:
        """Forget what was logged after `step`; call it when going on from a checkpoint of `step`."""
        kept = [json.dumps(line) for line in read_metrics(self.metrics_path) if line["step"] <= step]
        write_text(self.metrics_path, "".join(line + "\n" for line in kept))
        self._curves.forget_after(step)

    def add_audio(self, step: int, tag: str, audio: ArrayLike, sample_rate: int) -> None:
        """Show mono `audio` `(S,)` in [-1, 1] in TensorBoard; louder samples are clipped."""
        mono = _mono(audio, tag)
        self.keep_settings()
        self._curves.add_audio(int(step), tag, mono, int(sample_rate))

    def keep_settings(self) -> None:
        """Write the settings of a resumed run, once: a program that has something to write has accepted them.

        Called by everything that writes here; call it before a checkpoint, which does not go through the run.
        """
        if self._part_of is not None:
            self._part_of.keep_settings()
        if self._settings_due:
            if self._settings_before is not None:
                self._write_yaml("config.before_resume.yaml", self._settings_before)
            self._write_settings()
            self._settings_due = False

    def write_json(self, name: str, obj: Any) -> Path:
        """Write `obj` as JSON under `name` in the folder, atomically; returns the path."""
        text = json.dumps(plain(obj), indent=2) + "\n"
        if name not in FIRST_FILES:
            self.keep_settings()
        return self._write_text(name, text)

    def write_audio(self, name: str, audio: ArrayLike, sample_rate: int) -> Path:
        """Write mono `audio` `(S,)` in [-1, 1] as a 16-bit WAV under `name`, atomically; returns the path."""
        import soundfile

        mono = _mono(audio, name)
        target = self._inside(name)
        self.keep_settings()
        with atomic_path(target) as path:
            try:
                soundfile.write(str(path), mono, int(sample_rate), format="WAV", subtype="PCM_16")
            except soundfile.LibsndfileError as error:
                raise OSError(str(error)) from error
        return target

    @contextmanager
    def progress(self, total: int, description: str, done: int = 0) -> Iterator[ProgressTask]:
        """Show progress on stderr: a bar on a terminal, one line every 30 s through logging elsewhere.

        Args:
            total: Number of steps.
            description: A few words.
            done: Steps that an earlier run has done; they count neither for the rate nor for the time left.

        Yields:
            An object with ``advance(n=1, **fields)``; the fields are shown beside the bar.
        """
        with self._bars.task(total, description, done) as task:
            yield task

    def loading(self, items: Sequence[_Item], description: str, stoppable: bool = True) -> Iterator[_Item]:
        """Yield `items` with progress, for work before which there is nothing to save.

        Args:
            items: What is loaded, one after the other.
            description: A few words.
            stoppable: Whether Ctrl-C ends it before the next item; False where something is yet to be saved.

        Raises:
            KeyboardInterrupt: Somebody pressed Ctrl-C.
        """
        with self.progress(len(items), description) as progress:
            for item in items:
                if stoppable and self.stop_requested:
                    raise KeyboardInterrupt
                yield item
                progress.advance(1)

    def __enter__(self) -> Run:
        # Python allows signal handlers in the main thread only; elsewhere Ctrl-C keeps its meaning.
        if threading.current_thread() is threading.main_thread():
            self._previous_handler = signal.signal(signal.SIGINT, self._on_interrupt)
            self._handles_interrupt = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handles_interrupt:
            previous = signal.default_int_handler if self._previous_handler is None else self._previous_handler
            signal.signal(signal.SIGINT, previous)
            self._handles_interrupt = False
        self._bars.close()
        if kind is None:
            status = "stopped" if self.stop_requested else "finished"
            try:
                self._curves.close()
            except OSError:
                status = "failed"
                raise
            finally:
                self.keep_settings()
                self._write_status(status)
            return
        # The first error is the one to show, not a second one from a full disk.
        with suppress(OSError):
            self._curves.close()
        with suppress(OSError):
            self._write_status("stopped" if issubclass(kind, KeyboardInterrupt) else "failed")

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.stop_requested:
            raise KeyboardInterrupt
        self.stop_requested = True
        # A plain write: logging or print could be interrupted in the middle of their own locks.
        with suppress(OSError):
            os.write(2, b"\nStopping after this step and saving. Press Ctrl-C again to stop at once.\n")

    def _check_resumable(self) -> None:
        asked = {"command": self.command, "seed": self.seed}
        before = read_status(self.folder / "run.json", asked)
        for name, now in asked.items():
            if before.get(name) != now:
                raise ConfigError(
                    f"The run in {self.folder} has {name} {before.get(name)!r}, not {now!r}. Resume it with the same "
                    f"{name}, or start another run with --out."
                )
        with suppress(ConfigError):
            old = read_yaml(self.folder / "config.yaml")
            changed = sorted(key for key in {*old, *self.config} if old.get(key) != self.config.get(key))
            if changed:
                _LOG.warning("Resuming with changed settings: %s.", ", ".join(changed))
                self._settings_before = old
        with suppress(OSError, ValueError, AttributeError):
            old = json.loads((self.folder / "versions.json").read_text(encoding="utf-8"))
            now_versions = library_versions()
            changed = [f"{k} {v} -> {now_versions.get(k)}" for k, v in old.items() if now_versions.get(k) != v]
            if changed:
                _LOG.warning("Resuming with other versions; figures may differ: %s.", ", ".join(changed))
        # A kill in the middle of a write leaves half a line, which the next append would join.
        if self.metrics_path.exists() and not self.metrics_path.read_bytes().endswith(b"\n"):
            lines = [json.dumps(line) + "\n" for line in read_metrics(self.metrics_path)]
            with atomic_path(self.metrics_path) as path:
                path.write_text("".join(lines), encoding="utf-8")

    def _write_settings(self) -> None:
        self._write_yaml("config.yaml", self.config)
        self.write_json("versions.json", library_versions())

    def _write_status(self, status: str) -> None:
        times = {"started": _stamp(self._started), "updated": _stamp(time.time())}
        self.write_json("run.json", {"command": self.command, "seed": self.seed, "status": status, **times})

    def _write_yaml(self, name: str, settings: Mapping[str, Any]) -> Path:
        import yaml

        return self._write_text(name, yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True))

    def _write_text(self, name: str, text: str) -> Path:
        target = self._inside(name)
        write_text(target, text)
        return target

    def _inside(self, name: str) -> Path:
        target = self.folder / name
        if not target.resolve().is_relative_to(self.folder.resolve()):
            raise ConfigError(f"{name!r} is outside the run folder {self.folder}; give a relative name.")
        return target


def _mono(audio: ArrayLike, name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    array = np.asarray(audio, dtype=np.float32)
    if array.ndim != 1 or array.size == 0:
        raise AudioError(f"Audio {name!r} has shape {array.shape}; expected mono samples of shape (S,) with S > 0.")
    if not np.isfinite(array).all():
        raise AudioError(f"Audio {name!r} has samples that are not finite.")
    return np.clip(array, -1.0, 1.0)


def _stamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
