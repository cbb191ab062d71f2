"""Streaming inference: append what was heard, decode k frames, never recompute the past.

Rows may be at different times. Streaming logits equal the teacher-forced ones of `AccompanimentDecoder.forward`,
also where the sliding window has dropped the beginning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from jamgym_agents.attention import Block, Sinks, rotary_angles
from jamgym_agents.decoder import AccompanimentDecoder
from jamgym_agents.kv_cache import HEARD, PLAYED, DecoderState, slot_frames, slots_of
from jamgym_agents.sampling import Sampling, draw, transform
from jamgym_agents.visibility import additive, in_reach


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
        capacity: Frames per row to make room for at first; grows when needed, up to what the window holds.
    """

    def __init__(self, decoder: AccompanimentDecoder, capacity: int = 320) -> None:
        self.decoder = decoder
        self.capacity = capacity

    def initial_state(self, batch: int) -> DecoderState:
        """Return the state of `batch` rows that have heard and played nothing."""
        return DecoderState.empty(self.decoder.config, batch, self.capacity, self.decoder.vectors.device)

    @torch.no_grad()
    def hear(self, state: DecoderState, codes: Tensor, count: Tensor) -> None:
        """Append newly heard frames: the first `count[b]` `(B,)` of `codes[b]` `(B, M, Q)`."""
        newest = int(count.max()) if len(count) else 0
        if newest == 0:
            return
        positions = state.heard.unsqueeze(1) + torch.arange(newest, device=codes.device)
        extent = state.make_room(newest, HEARD)
        self._run(self.decoder.embed_heard(codes[:, :newest]), positions, state, HEARD, extent)
        # What lies beyond a row's count was written too; the count hides it until it is overwritten.
        state.heard += count

    @torch.no_grad()
    def generate(
        self, state: DecoderState, k: int, sampling: Sampling, generator: torch.Generator | None = None
    ) -> Chunk:
        """Decode the next k frames of every row from what was heard so far."""
        decoder, codebooks = self.decoder, self.decoder.config.num_codebooks
        extent = state.make_room(k, PLAYED)
        codes, log_probs, first = [], [], None
        for _ in range(k):
            position = state.played.unsqueeze(1)
            fresh = decoder.embed_start(state.instrument)
            going = decoder.embed_played(state.last.unsqueeze(1), state.instrument)
            x = torch.where((position == 0).unsqueeze(2), fresh, going)
            hidden = decoder.norm(self._run(x, position, state, PLAYED, extent))[:, 0]
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
            extent = state.make_room(longest, PLAYED)
            x = self.decoder.embed_played(played[:, : longest - 1], state.instrument)
            self._run(x, positions, state, PLAYED, extent)

    def cut(self, state: DecoderState, chunk: Chunk, size: Tensor) -> None:
        """Take back what `generate` decoded beyond the first `size` `(B,)` frames of `chunk`."""
        frames = chunk.codes.shape[1]
        state.played = state.played - (frames - size)
        state.last = chunk.codes.gather(1, (size - 1).view(-1, 1, 1).expand(-1, 1, chunk.codes.shape[2]))[:, 0]

    def _run(self, x: Tensor, positions: Tensor, state: DecoderState, stream: int, extent: int) -> Tensor:
        """Pass new frames `(B, M, C)` of `stream` at `positions` `(B, M)` through all blocks, writing their keys.

        Input frames attend to input frames up to themselves; output frames to outputs up to themselves and
        to everything heard; both as far back as the window reaches. `extent` is what `make_room` returned.
        """
        decoder, config = self.decoder, self.decoder.config
        cos, sin = rotary_angles(positions, decoder.head_dim)
        angles = (cos.unsqueeze(1), sin.unsqueeze(1))
        places = positions.unsqueeze(2)
        newest = positions[:, -1]
        if stream == HEARD:
            frames = slot_frames(newest, extent, state.capacity, config.sinks)
            allowed = (frames >= 0) & (frames <= places) & in_reach(frames, places, config.window, config.sinks)
            used, slots = slice(HEARD, 2 * frames.shape[-1], 2), config.sinks
        else:
            frames = slot_frames(newest, extent, state.capacity, config.sinks)
            causal = (frames >= 0) & (frames <= places) & in_reach(frames, places, config.window, config.sinks)
            frames = slot_frames(state.heard - 1, extent, state.capacity, config.sinks)
            heard = (frames >= 0) & (frames < state.heard.view(-1, 1, 1))
            heard = heard & in_reach(frames, places, config.window, config.sinks)
            allowed = torch.stack([heard.expand_as(causal), causal], dim=3).flatten(2)
            used, slots = slice(0, allowed.shape[2]), 2 * config.sinks
        bias = additive(allowed).unsqueeze(1)
        sinks = None
        if config.window is not None and extent > config.window and slots:
            cos, sin = rotary_angles(positions.clamp_max(config.window - 1), decoder.head_dim)
            sinks = Sinks((cos.unsqueeze(1), sin.unsqueeze(1)), (slice(slots),))
        targets = 2 * slots_of(positions, state.capacity, config.sinks) + stream
        for layer, module in enumerate(decoder.blocks):
            block = cast(Block, module)
            q, key, value = block.project(x, angles)
            state.write(layer, key, value, targets)
            keys, values = state.keys[layer, :, :, used], state.values[layer, :, :, used]
            x = block.finish(x, block.attend(q, keys, values, bias, angles, sinks))
        return x
