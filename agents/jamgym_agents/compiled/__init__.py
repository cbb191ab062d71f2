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
    except ConfigError as error:
        problem = error
    except ImportError as error:
        problem = ConfigError(
            f"compiled is true, and numba cannot be imported ({error}). Install it with pip install 'jamgym[fast]', "
            "or set compiled to false."
        )
        problem.__cause__ = error
    except Exception as error:
        # A broken LLVM, a full disk, a damaged file: whatever befalls the compiler, one can play without it.
        found = f"{type(error).__name__}: {error}"
        if compiled == "auto":
            _LOG.warning("Playing without compiled loops, which cannot be had here (%s).", found)
        problem = ConfigError(
            f"compiled is true, and compiled loops cannot be had here ({found}). Set NUMBA_CACHE_DIR to another folder "
            "if the disk is at fault, or set compiled to false."
        )
        problem.__cause__ = error
    if compiled == "auto":
        return StreamingDecoder(decoder)
    raise problem
