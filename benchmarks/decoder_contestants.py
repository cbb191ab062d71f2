"""`StreamingDecoder` and its references behind one interface, with histories of any length, for the timings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from time import perf_counter
from typing import Any, Protocol

import torch
from decoder_references import CodeHistory, FusedDecoder, OutOfTime, ReencodingDecoder
from torch import Tensor

from jamgym_agents.decoder import AccompanimentDecoder, DecoderConfig
from jamgym_agents.sampling import Sampling
from jamgym_agents.streaming import DecoderState, StreamingDecoder

#: A call that takes longer in seconds needs no warm-up and ends its block.
LONG_CALL = 1.0
SAMPLING = Sampling()


@dataclass(frozen=True)
class Music:
    """Codes to hear and to have played.

    Attributes:
        heard: `(B, T, Q)`.
        played: `(B, T, Q)`.
        instrument: `(B,)`.
        t_f: Future visibility in frames.
    """

    heard: Tensor
    played: Tensor
    instrument: Tensor
    t_f: int

    @classmethod
    def random(cls, config: DecoderConfig, batch: int, frames: int, t_f: int, seed: int) -> Music:
        """Return drawn codes; what a call costs does not depend on them."""
        generator = torch.Generator().manual_seed(seed)
        shape = (1, frames, config.num_codebooks)
        heard, played = (
            torch.randint(config.cardinality, shape, generator=generator).expand(batch, -1, -1) for _ in range(2)
        )
        return cls(heard, played, torch.zeros(batch, dtype=torch.int64), t_f)

    def visible(self, frame: int) -> int:
        """Return how many input frames a call that starts at `frame` may use."""
        return min(max(frame + self.t_f, 0), self.heard.shape[1])


def filled_state(stream: StreamingDecoder, music: Music, frames: int, k: int, block: int | None = None) -> DecoderState:
    """Return the state of one row that has played `frames` frames of `music`, the last k of them in its last call.

    Filled in blocks of frames, each of which sees what had been heard at its end; `block` is their length.
    """
    state = stream.initial_state(1)
    state.instrument = music.instrument[:1].clone()
    one = torch.ones(1, dtype=torch.int64)
    # With a window: so short that no block hears ahead of its begin, which would make the memory longer.
    size = block or (64 if stream.decoder.config.window is None else min(16, max(1, -music.t_f)))
    for begin in range(0, frames, size):
        end = min(begin + size, frames)
        hear_until(stream, state, music, min(end, frames - k))
        # One frame is decoded, and what was really played then takes its place and goes on.
        stream.generate(state, 1, SAMPLING)
        stream.amend(state, music.played[:1, begin:end], one * (end - begin), one)
    return state


def hear_until(stream: StreamingDecoder, state: DecoderState, music: Music, frame: int) -> None:
    """Let the one row of `state` hear what it has not heard of what a call that starts at `frame` may use."""
    fresh = music.heard[:1, int(state.heard[0]) : music.visible(frame)]
    stream.hear(state, fresh, torch.tensor([fresh.shape[1]]))


def spread(state: DecoderState, decoder: AccompanimentDecoder, batch: int) -> DecoderState:
    """Return a copy of the state of one row in `batch` rows."""
    small = StreamingDecoder(decoder, capacity=1)
    one, two = small.initial_state(1), small.initial_state(2)
    copies: dict[str, Any] = {}
    for entry in fields(state):
        value = getattr(state, entry.name)
        if isinstance(value, Tensor):
            shapes = zip(getattr(one, entry.name).shape, getattr(two, entry.name).shape, strict=True)
            axis = next((axis for axis, (single, double) in enumerate(shapes) if single != double), None)
            copies[entry.name] = value.clone() if axis is None else value.repeat_interleave(batch, dim=axis)
    return replace(state, **copies)


def state_bytes(state: DecoderState) -> int:
    """Return the bytes of all tensors of `state`."""
    values = [getattr(state, entry.name) for entry in fields(state)]
    return sum(value.numel() * value.element_size() for value in values if isinstance(value, Tensor))


class Contestant(Protocol):
    """Something that hears and plays k frames per call."""

    def restart(self) -> None:
        """Go back to the history that is measured; not timed."""

    def call(self, fresh: Tensor, check: Callable[[], None]) -> None:
        """Hear `fresh` `(B, k, Q)` and decode k frames."""


class Streaming:
    """`StreamingDecoder` with a history.

    Args:
        stream: Which one.
        start: State of one row that it starts from.
        batch: Rows.
        k: Frames per call.
        seed: Of the sampling.
    """

    def __init__(self, stream: StreamingDecoder, start: DecoderState, batch: int, k: int, seed: int) -> None:
        self.stream, self.start, self.batch, self.k = stream, start, batch, k
        self.generator = torch.Generator().manual_seed(seed)
        self.restart()

    def restart(self) -> None:
        """See `Contestant`."""
        self.state = spread(self.start, self.stream.decoder, self.batch)

    def call(self, fresh: Tensor, check: Callable[[], None]) -> None:
        """See `Contestant`; never given up."""
        self.stream.hear(self.state, fresh, torch.full((self.batch,), fresh.shape[1]))
        self.stream.generate(self.state, self.k, SAMPLING, self.generator)


class Reference:
    """One of the references with a history.

    Args:
        decoder: The reference.
        start: History that it starts from.
        seed: Of the sampling.
    """

    def __init__(self, decoder: ReencodingDecoder | FusedDecoder, start: CodeHistory, seed: int) -> None:
        self.decoder, self.start = decoder, start
        self.generator = torch.Generator().manual_seed(seed)
        self.restart()

    def restart(self) -> None:
        """See `Contestant`."""
        self.history = replace(self.start)

    def call(self, fresh: Tensor, check: Callable[[], None]) -> None:
        """See `Contestant`."""
        self.history.hear(fresh)
        self.decoder.generate(self.history, SAMPLING, self.generator, check)


class Forgetful(Reference):
    """The same, but every call finds the history it started from: what a call costs apart from its history."""

    def call(self, fresh: Tensor, check: Callable[[], None]) -> None:
        """See `Contestant`."""
        self.restart()
        super().call(fresh, check)


@dataclass
class Record:
    """Times of one contestant.

    Attributes:
        blocks: Seconds of each call, by round.
        spent: Seconds in all.
        given_up: Seconds of the first call, if it was given up at the limit: no call was completed.
        over: The limit is reached.
    """

    blocks: dict[int, list[float]] = field(default_factory=dict)
    spent: float = 0.0
    given_up: float | None = None
    over: bool = False

    @property
    def calls(self) -> list[float]:
        """Seconds of all completed calls."""
        return [seconds for block in self.blocks.values() for seconds in block]


def time_calls(
    contestants: dict[str, Contestant],
    fresh: Tensor,
    frames: int,
    calls: int,
    warm_up: int,
    block: int,
    limit: float,
    clock: Callable[[], float] = perf_counter,
) -> dict[str, Record]:
    """Time all contestants in turns, so that what else the machine does meets all of them.

    Args:
        contestants: By name, with equal histories.
        fresh: `(B, k, Q)` what every call hears.
        frames: Length of the history; a contestant restarts before it has grown by more than a tenth.
        calls: Calls per contestant.
        warm_up: Calls before them, which do not count unless they are long.
        block: Calls that a contestant makes in its turn.
        limit: Seconds that each contestant may take; the call that crosses it is given up and does not count.
        clock: Returns seconds.
    """
    records = {name: Record() for name in contestants}
    grown = dict.fromkeys(contestants, 0)

    def one_call(name: str) -> float | None:
        record, player = records[name], contestants[name]
        if grown[name] and grown[name] + fresh.shape[1] > frames / 10:
            player.restart()
            grown[name] = 0
        begun = clock()

        def check() -> None:
            if record.spent + clock() - begun > limit:
                raise OutOfTime

        try:
            player.call(fresh, check)
            seconds = clock() - begun
        except OutOfTime:
            if not record.calls:
                record.given_up = clock() - begun
            record.over = True
            return None
        grown[name] += fresh.shape[1]
        record.spent += seconds
        record.over = record.spent >= limit
        return seconds

    for name, record in records.items():
        for _ in range(warm_up):
            seconds = one_call(name)
            if seconds is None:
                break
            if seconds > LONG_CALL:
                record.blocks[0] = [seconds]
                break
            record.spent, record.over = 0.0, False
    for turn in range(-(-calls // block)):
        for name, record in records.items():
            if turn in record.blocks:
                continue
            times: list[float] = []
            while len(times) < block and len(record.calls) + len(times) < calls and not record.over:
                seconds = one_call(name)
                if seconds is None:
                    break
                times.append(seconds)
                if seconds > LONG_CALL:
                    break
            if times:
                record.blocks[turn] = times
    return records
