"""The decoder in compiled loops, for few rows on processor cores; needs numba, the extra `fast`."""

from __future__ import annotations

from jamgym.errors import ConfigError
from jamgym_agents.decoder import AccompanimentDecoder
from jamgym_agents.streaming import StreamingDecoder


def make_stream(decoder: AccompanimentDecoder, compiled: bool | None = False) -> StreamingDecoder:
    """Return what runs `decoder` as a stream.

    Args:
        decoder: In eval mode.
        compiled: Whether in compiled loops; None takes them where they can be had.

    Raises:
        ConfigError: `compiled` is true and numba is missing, or the decoder is not on the processor.
    """
    if compiled is False:
        return StreamingDecoder(decoder)
    try:
        from jamgym_agents.compiled.streaming import CompiledStreamingDecoder, can_compile
    except ImportError as error:
        if compiled is None:
            return StreamingDecoder(decoder)
        raise ConfigError(
            f"compiled is true, and numba cannot be imported ({error}). Install it with pip install 'jamgym[fast]', "
            "or set compiled to false."
        ) from error
    if compiled is None and not can_compile(decoder):
        return StreamingDecoder(decoder)
    return CompiledStreamingDecoder(decoder)
