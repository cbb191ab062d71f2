"""The reward `coherence`: does what was played belong, moment by moment, to what was heard?

Convention: random stem of another song 0, true stem 1 (both through the codec), clipped to [-1, 1.5];
silence, a whisper or a single burst -0.5. Needs: nothing beyond audio. Windows: 4 s every second, at
least 2 s; causal. Source: own two-tower network, contrastive as in COCOLA (arXiv 2404.16969), but with
time-resolved embeddings and hard negatives; trained by `jamgym train-coherence`.

`mode` asks the same network about one part of both sides, as COCOLA's modes do: "harmonic" tells wrong notes better
than wrong times, "percussive" wrong times, and hardly any wrong notes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from jamgym.errors import ConfigError
from jamgym_rewards.gating import GateSettings
from jamgym_rewards.learned import Calibration, LearnedReward
from jamgym_rewards.separation import PARTS, Part, separate
from jamgym_rewards.towers import TwoTowers


class CoherenceReward(LearnedReward):
    """Contrastive coherence of heard and played music; the training reward.

    Args:
        weights: File of `save_weights`; None takes the shipped one.
        gates: Gate settings; None switches the gates off.
        network: A network to use instead of `weights`, with `calibration`.
        calibration: Calibration of `network`.
        mode: "both", or one part of the music: "harmonic" or "percussive", each with its own calibration. The gates
            hear everything.

    Example:
        >>> import numpy as np
        >>> from jamgym.reward import Windows
        >>> noise = np.random.default_rng(0).normal(0, 0.1, (2, 64000)).astype(np.float32)
        >>> scores = CoherenceReward().score(Windows(noise, np.zeros_like(noise), 16000))
        >>> scores.tolist()
        [-0.5, -0.5]
    """

    name = "coherence"

    def __init__(
        self,
        weights: str | Path | None = None,
        gates: GateSettings | None = GateSettings(),  # noqa: B008 - frozen
        network: nn.Module | None = None,
        calibration: Calibration | None = None,
        mode: Part = "both",
    ) -> None:
        if mode not in PARTS:
            raise ConfigError(f"mode is {mode!r}; it must be one of {', '.join(PARTS)}.")
        super().__init__(weights, gates, network, calibration)
        self.mode = mode
        self.calibration_key = calibration_key(mode)

    @property
    def version(self) -> str:
        """Scoring version, hash of the weights and, if it is one part, the mode."""
        return super().version if self.mode == "both" else f"{super().version}-{self.mode}"

    def _cut(self, heard: NDArray[np.float32], played: NDArray[np.float32]) -> tuple[Tensor, Tensor]:
        return super()._cut(*(separate(torch.from_numpy(side), self.mode).numpy() for side in (heard, played)))

    @classmethod
    def build(cls) -> nn.Module:
        """Return an untrained network."""
        return TwoTowers()


def calibration_key(mode: Part) -> str:
    """Return where the metadata of weights keep the calibration of `mode`."""
    return "calibration" if mode == "both" else f"calibration_{mode}"
