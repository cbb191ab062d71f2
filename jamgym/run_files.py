"""Reading the files of a run folder: its status and its metrics, whole or damaged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jamgym.files import RunError

#: What says which run it is, before the program has written anything.
FIRST_FILES = {"config.yaml", "run.json", "versions.json"}


def read_metrics(path: Path | str) -> list[dict[str, Any]]:
    """Return the objects of a metrics.jsonl file; an unfinished last line is left out.

    Raises:
        RunError: A line other than the last is damaged.
    """
    path = Path(path)
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(json.loads(line))
        except ValueError as error:
            if number == len(lines):
                break
            raise RunError(f"Line {number} of {path} is not JSON: {line[:80]!r}.") from error
    return found


def read_status(path: Path, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run.json says; `asked` is what it has to say for the run to be resumed.

    Raises:
        RunError: It is damaged.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        found = error
    if not isinstance(found, dict):
        raise RunError(
            f"{path} is damaged: {found}. If this was the run of {json.dumps(asked)}, write just that into it and "
            "resume again; or start another run with --out."
        )
    return found


def ended_at_start(folder: Path) -> bool:
    """Return whether the run in `folder` ended before it wrote anything, by a typo in a path, say, or by Ctrl-C."""
    try:
        status = json.loads((folder / "run.json").read_text(encoding="utf-8"))["status"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return status in ("failed", "stopped") and {path.name for path in folder.iterdir()} <= FIRST_FILES
