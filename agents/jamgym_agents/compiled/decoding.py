"""Frames of the decoder in compiled loops.

A single row gives torch some 150 small operations per frame, most of whose time goes into starting them. Here a chunk
is one call. Everything is done in place, on the memory of the torch tensors.

Shapes: R rows, M frames, N streams, C width, G key heads, h width of a head, Q codebooks, V entries, D latents.
"""

from __future__ import annotations

import numpy as np

from jamgym_agents.compiled.arithmetic import gelu, linear, normalise
from jamgym_agents.compiled.arrays import Draws, Floats, Ints, Linear, Look, Network
from jamgym_agents.compiled.attention import run_blocks, slot_of
from jamgym_agents.compiled.compiling import serial
from jamgym_agents.compiled.sampling import draw, transform


@serial
def add_entries(vectors: Floats, codes: Ints, latents: Floats) -> None:
    """Add the codec's entries, of its vectors `(Q, V, D)`, for the codes `(Q,)` of a frame to `latents` `(D,)`."""
    for q in range(len(codes)):
        for d in range(len(latents)):
            latents[d] += vectors[q, codes[q], d]


@serial
def hear(network: Network, keys: Floats, values: Floats, look: Look, codes: Ints) -> None:
    """Write the keys and values `(L, R or more, G, slots, h)` of the heard frames `(R, M, Q)` that `look` is of."""
    rows, frames, _ = codes.shape
    latents = np.zeros((rows * frames, network.vectors.shape[2]), np.float32)
    x = np.empty((rows * frames, network.stream.shape[1]), np.float32)
    for n in range(rows * frames):
        add_entries(network.vectors, codes[n // frames, n % frames], latents[n])
    linear(network.heard, latents, x)
    x += network.stream[0]
    # A literal would be another type, for which all of it would be compiled once more.
    run_blocks(network.layers, x, keys, values, look, np.int64(0))


@serial
def align(vectors: Floats, weights: Linear, past: int, look: Look, heard: Ints, aligned: Floats) -> None:
    """Set `aligned` `(R M, C)` to what the frames of `look` are given of the input: `aligned.AlignedInput`.

    Args:
        vectors: `(Q, V, D)` of the codec.
        weights: With which it is embedded.
        past: So many frames of it lie before an output frame.
        look: Where the frames stand.
        heard: `(R, slots, Q)` codes of the heard frames.
        aligned: The result.
    """
    frames, depth = look.places.shape[1], vectors.shape[2]
    width = weights.weight.shape[1] // (depth + 1)
    shown = np.zeros((len(aligned), width, depth + 1), np.float32)
    for n in range(len(aligned)):
        r = n // frames
        for w in range(width):
            frame = look.places[r, n % frames] - past + w
            if 0 <= frame < look.heard[r]:
                add_entries(vectors, heard[r, slot_of(frame, heard.shape[1], look.sinks)], shown[n, w, :depth])
                shown[n, w, depth] = 1
    linear(weights, shown.reshape(len(aligned), -1), aligned)


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
        linear(network.so_far, partial, x)
        for r in range(rows):
            for j in range(dim):
                x[r, j] += hidden[r, j] + level.place[j]
        normalise(network.depth_norm, x, x)
        linear(level.expand, x, wide)
        gelu(wide)
        linear(level.head, wide, logits)
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
                partial[other] += network.vectors[q, code]


@serial
def decode(
    network: Network,
    keys: Floats,
    values: Floats,
    look: Look,
    played: Ints,
    last: Ints,
    instrument: Ints,
    heard: Ints,
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
        look: Where the frames stand.
        played: `(R,)` frames that were played before; those of 0 begin.
        last: `(R, Q)` codes of the frame before, replaced by those of the last one.
        instrument: `(R,)`.
        heard: `(R, slots, Q)` codes of the heard frames, if the decoder is given them.
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
    frames = codes.shape[1]
    aligned = np.zeros((rows * frames, dim), np.float32)
    if len(network.aligned.weight):
        align(network.vectors, network.aligned, network.past, look, heard, aligned)
    for m in range(frames):
        latents[:] = 0
        for r in range(rows):
            add_entries(network.vectors, last[r], latents[r])
        linear(network.played, latents, x)
        for r in range(rows):
            if m == 0 and played[r] == 0:
                x[r] = network.start
            x[r] += network.stream[1] + network.instruments[instrument[r]] + aligned[r * frames + m]
        run_blocks(network.layers, x, keys, values, look, m)
        normalise(network.norm, x, hidden)
        if m == 0:
            first[:] = hidden
        draw_frame(network, hidden, draws, m, codes[:, m], log_probs[:, m])
        for r in range(rows):
            last[r] = codes[r % streams, m]
