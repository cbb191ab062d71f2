"""Two decoders to compare `StreamingDecoder` with; `decoder_throughput.py` times them.

`ReencodingDecoder` has the weights of an `AccompanimentDecoder` and no cache at all: for every frame it runs the
teacher-forced trunk over the whole history, as the first version of a program would. It knows no window, so it yields
the codes of a `StreamingDecoder` without one, or of one whose window is not full yet. It is spared what a plain
program would waste: attention goes over blocks of queries and leaves out what a block may not see, so memory stays
small and about half of the products are saved.

`FusedDecoder` is written after the scheme of arXiv 2510.22105, not copied from its code: the embeddings of input
and output are summed into one stream, the input shifted by t_f; codebook q is delayed by q frames, and one step of
the trunk feeds Q heads in parallel; within a chunk keys and values are cached, but every call encodes the whole
history anew, because positions of the last chunk were computed before their input had been heard. A chunk takes
k + Q - 1 steps of the trunk, the first of which is the encoding. What it leaves out: training; dropout; a cache that
goes on across calls, which k = 1 would allow to those who accept frames that are complete Q - 1 calls late; the
saving of computing only the last position in the last block. Its blocks, rotary positions and grouped keys are those
of `AccompanimentDecoder`.

Shapes: B rows, T frames, Q codebooks, V entries, C width, L blocks, G key heads, h width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jamgym.corpus import INSTRUMENTS
from jamgym_agents.attention import Block, rotary_angles
from jamgym_agents.decoder import AccompanimentDecoder, DecoderConfig
from jamgym_agents.sampling import Sampling, draw, transform
from jamgym_agents.streaming import draw_frame
from jamgym_agents.visibility import additive, visible_frames

#: Positions that are encoded at once, over all rows; more only takes more memory.
POSITIONS = 1 << 16
#: Attention scores that are computed at once.
SCORES = 1 << 24


class OutOfTime(Exception):
    """A call was given up."""


def never() -> None:
    """Give no call up."""


@dataclass
class CodeHistory:
    """All that a decoder without state remembers.

    Attributes:
        heard: `(B, M, Q)` codes of the input frames heard so far.
        played: `(B, N, Q)` codes of the frames played so far.
        instrument: `(B,)` class index of the target.
    """

    heard: Tensor
    played: Tensor
    instrument: Tensor

    def hear(self, codes: Tensor) -> None:
        """Append input frames `(B, M, Q)`."""
        self.heard = torch.cat([self.heard, codes], dim=1)

    def play(self, codes: Tensor) -> None:
        """Append played frames `(B, N, Q)`."""
        self.played = torch.cat([self.played, codes], dim=1)


def row_groups(rows: int, positions: int) -> Iterator[slice]:
    """Yield slices of `rows`, each of so few that `positions` in each of them fit at once."""
    size = max(1, POSITIONS // positions)
    for begin in range(0, rows, size):
        yield slice(begin, min(begin + size, rows))


def encode_history(
    decoder: AccompanimentDecoder,
    input_codes: Tensor,
    output_codes: Tensor,
    instrument: Tensor,
    t_f: int,
    k: int,
    check: Callable[[], None] = never,
) -> Tensor:
    """Return hidden states `(B, T, C)` of the output stream: `AccompanimentDecoder.trunk`, block by block of queries.

    The decoder's window is left out of account.

    Args:
        decoder: Whose weights are used.
        input_codes: `(B, T, Q)` int64; what a frame may not see is left out.
        output_codes: `(B, T, Q)` int64.
        instrument: `(B,)`.
        t_f: Future visibility in frames, of all rows.
        k: Frames per chunk, of all rows.
        check: Called now and then; may raise to give up.
    """
    frames, config = input_codes.shape[1], decoder.config
    played = decoder.embed_played(output_codes[:, :-1], instrument)
    x = torch.cat(
        [decoder.embed_heard(decoder.frame_latents(input_codes)), decoder.embed_start(instrument), played], dim=1
    )
    angles = rotary_angles(torch.arange(frames).repeat(2).unsqueeze(0), decoder.head_dim)
    visible = visible_frames(frames, torch.tensor([t_f]), torch.tensor([k]))[0]
    size = max(16, SCORES // (len(x) * config.heads * 2 * frames))
    for module in decoder.blocks:
        block = cast(Block, module)
        q, key, value, _ = block.project(x, angles)
        mixed = torch.empty_like(x)
        for begin in range(0, frames, size):
            check()
            end = min(begin + size, frames)
            here, there = slice(begin, end), slice(frames + begin, frames + end)
            causal = torch.arange(end) <= torch.arange(begin, end).unsqueeze(1)
            mixed[:, here] = block.attend(q[:, :, here], key[:, :, :end], value[:, :, :end], additive(causal))
            seen = int(visible[end - 1])
            both = [torch.cat([one[:, :, :seen], one[:, :, frames : frames + end]], dim=2) for one in (key, value)]
            allowed = torch.cat([torch.arange(seen) < visible[here].unsqueeze(1), causal], dim=1)
            mixed[:, there] = block.attend(q[:, :, there], both[0], both[1], additive(allowed))
        check()
        x = block.finish(x, mixed)
    return decoder.norm(x)[:, frames:]


class ReencodingDecoder:
    """Encodes the whole history for every frame; see the module's docstring.

    Args:
        decoder: In eval mode.
        t_f: Future visibility in frames.
        k: Frames per call.
    """

    def __init__(self, decoder: AccompanimentDecoder, t_f: int, k: int) -> None:
        self.decoder, self.t_f, self.k = decoder, t_f, k

    @torch.no_grad()
    def generate(
        self,
        history: CodeHistory,
        sampling: Sampling,
        generator: torch.Generator | None = None,
        check: Callable[[], None] = never,
    ) -> Tensor:
        """Decode the next k frames `(B, k, Q)`, append them to `history` and return them."""
        fresh = []
        for _ in range(self.k):
            frame = self._frame(history, sampling, generator, check)
            history.play(frame)
            fresh.append(frame)
        return torch.cat(fresh, dim=1)

    def _frame(
        self, history: CodeHistory, sampling: Sampling, generator: torch.Generator | None, check: Callable[[], None]
    ) -> Tensor:
        decoder, now = self.decoder, history.played.shape[1]
        frames = max(now + 1, history.heard.shape[1])
        # Zeros make both streams equally long; no mask lets anything see them.
        heard = F.pad(history.heard, (0, 0, 0, frames - history.heard.shape[1]))
        played = F.pad(history.played, (0, 0, 0, frames - now))
        hidden = torch.cat(
            [
                encode_history(decoder, heard[rows], played[rows], history.instrument[rows], self.t_f, self.k, check)[
                    :, now
                ]
                for rows in row_groups(len(heard), 2 * frames)
            ]
        )
        return draw_frame(decoder, hidden, sampling, generator)[0].unsqueeze(1)


class FusedDecoder(nn.Module):
    """One fused stream with a delay pattern and a cache that lives for one call; see the module's docstring.

    Args:
        config: Gives width, blocks, heads and vocabulary.
        t_f: Future visibility in frames.
        k: Frames per call.
    """

    def __init__(self, config: DecoderConfig, t_f: int, k: int) -> None:
        super().__init__()
        self.config, self.t_f, self.k = config, t_f, k
        tables = [nn.Embedding(config.cardinality + 1, config.dim) for _ in range(2 * config.num_codebooks)]
        # Entry V stands for what is not there: an input frame not heard yet, a code before the start or after the end.
        self.input_tables = nn.ModuleList(tables[: config.num_codebooks])
        self.output_tables = nn.ModuleList(tables[config.num_codebooks :])
        self.instrument = nn.Embedding(len(INSTRUMENTS), config.dim)
        self.blocks = nn.ModuleList(
            [Block(config.dim, config.heads, config.kv_heads, 0.0) for _ in range(config.layers)]
        )
        self.norm = nn.LayerNorm(config.dim)
        self.heads = nn.Linear(config.dim, config.num_codebooks * config.cardinality)

    @torch.no_grad()
    def generate(
        self,
        history: CodeHistory,
        sampling: Sampling,
        generator: torch.Generator | None = None,
        check: Callable[[], None] = never,
        cached: bool = True,
    ) -> Tensor:
        """Decode the next k frames `(B, k, Q)`, append them to `history` and return them.

        Args:
            history: What was heard and played.
            sampling: How codes are drawn.
            generator: Of the draws.
            check: Called now and then; may raise to give up.
            cached: Keep keys and values within the call; False encodes everything at every step.
        """
        config, (batch, now, codebooks) = self.config, history.played.shape
        total = now + self.k + codebooks - 1
        heard = self._shifted(history.heard, total)
        # Row p + 1 holds what position p predicts: code q of frame p - q.
        delayed = torch.full((batch, total + 1, codebooks), config.cardinality)
        for q in range(codebooks):
            delayed[:, 1 + q : 1 + q + now, q] = history.played[:, :, q]
        shape = (config.layers, batch, config.kv_heads, total, config.dim // config.heads)
        cache = (torch.empty(shape), torch.empty(shape))
        for p in range(now, total):
            begin = p if cached and p > now else 0
            # What lies behind the history is not final before it has been drawn, so it is read from `delayed` only now.
            x = self._embed(heard[:, begin : p + 1], delayed[:, begin : p + 1], history.instrument)
            hidden = torch.cat(
                [self._trunk(x[rows], begin, cache, rows, check) for rows in row_groups(batch, p + 1 - begin)]
            )
            logits = self.heads(hidden).view(batch, codebooks, config.cardinality)
            codes = draw(transform(logits, sampling), generator)
            first, last = max(0, p - now - self.k + 1), min(codebooks, p - now + 1)
            delayed[:, p + 1, first:last] = codes[:, first:last]
        fresh = torch.stack([delayed[:, 1 + now + q : 1 + now + q + self.k, q] for q in range(codebooks)], dim=2)
        history.play(fresh)
        return fresh

    def _shifted(self, heard: Tensor, total: int) -> Tensor:
        """Return `(B, total, Q)`: position p holds input frame p + t_f - 1, or V where it has not been heard."""
        shifted = torch.full((len(heard), total, heard.shape[2]), self.config.cardinality)
        first = max(0, 1 - self.t_f)
        usable = heard[:, max(0, self.t_f - 1) :][:, : max(0, total - first)]
        shifted[:, first : first + usable.shape[1]] = usable
        return shifted

    def _embed(self, heard: Tensor, played: Tensor, instrument: Tensor) -> Tensor:
        """Return the sum `(B, T, C)` of all embeddings of codes `(B, T, Q)`."""
        x = self.instrument(instrument).unsqueeze(1).expand(-1, heard.shape[1], -1)
        for q in range(self.config.num_codebooks):
            x = x + self.input_tables[q](heard[:, :, q]) + self.output_tables[q](played[:, :, q])
        return x

    def _trunk(
        self, x: Tensor, begin: int, cache: tuple[Tensor, Tensor], rows: slice, check: Callable[[], None]
    ) -> Tensor:
        """Return the hidden state `(B, C)` of the last of the positions `x` `(B, T, C)` that start at `begin`."""
        batch, frames, _ = x.shape
        config, end = self.config, begin + frames
        angles = rotary_angles(torch.arange(begin, end).unsqueeze(0), config.dim // config.heads)
        for layer, module in enumerate(self.blocks):
            check()
            block = cast(Block, module)
            q, fresh_keys, fresh_values, _ = block.project(x, angles)
            keys, values = cache[0][layer, rows], cache[1][layer, rows]
            keys[:, :, begin:end], values[:, :, begin:end] = fresh_keys, fresh_values
            if frames == 1:
                grouped = q.reshape(batch, config.kv_heads, -1, q.shape[3])
                mixed = F.scaled_dot_product_attention(grouped, keys[:, :, :end], values[:, :, :end], scale=1.0)
                mixed = mixed.reshape(batch, 1, -1)
            else:
                repeat = config.heads // config.kv_heads
                wide = [one.repeat_interleave(repeat, dim=1) for one in (fresh_keys, fresh_values)]
                mixed = F.scaled_dot_product_attention(q, wide[0], wide[1], is_causal=True, scale=1.0)
                mixed = mixed.transpose(1, 2).reshape(batch, frames, -1)
            x = block.finish(x, mixed)
        return self.norm(x[:, -1])
