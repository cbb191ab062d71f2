"""Weights, views and draws as compiled loops take them: named tuples of arrays on the tensors' memory or on copies.

Loops are compiled anew for arrays of another type or layout, so both are fixed here.

Shapes: R rows, N streams, C width, h width of a head, Q codebooks, V entries, D latents.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from jamgym_agents.attention import Block, rotary_rates
from jamgym_agents.decoder import AccompanimentDecoder, DecoderConfig
from jamgym_agents.kv_cache import DecoderState
from jamgym_agents.sampling import Sampling

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
#: Single precision, steps of a scale, or the bits of half precision, for which numba has no type on processors.
Matrix = NDArray[np.float32] | NDArray[np.int8] | NDArray[np.int16]
#: Matrices as int8, or as the bits of half precision in int16, and what to multiply their rows by.
Packed = Mapping[Tensor, tuple[Tensor, Tensor]]
#: A window that reaches back to the start.
_ENDLESS = 2**62


class Norm(NamedTuple):
    """Weights of layer normalisation, `(C,)` each, and what is added to the variance."""

    scale: Floats
    shift: Floats
    epsilon: float


class Linear(NamedTuple):
    """Weights `(out, in)`, what to multiply their products by `(out,)`, and bias `(out,)`."""

    weight: Matrix
    scale: Floats
    bias: Floats


class Layer(NamedTuple):
    """Weights of an `attention.Block`."""

    norm_attention: Norm
    qkv: Linear
    out: Linear
    norm_mlp: Norm
    expand: Linear
    reduce: Linear


class Level(NamedTuple):
    """Weights with which the depth module predicts one codebook."""

    place: Floats
    expand: Linear
    head: Linear


class Network(NamedTuple):
    """All weights that decoding a frame takes.

    Attributes:
        layers: Of the blocks.
        norm: Of the last state.
        so_far: Embeds the latents that a frame's codes have given so far.
        depth_norm: Of the depth module.
        levels: One for each codebook.
        vectors: `(Q, V, D)`.
        heard: Embeds a heard frame's latents.
        played: Embeds a played frame's latents.
        aligned: Embeds the input around an output frame; without outputs if the decoder is not given it.
        past: So many frames of it lie before that frame.
        stream: `(2, C)` of the input and of the output stream.
        start: `(C,)` that stands before the first frame.
        instruments: `(N, C)`.
    """

    layers: tuple[Layer, ...]
    norm: Norm
    so_far: Linear
    depth_norm: Norm
    levels: tuple[Level, ...]
    vectors: Floats
    heard: Linear
    played: Linear
    aligned: Linear
    past: int
    stream: Floats
    start: Floats
    instruments: Floats


class Look(NamedTuple):
    """Where M consecutive frames of each row stand, and what they can look back on.

    Attributes:
        places: `(R, M)` frame times.
        heard: `(R,)` input frames that output frames may look at.
        stream: `HEARD` or `PLAYED`.
        window: Frames that a frame can look back on.
        sinks: First frames that always stay in sight.
        rates: `(h / 2,)` radians per frame of each pair that is rotated.
    """

    places: Ints
    heard: Ints
    stream: int
    window: int
    sinks: int
    rates: NDArray[np.float64]


class Draws(NamedTuple):
    """How codes are drawn: `sampling.Sampling`, and `(k, Q, N)` random numbers in [0, 1) for N streams."""

    numbers: Floats
    temperature: float
    greedy: bool
    top_k: int
    top_p: float
    guidance: float
    guided: bool


def memory_of(values: Tensor) -> NDArray[Any]:
    """Return the numbers of a tensor where they lie, to read and to write.

    Raises:
        ValueError: They do not lie one after the other.
    """
    if not values.is_contiguous():
        raise ValueError(f"a tensor of shape {tuple(values.shape)} has strides {values.stride()}: it is not contiguous")
    return cast("NDArray[Any]", values.detach().numpy())


def floats_of(values: Tensor) -> Floats:
    """Return the numbers of a tensor, to read."""
    return memory_of(values.float().contiguous())


def ints_of(values: Tensor) -> Ints:
    """The same of integers."""
    return memory_of(values.long().contiguous())


def _linear(module: nn.Linear, packed: Packed | None) -> Linear:
    count = module.out_features
    weight, scale = (module.weight, torch.ones(count)) if packed is None else packed[module.weight]
    bias = torch.zeros(count) if module.bias is None else module.bias
    return Linear(memory_of(weight), floats_of(scale), floats_of(bias))


def _norm(module: nn.LayerNorm) -> Norm:
    return Norm(memory_of(module.weight), memory_of(module.bias), module.eps)


def _no_outputs(like: Linear) -> Linear:
    return Linear(np.zeros((0, 0), like.weight.dtype), *np.zeros((2, 0), np.float32))


def _layer(block: Block, packed: Packed | None) -> Layer:
    return Layer(
        _norm(block.norm_attention),
        _linear(block.qkv, packed),
        _linear(block.out, packed),
        _norm(block.norm_mlp),
        _linear(block.expand, packed),
        _linear(block.reduce, packed),
    )


def network_of(decoder: AccompanimentDecoder, packed: Packed | None = None) -> Network:
    """Return the weights of `decoder`: where they lie, or, of all matrices, what `packed` has for them."""
    depth, module = decoder.depth, decoder.aligned
    heard = _linear(decoder.embed_input, packed)
    return Network(
        layers=tuple(_layer(cast(Block, block), packed) for block in decoder.blocks),
        norm=_norm(decoder.norm),
        so_far=_linear(depth.so_far, packed),
        depth_norm=_norm(depth.norm),
        levels=tuple(
            Level(memory_of(place), _linear(cast(nn.Linear, expand), packed), _linear(cast(nn.Linear, head), packed))
            for place, expand, head in zip(depth.level, depth.expand, depth.head, strict=True)
        ),
        vectors=memory_of(decoder.vectors),
        heard=heard,
        played=_linear(decoder.embed_output, packed),
        aligned=_no_outputs(heard) if module is None else _linear(module.project, packed),
        past=0 if module is None else module.past,
        stream=memory_of(decoder.stream),
        start=memory_of(decoder.start),
        instruments=memory_of(decoder.instrument.weight),
    )


def look_of(config: DecoderConfig, positions: Tensor, state: DecoderState, stream: int) -> Look:
    """Return where new frames of `stream` at consecutive `positions` `(R, M)` stand."""
    return Look(
        places=ints_of(positions),
        heard=ints_of(state.heard),
        stream=stream,
        window=_ENDLESS if config.window is None else config.window,
        sinks=config.sinks,
        rates=memory_of(rotary_rates(config.dim // config.heads, positions.device)),
    )


def draws_of(sampling: Sampling, numbers: Tensor) -> Draws:
    """Return how codes are drawn with random `numbers` `(k, Q, N)`."""
    return Draws(
        numbers=floats_of(numbers),
        temperature=float(sampling.temperature),
        greedy=bool(sampling.greedy),
        top_k=int(sampling.top_k),
        top_p=float(sampling.top_p),
        guidance=float(sampling.guidance),
        guided=bool(sampling.guided),
    )
