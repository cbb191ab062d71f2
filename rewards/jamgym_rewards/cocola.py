"""The reward `cocola`: the public COCOLA model (arXiv 2404.16969) with weights that the user brings.

Convention: the published score h_x^T W h_y of context x (heard) and stem y (played), unbounded; the higher
the better, but only to be read beside true and random pairs of the same material. With `calibrate` and two
anchors, random pairs become 0 and true pairs 1, clipped to [-1, 1.5] as for `coherence`. Needs: nothing
beyond audio, and a checkpoint. Windows: 5 s every 2.5 s, none shorter; causal.

The model cannot hear level, and silence is the loudest thing it knows. So the gates of
`jamgym_rewards.gating` draw the score down to `floor`, and never up: a closed gate gives the lower of the
two.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from jamgym.checkpoint import load_tensors
from jamgym.errors import CheckpointError, ConfigError, unknown_name_message
from jamgym.reward import Windows
from jamgym_rewards.cocola_features import SAMPLE_RATE, CocolaFeatures
from jamgym_rewards.cocola_network import MODES, CocolaNetwork, Mode
from jamgym_rewards.gating import FLOOR, GateSettings, lowered, openness
from jamgym_rewards.learned import Calibration, both_sides
from jamgym_rewards.restricted_pickle import read_torch_checkpoint

#: Bumped whenever the same weights may give another score.
SCORING_VERSION = "1"
CALIBRATED_RANGE = (-1.0, 1.5)
_BATCH = 8
_WHERE = (
    "jamgym ships no COCOLA weights. Download the checkpoint that the README of "
    "github.com/gladia-research-group/cocola links to (COCOLA_HP_v1) and give its path as the argument checkpoint."
)


def load_cocola(path: Path | str) -> CocolaNetwork:
    """Return the network with the weights of a public checkpoint, ready to score.

    Args:
        path: A Lightning checkpoint, read without running code in it, or the same tensors as safetensors.

    Raises:
        CheckpointError: The file is missing, damaged, refused, or holds another architecture.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint at {path}. {_WHERE}")
    if path.suffix == ".safetensors":
        tensors: dict[str, Tensor] = load_tensors(path)[0]
    else:
        checkpoint = read_torch_checkpoint(path)
        state = checkpoint.get("state_dict", checkpoint)
        if not isinstance(state, dict):
            raise CheckpointError(f"The state_dict of {path} is a {type(state).__name__}, not a dict of tensors.")
        tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    network = CocolaNetwork()
    own = network.state_dict()
    missing, unknown = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    other = [name for name, tensor in own.items() if name in tensors and tensors[name].shape != tensor.shape]
    if missing or unknown or other:
        wrong = f"{len(missing)} tensors are missing, {len(unknown)} unknown, {len(other)} of another shape"
        raise CheckpointError(
            f"{path} is not a COCOLA checkpoint with two channels: {wrong}; the first is "
            f"{(missing + unknown + other)[0]!r}. {_WHERE}"
        )
    network.load_state_dict({name: tensor.to(own[name].dtype) for name, tensor in tensors.items()})
    return network.eval().requires_grad_(False)


class CocolaReward:
    """COCOLA score of heard and played music.

    Args:
        checkpoint: File of the weights (see `load_cocola`); read when the first window is scored.
        mode: "both" channels, or the "harmonic" or "percussive" one alone.
        calibrate: Map random pairs to 0 and true pairs to 1; needs `random` and `truth`.
        random: Mean raw score of randomly paired stems of your material.
        truth: Mean raw score of its true stems.
        gates: Gate settings; None switches the gates off (for comparing with published figures).
        floor: Score of a closed gate; default 0 for raw scores and -0.5 for calibrated ones.

    Raises:
        ConfigError: An argument is missing, unknown or without effect.
        CheckpointError: There is no file at `checkpoint`.
    """

    name = "cocola"
    window_seconds = 5.0
    min_window_seconds = 5.0
    hop_seconds = 2.5
    causal = True
    range: tuple[float, float] = (-np.inf, np.inf)
    needs: frozenset[str] = frozenset()

    def __init__(
        self,
        checkpoint: str | Path | None = None,
        mode: Mode = "both",
        calibrate: bool = False,
        random: float | None = None,
        truth: float | None = None,
        gates: GateSettings | None = GateSettings(),  # noqa: B008 - frozen
        floor: float | None = None,
    ) -> None:
        if checkpoint is None:
            raise ConfigError(f"Reward 'cocola' needs the argument checkpoint. {_WHERE}")
        if not Path(checkpoint).is_file():
            raise CheckpointError(f"There is no checkpoint at {checkpoint}. {_WHERE}")
        if mode not in MODES:
            raise ConfigError(unknown_name_message("mode of reward 'cocola'", str(mode), MODES))
        if calibrate:
            self.range = CALIBRATED_RANGE
        self.checkpoint = Path(checkpoint)
        self.mode: Mode = mode
        self.calibration = _calibration(calibrate, random, truth)
        self.gates = gates
        self.floor = floor if floor is not None else FLOOR if calibrate else 0.0
        self._network: CocolaNetwork | None = None
        self._features = CocolaFeatures()
        self._digest = ""

    @property
    def version(self) -> str:
        """Scoring version, mode and hash of the weights."""
        if not self._digest:
            self._digest = hashlib.sha256(self.checkpoint.read_bytes()).hexdigest()[:8]
        return f"{SCORING_VERSION}-{self.mode}-{self._digest}"

    def score(self, windows: Windows) -> NDArray[np.float32]:
        """Return `(N,)` scores, gated; finite for any audio.

        Raises:
            RewardError: `heard` and `played` are not two arrays of one shape `(N, S)`.
        """
        heard, played = both_sides(self.name, windows, SAMPLE_RATE)
        scores = self._raw(heard, played)
        if self.calibration is not None:
            scores = np.clip(self.calibration(scores), *CALIBRATED_RANGE)
        if self.gates is not None and len(scores):
            scores = lowered(scores, openness(heard, played, SAMPLE_RATE, self.gates), self.floor)
        return scores.astype(np.float32)

    def raw(self, windows: Windows) -> NDArray[np.float64]:
        """Return `(N,)` published scores: neither calibrated nor gated."""
        return self._raw(*both_sides(self.name, windows, SAMPLE_RATE))

    def _raw(self, heard: NDArray[np.float32], played: NDArray[np.float32]) -> NDArray[np.float64]:
        if self._network is None:
            self._network = load_cocola(self.checkpoint)
        found = []
        with torch.no_grad():
            for first in range(0, len(heard), _BATCH):
                rows = slice(first, first + _BATCH)
                x, y = (self._features(_long_enough(torch.from_numpy(side[rows]))) for side in (heard, played))
                found.append(self._network(x, y, self.mode).double())
        return torch.cat(found).numpy() if found else np.zeros(0)


def _long_enough(audio: Tensor) -> Tensor:
    """Return `(N, S)` audio with zeros at its end up to the second that the network's strides ask for."""
    return functional.pad(audio, (0, max(0, SAMPLE_RATE - audio.shape[1])))


def _calibration(calibrate: bool, random: float | None, truth: float | None) -> Calibration | None:
    if not calibrate:
        if random is not None or truth is not None:
            raise ConfigError("random and truth are the anchors of the calibration; they need calibrate=True.")
        return None
    if random is None or truth is None or not truth > random:
        raise ConfigError(
            f"calibrate=True needs two anchors, random below truth; got random {random} and truth {truth}. They are "
            "the means of CocolaReward.raw over randomly paired and over true stems of your material."
        )
    return Calibration(random=random, truth=truth)
