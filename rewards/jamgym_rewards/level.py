"""Level: a penalty for playing far softer or louder than what goes with the music heard.

A learned score cannot hear level, so an agent may whisper or shout its way out of it. Within a dead zone of
relative level nothing is penalised; beyond it the penalty grows linearly in dB.

Conventions: range [-1, 0]. The dead zone is -16 to +3 dB of played RMS relative to heard RMS (true stems of
`band`: -11 to +1.4 dB in windows of 4 s) and the full penalty is reached 8 dB further out, so near-silence
costs 1. Where nothing is heard (below -50 dBFS) no level is asked for: 0. Needs neither target nor truth.
Windows of 4 s (shortest 1 s) every second. Causal. Source: jamgym's own; `gating` draws learned scores down the
same way, only further out.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from jamgym.errors import ConfigError
from jamgym.reward import Windows
from jamgym_rewards.gating import level_db
from jamgym_rewards.rule import RuleReward

#: Heard music below this RMS, in dBFS, asks for no level.
QUIET_DB = -50.0


def level_penalty(
    relative_db: NDArray[np.float64], lowest_db: float = -16.0, highest_db: float = 3.0, ramp_db: float = 8.0
) -> NDArray[np.float64]:
    """Return 0 inside [lowest_db, highest_db], falling linearly to -1 at `ramp_db` outside.

    >>> level_penalty(np.array([-100.0, -20.0, 0.0, 7.0, 11.0])).tolist()
    [-1.0, -0.5, -0.0, -0.5, -1.0]
    """
    outside = np.maximum(lowest_db - relative_db, relative_db - highest_db)
    return -np.clip(outside / ramp_db, 0.0, 1.0)


class LevelReward(RuleReward):
    """Penalises a played level that is far from the heard one (see `level_penalty`).

    Args:
        lowest_db: Lower end of the dead zone, played RMS relative to heard RMS.
        highest_db: Upper end.
        ramp_db: Decibels from an end to the full penalty.
        window_seconds: Length of a window.
        hop_seconds: Time between windows.
        min_window_seconds: Shortest window.
    """

    name = "level"
    range = (-1.0, 0.0)

    def __init__(
        self,
        lowest_db: float = -16.0,
        highest_db: float = 3.0,
        ramp_db: float = 8.0,
        window_seconds: float = 4.0,
        hop_seconds: float = 1.0,
        min_window_seconds: float = 1.0,
    ) -> None:
        if not lowest_db <= highest_db or not ramp_db > 0.0:
            raise ConfigError(
                f"dead zone {lowest_db} to {highest_db} dB, ramp {ramp_db} dB: ends must ascend, ramp > 0."
            )
        self.lowest_db = lowest_db
        self.highest_db = highest_db
        self.ramp_db = ramp_db
        super().__init__(window_seconds, hop_seconds, min_window_seconds)

    def score(self, windows: Windows) -> NDArray[np.float32]:
        """Return `(N,)` penalties in [-1, 0]."""
        heard = level_db(windows.heard)
        penalty = level_penalty(level_db(windows.played) - heard, self.lowest_db, self.highest_db, self.ramp_db)
        return np.where(heard < QUIET_DB, 0.0, penalty).astype(np.float32)
