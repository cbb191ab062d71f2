"""The reward `clap_probe`: does a mix sound as if its parts belonged together?

A logistic regression on the CLAP embedding of heard + played, fitted on true mixes and on mixes whose
stem comes from another song: the per-window form of accompaniment prompt adherence (APA, arXiv
2503.06346), which compares whole sets of such mixes. Convention: the probability that the stem is the
true one, 0 to 1; random pairs lie around 0.5 or below. A closed gate of `jamgym_rewards.gating` gives 0.
Windows: 10 s every 5 s, at least 5 s; causal.

    probe = ClapProbe.fit(embedder, windows, groups)     # groups: which song each window is from
    probe.save("probe.safetensors")
    ClapProbeReward("laion/clap-htsat-unfused", probe="probe.safetensors")
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jamgym.checkpoint import check_metadata, load_tensors, save_tensors
from jamgym.errors import CheckpointError, ConfigError, RewardError
from jamgym.reward import Windows
from jamgym_rewards.clap_embedding import AudioEmbedder, ClapEmbedder
from jamgym_rewards.gating import GateSettings, lowered, openness
from jamgym_rewards.learned import both_sides

#: Bumped whenever the same weights may give another score.
SCORING_VERSION = "1"


def other_partner(groups: Sequence[object], seed: int = 0) -> NDArray[np.int64]:
    """Return `(N,)` a permutation that gives every window a stem of another group (song).

    Raises:
        RewardError: One group has more than half of the windows, so that there is no such permutation.
    """
    names, group = np.unique([str(name) for name in groups], return_inverse=True)
    size = int(np.bincount(group).max()) if len(group) else 0
    if size == 0 or 2 * size > len(group):
        raise RewardError(
            f"{len(group)} windows of {len(names)} songs, {size} of them of one song: no stem of another song for "
            "each. Take windows of more songs."
        )
    rng = np.random.default_rng(seed)
    # Songs in a random order, their windows side by side: a turn by the longest song leaves every song.
    place = np.lexsort((rng.permutation(len(group)), rng.permutation(len(names))[group]))
    partner = np.empty(len(group), dtype=np.int64)
    partner[place] = np.roll(place, -size)
    return partner


def fit_logistic(x: NDArray[np.float64], labels: NDArray[np.float64], l2: float) -> tuple[NDArray[np.float64], float]:
    """Return weights `(D,)` and bias of the logistic regression of `labels` `(M,)` on `x` `(M, D)`.

    Minimises the mean cross-entropy plus ``l2 / 2`` times the squared length of the weights.
    """
    from scipy.optimize import minimize

    signs = 2.0 * labels - 1.0

    def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights, bias = parameters[:-1], parameters[-1]
        margin = signs * (x @ weights + bias)
        slope = -signs * np.exp(-np.logaddexp(0.0, margin)) / len(x)
        value = np.logaddexp(0.0, -margin).mean() + 0.5 * l2 * weights @ weights
        return float(value), np.append(x.T @ slope + l2 * weights, slope.sum())

    found = minimize(loss, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B").x
    return found[:-1], float(found[-1])


@dataclass(frozen=True)
class ClapProbe:
    """A logistic probe on CLAP embeddings of mixes.

    Attributes:
        weights: `(D,)`.
        bias: Added to the product of weights and embedding.
        embedder_version: Version of the embedder it was fitted on.
    """

    weights: NDArray[np.float64]
    bias: float
    embedder_version: str

    @classmethod
    def fit(
        cls, embedder: AudioEmbedder, windows: Windows, groups: Sequence[object], l2: float = 1e-2, seed: int = 0
    ) -> ClapProbe:
        """Fit a probe that tells true mixes from mixes with a stem of another song.

        Args:
            embedder: Embeds the mixes.
            windows: N windows; `played` holds true stems.
            groups: N songs that the windows are cut from.
            l2: Strength of the penalty on the weights, which act on embeddings of unit variance.
            seed: Of the wrong pairs.

        Raises:
            RewardError: Shapes are wrong, or too many windows are of one song.
        """
        heard, played = both_sides("clap_probe", windows, windows.sample_rate)
        if len(groups) != len(heard):
            raise RewardError(f"{len(heard)} windows but {len(groups)} groups; give the song of each window.")
        mixes = np.concatenate([heard + played, heard + played[other_partner(groups, seed)]])
        x = embedder.embed(mixes, windows.sample_rate).astype(np.float64)
        labels = np.repeat([1.0, 0.0], len(heard))
        mean, scale = x.mean(axis=0), x.std(axis=0) + 1e-6
        weights, bias = fit_logistic((x - mean) / scale, labels, l2)
        weights = weights / scale
        return cls(weights, float(bias - mean @ weights), embedder.version)

    def score(self, embeddings: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return `(N,)` probabilities of `(N, D)` embeddings of mixes."""
        logits = np.asarray(embeddings, dtype=np.float64) @ self.weights + self.bias
        return np.exp(-np.logaddexp(0.0, -logits))

    def save(self, path: Path | str) -> None:
        """Write the probe as safetensors."""
        import torch

        tensors = {"weights": torch.from_numpy(self.weights), "bias": torch.tensor(self.bias, dtype=torch.float64)}
        save_tensors(path, tensors, {"kind": "clap_probe", "embedder": self.embedder_version})

    @classmethod
    def load(cls, path: Path | str) -> ClapProbe:
        """Read what `save` wrote.

        Raises:
            CheckpointError: There is no such file, or it is not a probe.
        """
        tensors, metadata = load_tensors(path)
        check_metadata(path, metadata, {"kind": "clap_probe"})
        try:
            return cls(tensors["weights"].numpy(), float(tensors["bias"]), metadata["embedder"])
        except (KeyError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{path} is damaged: {type(error).__name__}: {error}.") from error


class ClapProbeReward:
    """Probability that what was played belongs to what was heard, by a probe on CLAP (see `ClapProbe`).

    Args:
        checkpoint: Folder or hub name of the CLAP weights.
        probe: File of `ClapProbe.save`, or a probe.
        download: Whether a hub name may be downloaded.
        gates: Gate settings; None switches the gates off.
        embedder: Something that embeds, instead of `checkpoint`.

    Raises:
        ConfigError: An argument is missing.
        CheckpointError: Weights or probe are not here, or the probe belongs to other weights.
    """

    name = "clap_probe"
    window_seconds = 10.0
    min_window_seconds = 5.0
    hop_seconds = 5.0
    causal = True
    range = (0.0, 1.0)
    needs: frozenset[str] = frozenset()

    def __init__(
        self,
        checkpoint: str | Path | None = None,
        probe: str | Path | ClapProbe | None = None,
        download: bool = False,
        gates: GateSettings | None = GateSettings(),  # noqa: B008 - frozen
        embedder: AudioEmbedder | None = None,
    ) -> None:
        if probe is None:
            raise ConfigError("Reward 'clap_probe' needs the argument probe: fit one with ClapProbe.fit and save it.")
        self.probe = probe if isinstance(probe, ClapProbe) else ClapProbe.load(probe)
        self.embedder = ClapEmbedder(checkpoint, download) if embedder is None else embedder
        self.gates = gates
        if self.probe.embedder_version != self.embedder.version:
            raise CheckpointError(
                f"The probe was fitted on the embedder {self.probe.embedder_version}, but this one is "
                f"{self.embedder.version}. Use the same CLAP weights, or fit the probe again."
            )

    @property
    def version(self) -> str:
        """Scoring version, version of the embedder and hash of the probe."""
        digest = hashlib.sha256(np.append(self.probe.weights, self.probe.bias).tobytes()).hexdigest()[:8]
        return f"{SCORING_VERSION}-{self.embedder.version}-{digest}"

    def score(self, windows: Windows) -> NDArray[np.float32]:
        """Return `(N,)` probabilities, gated; finite for any audio."""
        rate = windows.sample_rate
        heard, played = both_sides(self.name, windows, rate)
        if len(heard) == 0:
            return np.zeros(0, dtype=np.float32)
        scores = self.probe.score(self.embedder.embed(heard + played, rate))
        if self.gates is not None:
            scores = lowered(scores, openness(heard, played, rate, self.gates), 0.0)
        return scores.astype(np.float32)
