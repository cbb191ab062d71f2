"""The weights of a decoder for compiled loops, found again when some were replaced or written to.

The products of one row take as long as its weights take to come from memory. A network that was stored in half
precision or in eight bits can be read so, in a half or a quarter of that, and nothing changes but rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from jamgym.errors import ConfigError
from jamgym_agents.compiled.arrays import Network, Packed, network_of
from jamgym_agents.compiled.compiling import converts_halves
from jamgym_agents.decoder import AccompanimentDecoder
from jamgym_agents.eight_bit import as_eight_bits


class _Place(NamedTuple):
    """Where a module keeps a weight or another module, and what was found there.

    Attributes:
        holder: The dictionary.
        name: Under which name.
        value: What was there.
        memory: Of a tensor: as long as this is kept, no other one can have its address.
        state: Returns what changes with the value.
        was: What it returned.
    """

    holder: Mapping[str, Any]
    name: str
    value: Any
    memory: Tensor | None
    state: Callable[[Any], Any]
    was: Any


#: Modules whose weights are read.
_KINDS = (nn.Linear, nn.LayerNorm, nn.Embedding)


class Weights:
    """Holds the weights of `decoder` as arrays, on the same memory if they may learn.

    Raises:
        ConfigError: Compiled loops cannot use them as they lie.
    """

    def __init__(self, decoder: AccompanimentDecoder) -> None:
        self._decoder = decoder
        self._find()

    @property
    def kind(self) -> str:
        """What loops are compiled for: the numbers of blocks and codebooks, and how matrices are stored."""
        network = self._network
        return f"{len(network.layers)}-{len(network.levels)}-{network.heard.weight.dtype}"

    @property
    def network(self) -> Network:
        """The weights as they are now.

        Raises:
            ConfigError: They were replaced by some that compiled loops cannot use.
        """
        # Twice a call: plain loops over what hangs where take a tenth of what decoder.parameters() takes.
        for holder, name, value, _, state, was in self._places:
            if holder.get(name) is not value or state(value) != was:
                self._find()
                break
        return self._network

    def _find(self) -> None:
        if (reason := why_not(self._decoder)) is not None:
            raise ConfigError(
                f"{reason}; compiled loops need all weights on the processor, in single precision and contiguous: call "
                "decoder.cpu().float(), or set compiled to false."
            )
        packed = _pack(self._decoder)
        self._network, self._places = network_of(self._decoder, packed), _places(self._decoder, packed is not None)


def _no_state(_: Any) -> None:
    return None


def _memory_and_writes(weight: Tensor) -> tuple[int, int]:
    """Return where `weight` lies, and how often it was written to, as far as torch counts."""
    return weight.data_ptr(), weight._version


def _places(decoder: AccompanimentDecoder, packed: bool) -> list[_Place]:
    """Return where all weights and modules hang; those that are `packed` change when they are written to, too."""
    found = []
    for module in decoder.modules():
        for holder in (module._parameters, module._buffers, module._modules):
            for name, value in holder.items():
                state: Callable[[Any], Any] = _no_state
                memory = None
                if isinstance(value, Tensor):
                    state, memory = _memory_and_writes if packed else Tensor.data_ptr, value.detach()
                found.append(_Place(holder, name, value, memory, state, state(value)))
    return found


def _as_half_precision(matrix: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the bits of `matrix` `(R, C)` in half precision, and ones, if that loses nothing, else None."""
    halves = matrix.half()
    return (halves.view(torch.int16), torch.ones(len(matrix))) if torch.equal(halves.float(), matrix) else None


def _pack(decoder: AccompanimentDecoder) -> Packed | None:
    """Return all matrices in eight bits, or else in half precision, if none learns and none would lose by it."""
    # Of inference tensors, torch does not count how often they were written to.
    if any(weight.requires_grad or weight.is_inference() for weight in (*decoder.parameters(), *decoder.buffers())):
        return None
    matrices = [module.weight for module in decoder.modules() if isinstance(module, nn.Linear)]
    packed = _read_all(matrices, as_eight_bits)
    return _read_all(matrices, _as_half_precision) if packed is None and converts_halves() else packed


def _read_all(matrices: list[Tensor], read: Callable[[Tensor], tuple[Tensor, Tensor] | None]) -> Packed | None:
    """Return what `read` makes of each of `matrices`, or None as soon as one cannot be read so."""
    packed = {}
    for matrix in matrices:
        if (found := read(matrix)) is None:
            return None
        packed[matrix] = found
    return packed


def why_not(decoder: AccompanimentDecoder) -> str | None:
    """Return why compiled loops cannot use the weights of `decoder`, or None if they can."""
    for name, module in decoder.named_modules():
        # What computes its weights before each call, as pruning and parametrization do, has none of its own.
        if isinstance(module, _KINDS) and (type(module) not in _KINDS or "weight" not in module._parameters):
            return f"{name} is a {type(module).__name__} whose weight is computed when it is called"
    for name, weight in (*decoder.named_parameters(), *decoder.named_buffers()):
        if weight.device.type != "cpu" or weight.dtype != torch.float32 or not weight.is_contiguous():
            kind = "contiguous" if weight.is_contiguous() else "not contiguous"
            return f"{name} is on {weight.device}, in {weight.dtype}, {kind}"
    return None
