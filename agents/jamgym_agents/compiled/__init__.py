"""The decoder in compiled loops, for few rows on processor cores; needs numba, the extra `fast`."""

from __future__ import annotations

import logging
from typing import Literal

from jamgym.errors import ConfigError
from jamgym_agents.decoder import AccompanimentDecoder
from jamgym_agents.streaming import StreamingDecoder

_LOG = logging.getLogger(__name__)


def make_stream(decoder: AccompanimentDecoder, compiled: bool | Literal["auto"] = False) -> StreamingDecoder:
    """Return what runs `decoder` as a stream.

    Args:
        decoder: In eval mode.
        compiled: Whether in compiled loops; "auto" takes them where they can be had.

    Raises:
        ConfigError: `compiled` is something else; or it is true, and numba is missing or does not work here, or the
            decoder is not on the processor.
    """
    if compiled not in (True, False, "auto"):
        raise ConfigError(f"compiled is {compiled!r}; give true, false, or auto for where numba is installed.")
    if not compiled:
        return StreamingDecoder(decoder)
    try:
        from jamgym_agents.compiled.streaming import CompiledStreamingDecoder

        return CompiledStreamingDecoder(decoder)
    except ConfigError:
        if compiled != "auto":
            raise
    except Exception as error:
        # A broken LLVM, a full disk, a damaged file: whatever befalls the compiler, one can play without it.
        if compiled != "auto":
            raise _refusal(error) from error
        if not isinstance(error, ImportError):
            _LOG.warning("Playing without compiled loops, which cannot be had here (%s).", _named(error))
    return StreamingDecoder(decoder)


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _refusal(error: Exception) -> ConfigError:
    """Return what to tell those who insist on compiled loops."""
    if isinstance(error, ImportError):
        return ConfigError(
            f"compiled is true, and numba cannot be imported ({error}). Install it with pip install 'jamgym[fast]', "
            "or set compiled to false."
        )
    return ConfigError(
        f"compiled is true, and compiled loops cannot be had here ({_named(error)}). Set NUMBA_CACHE_DIR to another "
        "folder if the disk is at fault, or set compiled to false."
    )
