"""A frame of the decoder in compiled loops.

A single row gives torch some 150 small operations per frame, most of whose time goes into starting them. Here a chunk
is one call. Everything is done in place, on the memory of the torch tensors. Every number is the work of one thread,
so the number of threads changes nothing.

All in one file: what is kept on disk is compiled anew only when the file of the outermost function has changed.

Shapes: R rows, N streams, C width, H query heads, G key heads, h width of a head, S slots, Q codebooks, V entries,
D latents.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import prange

from jamgym_agents.compiled.arrays import Draws, Floats, Ints, Look, Network, Norm
from jamgym_agents.compiled.compiling import parallel, serial

_HALF_ROOT = np.float32(math.sqrt(0.5))


@serial
def dot(a: Floats, b: Floats) -> np.float32:
    """Return the product of two rows of numbers of one length."""
    total = np.float32(0.0)
    for j in range(len(a)):
        total += a[j] * b[j]
    return total


@parallel
def linear(weight: Floats, bias: Floats, x: Floats, y: Floats) -> None:
    """Set `y` `(R, out)` to the product of `weight` `(out, in)` and `x` `(R, in)`, plus `bias` `(out,)`."""
    for i in prange(len(weight)):
        for r in range(len(x)):
            y[r, i] = dot(weight[i], x[r]) + bias[i]


@parallel
def linear_gelu(weight: Floats, bias: Floats, x: Floats, y: Floats) -> None:
    """The same, then GELU."""
    for i in prange(len(weight)):
        for r in range(len(x)):
            value = dot(weight[i], x[r]) + bias[i]
            y[r, i] = np.float32(0.5) * value * (np.float32(1.0) + math.erf(value * _HALF_ROOT))


@parallel
def add_linear(weight: Floats, bias: Floats, x: Floats, y: Floats) -> None:
    """The same as `linear`, added to `y`."""
    for i in prange(len(weight)):
        for r in range(len(x)):
            y[r, i] += dot(weight[i], x[r]) + bias[i]


@serial
def normalise(weights: Norm, x: Floats, y: Floats) -> None:
    """Set `y` to the layer normalisation of `x`, both `(R, C)`."""
    count = np.float32(x.shape[1])
    for r in range(x.shape[0]):
        mean = np.float32(0.0)
        for j in range(x.shape[1]):
            mean += x[r, j]
        mean /= count
        variance = np.float32(0.0)
        for j in range(x.shape[1]):
            variance += (x[r, j] - mean) ** 2
        scale = np.float32(1.0) / np.float32(math.sqrt(variance / count + np.float32(weights.epsilon)))
        for j in range(x.shape[1]):
            y[r, j] = (x[r, j] - mean) * scale * weights.scale[j] + weights.shift[j]


@serial
def turn(x: Floats, cos: Floats, sin: Floats, scale: np.float32, y: Floats) -> None:
    """Set `y` `(h,)` to `attention.rotate` of `x`, times `scale`."""
    half = len(x) // 2
    for j in range(half):
        y[j] = (x[j] * cos[j] + x[half + j] * sin[j]) * scale
        y[half + j] = (x[half + j] * cos[half + j] + x[j] * sin[half + j]) * scale


@parallel
def attend(
    queries: Floats,
    near: Floats,
    keys: Floats,
    values: Floats,
    bias: Floats,
    first: int,
    step: int,
    sinks: int,
    scores: Floats,
    mixed: Floats,
) -> None:
    """Set `mixed` `(R F, H h)` to what F frames of each row find where they may look.

    Args:
        queries: `(R F, H, h)`, turned and scaled.
        near: The same, at their near places.
        keys: `(R, G, slots, h)` of this block.
        values: The same.
        bias: `(R, F, S)`: 0 where they may look.
        first: First of the S slots.
        step: From one of them to the next.
        sinks: So many of them are sinks.
        scores: `(R F H, S)`, to be overwritten.
        mixed: The result.
    """
    count, heads, width = queries.shape
    shared = heads // keys.shape[1]
    frames = bias.shape[1]
    for head in prange(count * heads):
        n, a = head // heads, head % heads
        r, f, g = n // frames, n % frames, a // shared
        highest = np.float32(-np.inf)
        for s in range(bias.shape[2]):
            if bias[r, f, s] == 0:
                score = dot(near[n, a] if s < sinks else queries[n, a], keys[r, g, first + step * s])
                scores[head, s] = score
                highest = max(highest, score)
        result = mixed[n, a * width : (a + 1) * width]
        result[:] = 0
        whole = np.float32(0.0)
        for s in range(bias.shape[2]):
            if bias[r, f, s] == 0:
                weight = np.float32(math.exp(scores[head, s] - highest))
                whole += weight
                value = values[r, g, first + step * s]
                for j in range(width):
                    result[j] += weight * value[j]
        for j in range(width):
            result[j] /= whole


@serial
def run_blocks(layers: Any, x: Floats, keys: Floats, values: Floats, look: Look, begin: int) -> None:
    """Pass F frames of each row through all blocks; their keys and values are written.

    Args:
        layers: Weights.
        x: `(R F, C)`, changed in place.
        keys: `(L, R or more, G, slots, h)`.
        values: The same.
        look: What frames may look at.
        begin: Which of its frames is the first one.
    """
    count, dim = x.shape
    rows, groups, slots = look.rows.shape[0], look.rows.shape[1], keys.shape[3]
    frames, width = count // rows, keys.shape[4]
    heads = dim // width
    bias = look.bias[:, 0, begin : begin + frames]
    normed = np.empty((count, dim), np.float32)
    qkv = np.empty((count, (heads + 2 * groups) * width), np.float32)
    queries = np.empty((count, heads, width), np.float32)
    near = np.empty((count, heads, width), np.float32)
    scores = np.empty((count * heads, bias.shape[2]), np.float32)
    mixed = np.empty((count, dim), np.float32)
    wide = np.empty((count, layers[0].expand.weight.shape[0]), np.float32)
    scale = np.float32(width**-0.5)
    for index in range(len(layers)):
        layer = layers[index]
        normalise(layer.norm_attention, x, normed)
        linear(layer.qkv.weight, layer.qkv.bias, normed, qkv)
        for n in range(count):
            r, m = n // frames, begin + n % frames
            at = r if look.cos.shape[0] > 1 else 0
            for a in range(heads):
                part = qkv[n, a * width : (a + 1) * width]
                turn(part, look.cos[at, -1, m], look.sin[at, -1, m], scale, queries[n, a])
                turn(part, look.cos[at, 0, m], look.sin[at, 0, m], scale, near[n, a])
            for g in range(groups):
                slot = look.rows[r, g, m] % slots
                key = qkv[n, (heads + g) * width : (heads + g + 1) * width]
                turn(key, look.cos[at, -1, m], look.sin[at, -1, m], np.float32(1.0), keys[index, r, g, slot])
                values[index, r, g, slot] = qkv[n, (heads + groups + g) * width : (heads + groups + g + 1) * width]
        attend(queries, near, keys[index], values[index], bias, look.first, look.step, look.sinks, scores, mixed)
        add_linear(layer.out.weight, layer.out.bias, mixed, x)
        normalise(layer.norm_mlp, x, normed)
        linear_gelu(layer.expand.weight, layer.expand.bias, normed, wide)
        add_linear(layer.reduce.weight, layer.reduce.bias, wide, x)


@serial
def transform(logits: Floats, draws: Draws) -> None:
    """`sampling.transform` of `logits` `(V,)`, in place."""
    count = len(logits)
    if draws.greedy:
        best = np.argmax(logits)
        logits[:] = -np.inf
        logits[best] = 0
        return
    logits /= np.float32(draws.temperature)
    if 0 < draws.top_k < count:
        floor = np.sort(logits)[count - draws.top_k]
        for v in range(count):
            if logits[v] < floor:
                logits[v] = -np.inf
    if draws.top_p < 1:
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        before = 0.0
        for v in np.argsort(-shares, kind="mergesort"):
            if before >= draws.top_p:
                logits[v] = -np.inf
            before += shares[v]
    highest = logits.max()
    whole = 0.0
    for v in range(count):
        logits[v] -= highest
        whole += math.exp(logits[v])
    logits -= np.float32(math.log(whole))


@serial
def draw(log_probs: Floats, number: float) -> int:
    """`sampling.draw` from `log_probs` `(V,)` by a random `number`."""
    reached = np.empty(len(log_probs), np.float32)
    so_far = 0.0
    for v in range(len(log_probs)):
        so_far += math.exp(log_probs[v])
        reached[v] = so_far
    total = reached[-1]
    wanted = min(total * np.float32(number), np.nextafter(total, np.float32(0.0)))
    for v in range(len(log_probs)):
        if reached[v] > wanted:
            return v
    return len(log_probs) - 1


@serial
def draw_frame(network: Network, hidden: Floats, draws: Draws, index: int, codes: Ints, log_probs: Floats) -> None:
    """`streaming.draw_frame` of frame `index`: sets `codes` and `log_probs` `(N, Q)`, given `hidden` `(R, C)`."""
    rows, dim = hidden.shape
    streams = len(codes)
    partial = np.zeros((rows, network.vectors.shape[2]), np.float32)
    x = np.empty((rows, dim), np.float32)
    wide = np.empty((rows, network.levels[0].expand.weight.shape[0]), np.float32)
    logits = np.empty((rows, network.vectors.shape[1]), np.float32)
    for q in range(len(network.levels)):
        level = network.levels[q]
        linear(network.so_far.weight, network.so_far.bias, partial, x)
        for r in range(rows):
            for j in range(dim):
                x[r, j] += hidden[r, j] + level.place[j]
        normalise(network.depth_norm, x, x)
        linear_gelu(level.expand.weight, level.expand.bias, x, wide)
        linear(level.head.weight, level.head.bias, wide, logits)
        for r in range(streams):
            if draws.guided:
                for v in range(logits.shape[1]):
                    deaf = logits[streams + r, v]
                    logits[r, v] = deaf + np.float32(draws.guidance) * (logits[r, v] - deaf)
            transform(logits[r], draws)
            code = draw(logits[r], draws.numbers[index, q, r])
            codes[r, q] = code
            log_probs[r, q] = logits[r, code]
            for other in range(r, rows, streams):
                for d in range(partial.shape[1]):
                    partial[other, d] += network.vectors[q, code, d]


@serial
def decode(
    network: Network,
    keys: Floats,
    values: Floats,
    look: Look,
    played: Ints,
    last: Ints,
    instrument: Ints,
    aligned: Floats,
    draws: Draws,
    codes: Ints,
    log_probs: Floats,
    first: Floats,
) -> None:
    """Decode the frames of `look`.

    Args:
        network: Weights.
        keys: `(L, R, G, slots, h)`, written to.
        values: The same.
        look: What the frames may look at.
        played: `(R,)` frames that were played before; those of 0 begin.
        last: `(R, Q)` codes of the frame before, replaced by those of the last one.
        instrument: `(R,)`.
        aligned: `(R, M, C)` added to each frame's embedding; without columns, nothing.
        draws: How codes are drawn.
        codes: `(N, M, Q)`, the result.
        log_probs: `(N, M, Q)`, of these codes.
        first: `(R, C)` hidden state of the first frame.
    """
    rows, dim = first.shape
    streams = len(codes)
    latents = np.empty((rows, network.vectors.shape[2]), np.float32)
    x = np.empty((rows, dim), np.float32)
    hidden = np.empty((rows, dim), np.float32)
    for m in range(codes.shape[1]):
        latents[:] = 0
        for r in range(rows):
            for q in range(last.shape[1]):
                latents[r] += network.vectors[q, last[r, q]]
        linear(network.played.weight, network.played.bias, latents, x)
        for r in range(rows):
            if m == 0 and played[r] == 0:
                x[r] = network.start
            x[r] += network.stream + network.instruments[instrument[r]]
            if aligned.shape[2]:
                x[r] += aligned[r, m]
        run_blocks(network.layers, x, keys, values, look, m)
        normalise(network.norm, x, hidden)
        if m == 0:
            first[:] = hidden
        draw_frame(network, hidden, draws, m, codes[:, m], log_probs[:, m])
        for r in range(rows):
            last[r] = codes[r % streams, m]
