"""What the learned rewards share: weights, features, calibration, gates and batching."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from jamgym.checkpoint import load_tensors, save_tensors
from jamgym.errors import CheckpointError, ConfigError, RewardError
from jamgym.reward import Windows
from jamgym_rewards.features import SAMPLE_RATE, Analysis, FeatureSpec, cut, prepare
from jamgym_rewards.gating import FLOOR, GateSettings, gated, openness

#: Bumped whenever the same weights may give another score.
SCORING_VERSION = "1"
_BATCH = 64
_LOUDEST = 8.0


@dataclass(frozen=True)
class Calibration:
    """Affine map of the raw score: `random` becomes 0 and `truth` becomes 1.

    Attributes:
        random: Mean raw score of randomly paired stems.
        truth: Mean raw score of true stems.
    """

    random: float = 0.0
    truth: float = 1.0

    def __call__(self, raw: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return calibrated scores, not clipped."""
        return (raw - self.random) / max(self.truth - self.random, 1e-6)


class LearnedReward:
    """A `RewardModel` around a network that compares what was heard with what was played.

    The learned score does not depend on level; the gates of `jamgym_rewards.gating` do. Scores are
    calibrated (random stem 0, true stem 1, both through the codec), clipped to `range` and then gated.

    Args:
        weights: File of `save_weights`; None takes the shipped one, read when it is first needed.
        gates: Gate settings; None switches the gates off (for studies of what they do).
        network: A network to use instead of `weights`, with `calibration`.
        calibration: Calibration of `network`.
    """

    name = "learned"
    window_seconds = 4.0
    min_window_seconds = 2.0
    hop_seconds = 1.0
    causal = True
    range = (-1.0, 1.5)
    needs: frozenset[str] = frozenset()
    #: Score of a closed gate.
    floor = FLOOR
    #: Where the metadata of the weights keep the calibration.
    calibration_key = "calibration"
    #: What a calibrated score is; told on the card of the weights.
    convention = "output of the network x, as (x - random) / (truth - random), clipped to the range"

    def __init__(
        self,
        weights: str | Path | None = None,
        gates: GateSettings | None = GateSettings(),  # noqa: B008 - frozen
        network: nn.Module | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        self.gates = gates
        self._weights = None if weights is None else Path(weights)
        self._network: nn.Module | None = None
        self._analysis: Analysis | None = None
        self._version = f"{SCORING_VERSION}-unsaved"
        self._calibration = calibration or Calibration()
        if network is not None:
            self._use(network)

    @classmethod
    def build(cls) -> nn.Module:
        """Return an untrained network of this reward's architecture."""
        raise NotImplementedError

    @classmethod
    def squash(cls, output: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return raw scores of the network's outputs; here the same."""
        return output

    @property
    def version(self) -> str:
        """Scoring version and hash of the weights."""
        self._load()
        return self._version

    @property
    def calibration(self) -> Calibration:
        """The affine map from raw to calibrated scores."""
        self._load()
        return self._calibration

    @property
    def spec(self) -> FeatureSpec:
        """The features that the network reads."""
        return self._load()[1].spec

    def score(self, windows: Windows) -> NDArray[np.float32]:
        """Return `(N,)` calibrated, clipped and gated scores; finite for any audio.

        Raises:
            RewardError: `heard` and `played` are not two arrays of one shape `(N, S)`.
        """
        heard, played = self._audio(windows)
        if len(heard) == 0:
            return np.zeros(0, dtype=np.float32)
        return self._scores(self._raw(heard, played), self._opened(heard, played))

    def raw(self, windows: Windows) -> NDArray[np.float64]:
        """Return `(N,)` raw scores: squashed outputs of the network, neither calibrated nor gated."""
        return self._raw(*self._audio(windows))

    def _raw(self, heard: NDArray[np.float32], played: NDArray[np.float32]) -> NDArray[np.float64]:
        parts = [slice(first, first + _BATCH) for first in range(0, len(heard), _BATCH)]
        found = [self._outputs(*self._cut(heard[rows], played[rows])) for rows in parts]
        return np.concatenate(found) if found else np.zeros(0)

    def _cut(self, heard: NDArray[np.float32], played: NDArray[np.float32]) -> tuple[Tensor, Tensor]:
        """Return the decibels `(N, R, T)` of both sides."""
        _, analysis = self._load()
        a, b = cut(analysis(torch.from_numpy(np.concatenate([heard, played]))), analysis.spec).chunk(2)
        return a, b

    def _outputs(self, heard: Tensor, played: Tensor) -> NDArray[np.float64]:
        """Return raw scores `(N,)` of decibels."""
        network, analysis = self._load()
        with torch.no_grad():
            output = network(prepare(heard, analysis.spec), prepare(played, analysis.spec)).double().numpy()
        return self.squash(np.nan_to_num(output, nan=0.0, posinf=0.0, neginf=0.0))

    def _opened(self, heard: NDArray[np.float32], played: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return how far the gates are open, `(N,)`."""
        return np.ones(len(played)) if self.gates is None else openness(heard, played, SAMPLE_RATE, self.gates)

    def _scores(self, raw: NDArray[np.float64], opened: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return scores `(N,)` of raw ones: calibrated, clipped, gated."""
        return gated(np.clip(self._calibration(raw), *self.range), opened, self.floor).astype(np.float32)

    def _audio(self, windows: Windows) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        sides = both_sides(self.name, windows, SAMPLE_RATE)
        self._load()
        return sides

    def _use(self, network: nn.Module) -> None:
        self._network = network.eval()
        config: Any = network.config
        self._analysis = Analysis(config.features)

    def _load(self) -> tuple[nn.Module, Analysis]:
        if self._network is None or self._analysis is None:
            if self._weights is not None:
                self._read(self._weights)
            else:
                asset = files("jamgym_rewards") / "assets" / f"{self.name}.safetensors"
                if not asset.is_file():
                    raise ConfigError(
                        f"jamgym ships no weights for reward {self.name!r}. Train them with `jamgym train-coherence "
                        f"--model {self.name}` and give weights=PATH."
                    )
                with as_file(asset) as path:
                    self._read(path)
        assert self._network is not None and self._analysis is not None
        return self._network, self._analysis

    def _read(self, path: Path) -> None:
        tensors, metadata = load_tensors(path)
        if metadata.get("kind") != self.name:
            raise CheckpointError(
                f"{path} holds weights of kind {metadata.get('kind')!r}; reward {self.name!r} needs its own. "
                f"Train them with `jamgym train-coherence --model {self.name}`."
            )
        network = self.build()
        own = json.loads(json.dumps(asdict(network.config)))  # type: ignore[call-overload]
        try:
            if json.loads(metadata["network"]) != own:
                raise CheckpointError(f"{path} belongs to another architecture of {self.name!r}: {metadata['network']}")
            network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
            if self.calibration_key not in metadata and "calibration" in metadata:
                raise CheckpointError(
                    f"{path} has no {self.calibration_key!r}: it was written before there were modes. "
                    f"`python scripts/calibrate_modes.py {path}` measures it; so does a new `jamgym train-coherence`."
                )
            self._calibration = Calibration(**json.loads(metadata[self.calibration_key]))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{path} does not fit reward {self.name!r}: {error}") from error
        self._version = f"{SCORING_VERSION}-{_digest(tensors, metadata['network'], self._calibration)}"
        self._use(network)


def _digest(tensors: Mapping[str, Tensor], network: str, calibration: Calibration) -> str:
    """Return a short hash of all that a score depends on; notes beside the weights do not count."""
    found = hashlib.sha256(f"{network} {calibration}".encode())
    for name in sorted(tensors):
        found.update(name.encode() + tensors[name].contiguous().numpy().tobytes())
    return found.hexdigest()[:8]


def save_weights(
    path: Path | str, kind: str, network: nn.Module, calibration: Calibration, notes: Mapping[str, str] | None = None
) -> None:
    """Write the weights of `network` as float16 with what `LearnedReward` needs to read them."""
    config: Any = network.config
    metadata = {
        "kind": kind,
        "network": json.dumps(asdict(config)),
        "calibration": json.dumps(asdict(calibration)),
        **(notes or {}),
    }
    save_tensors(path, {name: tensor.half() for name, tensor in network.state_dict().items()}, metadata)


def round_to_half(network: nn.Module) -> None:
    """Round the weights to what `save_weights` stores, so that figures belong to the stored ones."""
    with torch.no_grad():
        for tensor in network.state_dict().values():
            tensor.copy_(tensor.half().to(tensor.dtype))


def sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return probabilities of logits, without overflow.

    >>> sigmoid(np.array([0.0, -1e9, 1e9])).tolist()
    [0.5, 0.0, 1.0]
    """
    return 0.5 * (1.0 + np.tanh(0.5 * logits))


def clean_audio(audio: NDArray[Any], sample_rate: int, target_rate: int = SAMPLE_RATE) -> NDArray[np.float32]:
    """Return finite float32 audio `(N, S)` at `target_rate`, at most `_LOUDEST`."""
    audio = np.nan_to_num(np.asarray(audio, dtype=np.float32), nan=0.0, posinf=_LOUDEST, neginf=-_LOUDEST)
    audio = np.clip(audio, -_LOUDEST, _LOUDEST)
    if sample_rate != target_rate:
        import soxr

        resampled = [soxr.resample(row, sample_rate, target_rate) for row in audio]
        audio = np.stack(resampled) if resampled else audio
    return np.ascontiguousarray(audio, dtype=np.float32)


def both_sides(name: str, windows: Windows, target_rate: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return finite heard and played audio `(N, S)` at `target_rate`.

    Raises:
        RewardError: They are not two arrays of one shape `(N, S)`; the message begins with reward `name`.
    """
    heard, played = np.asarray(windows.heard), np.asarray(windows.played)
    if heard.ndim != 2 or heard.shape != played.shape or heard.shape[1] == 0:
        raise RewardError(
            f"Reward {name!r} got heard of shape {heard.shape} and played of shape {played.shape}; expected "
            "two arrays (N, S) of one shape with at least one sample."
        )
    rate = windows.sample_rate
    return clean_audio(heard, rate, target_rate), clean_audio(played, rate, target_rate)
