"""Streaming inference: append what was heard, decode k frames, never recompute the past.

The state is a typed object of keys and values per block and stream, resettable per row. Rows may be at
different times. Streaming logits equal the teacher-forced ones of `AccompanimentDecoder.forward`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jamgym_agents.attention import rotary_angles
from jamgym_agents.decoder import AccompanimentDecoder
from jamgym_agents.sampling import Sampling, draw, transform


@dataclass
class StreamCache:
    """Keys and values `(L, B, G, capacity, h)` of one stream, and how many frames each row has `(B,)`."""

    keys: Tensor
    values: Tensor
    length: Tensor

    @classmethod
    def empty(cls, decoder: AccompanimentDecoder, batch: int, capacity: int) -> StreamCache:
        """Return an empty cache for `batch` rows."""
        config = decoder.config
        shape = (config.layers, batch, config.kv_heads, capacity, config.dim // config.heads)
        device = decoder.vectors.device
        return cls(
            torch.zeros(shape, device=device),
            torch.zeros(shape, device=device),
            torch.zeros(batch, dtype=torch.int64, device=device),
        )

    def grow(self, needed: int) -> None:
        """Make room for `needed` frames per row, doubling so that growth is rare."""
        missing = needed - self.keys.shape[3]
        if missing > 0:
            extra = max(missing, self.keys.shape[3])
            pad = (0, 0, 0, extra)
            self.keys = torch.nn.functional.pad(self.keys, pad)
            self.values = torch.nn.functional.pad(self.values, pad)

    def write(self, layer: int, keys: Tensor, values: Tensor, positions: Tensor) -> None:
        """Store `(B, G, M, h)` at `positions` `(B, M)`."""
        index = positions[:, None, :, None].expand_as(keys)
        self.keys[layer].scatter_(2, index, keys)
        self.values[layer].scatter_(2, index, values)


@dataclass
class DecoderState:
    """Streaming state of B rows.

    Attributes:
        heard: Cache of the input stream.
        played: Cache of the output stream; position n carries frame n - 1.
        instrument: `(B,)` class index per row.
        last: `(B, Q)` codes of the last played frame.
    """

    heard: StreamCache
    played: StreamCache
    instrument: Tensor
    last: Tensor

    def reset(self, rows: Tensor, instrument: Tensor) -> None:
        """Start anew in the rows of mask `rows` `(B,)`; old entries are masked by length, so none is cleared."""
        self.heard.length.masked_fill_(rows, 0)
        self.played.length.masked_fill_(rows, 0)
        self.instrument = torch.where(rows, instrument, self.instrument)


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
        device = self.decoder.vectors.device
        return DecoderState(
            heard=StreamCache.empty(self.decoder, batch, self.capacity),
            played=StreamCache.empty(self.decoder, batch, self.capacity),
            instrument=torch.zeros(batch, dtype=torch.int64, device=device),
            last=torch.zeros(batch, self.decoder.config.num_codebooks, dtype=torch.int64, device=device),
        )

    @torch.no_grad()
    def hear(self, state: DecoderState, codes: Tensor, count: Tensor) -> None:
        """Append newly heard frames: the first `count[b]` `(B,)` of `codes[b]` `(B, M, Q)`."""
        newest = int(count.max()) if len(count) else 0
        if newest == 0:
            return
        cache = state.heard
        positions = cache.length.unsqueeze(1) + torch.arange(newest, device=codes.device)
        cache.grow(int(positions.max()) + 1)
        self._run(self.decoder.embed_heard(codes[:, :newest]), positions, cache, None)
        # What lies beyond a row's count was written too; the length hides it until it is overwritten.
        cache.length += count

    @torch.no_grad()
    def generate(
        self, state: DecoderState, k: int, sampling: Sampling, generator: torch.Generator | None = None
    ) -> Chunk:
        """Decode the next k frames of every row from what was heard so far."""
        decoder, codebooks = self.decoder, self.decoder.config.num_codebooks
        state.played.grow(int(state.played.length.max()) + k)
        codes, log_probs, first = [], [], None
        for _ in range(k):
            position = state.played.length.unsqueeze(1)
            fresh = decoder.embed_start(state.instrument)
            going = decoder.embed_played(state.last.unsqueeze(1), state.instrument)
            x = torch.where((position == 0).unsqueeze(2), fresh, going)
            hidden = decoder.norm(self._run(x, position, state.played, state.heard))[:, 0]
            first = hidden if first is None else first
            state.played.length += 1
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
    def amend(self, state: DecoderState, played: Tensor) -> None:
        """Put what was really played, `(B, k, Q)`, in place of the last k emitted frames.

        Call it before the next `hear`, so that the recomputed frames see what their chunk saw.
        """
        k = played.shape[1]
        started = state.played.length >= k
        state.last = torch.where(started.unsqueeze(1), played[:, -1], state.last)
        if k > 1:
            positions = (state.played.length - k + 1).clamp_min(0).unsqueeze(1) + torch.arange(k - 1)
            x = self.decoder.embed_played(played[:, :-1], state.instrument)
            self._run(x, positions, state.played, state.heard)

    def _run(self, x: Tensor, positions: Tensor, cache: StreamCache, other: StreamCache | None) -> Tensor:
        """Pass new frames `(B, M, C)` at `positions` `(B, M)` through all blocks, writing their keys.

        They attend to `cache` up to themselves and to everything of `other`.
        """
        cos, sin = rotary_angles(positions, self.decoder.config.dim // self.decoder.config.heads)
        angles = (cos.unsqueeze(1), sin.unsqueeze(1))
        own = int(positions.max()) + 1
        mask = torch.arange(own, device=x.device) <= positions.unsqueeze(2)
        seen = 0
        if other is not None and (seen := int(other.length.max())):
            visible = torch.arange(seen, device=x.device) < other.length.view(-1, 1, 1)
            mask = torch.cat([visible.expand(-1, mask.shape[1], -1), mask], dim=2)
        mask = mask.unsqueeze(1)
        for layer, block in enumerate(self.decoder.blocks):
            q, key, value = block.project(x, angles)
            cache.write(layer, key, value, positions)
            keys, values = cache.keys[layer, :, :, :own], cache.values[layer, :, :, :own]
            if seen:
                keys = torch.cat([other.keys[layer, :, :, :seen], keys], dim=2)
                values = torch.cat([other.values[layer, :, :, :seen], values], dim=2)
            x = block.finish(x, block.attend(q, keys, values, mask))
        return x
