"""Time as integer sample ticks: what is visible when, what is due when, and when a call ends.

With hop h, a call i emits the frames [ik, min((i+1)k, T)). It may use input frames below
V(i) = clip(ik + t_f, 0, T), which are complete at R(i) = (ik + t_f)h + d_in. Frame n must be ready at
D(n) = nh - d_out. The latency budget B = D(ik) - R(i) follows from t_f; it is never set beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from jamgym.codec import Codec
from jamgym.errors import ConfigError, LookaheadError

Ticks = NDArray[np.int64]
Index = TypeVar("Index", int, NDArray[np.int64])


@dataclass(frozen=True)
class Timing:
    """The clock's constants. One tick is one sample; time 0 is the start of frame 0.

    Args:
        t_f: Future visibility in frames, signed: a chunk that starts at frame n may use input < n + t_f.
        k: Frames per call.
        hop_samples: Samples per frame h.
        sample_rate: Samples per second.
        frames: Frames of the episode T.
        d_in: Ticks between the end of an input frame and its codes: capture buffer + encoder look-ahead.
        d_out: Ticks that output must be ready ahead of its time: output buffer + decoder look-ahead.
        allow_lookahead: Accept a t_f that cannot be played live.

    Raises:
        ConfigError: A value is impossible.
        LookaheadError: t_f > -(d_in + d_out) / h and look-ahead is not allowed.

    Example:
        >>> timing = Timing(t_f=-25, k=5, hop_samples=640, sample_rate=16000, frames=300)
        >>> timing.budget, timing.num_calls, timing.visible(6), timing.recency_gap(32)
        (16000, 60, 5, 27)
    """

    t_f: int
    k: int
    hop_samples: int
    sample_rate: int
    frames: int
    d_in: int = 0
    d_out: int = 0
    allow_lookahead: bool = False

    def __post_init__(self) -> None:
        for name in ("k", "hop_samples", "sample_rate", "frames"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        for name in ("d_in", "d_out"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)} ticks; a delay cannot be negative.")
        if not self.playable_live and not self.allow_lookahead:
            latest = -(-(self.d_in + self.d_out) // self.hop_samples)
            raise LookaheadError(
                f"t_f={self.t_f} frames needs input from the future: with d_in={self.d_in} and d_out={self.d_out} "
                f"samples the largest t_f that can be played live is {-latest}. Lower t_f, or pass "
                "allow_lookahead=True (on the command line: --allow_lookahead true) to run it as a look-ahead oracle."
            )

    @classmethod
    def of(
        cls,
        codec: Codec,
        t_f: int,
        k: int,
        frames: int,
        *,
        capture_samples: int = 0,
        output_samples: int = 0,
        allow_lookahead: bool = False,
    ) -> Timing:
        """Return the timing of `codec`; its look-ahead is charged to d_in and d_out.

        A causal codec such as `spectral` has none, so its d_in and d_out are the audio buffers alone.
        """
        return cls(
            t_f=t_f,
            k=k,
            hop_samples=codec.hop_samples,
            sample_rate=codec.sample_rate,
            frames=frames,
            d_in=codec.lookahead_samples + capture_samples,
            d_out=codec.decoder_lookahead_samples + output_samples,
            allow_lookahead=allow_lookahead,
        )

    @property
    def budget(self) -> int:
        """B in ticks: time from release to the first deadline of a call; negative for an oracle."""
        return -self.t_f * self.hop_samples - self.d_in - self.d_out

    @property
    def playable_live(self) -> bool:
        """Whether the input that a call needs exists before its output is due."""
        return self.budget >= 0

    @property
    def num_calls(self) -> int:
        """Calls per episode; the last one may emit fewer than k frames."""
        return -(-self.frames // self.k)

    def visible(self, call: Index, frames: Index | None = None) -> Index:
        """Return V(i): input frames below it may be used at `call`. `frames` replaces T, per row."""
        end = self.frames if frames is None else frames
        reach = call * self.k + self.t_f
        if isinstance(reach, np.ndarray):
            return np.minimum(np.maximum(reach, 0), end)
        return min(max(reach, 0), end)

    def release(self, call: Index) -> Index:
        """Return R(i) in ticks. May be negative: a call without input can start before the music.

        A look-ahead oracle is granted its input at the deadline of its first frame at the latest, so
        that with latency "none" nothing is late. Any latency at all makes an oracle late.
        """
        early = min(self.t_f * self.hop_samples + self.d_in, -self.d_out)
        return call * (self.k * self.hop_samples) + early

    def deadline(self, frame: Index) -> Index:
        """Return D(n) in ticks; a frame that is ready exactly then is on time."""
        return frame * self.hop_samples - self.d_out

    def chunk(self, call: int) -> tuple[int, int]:
        """Return the frames [start, end) that `call` emits."""
        return call * self.k, min((call + 1) * self.k, self.frames)

    def recency_gap(self, frame: Index) -> Index:
        """Return -t_f + (n mod k): frames between output frame n and the first input frame it cannot use."""
        return -self.t_f + frame % self.k

    def seconds(self, ticks: int) -> float:
        """Return `ticks` in seconds."""
        return ticks / self.sample_rate

    def ticks(self, seconds: float) -> int:
        """Return `seconds` in ticks, rounded to the nearest."""
        return round(seconds * self.sample_rate)

    def schedule(self, latency: Ticks) -> tuple[Ticks, Ticks]:
        """Run the recursion S(i) = max(R(i), F(i-1)), F(i) = S(i) + L(i).

        Args:
            latency: `(..., calls)` ticks per call, independent rows before the last axis.

        Returns:
            Starts and finishes, each shaped as `latency`.
        """
        latency = np.asarray(latency, dtype=np.int64)
        calls = latency.shape[-1]
        release = self.release(np.arange(calls, dtype=np.int64))
        # F(i) = max over j <= i of R(j) + L(j) + ... + L(i): a running maximum, so no loop over calls.
        total = np.cumsum(latency, axis=-1)
        before = total - latency
        finish = total + np.maximum.accumulate(release - before, axis=-1)
        return finish - latency, finish


class RowTimings:
    """The clock of N rows, each with its own t_f and k.

    Args:
        rows: Number of rows N.
        base: Gives hop, rate, d_in and d_out, and the t_f and k that rows start with.
    """

    def __init__(self, rows: int, base: Timing) -> None:
        self.hop_samples = base.hop_samples
        self._base = base
        self.t_f = np.full(rows, base.t_f, dtype=np.int64)
        self.k = np.full(rows, base.k, dtype=np.int64)
        # R(i) = R(0) + i k h in every row.
        self._first_release = np.full(rows, base.release(0), dtype=np.int64)
        self._chunk_ticks = self.k * self.hop_samples

    def set(self, row: int, timing: Timing) -> None:
        """Give `row` the t_f and k of `timing`."""
        self.t_f[row], self.k[row] = timing.t_f, timing.k
        self._first_release[row] = timing.release(0)
        self._chunk_ticks[row] = timing.k * timing.hop_samples

    def visible(self, call: NDArray[np.int64], frames: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return V(i) `(N,)` of call i `(N,)` of episodes of `frames` `(N,)` frames."""
        return np.minimum(np.maximum(call * self.k + self.t_f, 0), frames)

    def release(self, call: NDArray[np.int64]) -> Ticks:
        """Return R(i) `(N,)` in ticks; for oracles see `Timing.release`."""
        return call * self._chunk_ticks + self._first_release

    def deadline(self, frame: NDArray[np.int64]) -> Ticks:
        """Return D(n) in ticks, which is the same in all rows."""
        return self._base.deadline(frame)

    def newest_released(self, now: Ticks) -> NDArray[np.int64]:
        """Return the newest call `(N,)` with R(i) <= `now` `(N,)`; -1 or less where there is none."""
        return (now - self._first_release) // self._chunk_ticks
