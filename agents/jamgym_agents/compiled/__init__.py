"""The decoder in compiled loops, for few rows on processor cores; needs numba, the extra `fast`."""

from __future__ import annotations

from typing import Literal

from jamgym.errors import ConfigError
from jamgym_agents.decoder import AccompanimentDecoder
from jamgym_agents.streaming import StreamingDecoder


def make_stream(decoder: AccompanimentDecoder, compiled: bool | Literal["auto"] = False) -> StreamingDecoder:
    """Return what runs `decoder` as a stream.

    Args:
        decoder: In eval mode.
        compiled: Whether in compiled loops; "auto" takes them where they can be had.

    Raises:
        ConfigError: `compiled` is something else; or it is true, and numba is missing or the decoder is not on the
            processor.
    """
    if compiled not in (True, False, "auto"):
        raise ConfigError(f"compiled is {compiled!r}; give true, false, or auto for where numba is installed.")
    if not compiled:
        return StreamingDecoder(decoder)
    try:
        from jamgym_agents.compiled.streaming import CompiledStreamingDecoder, can_compile
    except ImportError as error:
        if compiled == "auto":
            return StreamingDecoder(decoder)
        raise ConfigError(
            f"compiled is true, and numba cannot be imported ({error}). Install it with pip install 'jamgym[fast]', "
            "or set compiled to false."
        ) from error
    if compiled == "auto" and not can_compile(decoder):
        return StreamingDecoder(decoder)
    return CompiledStreamingDecoder(decoder)
