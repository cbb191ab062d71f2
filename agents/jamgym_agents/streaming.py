"""Streaming inference: append what was heard, decode k frames, never recompute the past.

The state is a typed object of keys and values per block and stream, resettable per row. Rows may be at
different times. Streaming logits equal the teacher-forced ones of `AccompanimentDecoder.forward`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from jamgym_agents.attention import Block, rotary_angles
from jamgym_agents.decoder import AccompanimentDecoder
from jamgym_agents.sampling import Sampling, draw, transform

#: Streams take turns in memory: slot 2 n + HEARD holds input frame n, slot 2 n + PLAYED output position n.
HEARD, PLAYED = 0, 1


@dataclass
class DecoderState:
    """Streaming state of B rows.

    The two streams lie interleaved on one time axis, so that what a frame attends to is one prefix of
    the cache and nothing is copied to put them together.

    Attributes:
        keys: `(L, B, G, 2 * capacity, h)` rotated keys per block.
        values: The same for values.
        heard: `(B,)` input frames per row.
        played: `(B,)` output positions per row; position n carries frame n - 1.
        instrument: `(B,)` class index per row.
        last: `(B, Q)` codes of the last played frame.
    """

    keys: Tensor
    values: Tensor
    heard: Tensor
    played: Tensor
    instrument: Tensor
    last: Tensor

    def reset(self, rows: Tensor, instrument: Tensor) -> None:
        """Start anew in the rows of mask `rows` `(B,)`; old entries are masked by count, so none is cleared."""
        self.heard.masked_fill_(rows, 0)
        self.played.masked_fill_(rows, 0)
        self.instrument = torch.where(rows, instrument, self.instrument)

    def grow(self, frames: int) -> None:
        """Make room for `frames` frames per row, doubling so that growth is rare."""
        missing = 2 * frames - self.keys.shape[3]
        if missing > 0:
            pad = (0, 0, 0, max(missing, self.keys.shape[3]))
            self.keys = torch.nn.functional.pad(self.keys, pad)
            self.values = torch.nn.functional.pad(self.values, pad)

    def write(self, layer: int, keys: Tensor, values: Tensor, slots: Tensor) -> None:
        """Store `(B, G, M, h)` at `slots` `(B, M)`."""
        index = slots[:, None, :, None].expand_as(keys)
        self.keys[layer].scatter_(2, index, keys)
        self.values[layer].scatter_(2, index, values)


@dataclass(frozen=True)
class Chunk:
    """k generated frames.

    Attributes:
        codes: `(B, k, Q)` int64.
        log_probs: `(B, k, Q)` of the codes under the distribution they were drawn from.
        hidden: `(B, C)` of the chunk's first frame: what the network knew before it emitted anything.
    """

    codes: Tensor
    log_probs: Tensor
    hidden: Tensor


class StreamingDecoder:
    """Runs an `AccompanimentDecoder` as a stream; holds no weights of its own.

    Args:
        decoder: In eval mode.
        capacity: Frames per row to make room for at first; grows when needed.
    """

    def __init__(self, decoder: AccompanimentDecoder, capacity: int = 320) -> None:
        self.decoder = decoder
        self.capacity = capacity

    def initial_state(self, batch: int) -> DecoderState:
        """Return the state of `batch` rows that have heard and played nothing."""
        config, device = self.decoder.config, self.decoder.vectors.device
        shape = (config.layers, batch, config.kv_heads, 2 * self.capacity, config.dim // config.heads)
        return DecoderState(
            keys=torch.zeros(shape, device=device),
            values=torch.zeros(shape, device=device),
            heard=torch.zeros(batch, dtype=torch.int64, device=device),
            played=torch.zeros(batch, dtype=torch.int64, device=device),
            instrument=torch.zeros(batch, dtype=torch.int64, device=device),
            last=torch.zeros(batch, config.num_codebooks, dtype=torch.int64, device=device),
        )

    @torch.no_grad()
    def hear(self, state: DecoderState, codes: Tensor, count: Tensor) -> None:
        """Append newly heard frames: the first `count[b]` `(B,)` of `codes[b]` `(B, M, Q)`."""
        newest = int(count.max()) if len(count) else 0
        if newest == 0:
            return
        positions = state.heard.unsqueeze(1) + torch.arange(newest, device=codes.device)
        state.grow(int(positions.max()) + 1)
        self._run(self.decoder.embed_heard(codes[:, :newest]), positions, state, HEARD)
        # What lies beyond a row's count was written too; the count hides it until it is overwritten.
        state.heard += count

    @torch.no_grad()
    def generate(
        self, state: DecoderState, k: int, sampling: Sampling, generator: torch.Generator | None = None
    ) -> Chunk:
        """Decode the next k frames of every row from what was heard so far."""
        decoder, codebooks = self.decoder, self.decoder.config.num_codebooks
        state.grow(max(int(state.played.max()) + k, int(state.heard.max())))
        codes, log_probs, first = [], [], None
        for _ in range(k):
            position = state.played.unsqueeze(1)
            fresh = decoder.embed_start(state.instrument)
            going = decoder.embed_played(state.last.unsqueeze(1), state.instrument)
            x = torch.where((position == 0).unsqueeze(2), fresh, going)
            hidden = decoder.norm(self._run(x, position, state, PLAYED))[:, 0]
            first = hidden if first is None else first
            state.played += 1
            partial = hidden.new_zeros(len(hidden), decoder.config.latent_dim)
            frame, scores = [], []
            for q in range(codebooks):
                distribution = transform(decoder.depth.level_logits(hidden, partial, q), sampling)
                code = draw(distribution, generator)
                scores.append(distribution.gather(1, code.unsqueeze(1))[:, 0])
                partial = partial + decoder.vectors[q][code]
                frame.append(code)
            state.last = torch.stack(frame, dim=1)
            codes.append(state.last)
            log_probs.append(torch.stack(scores, dim=1))
        if first is None:
            raise ValueError("k must be at least 1")
        return Chunk(torch.stack(codes, 1), torch.stack(log_probs, 1), first)

    @torch.no_grad()
    def amend(self, state: DecoderState, played: Tensor, count: Tensor, emitted: Tensor) -> None:
        """Put what was really played in place of the last emitted frames.

        Call it before the next `hear`, so that the recomputed frames see what their chunk saw.

        Args:
            state: Rows that have played at least `emitted` frames, or nothing at all.
            played: `(B, M, Q)` codes of the slots that the last call decided: gaps, fills and skipped ones included.
            count: `(B,)` how many of them exist; a row with 0 stays as it is.
            emitted: `(B,)` frames that the last call emitted.
        """
        longest = int(count.max())
        if longest == 0:
            return
        moved = count > 0
        first = (state.played - emitted).clamp_min(0)
        newest = played.gather(1, (count - 1).clamp_min(0).view(-1, 1, 1).expand(-1, 1, played.shape[2]))[:, 0]
        state.last = torch.where(moved.unsqueeze(1), newest, state.last)
        state.played = torch.where(moved, first + count, state.played)
        if longest > 1:
            # What lies beyond a row's count is written too, and overwritten before anything attends to it.
            positions = first.unsqueeze(1) + torch.arange(1, longest, device=first.device)
            state.grow(int(positions.max()) + 1)
            x = self.decoder.embed_played(played[:, : longest - 1], state.instrument)
            self._run(x, positions, state, PLAYED)

    def cut(self, state: DecoderState, chunk: Chunk, size: Tensor) -> None:
        """Take back what `generate` decoded beyond the first `size` `(B,)` frames of `chunk`."""
        frames = chunk.codes.shape[1]
        state.played = state.played - (frames - size)
        state.last = chunk.codes.gather(1, (size - 1).view(-1, 1, 1).expand(-1, 1, chunk.codes.shape[2]))[:, 0]

    def _run(self, x: Tensor, positions: Tensor, state: DecoderState, stream: int) -> Tensor:
        """Pass new frames `(B, M, C)` of `stream` at `positions` `(B, M)` through all blocks, writing their keys.

        Input frames attend to input frames up to themselves; output frames to outputs up to themselves and
        to everything heard.
        """
        cos, sin = rotary_angles(positions, self.decoder.config.dim // self.decoder.config.heads)
        angles = (cos.unsqueeze(1), sin.unsqueeze(1))
        length = int(positions.max()) + 1
        if stream == HEARD:
            used, mask = slice(HEARD, 2 * length, 2), torch.arange(length, device=x.device) <= positions.unsqueeze(2)
        else:
            length = max(length, int(state.heard.max()))
            causal = torch.arange(length, device=x.device) <= positions.unsqueeze(2)
            heard = torch.arange(length, device=x.device) < state.heard.view(-1, 1, 1)
            used = slice(0, 2 * length)
            mask = torch.stack([heard.expand_as(causal), causal], dim=3).flatten(2)
        mask = mask.unsqueeze(1)
        slots = 2 * positions + stream
        for layer, module in enumerate(self.decoder.blocks):
            block = cast(Block, module)
            q, key, value = block.project(x, angles)
            state.write(layer, key, value, slots)
            keys, values = state.keys[layer, :, :, used], state.values[layer, :, :, used]
            x = block.finish(x, block.attend(q, keys, values, mask))
        return x
