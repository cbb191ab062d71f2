"""New frames through the blocks in compiled loops: what they may look at, where they stand, attention and MLP.

Shapes: R rows, F frames, C width, H query heads, G key heads, h width of a head, S slots.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray

from jamgym_agents.compiled.arithmetic import dot, exp, gelu, linear, maximum, normalise
from jamgym_agents.compiled.arrays import Floats, Ints, Look
from jamgym_agents.compiled.compiling import parallel, serial
from jamgym_agents.compiled.intrinsics import prefer_wide_vectors
from jamgym_agents.kv_cache import HEARD, PLAYED


@serial
def slot_of(frame: int, capacity: int, sinks: int) -> int:
    """`kv_cache.slots_of` one frame."""
    return frame if frame < sinks else sinks + (frame - sinks) % (capacity - sinks)


@serial
def list_slots(look: Look, row: int, place: int, capacity: int, slots: Ints) -> tuple[int, int]:
    """List what a frame at `place` may look at: the frames of its window, the sinks before them.

    Args:
        look: Where the frames of all rows stand.
        row: Which row it is.
        place: Frame time.
        capacity: Slots of a stream.
        slots: `(S,)`, the list.

    Returns:
        How many of them are sinks, and how many there are.
    """
    heard, played = (place + 1, 0) if look.stream == HEARD else (look.heard[row], place + 1)
    end = max(heard, played)
    # The ring holds what the window reaches; nothing may be written beyond the list even if it did not.
    reach = max(place + 1 - look.window, look.sinks, end - capacity + look.sinks)
    count = near = 0
    for part in range(2):
        first, last = (0, min(end, look.sinks)) if part == 0 else (reach, end)
        slot = slot_of(first, capacity, look.sinks)
        # As they lie in memory: both streams of a frame side by side.
        for frame in range(first, last):
            if frame < heard:
                slots[count] = 2 * slot + HEARD
                count += 1
            if frame < played:
                slots[count] = 2 * slot + PLAYED
                count += 1
            # `slot_of` the next frame, without its division.
            slot = slot + 1 if slot + 1 < capacity else look.sinks
        if part == 0:
            near = count
    return near, count


@serial
def find_angles(rates: NDArray[np.float64], place: int, angles: Floats) -> None:
    """Set `angles` `(2, h / 2)` to cosine and sine of each pair's angle at `place`, in double precision till then."""
    for j in range(len(rates)):
        angle = place * rates[j]
        angles[0, j] = math.cos(angle)
        angles[1, j] = math.sin(angle)


@serial
def rotate(x: Floats, angles: Floats, scale: np.float32, y: Floats) -> None:
    """Set `y` `(h,)` to `attention.rotate` of `x`, times `scale`."""
    half = len(x) // 2
    for j in range(half):
        cos, sin = angles[0, j] * scale, angles[1, j] * scale
        y[j] = x[j] * cos - x[half + j] * sin
        y[half + j] = x[half + j] * cos + x[j] * sin


@serial
def score(queries: Floats, keys: Floats, slots: Ints, begin: int, end: int, scores: Floats) -> None:
    """Set `scores` `(H / G, S)` from `begin` to `end` to the products of `queries` `(H / G, h)` and keys.

    Args:
        queries: Of the heads that share the keys: each key is read once.
        keys: `(slots, h)`.
        slots: `(S,)` where the keys lie.
        begin: The first of those.
        end: Behind the last one.
        scores: The result.
    """
    for s in range(begin, end):
        key = keys[slots[s]]
        for a in range(len(queries)):
            scores[a, s] = dot(queries[a], key)


@serial
def softmax(scores: Floats) -> None:
    """Replace `scores` `(S,)` by their softmax."""
    prefer_wide_vectors()
    top, total = maximum(scores), np.float32(0.0)
    for s in range(len(scores)):
        scores[s] = exp(scores[s] - top)
        total += scores[s]
    scores *= np.float32(1.0) / total


@serial
def weighted_sum(weights: Floats, values: Floats, slots: Ints, mixed: Floats) -> None:
    """Set `mixed` `(H / G, h)` to the sums of the values `(slots, h)` in `slots` `(S,)`, times `weights` `(H / G, S)`.

    Four values at a time, for all heads that share them.
    """
    prefer_wide_vectors()
    # Apart from what other threads write: two that write to one line of the cache wait for each other each time.
    sums: Floats = np.zeros(mixed.shape, np.float32)
    tiled = len(slots) - len(slots) % 4
    for s in range(0, tiled, 4):
        v0, v1, v2, v3 = values[slots[s]], values[slots[s + 1]], values[slots[s + 2]], values[slots[s + 3]]
        for a in range(len(sums)):
            w0, w1, w2, w3 = weights[a, s], weights[a, s + 1], weights[a, s + 2], weights[a, s + 3]
            for j in range(sums.shape[1]):
                sums[a, j] += w0 * v0[j] + w1 * v1[j] + w2 * v2[j] + w3 * v3[j]
    for s in range(tiled, len(slots)):
        value = values[slots[s]]
        for a in range(len(sums)):
            for j in range(sums.shape[1]):
                sums[a, j] += weights[a, s] * value[j]
    mixed[:] = sums


