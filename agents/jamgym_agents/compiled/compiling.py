"""How loops are compiled: by numba, kept on disk, shared among threads where that pays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, TypeVar, cast

import numba
import torch

_Function = TypeVar("_Function", bound=Callable[..., Any])
#: Sums may be taken in another order and products fused; infinities and NaN keep their meaning.
_LOOSE = {"contract", "reassoc", "nsz"}


def pool_stays_awake() -> bool:
    """Return whether numba finds a pool whose threads wait awake between two loops.

    The one that is always there puts them to sleep, and waking them takes longer than a loop.
    """
    for pool in ("omppool", "tbbpool"):
        try:
            import_module(f"numba.np.ufunc.{pool}")
        except ImportError:
            continue
        return True
    return False


def _compiled(parallel: bool) -> Callable[[_Function], _Function]:
    """Return a decorator that compiles a function at its first call, and keeps the result on disk if it can."""
    options: dict[str, Any] = {"nogil": True, "fastmath": _LOOSE, "error_model": "numpy", "parallel": parallel}

    def decorate(function: _Function) -> _Function:
        try:
            return cast(_Function, numba.njit(cache=True, **options)(function))
        except RuntimeError:
            # No folder can be written to, neither beside this file nor at home.
            return cast(_Function, numba.njit(**options)(function))

    return decorate


#: Whether loops are shared among threads.
PARALLEL = pool_stays_awake()
serial, parallel = _compiled(parallel=False), _compiled(parallel=PARALLEL)


@contextmanager
def torch_threads() -> Iterator[None]:
    """Let compiled loops use as many threads as torch, and leave torch its number: both may share one OpenMP."""
    count = torch.get_num_threads()
    if PARALLEL:
        numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    try:
        yield
    finally:
        if torch.get_num_threads() != count:
            torch.set_num_threads(count)
