"""Streaming inference: append what was heard, decode k frames, never recompute the past.

Rows may be at different times. Streaming logits equal the teacher-forced ones of `AccompanimentDecoder.forward`,
also where the sliding window has dropped the beginning. With guidance, every stream has a second row that plays the
same and hears nothing; both rows are decoded in one pass, and callers see one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from jamgym_agents.attention import Angles, Block
from jamgym_agents.decoder import AccompanimentDecoder
from jamgym_agents.kv_cache import HEARD, PLAYED, DecoderState, slot_frames
from jamgym_agents.sampling import Sampling, draw, guide, transform
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


def draw_frame(
    decoder: AccompanimentDecoder, hidden: Tensor, sampling: Sampling, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Draw the codes of one frame, codebook by codebook.

    Args:
        decoder: Whose depth module is asked.
        hidden: `(B, C)` what the output stream knows before the frame; with guidance `(2 B, C)`, the second half of
            which has heard nothing.
        sampling: How codes are drawn.
        generator: Of the draws.

    Returns:
        Codes `(B, Q)` int64, and their log-probabilities `(B, Q)` under the distribution they were drawn from.
    """
    count = len(hidden) // 2 if sampling.guided else len(hidden)
    partial = hidden.new_zeros(count, decoder.config.latent_dim)
    codes, scores = [], []
    for q in range(decoder.config.num_codebooks):
        so_far = torch.cat([partial, partial]) if sampling.guided else partial
        logits = decoder.depth.level_logits(hidden, so_far, q)
        if sampling.guided:
            logits = guide(logits[:count], logits[count:], sampling.guidance)
        distribution = transform(logits, sampling)
        code = draw(distribution, generator)
        scores.append(distribution.gather(1, code.unsqueeze(1))[:, 0])
        partial = partial + decoder.vectors[q][code]
        codes.append(code)
    return torch.stack(codes, dim=1), torch.stack(scores, dim=1)


@dataclass(frozen=True)
class View:
    """Where M new frames of a stream stand, what they may look at, and where their keys go.

    Attributes:
        angles: `AccompanimentDecoder.angles` of the frames.
        bias: `(B, 1, M, S)` of the S slots in `used`: 0 where a frame may look, -inf where not.
        used: Slots of the memory that they look at.
        sinks: Where the sinks lie among those.
        rows: `(B, G, M)` rows of a block's memory that their keys and values go to.
    """

    angles: Angles
    bias: Tensor
    used: slice
    sinks: slice
    rows: Tensor

    def frame(self, index: int) -> View:
        """Return the view of one of the frames."""
        part = slice(index, index + 1)
        angles = self.angles[0][:, :, part], self.angles[1][:, :, part]
        return View(angles, self.bias[:, :, part], self.used, self.sinks, self.rows[:, :, part])


