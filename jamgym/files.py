"""Files that are whole or not there: atomic writes, and settings as plain data."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import platform
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from jamgym.errors import ConfigError, JamgymError

_PACKAGES = ("jamgym", "numpy", "gymnasium", "torch", "stable-baselines3", "safetensors", "scipy", "soundfile", "soxr")


_NO_ROOM = "Free some space, or choose another folder."
_NO_PERMISSION = "Give yourself permission to use it and the folders that it is in, or choose another folder."
_NO_FOLDER = "A file stands where a folder is needed; move it away, or choose another folder."
_ADVICE = {
    errno.ENOSPC: _NO_ROOM,
    errno.EDQUOT: _NO_ROOM,
    errno.EFBIG: "The system lets no file grow that large; raise the limit (ulimit -f), or choose another folder.",
    errno.EACCES: _NO_PERMISSION,
    errno.EPERM: _NO_PERMISSION,
    errno.EROFS: "That disk can only be read; choose another folder.",
    errno.EEXIST: _NO_FOLDER,
    errno.EISDIR: "A folder has that name already; move it away, or choose another one.",
    errno.ENOTDIR: _NO_FOLDER,
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.ENOENT: "Make the folder that it belongs in, or check the spelling.",
    errno.EMFILE: "Too many files are open; raise the limit (ulimit -n).",
}


class RunError(JamgymError, OSError):
    """A file of a run could not be read or written."""


def advice(error: OSError) -> str:
    """Return one sentence on how to mend what the system refused.

    >>> advice(OSError(errno.EROFS, "Read-only file system"))
    'That disk can only be read; choose another folder.'
    """
    return _ADVICE.get(error.errno or 0, "Look whether the disk is full or damaged, or choose another folder.")


def write_error(path: Path | str, error: OSError, more: str = "") -> RunError:
    """Return the `RunError` for a file or folder that could not be written; `more` comes before the advice."""
    return RunError(f"Could not write {path}: {error.strerror or error}. {more}{advice(error)}")


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; replace `path` by it if the block succeeds.

    The file is flushed to the disk before the replacement, and the older version stays as it is when
    anything fails.

    Raises:
        RunError: The file cannot be written, for example because the disk is full; it says what to do.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix + ".tmp")
        temporary = Path(name)
        os.close(handle)
        yield temporary
        # mkstemp makes private files, and so do some writers; give the result what an ordinary open() would.
        os.chmod(temporary, 0o666 & ~_umask())
        with open(temporary, "rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        if isinstance(error, RunError):
            raise
        raise write_error(path, error, "The older version, if there was one, is unchanged. ") from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink()


def write_text(path: Path | str, text: str) -> None:
    """Write `text` to `path` in UTF-8, as `atomic_path` writes."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def is_bare_name(value: object) -> bool:
    """Whether `value` is a word with neither folder nor ending, as names are and paths of files are not.

    >>> [is_bare_name(value) for value in ("ppo", "./ppo", "ppo.safetensors", Path("ppo"))]
    [True, False, False, False]
    """
    return isinstance(value, str) and os.path.basename(value) == value and not Path(value).suffix


def digest(value: Any) -> str:
    """Return a short hash of plain data."""
    return hashlib.sha256(json.dumps(plain(value), sort_keys=True).encode()).hexdigest()[:16]


def _umask() -> int:
    # Python cannot read the mask without setting it.
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def plain(value: Any) -> Any:
    """Return `value` as JSON-native data: dataclasses and arrays unfolded, non-finite floats as None.

    >>> plain({"a": (1, float("nan"))})
    {'a': [1, None]}
    """
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        items = sorted(value, key=str) if isinstance(value, (set, frozenset)) else value
        return [plain(item) for item in items]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    raise ConfigError(f"Cannot write a {type(value).__name__} ({value!r}) as JSON or YAML; give plain values.")


def library_versions() -> dict[str, str]:
    """Return the versions of Python, the platform and the libraries, without importing them."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
