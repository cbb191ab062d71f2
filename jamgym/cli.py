"""The command line, ``jamgym COMMAND``: the one place that prints and that ties all parts together.

Exit status: 0 done, 1 something in the world is wrong (a broken file, a full disk), 2 the command line or
the config is wrong, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jamgym import __version__
from jamgym.commands.table import COMMANDS, Command
from jamgym.errors import ConfigError, JamgymError, UnknownNameError, unknown_name_message

if TYPE_CHECKING:
    from jamgym.commands.parsing import Request

#: A program may leave a text under this name in its run folder; it is shown at the end.
REPORT = "report.txt"


def main(argv: Sequence[str] | None = None) -> int:
    """Run `argv` (default: the process's arguments) and return the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if argv is None and not {"", os.getcwd()} & set(sys.path):
        # As with `python -m`, a plug-in may be a file in the working folder; last, so that it hides no module.
        sys.path.append(os.getcwd())
    try:
        return _dispatch(arguments)
    except JamgymError as error:
        if os.environ.get("JAMGYM_DEBUG"):
            raise
        print(f"jamgym: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, (ConfigError, UnknownNameError)) else 1
    except KeyboardInterrupt:
        print("jamgym: stopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output (head, less) has gone; Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if os.environ.get("JAMGYM_DEBUG"):
            raise
        print(f"jamgym: error: {_refusal(error)}", file=sys.stderr)
        return 1


def _refusal(error: OSError) -> str:
    """Return what the system would not do, with which file, and how to mend it."""
    from jamgym.files import advice

    if error.strerror is None:  # raised by a library, in words of its own
        return str(error)
    return f"{error.strerror}: {error.filename}. {advice(error)}" if error.filename else f"{error}. {advice(error)}"


def usage() -> str:
    """Return the text of ``jamgym --help``."""
    width = max(len(command.name) for command in COMMANDS)
    rows = "\n".join(f"  {command.name:<{width}}  {command.summary}" for command in COMMANDS)
    return (
        "usage: jamgym [--help] [--version] COMMAND [OPTIONS]\n\n"
        "An agent that plays along with music it is still hearing: train it, fine-tune it, measure it.\n\n"
        f"commands:\n{rows}\n\n"
        "examples:\n"
        "  jamgym demo\n"
        "  jamgym finetune --config configs/finetune/demo.yaml --seed 1 --out runs/first\n"
        "  jamgym COMMAND --help\n"
    )


def _dispatch(arguments: list[str]) -> int:
    first = arguments[0] if arguments else ""
    if first in ("-h", "--help", "help"):
        print(usage())
        return 0
    if first in ("-V", "--version"):
        print(f"jamgym {__version__}")
        return 0
    if not first:
        print(usage(), file=sys.stderr)
        return 2
    commands = {command.name: command for command in COMMANDS}
    if first not in commands:
        kind = "option" if first.startswith("-") else "command"
        known = ["--help", "--version"] if first.startswith("-") else commands
        raise ConfigError(unknown_name_message(kind, first, known) + " See `jamgym --help`.")
    below = [name for name in commands if name.startswith(f"{first} ")]
    second = " ".join(arguments[:2])
    if second in below:
        return run_command(commands[second], arguments[2:])
    if below and len(arguments) > 1 and not arguments[1].startswith("-"):
        raise ConfigError(unknown_name_message("command", second, below) + f" See `jamgym {first} --help`.")
    return run_command(commands[first], arguments[1:])


def run_command(command: Command, argv: Sequence[str]) -> int:
    """Parse `argv`, run `command` and show what it found; returns the exit status.

    A command works in its run folder, unless it is a quick one.
    """
    from jamgym.commands.parsing import parse

    config_class, program = command.load()
    if command.positional:
        argv = with_name(command.positional, argv)
    folder, base = (None, None) if command.quick else _resumed(command.name, argv)
    name = " ".join(["jamgym", command.name, command.positional.upper()]).rstrip()
    try:
        request = parse(name, command.summary, command.examples, config_class, argv, base, command.quick)
    except SystemExit as stop:  # --help
        return int(stop.code or 0)
    if command.quick:
        print(program(request.config))
        return 0
    return _run_in_folder(command, request, program, folder)


def with_name(name: str, argv: Sequence[str]) -> list[str]:
    """Return `argv` with --`name` before the word that stands for itself: the first that is no option and no value."""
    from jamgym.commands.parsing import FLAGS

    if any(word.split("=")[0] == f"--{name}" for word in argv):
        return list(argv)  # a second one is an error, and the parser says so
    value = False
    for index, word in enumerate(argv):
        if not value and not word.startswith("-"):
            return [f"--{name}", word, *argv[:index], *argv[index + 1 :]]
        value = not value and word.startswith("--") and "=" not in word and word not in FLAGS
    return list(argv)


def _run_in_folder(
    command: Command, request: Request, program: Callable[..., dict[str, float]], folder: Path | None
) -> int:
    from jamgym.run import Run
    from jamgym.worker_run import WorkerRun, launched_workers

    rank, count = launched_workers()
    if count > 1:
        _check_workers(command, request, count)
    folder = folder or request.out or Path("runs") / f"{command.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    settings: dict[str, Any] = {**asdict(request.config), "seed": request.seed}
    _set_up_logging(request.quiet or rank > 0)
    if rank > 0:
        with WorkerRun(folder, command.name, settings, request.seed, resumed=request.resume) as worker:
            program(request.config, worker)
        return 130 if worker.stop_requested else 0
    run = Run.create(
        folder, command=command.name, config=settings, seed=request.seed, resume=request.resume, quiet=request.quiet
    )
    if not request.quiet:
        print(f"jamgym {command.name}: run folder {run.folder}", file=sys.stderr)
    with run:
        figures = program(request.config, run)
    _show(run.folder, figures or {})
    if run.stop_requested:
        start = "jamgym" if count == 1 else f"torchrun --nproc-per-node {count} -m jamgym.cli"
        print(f"Stopped. Go on with: {start} {command.name} --out {run.folder} --resume", file=sys.stderr)
        return 130
    return 0


def _check_workers(command: Command, request: Request, count: int) -> None:
    if not command.distributed:
        raise ConfigError(f"jamgym {command.name} runs as one process, but torchrun started {count}; start it alone.")
    if request.out is None:
        raise ConfigError(f"The {count} processes that torchrun started need one run folder; name it with --out DIR.")


def _resumed(name: str, argv: Sequence[str]) -> tuple[Path | None, Mapping[str, Any] | None]:
    """Return folder and settings of the run that `argv` asks to resume, if it does."""
    from jamgym.config import read_yaml

    if "--resume" not in argv or "--help" in argv or "-h" in argv:
        return None, None
    folder = _named_folder(argv) or newest_run(Path("runs"), name)
    settings = read_yaml(folder / "config.yaml") if (folder / "config.yaml").exists() else None
    return folder, settings


def _named_folder(argv: Sequence[str]) -> Path | None:
    """Return the run folder that `argv` names, by ``--out`` or else by `out` in a ``--config``; the last one counts."""
    from jamgym.config import convert, read_yaml

    out: Any = None
    for path in _values(argv, "--config"):
        out = read_yaml(path).get("out", out)
    for text in _values(argv, "--out"):
        out = text
    folder: Path | None = convert(out, Path | None, "out")
    return folder


def _values(argv: Sequence[str], option: str) -> list[str]:
    """Return what `argv` gives for `option`, in order, as the next word or behind an equals sign."""
    found = []
    for token, following in zip(argv, [*argv[1:], None], strict=True):
        name, equals, value = token.partition("=")
        if name == option and (equals or following is not None):
            found.append(value if equals else str(following))
    return found


def newest_run(root: Path, command: str) -> Path:
    """Return the folder under `root` whose run of `command` was written last.

    Raises:
        ConfigError: There is none.
    """
    found = []
    for path in root.glob("*/run.json"):
        try:
            if json.loads(path.read_text(encoding="utf-8"))["command"] == command:
                found.append(path)
        except (OSError, ValueError, KeyError, TypeError):
            continue
    if not found:
        raise ConfigError(f"There is no run of {command} in {root} to resume; name one with --out.")
    return max(found, key=lambda path: path.stat().st_mtime).parent


def _show(folder: Path, figures: Mapping[str, float]) -> None:
    report = folder / REPORT
    if report.exists():
        print(report.read_text(encoding="utf-8").rstrip())
    elif figures:
        width = max(len(name) for name in figures)
        for name, value in figures.items():
            print(f"{name:<{width}}  {value:.6g}" if isinstance(value, (int, float)) else f"{name:<{width}}  {value}")
    print(f"Run folder: {folder}")
    if (folder / "tensorboard").exists():
        print(f"Curves: tensorboard --logdir {folder / 'tensorboard'}")


class _StderrHandler(logging.StreamHandler[Any]):
    """Writes to whatever sys.stderr is at the moment: rich replaces it while a bar is shown."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:
        """The current standard error."""
        return sys.stderr


def _set_up_logging(quiet: bool) -> None:
    handler = _StderrHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    for name in ("jamgym", "jamgym_agents", "jamgym_rewards"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(logging.WARNING if quiet else logging.INFO)
        logger.propagate = False


if __name__ == "__main__":
    sys.exit(main())