class StreamingDecoder:
    """Runs an `AccompanimentDecoder` as a stream; holds no weights of its own.

    Args:
        decoder: In eval mode.
        capacity: Frames per row to make room for at first; grows when needed, up to what the window holds.
    """

    def __init__(self, decoder: AccompanimentDecoder, capacity: int = 64) -> None:
        self.decoder = decoder
        self.capacity = capacity

    def initial_state(self, batch: int, guided: bool = False) -> DecoderState:
        """Return the state of `batch` streams that have heard and played nothing; `guided`, to play with guidance."""
        return DecoderState.empty(self.decoder.config, batch, self.capacity, self.decoder.start, guided)

    @torch.no_grad()
    def hear(self, state: DecoderState, codes: Tensor, count: Tensor) -> None:
        """Append newly heard frames: the first `count[b]` `(B,)` of `codes[b]` `(B, M, Q)`."""
        newest = int(count.max()) if len(count) else 0
        if newest == 0:
            return
        extent = state.make_room(newest, HEARD)
        rows = state.listening()
        positions = rows.heard.unsqueeze(1) + torch.arange(newest, device=codes.device)
        rows.keep_codes(positions, codes[:, :newest])
        self._pass_heard(codes[:, :newest], positions, state, extent)
        # What lies beyond a row's count was written too; the count hides it until it is overwritten.
        rows.heard += count

    @torch.no_grad()
    def generate(
        self, state: DecoderState, k: int, sampling: Sampling, generator: torch.Generator | None = None
    ) -> Chunk:
        """Decode the next k frames of every stream from what was heard so far.

        Raises:
            ValueError: k is below 1, or the state was made for guidance and the sampling has none, or the reverse.
        """
        if k < 1:
            raise ValueError(f"k is {k}; it must be at least 1")
        if sampling.guided != state.guided:
            raise ValueError(
                f"guidance is {sampling.guidance}, but the state was made with guided={state.guided}; "
                "give initial_state guided=sampling.guided."
            )
        extent = state.make_room(k, PLAYED)
        positions = state.played.unsqueeze(1) + torch.arange(k, device=state.played.device)
        codes, log_probs, first = self._decode(state, positions, extent, sampling, generator)
        state.played += k
        return Chunk(codes, log_probs, first[: state.streams])

    def _pass_heard(self, codes: Tensor, positions: Tensor, state: DecoderState, extent: int) -> None:
        """Pass newly heard frames `(B, M, Q)` at `positions` `(B, M)` through all blocks, for their keys alone."""
        rows = state.listening()
        x = self.decoder.embed_heard(self.decoder.frame_latents(codes))
        self._remember(x, self._look(positions, rows, HEARD, extent), rows)

    def _decode(
        self,
        state: DecoderState,
        positions: Tensor,
        extent: int,
        sampling: Sampling,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Decode the frames at `positions` `(R, k)`; `extent` is what `make_room` returned.

        Returns:
            Codes and their log-probabilities, and the hidden states `(R, C)` of all rows before the first frame.
        """
        decoder = self.decoder
        view, aligned = self._look(positions, state, PLAYED, extent), self._aligned(positions, state)
        codes, log_probs, first = [], [], None
        for index in range(positions.shape[1]):
            x = decoder.embed_played(state.last.unsqueeze(1), state.instrument)
            if index == 0:
                start = (state.played == 0).view(-1, 1, 1)
                x = torch.where(start, decoder.embed_start(state.instrument), x)
            if aligned is not None:
                x = x + aligned[:, index : index + 1]
            hidden = decoder.norm(self._run(x, view.frame(index), state))[:, 0]
            first = hidden if first is None else first
            drawn, scores = draw_frame(decoder, hidden, sampling, generator)
            state.last = state.all_rows(drawn)
            codes.append(drawn)
            log_probs.append(scores)
        assert first is not None
        return torch.stack(codes, 1), torch.stack(log_probs, 1), first

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
        played, count, emitted = (state.all_rows(part) for part in (played, count, emitted))
        moved = count > 0
        first = torch.where(moved, (state.played - emitted).clamp_min(0), state.played)
        newest = played.gather(1, (count - 1).clamp_min(0).view(-1, 1, 1).expand(-1, 1, played.shape[2]))[:, 0]
        state.last = torch.where(moved.unsqueeze(1), newest, state.last)
        state.played = torch.where(moved, first + count, state.played)
        if longest > 1:
            # What lies beyond a row's count is written too, and overwritten before anything attends to it.
            positions = first.unsqueeze(1) + torch.arange(1, longest, device=first.device)
            extent = state.make_room(longest, PLAYED)
            x = self.decoder.embed_played(played[:, : longest - 1], state.instrument)
            if (aligned := self._aligned(positions, state)) is not None:
                x = x + aligned
            self._remember(x, self._look(positions, state, PLAYED, extent), state)

    def cut(self, state: DecoderState, chunk: Chunk, size: Tensor) -> None:
        """Take back what `generate` decoded beyond the first `size` `(B,)` frames of `chunk`."""
        frames = chunk.codes.shape[1]
        state.played = state.played - (frames - state.all_rows(size))
        last = chunk.codes.gather(1, (size - 1).view(-1, 1, 1).expand(-1, 1, chunk.codes.shape[2]))[:, 0]
        state.last = state.all_rows(last)

    def _aligned(self, positions: Tensor, state: DecoderState) -> Tensor | None:
        """Return `(B, M, C)`, what output frames at consecutive `positions` `(B, M)` are given of the input."""
        module = self.decoder.aligned
        if module is None:
            return None
        # Neighbours are given nearly the same frames, so each of them is looked up once.
        width = module.past + module.frames
        count = positions.shape[1] + width - 1
        span = positions[:, :1] - module.past + torch.arange(count, device=positions.device)
        latents = self.decoder.frame_latents(state.codes_of(span.clamp_min(0)))
        windows = latents.unfold(1, width, 1).transpose(2, 3)
        return module(windows, module.places(positions), state.heard.unsqueeze(1))

    def _look(self, positions: Tensor, state: DecoderState, stream: int, extent: int) -> View:
        """Return the view of new frames of `stream` at consecutive `positions` `(B, M)`.

        Input frames attend to input frames up to themselves; output frames to outputs up to themselves and
        to everything heard; both as far back as the window reaches. `extent` is what `make_room` returned.
        """
        config, places = self.decoder.config, positions[:, None, :, None]
        # As if all M were written: those that are not yet are later than any frame that looks.
        newest, last = positions[:, -1:], places
        if stream == PLAYED:
            heard = state.heard.unsqueeze(1) - 1
            newest = torch.cat([heard, newest], dim=1)
            last = torch.cat([heard[:, :, None, None].expand_as(places), places], dim=1)
        frames = slot_frames(newest, extent, state.capacity, config.sinks)
        seen = (frames >= 0) & (frames <= last) & in_reach(frames, places, config.window, config.sinks)
        # `(B, N, M, S / N)` of N streams to `(B, M, S)`, as the slots lie.
        allowed = seen.permute(0, 2, 3, 1).flatten(2)
        used = slice(0, allowed.shape[2]) if stream == PLAYED else slice(HEARD, 2 * allowed.shape[2], 2)
        sinks = slice(config.sinks * seen.shape[1])
        angles = self.decoder.angles(positions, extent)
        return View(angles, additive(allowed).unsqueeze(1), used, sinks, state.rows_of(positions, stream))

    def _remember(self, x: Tensor, view: View, state: DecoderState) -> None:
        """Write the keys of new frames `(B, M, C)`, which is all that later frames take from them."""
        *blocks, last = cast(list[Block], list(self.decoder.blocks))
        for layer, block in enumerate(blocks):
            x = self._pass_block(block, layer, x, view, state)
        _, key, value, _ = last.project(x, view.angles)
        state.write(len(blocks), key, value, view.rows)

    def _run(self, x: Tensor, view: View, state: DecoderState) -> Tensor:
        """Pass new frames `(B, M, C)` through all blocks, writing their keys; returns `(B, M, C)`."""
        for layer, block in enumerate(self.decoder.blocks):
            x = self._pass_block(cast(Block, block), layer, x, view, state)
        return x

    def _pass_block(self, block: Block, layer: int, x: Tensor, view: View, state: DecoderState) -> Tensor:
        q, key, value, near = block.project(x, view.angles)
        state.write(layer, key, value, view.rows)
        keys, values = state.keys[layer, :, :, view.used], state.values[layer, :, :, view.used]
        return block.finish(x, block.attend(q, keys, values, view.bias, near, (view.sinks,)))
