"""The streaming decoder's memory: keys and values of the sinks and of a ring of the newest frames.

The two streams lie interleaved on one time axis, slot 2 c + stream, so that what a frame attends to is one
slice of the cache and nothing is copied to put them together. The first frames, the sinks, keep their place;
every later frame n takes the place S + (n - S) mod R of a ring of R frames, long enough that nothing is
overwritten that the window still reaches. Until the ring is full, frame n lies in slot n.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from jamgym_agents.decoder import DecoderConfig

HEARD, PLAYED = 0, 1


def slots_of(frames: Tensor, capacity: int, sinks: int) -> Tensor:
    """Return the slots of `frames`, of any shape, in a memory of `capacity` slots per stream."""
    return torch.where(frames < sinks, frames, sinks + (frames - sinks) % (capacity - sinks))


def slot_frames(newest: Tensor, extent: int, capacity: int, sinks: int) -> Tensor:
    """Return the frame `(B, N, 1, M)` that each used slot holds; a negative number where there is none yet.

    Args:
        newest: `(B, N)` last frame that was written, of N streams.
        extent: Frames that the longest row will have; at most as many slots are used.
        capacity: Slots per stream.
        sinks: First frames, which keep their place.
    """
    slot = torch.arange(min(extent, capacity), device=newest.device)
    if extent <= capacity:
        return slot.view(1, 1, 1, -1)
    last = newest[:, :, None, None]
    frames = last - (last - slot) % (capacity - sinks)
    # The ring's arithmetic would call a slot that nothing was written to a frame before the ring.
    return torch.where(slot < sinks, slot, frames.masked_fill(frames < sinks, -1))


@dataclass
class DecoderState:
    """Streaming state of B rows.

    Attributes:
        keys: `(L, B, G, 2 * capacity, h)` rotated keys per block.
        values: The same for values.
        heard: `(B,)` input frames per row.
        played: `(B,)` output positions per row; position n carries frame n - 1.
        instrument: `(B,)` class index per row.
        last: `(B, Q)` codes of the last played frame.
        window: Frames that a frame can look back on; None keeps everything.
        sinks: First frames of either stream that are kept.
        codes: `(B, capacity, Q)` of the heard frames, in the slots of their keys, if the decoder needs them.
        longest: Most frames that were written at once so far.
        guided: The rows are twice as many as there are streams: behind those of the streams, one for each that plays
            the same and hears nothing.
    """

    keys: Tensor
    values: Tensor
    heard: Tensor
    played: Tensor
    instrument: Tensor
    last: Tensor
    window: int | None
    sinks: int
    codes: Tensor | None = None
    longest: int = 0
    guided: bool = False

    @classmethod
    def empty(
        cls, config: DecoderConfig, batch: int, capacity: int, like: Tensor, guided: bool = False
    ) -> DecoderState:
        """Return the state of `batch` streams that have heard and played nothing, in device and precision of `like`."""
        batch = 2 * batch if guided else batch
        capacity = max(capacity, config.sinks + 1)
        device = like.device
        shape = (config.layers, batch, config.kv_heads, 2 * capacity, config.dim // config.heads)
        return cls(
            keys=torch.zeros(shape, device=device, dtype=like.dtype),
            values=torch.zeros(shape, device=device, dtype=like.dtype),
            heard=torch.zeros(batch, dtype=torch.int64, device=device),
            played=torch.zeros(batch, dtype=torch.int64, device=device),
            instrument=torch.zeros(batch, dtype=torch.int64, device=device),
            last=torch.zeros(batch, config.num_codebooks, dtype=torch.int64, device=device),
            window=config.window,
            sinks=config.sinks,
            codes=torch.zeros(batch, capacity, config.num_codebooks, dtype=torch.int64, device=device)
            if config.gives_aligned
            else None,
            guided=guided,
        )

    @property
    def streams(self) -> int:
        """How many streams there are: the rows, or half of them."""
        return len(self.last) // 2 if self.guided else len(self.last)

    def all_rows(self, values: Tensor) -> Tensor:
        """Return what belongs to the streams, `(streams, ...)`, for all rows `(B, ...)`."""
        return torch.cat([values, values]) if self.guided else values

    def listening(self) -> DecoderState:
        """Return the rows that hear, as views: what is written to them in place is written to this state."""
        if not self.guided:
            return self
        part = slice(self.streams)
        shown = {name: getattr(self, name)[part] for name in ("heard", "played", "instrument", "last")}
        codes = None if self.codes is None else self.codes[part]
        return replace(self, keys=self.keys[:, part], values=self.values[:, part], codes=codes, guided=False, **shown)

    @property
    def capacity(self) -> int:
        """Slots per row and stream."""
        return self.keys.shape[3] // 2

    def reset(self, rows: Tensor, instrument: Tensor) -> None:
        """Start anew in the streams of mask `rows`; old entries are masked by count, so none is cleared."""
        rows, instrument = self.all_rows(rows), self.all_rows(instrument)
        self.heard.masked_fill_(rows, 0)
        self.played.masked_fill_(rows, 0)
        self.instrument = torch.where(rows, instrument, self.instrument)

    def make_room(self, count: int, stream: int) -> int:
        """Make room for `count` more frames of `stream` in every row; grows rarely, and no further than the window.

        Returns:
            Frames that the longest row will have then. More than `capacity` says that the ring is turning.
        """
        # Input that was heard ahead of the output is kept beside the window; the only look at the device per call.
        ahead = (self.heard - self.played).clamp_min(0)
        heard, played, lead = torch.stack([self.heard.max(), self.played.max(), ahead.max()]).tolist()
        written = max(heard, played)
        extent = max(heard + count, played) if stream == HEARD else max(heard, played + count)
        self.longest = max(self.longest, count)
        # Twice the longest write: frames beyond a row's count are written too, and amended ones once more.
        limit = extent if self.window is None else self.sinks + self.window + lead + 2 * self.longest
        if min(extent, limit) > self.capacity:
            spare = max(extent, 2 * self.capacity)
            # The last step takes all, so that a stream soon has what it will ever need.
            self._grow(spare if self.window is None or 2 * spare <= limit else limit, written)
        return extent

    def _grow(self, capacity: int, written: int) -> None:
        """Enlarge the memory to `capacity`; `written` is the most frames that any row holds."""
        old = self.capacity
        keys, values = (
            torch.nn.functional.pad(part, (0, 0, 0, 2 * (capacity - old))) for part in (self.keys, self.values)
        )
        codes = None if self.codes is None else torch.nn.functional.pad(self.codes, (0, 0, 0, capacity - old))
        if written > old:
            # The ring has turned, and in a longer ring the same frames have other places.
            for stream, count in ((HEARD, self.heard), (PLAYED, self.played)):
                newest = (count - 1).unsqueeze(1)
                frames = slot_frames(newest, written, capacity, self.sinks)[:, 0, 0].expand(len(count), -1)
                source = 2 * slots_of(frames.clamp_min(0), old, self.sinks) + stream
                index = source[None, :, None, :, None].expand(*keys.shape[:3], -1, keys.shape[4])
                slots = slice(stream, 2 * frames.shape[1], 2)
                keys[:, :, :, slots] = self.keys.gather(3, index)
                values[:, :, :, slots] = self.values.gather(3, index)
                if stream == HEARD and codes is not None and self.codes is not None:
                    places = (source // 2).unsqueeze(-1).expand(-1, -1, codes.shape[2])
                    codes[:, : frames.shape[1]] = self.codes.gather(1, places)
        self.keys, self.values, self.codes = keys, values, codes

    def keep_codes(self, frames: Tensor, codes: Tensor) -> None:
        """Store `codes` `(B, M, Q)` of the heard `frames` `(B, M)`, if the decoder needs them."""
        if self.codes is not None:
            slots = slots_of(frames, self.capacity, self.sinks).unsqueeze(-1).expand_as(codes)
            self.codes.scatter_(1, slots, codes)

    def codes_of(self, frames: Tensor) -> Tensor:
        """Return the codes `(B, ..., Q)` of the heard `frames` `(B, ...)`; of those not yet heard, any."""
        assert self.codes is not None
        rows = torch.arange(len(frames), device=frames.device).view(-1, *[1] * (frames.dim() - 1))
        return self.codes[rows, slots_of(frames, self.capacity, self.sinks)]

    def rows_of(self, frames: Tensor, stream: int) -> Tensor:
        """Return where keys of `frames` `(B, M)` of `stream` go: rows `(B, G, M)` of a block's memory `(rows, h)`."""
        _, batch, groups, slots, _ = self.keys.shape
        first = slots * torch.arange(batch * groups, device=frames.device).view(batch, groups, 1)
        return first + (2 * slots_of(frames, self.capacity, self.sinks) + stream).unsqueeze(1)

    def write(self, layer: int, keys: Tensor, values: Tensor, rows: Tensor) -> None:
        """Store `(B, G, M, h)` at `rows` `(B, G, M)`."""
        # Whole rows are copied at once; a scatter would look every number's place up.
        index, width = rows.flatten(), keys.shape[3]
        self.keys[layer].view(-1, width).index_copy_(0, index, keys.reshape(-1, width))
        self.values[layer].view(-1, width).index_copy_(0, index, values.reshape(-1, width))
