"""Weights, views and draws as compiled loops take them: named tuples of arrays that share the tensors' memory.

What `kernels` keeps on disk does not notice a change of these fields: delete its `__pycache__` after one.

Shapes: R rows, N streams, C width, H query heads, G key heads, h width of a head, S slots, Q codebooks, V entries,
D latents.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from jamgym_agents.attention import Block
from jamgym_agents.decoder import AccompanimentDecoder
from jamgym_agents.sampling import Sampling
from jamgym_agents.streaming import View

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


class Norm(NamedTuple):
    """Weights of layer normalisation, `(C,)` each, and what is added to the variance."""

    scale: Floats
    shift: Floats
    epsilon: float


class Linear(NamedTuple):
    """Weights `(out, in)` and bias `(out,)`."""

    weight: Floats
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
        played: Embeds a played frame's latents.
        stream: `(C,)` of the output stream.
        start: `(C,)` that stands before the first frame.
        instruments: `(N, C)`.
    """

    layers: tuple[Layer, ...]
    norm: Norm
    so_far: Linear
    depth_norm: Norm
    levels: tuple[Level, ...]
    vectors: Floats
    played: Linear
    stream: Floats
    start: Floats
    instruments: Floats


class Look(NamedTuple):
    """`streaming.View` of M frames, as arrays.

    Attributes:
        cos: `(R or 1, 1 or 2 H + G, M, h)`: of near places first, of own ones last.
        sin: The same, signed.
        bias: `(R, 1, M, S)`: 0 where a frame may look.
        first: First of the S slots.
        step: From one of them to the next.
        sinks: So many of them are sinks.
        rows: `(R, G, M)` rows of a block's memory that keys and values go to.
    """

    cos: Floats
    sin: Floats
    bias: Floats
    first: int
    step: int
    sinks: int
    rows: Ints


class Draws(NamedTuple):
    """How codes are drawn: `sampling.Sampling`, and `(k, Q, N)` random numbers in [0, 1) for N streams."""

    numbers: Floats
    temperature: float
    greedy: bool
    top_k: int
    top_p: float
    guidance: float
    guided: bool


def array_of(values: Tensor) -> NDArray[Any]:
    """Return the numbers of a tensor, to read."""
    return cast(NDArray[Any], values.detach().contiguous().numpy())


def memory_of(values: Tensor) -> NDArray[Any]:
    """Return the numbers of a tensor, to write to."""
    assert values.is_contiguous()
    return array_of(values)


def _linear(module: nn.Linear) -> Linear:
    bias = np.zeros(module.out_features, np.float32) if module.bias is None else array_of(module.bias)
    return Linear(array_of(module.weight), bias)


def _norm(module: nn.LayerNorm) -> Norm:
    return Norm(array_of(module.weight), array_of(module.bias), module.eps)


def _layer(block: Block) -> Layer:
    return Layer(
        _norm(block.norm_attention),
        _linear(block.qkv),
        _linear(block.out),
        _norm(block.norm_mlp),
        _linear(block.expand),
        _linear(block.reduce),
    )


def network_of(decoder: AccompanimentDecoder) -> Network:
    """Return the weights of `decoder` as the kernels want them, without a copy."""
    depth = decoder.depth
    return Network(
        layers=tuple(_layer(cast(Block, block)) for block in decoder.blocks),
        norm=_norm(decoder.norm),
        so_far=_linear(depth.so_far),
        depth_norm=_norm(depth.norm),
        levels=tuple(
            Level(array_of(place), _linear(cast(nn.Linear, expand)), _linear(cast(nn.Linear, head)))
            for place, expand, head in zip(depth.level, depth.expand, depth.head, strict=True)
        ),
        vectors=array_of(decoder.vectors),
        played=_linear(decoder.embed_output),
        stream=array_of(decoder.stream[1]),
        start=array_of(decoder.start),
        instruments=array_of(decoder.instrument.weight),
    )


def look_of(view: View) -> Look:
    """Return where frames stand and what they may look at, as the kernels want it."""
    return Look(
        cos=array_of(view.angles[0]),
        sin=array_of(view.angles[1]),
        bias=array_of(view.bias),
        first=view.used.start,
        step=view.used.step or 1,
        sinks=view.sinks.stop,
        rows=array_of(view.rows),
    )


def draws_of(sampling: Sampling, numbers: Tensor) -> Draws:
    """Return how codes are drawn with random `numbers` `(k, Q, N)`."""
    return Draws(
        numbers=array_of(numbers),
        temperature=float(sampling.temperature),
        greedy=sampling.greedy,
        top_k=sampling.top_k,
        top_p=float(sampling.top_p),
        guidance=float(sampling.guidance),
        guided=sampling.guided,
    )
