"""`StreamingDecoder` with compiled loops in place of torch's operations."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from jamgym_agents.compiled import decoding
from jamgym_agents.compiled.arrays import Ints, draws_of, ints_of, look_of, memory_of
from jamgym_agents.compiled.compiling import is_kept, mark_kept, torch_threads
from jamgym_agents.compiled.weights import Weights
from jamgym_agents.decoder import AccompanimentDecoder
from jamgym_agents.kv_cache import HEARD, PLAYED, DecoderState
from jamgym_agents.sampling import Sampling
from jamgym_agents.streaming import StreamingDecoder

_LOG = logging.getLogger(__name__)
#: Newly heard frames of all rows; with more of them, the products of torch's library are as fast.
FEW_FRAMES = 256


class CompiledStreamingDecoder(StreamingDecoder):
    """Plays what `StreamingDecoder` plays: the same random numbers, and probabilities that differ by rounding.

    The decoder may go on learning: its weights are used in place. If none requires a gradient, they are read as they
    were stored, in eight bits or in half precision, and again after they were written to; what is written through
    `weight.data` or numpy, torch does not count, and it is not noticed. Hooks of its modules are not called.

    Args:
        decoder: In eval mode, on the processor, in single precision.
        capacity: As in `StreamingDecoder`.

    Raises:
        ConfigError: Compiled loops cannot use the decoder's weights as they lie; later calls raise it too, if those
            were replaced.
    """

    def __init__(self, decoder: AccompanimentDecoder, capacity: int = 64) -> None:
        super().__init__(decoder, capacity)
        self._weights = Weights(decoder)
        kind = self._weights.kind
        if not is_kept(kind):
            _LOG.info("Compiling loops for this kind of decoder (%s): about 40 seconds, the first time.", kind)
        # The first call of a performance must not wait for the compiler.
        state = self.initial_state(1)
        silence = torch.zeros(1, 1, decoder.config.num_codebooks, dtype=torch.int64)
        self.hear(state, silence, torch.ones(1, dtype=torch.int64))
        self.generate(state, 1, Sampling(), torch.Generator().manual_seed(0))
        mark_kept(kind)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and store the decoder alone: arrays in the copy would no longer be its weights."""
        return type(self), (self.decoder, self.capacity)

    def _pass_heard(self, codes: Tensor, positions: Tensor, state: DecoderState, extent: int) -> None:
        if positions.numel() > FEW_FRAMES:
            super()._pass_heard(codes, positions, state, extent)
            return
        look = look_of(self.decoder.config, positions, state, HEARD)
        frames = self._checked("heard codes", codes, self.decoder.config.cardinality)
        with torch_threads():
            decoding.hear(self._weights.network, memory_of(state.keys), memory_of(state.values), look, frames)

    def _checked(self, name: str, values: Tensor, count: int) -> Ints:
        """Return indices into a table of `count`; compiled loops would read what lies beside it."""
        found = ints_of(values)
        if found.size and (found.min() < 0 or found.max() >= count):
            raise IndexError(f"{name} are between {found.min()} and {found.max()}; valid are 0 to {count - 1}")
        return found

    def _decode(
        self,
        state: DecoderState,
        positions: Tensor,
        extent: int,
        sampling: Sampling,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        config, network, (rows, k) = self.decoder.config, self._weights.network, positions.shape
        # A copy: whoever holds the codes of the chunk before keeps them.
        last = self._checked("codes", state.last, config.cardinality).copy()
        numbers = torch.rand(k, config.num_codebooks, state.streams, generator=generator, dtype=torch.float32)
        codes = torch.empty(state.streams, k, config.num_codebooks, dtype=torch.int64)
        log_probs = torch.empty(codes.shape, dtype=torch.float32)
        first = torch.empty(rows, config.dim, dtype=torch.float32)
        with torch_threads():
            decoding.decode(
                network,
                memory_of(state.keys),
                memory_of(state.values),
                look_of(config, positions, state, PLAYED),
                ints_of(state.played),
                last,
                self._checked("instruments", state.instrument, len(network.instruments)),
                ints_of(codes.new_empty(rows, 0, config.num_codebooks) if state.codes is None else state.codes),
                draws_of(sampling, numbers),
                memory_of(codes),
                memory_of(log_probs),
                memory_of(first),
            )
        state.last = torch.from_numpy(last)
        return codes, log_probs, first