@parallel
def attend(
    queries: Floats,
    near: Floats,
    keys: Floats,
    values: Floats,
    slots: Ints,
    counts: Ints,
    scores: Floats,
    mixed: Floats,
) -> None:
    """Set `mixed` `(R F, G, H / G, h)` to what F frames of each row find where they may look.

    Args:
        queries: `(R F, G, H / G, h)`, turned and scaled.
        near: The same, at their near places.
        keys: `(R, G, slots, h)` of this block.
        values: The same.
        slots: `(R F, S)` where each may look: sinks, then others.
        counts: `(R F, 2)` how many sinks, and how many in all.
        scores: `(R F G, H / G, S)`, to be overwritten.
        mixed: The result.
    """
    count, groups = queries.shape[:2]
    frames = count // keys.shape[0]
    for item in prange(count * groups):
        n, g = item // groups, item % groups
        r, sinks, end = n // frames, counts[n, 0], counts[n, 1]
        weights = scores[item]
        score(near[n, g], keys[r, g], slots[n], 0, sinks, weights)
        score(queries[n, g], keys[r, g], slots[n], sinks, end, weights)
        for a in range(len(weights)):
            softmax(weights[a, :end])
        weighted_sum(weights, values[r, g], slots[n, :end], mixed[n, g])


@serial
def run_blocks(layers: Any, x: Floats, keys: Floats, values: Floats, look: Look, begin: int | np.int64) -> None:
    """Pass F frames of each row through all blocks; their keys and values are written.

    Of heard frames, that is all: nobody asks what the last block makes of them.

    Args:
        layers: Weights.
        x: `(R F, C)`, changed in place.
        keys: `(L, R or more, G, slots, h)`.
        values: The same.
        look: Where frames stand.
        begin: Which of those is the first one.
    """
    count, dim = x.shape
    rows, groups, capacity, width = len(look.places), keys.shape[2], keys.shape[3] // 2, keys.shape[4]
    frames, heads = count // rows, dim // width
    size = heads // groups
    normed = np.empty((count, dim), np.float32)
    qkv = np.empty((count, (heads + 2 * groups) * width), np.float32)
    queries = np.empty((count, groups, size, width), np.float32)
    near = np.empty((count, groups, size, width), np.float32)
    mixed = np.empty((count, groups, size, width), np.float32)
    wide = np.empty((count, layers[0].expand.weight.shape[0]), np.float32)
    scale = np.float32(width**-0.5)

    slots = np.empty((count, 2 * capacity), np.int64)
    counts = np.empty((count, 2), np.int64)
    own = np.empty((count, 2, width // 2), np.float32)
    nearer = np.empty((count, 2, width // 2), np.float32)
    for n in range(count):
        place = look.places[n // frames, begin + n % frames]
        counts[n] = list_slots(look, n // frames, place, capacity, slots[n])
        find_angles(look.rates, place, own[n])
        find_angles(look.rates, min(place, look.window - 1), nearer[n])
    scores = np.empty((count * groups, size, counts[:, 1].max()), np.float32)

    for index in range(len(layers)):
        layer = layers[index]
        normalise(layer.norm_attention, x, normed)
        linear(layer.qkv, normed, qkv)
        for n in range(count):
            for a in range(heads):
                part = qkv[n, a * width : (a + 1) * width]
                rotate(part, own[n], scale, queries[n, a // size, a % size])
                rotate(part, nearer[n], scale, near[n, a // size, a % size])
            r = n // frames
            slot = 2 * slot_of(look.places[r, begin + n % frames], capacity, look.sinks) + look.stream
            for g in range(groups):
                key = qkv[n, (heads + g) * width : (heads + g + 1) * width]
                rotate(key, own[n], np.float32(1.0), keys[index, r, g, slot])
                values[index, r, g, slot] = qkv[n, (heads + groups + g) * width : (heads + groups + g + 1) * width]
        if look.stream == HEARD and index == len(layers) - 1:
            break
        # Views of the rows that are passed: with guidance, the other half hears nothing.
        attend(queries, near, keys[index, :rows], values[index, :rows], slots, counts, scores, mixed)
        linear(layer.out, mixed.reshape(count, dim), normed)
        x += normed
        normalise(layer.norm_mlp, x, normed)
        linear(layer.expand, normed, wide)
        gelu(wide)
        linear(layer.reduce, wide, normed)
        x += normed
