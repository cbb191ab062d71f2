"""`StreamingDecoder` with compiled loops in place of torch's operations."""

from __future__ import annotations

import torch
from torch import Tensor

from jamgym.errors import ConfigError
from jamgym_agents.compiled import kernels
from jamgym_agents.compiled.arrays import Network, array_of, draws_of, look_of, memory_of, network_of
from jamgym_agents.compiled.compiling import torch_threads
from jamgym_agents.decoder import AccompanimentDecoder
from jamgym_agents.kv_cache import DecoderState
from jamgym_agents.sampling import Sampling
from jamgym_agents.streaming import StreamingDecoder, View

#: Newly heard frames of all rows; torch, which passes all of them through a block at once, is as fast with more.
FEW_FRAMES = 32


class CompiledStreamingDecoder(StreamingDecoder):
    """Plays what `StreamingDecoder` plays: the same random numbers, and probabilities that differ by rounding.

    The weights are used in place, so the decoder may go on learning.

    Args:
        decoder: In eval mode, on the processor, in single precision.
        capacity: As in `StreamingDecoder`.

    Raises:
        ConfigError: The decoder is on another device or in another precision.
    """

    def __init__(self, decoder: AccompanimentDecoder, capacity: int = 64) -> None:
        super().__init__(decoder, capacity)
        if not can_compile(decoder):
            raise ConfigError(
                f"The decoder is on {decoder.vectors.device} in {decoder.start.dtype}; compiled loops need it on the "
                "processor in single precision: call decoder.cpu().float(), or set compiled to false."
            )
        self._network, self._weights_at = network_of(decoder), decoder.start.data_ptr()
        # The first call of a performance must not wait for the compiler.
        state = self.initial_state(1)
        silence = torch.zeros(1, 1, decoder.config.num_codebooks, dtype=torch.int64)
        self.hear(state, silence, torch.ones(1, dtype=torch.int64))
        self.generate(state, 1, Sampling(), torch.Generator().manual_seed(0))

    @property
    def network(self) -> Network:
        """The decoder's weights; found again if they have moved."""
        if self.decoder.start.data_ptr() != self._weights_at:
            self._network, self._weights_at = network_of(self.decoder), self.decoder.start.data_ptr()
        return self._network

    def _pass_heard(self, x: Tensor, view: View, state: DecoderState) -> None:
        if x.shape[0] * x.shape[1] > FEW_FRAMES:
            super()._pass_heard(x, view, state)
            return
        keys, values = memory_of(state.keys), memory_of(state.values)
        with torch_threads():
            kernels.run_blocks(self.network.layers, memory_of(x.flatten(0, 1)), keys, values, look_of(view), 0)

    def _check(self, state: DecoderState) -> None:
        """Refuse codes and instruments that do not exist: compiled loops would read what lies beside the tables."""
        for name, values, count in (
            ("code", state.last, self.decoder.config.cardinality),
            ("instrument", state.instrument, self.decoder.instrument.num_embeddings),
        ):
            found = array_of(values)
            if found.min() < 0 or found.max() >= count:
                raise IndexError(
                    f"{name}s are between {found.min()} and {found.max()}; there are those from 0 to {count - 1}"
                )

    def _decode(
        self,
        state: DecoderState,
        view: View,
        aligned: Tensor | None,
        k: int,
        sampling: Sampling,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        config, rows, streams = self.decoder.config, len(state.last), state.streams
        numbers = torch.rand(k, config.num_codebooks, streams, generator=generator)
        codes = torch.empty(streams, k, config.num_codebooks, dtype=torch.int64)
        log_probs = torch.empty(codes.shape)
        first = torch.empty(rows, config.dim)
        state.last = state.last.clone()
        self._check(state)
        with torch_threads():
            kernels.decode(
                self.network,
                memory_of(state.keys),
                memory_of(state.values),
                look_of(view),
                array_of(state.played),
                memory_of(state.last),
                array_of(state.instrument),
                array_of(torch.empty(rows, k, 0) if aligned is None else aligned),
                draws_of(sampling, numbers),
                memory_of(codes),
                memory_of(log_probs),
                memory_of(first),
            )
        return codes, log_probs, first


def can_compile(decoder: AccompanimentDecoder) -> bool:
    """Return whether the decoder is where compiled loops can reach it: on the processor, in single precision."""
    weights = (decoder.vectors, *decoder.parameters())
    return all(one.device.type == "cpu" and one.dtype == torch.float32 for one in weights)
