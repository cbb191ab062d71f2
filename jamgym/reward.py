"""The reward protocol: windows of (heard, played) in, one score per window out.

A window ends every `hop_seconds`. The reward of a chunk is the sum of the scores of the windows that
end inside it, divided by the number of windows of the episode, so that the rewards of an episode sum
to its score: the mean over its windows.

A reward may learn while an agent trains on it: see `LearningReward`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from jamgym.corpus import Truth
from jamgym.errors import RewardError

if TYPE_CHECKING:
    from jamgym.codec import Codec
    from jamgym.record import EpisodeRecord


@dataclass(frozen=True)
class Windows:
    """N windows of equal length.

    Attributes:
        heard: `(N, S)` float32, what the agent played along with.
        played: `(N, S)` float32, what came out of the speaker.
        sample_rate: Samples per second of all audio here.
        target: `(N, S)` float32, the stem that the agent replaces, if the reward needs it.
        truth: One `Truth` or None per window, cropped to the window, if the reward needs it.
    """

    heard: NDArray[np.float32]
    played: NDArray[np.float32]
    sample_rate: int
    target: NDArray[np.float32] | None = None
    truth: tuple[Truth | None, ...] | None = None


@runtime_checkable
class RewardModel(Protocol):
    """Scores windows in batch.

    Attributes:
        name: Registry name.
        version: Changes whenever the same window may get another score.
        window_seconds: Length of a full window. The first windows of an episode are shorter.
        min_window_seconds: Length of the shortest window that can be scored.
        hop_seconds: Time between the ends of consecutive windows.
        causal: Whether the score of a window depends on that window alone.
        range: Lowest and highest score; infinite where unbounded.
        needs: Subset of {"target", "truth"}.
    """

    name: str
    version: str
    window_seconds: float
    min_window_seconds: float
    hop_seconds: float
    causal: bool
    range: tuple[float, float]
    needs: frozenset[str]

    def score(self, windows: Windows) -> NDArray[np.float32]:
        """Return `(N,)` scores; every one finite, also for silence and noise."""
        ...


@runtime_checkable
class LearningReward(RewardModel, Protocol):
    """A reward model that also learns from what was played, such as a discriminator.

    A trainer calls `learn` once after every rollout, with the episodes that `score` has just rewarded, and decides
    nothing else: when to update is up to the reward. `score` itself must not learn, so that a rollout is scored by
    one judge and one that is played again gets the same rewards. A reward that only keeps statistics may have
    `state` and `load_state` alone. Use `jamgym.reward_learning` to call any of this on any reward.

    Attributes:
        learns: Whether `learn` may change the reward; set it to False to measure.
    """

    learns: bool

    def learn(self, records: Sequence[EpisodeRecord], codec: Codec, rng: np.random.Generator) -> Mapping[str, float]:
        """Learn from a rollout and return figures to log.

        Args:
            records: Its finished episodes, with their audio.
            codec: What decoded them.
            rng: The only source of chance, seeded by the rollout's number.

        Raises:
            RewardError: An update is not finite; the reward is left as it was.
        """
        ...

    def state(self) -> dict[str, Any]:
        """Return a copy of everything that `learn` changes, as `jamgym.checkpoint.save_state` takes it."""
        ...

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on, bit for bit, from what `state` returned."""
        ...


@dataclass(frozen=True)
class WindowPlan:
    """Which windows an episode of `frames` frames is scored on.

    Attributes:
        starts: `(W,)` first frame of each window.
        ends: `(W,)` frame after its last; ascending.
    """

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]

    @classmethod
    def make(cls, frames: int, window: int, hop: int, shortest: int) -> WindowPlan:
        """Plan windows that end every `hop` frames and at the episode's end, all in frames.

        An episode shorter than `shortest` gets one window that covers all of it.
        """
        if min(frames, window, hop, shortest) < 1:
            raise ValueError("frames, window, hop and shortest must be at least 1")
        ends = np.arange(hop, frames + 1, hop)
        ends = ends[ends >= min(shortest, frames)]
        if len(ends) == 0 or ends[-1] != frames:
            ends = np.append(ends, frames)
        return cls(starts=np.maximum(ends - window, 0), ends=ends)

    def __len__(self) -> int:
        return len(self.ends)

    def due(self, start: int, end: int) -> NDArray[np.int64]:
        """Return the indices of the windows that end in frames (start, end]."""
        return np.flatnonzero((self.ends > start) & (self.ends <= end))


def check_scores(name: str, scores: NDArray[np.float32], count: int, context: str) -> NDArray[np.float32]:
    """Return `scores` as float32 `(count,)` or raise `RewardError` naming reward and `context`."""
    try:
        scores = np.asarray(scores, dtype=np.float32)
    except Exception as error:
        raise RewardError(
            f"Reward {name!r} returned a {type(scores).__name__} for {context}, which is no array of numbers: {error}."
        ) from error
    if scores.shape != (count,):
        raise RewardError(f"Reward {name!r} returned shape {scores.shape} for {context}; expected ({count},).")
    if not np.isfinite(scores).all():
        bad = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise RewardError(
            f"Reward {name!r} returned {scores[bad]} for window {bad} of {context}; scores must be finite. "
            "Guard divisions and logarithms against silence."
        )
    return scores
