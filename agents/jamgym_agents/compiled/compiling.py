"""How loops are compiled: by numba, kept on disk, shared among threads where that pays."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import torch
from llvmlite import binding

from jamgym_agents import kv_cache
from jamgym_agents.caching import cache_folder

_Function = TypeVar("_Function", bound=Callable[..., Any])
#: Sums may be taken in another order and products fused; infinities and NaN keep their meaning.
_LOOSE = {"contract", "reassoc", "nsz"}


@contextmanager
def kept_threads() -> Iterator[int]:
    """Leave torch its number of threads, which is yielded: numba may share one OpenMP with it, and sets it."""
    count = torch.get_num_threads()
    try:
        yield count
    finally:
        if torch.get_num_threads() != count:
            torch.set_num_threads(count)


def pool_stays_awake() -> bool:
    """Return whether the pool that numba takes has threads that wait awake between two loops.

    Its own one, "workqueue", puts them to sleep, and waking them takes longer than a loop. It is taken where there is
    neither OpenMP nor TBB, and where NUMBA_THREADING_LAYER asks for it.

    Raises:
        ValueError: NUMBA_THREADING_LAYER asks for one that is not there.
    """
    with kept_threads():
        # Numba chooses when it starts the threads, and it starts them when it is asked how many there are.
        numba.get_num_threads()
        return numba.threading_layer() != "workqueue"


def converts_halves() -> bool:
    """Return whether the processor itself turns numbers of half precision into single ones.

    Where it does not, LLVM calls a function that is not there.
    """
    settings: Any = numba.config
    if settings.CPU_NAME is not None or settings.CPU_FEATURES is not None:
        # Someone has loops compiled for another processor.
        return False
    if platform.machine().lower() in ("arm64", "aarch64"):
        return True
    try:
        return bool(binding.get_host_cpu_features().get("f16c"))
    except RuntimeError:
        # LLVM cannot tell.
        return False


def folder_for(shared: bool) -> Path:
    """Return the folder for compiled loops.

    Numba looks only at the file of a function, not at those of the functions and types that it uses, nor at how it is
    compiled. So each state of this package's files, and of the one whose constants they use, has its own folder.
    """
    state = hashlib.sha256(b"shared" if shared else b"")
    for file in (*sorted(Path(__file__).parent.glob("*.py")), Path(kv_cache.__file__)):
        state.update(file.read_bytes())
    base = numba.config.CACHE_DIR or cache_folder() / "compiled"  # type: ignore[attr-defined]
    return Path(base) / state.hexdigest()[:16]


def compiler(folder: Path, **options: Any) -> Callable[[_Function], _Function]:
    """Return a decorator that compiles a function at its first call, and keeps the result in `folder` if it can."""
    options = {"nogil": True, "fastmath": _LOOSE, "error_model": "numpy", **options}

    def decorate(function: _Function) -> _Function:
        settings: Any = numba.config
        before, settings.CACHE_DIR = settings.CACHE_DIR, str(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return cast(_Function, numba.njit(cache=True, **options)(function))
        except (OSError, RuntimeError):
            # Nothing can be written there, as numba says by the latter.
            return cast(_Function, numba.njit(**options)(function))
        finally:
            settings.CACHE_DIR = before

    return decorate


#: Whether loops are shared among threads.
PARALLEL = pool_stays_awake()
_FOLDER = folder_for(PARALLEL)
serial = compiler(_FOLDER / "serial")
parallel = compiler(_FOLDER / "parallel", parallel=PARALLEL)
#: For arithmetic that depends on its order.
strict = compiler(_FOLDER / "strict", fastmath=False)


def is_kept(kind: str) -> bool:
    """Return whether loops for decoders of this kind, compiled from this state of the code, lie on disk."""
    return (_FOLDER / kind).exists()


def mark_kept(kind: str) -> None:
    """Remember that they do."""
    with suppress(OSError):
        (_FOLDER / kind).touch()


@contextmanager
def torch_threads() -> Iterator[None]:
    """Let compiled loops use as many threads as torch, and leave torch its number."""
    with kept_threads() as count:
        if PARALLEL:
            numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
        yield
