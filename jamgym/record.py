"""What is left of an episode when it is over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from jamgym.codec import Audio, Codes
from jamgym.episode import Episode
from jamgym.event_log import EventLog
from jamgym.timing import Timing


@dataclass(frozen=True)
class EpisodeRecord:
    """A finished episode. T frames, C calls, S samples.

    Attributes:
        episode: What was heard and what should have been played.
        played_codes: `(T, Q)` int16 played codes; gaps hold the codec's silence codes.
        status: `(T,)` int8 slot status, see `jamgym.playback`.
        lateness: `(T,)` int64 ticks by which each frame was late; -1 where its call was skipped.
        rewards: `(C,)` float64 rewards of the calls that were made; they sum to `score`.
        played_audio: `(S,)` float32 audio, or None if there is no reward model.
        log: Every call and slot.
        timing: t_f, k and the other constants of the clock.
        components: The mean score of each component, if the reward is a mixture.
    """

    episode: Episode
    played_codes: Codes
    status: NDArray[np.int8]
    lateness: NDArray[np.int64]
    rewards: NDArray[np.float64]
    played_audio: Audio | None
    log: EventLog
    timing: Timing
    components: Mapping[str, float] = field(default_factory=dict)

    @property
    def score(self) -> float:
        """The episode's score: the mean over its windows."""
        return float(self.rewards.sum())
