"""Mixture: the weighted sum of several rewards, each of which stays visible.

A window of the mixture is as long as the longest window of its components and ends every so often as the
quickest of them asks for. Each component is scored at each of these ends, on the last part of the window that
is as long as its own. So a component gets the audio that it would get alone, and the rewards of an episode sum to
its score as for any other reward. A component with a long hop is scored more often than alone; give
`hop_seconds` where that costs too much. No window is scored before every component can score it.

Conventions: range, needs and causality follow from the components. What counts is `weight * clip(score)`, summed,
and the sum clipped. With `normalise` a score is first standardised by the running mean and deviation of that
component's scores: statistics are those of the windows of earlier calls, so windows of one batch do not influence
each other; until `WARM_UP` windows have been seen scores pass unchanged. It makes components of unlike
ranges comparable in training, and a score then depends on what was scored before: set `normalising` to False to
measure (`jamgym evaluate` does). A component that learns (`jamgym.reward.LearningReward`) learns inside a mixture as
it does alone; state and figures of all components are the mixture's.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jamgym.codec import Codec
from jamgym.errors import ConfigError
from jamgym.ranges import check_above_zero
from jamgym.record import EpisodeRecord
from jamgym.registry import rewards as registry
from jamgym.reward import RewardModel, Windows, check_scores
from jamgym.reward_learning import learn_from, learns, load_reward_state, reward_state
from jamgym.scoring import check_reward
from jamgym.specs import create_from_spec

#: Windows that are seen before scores are standardised.
WARM_UP = 64
_LEAST_DEVIATION = 1e-3


class RunningMoments:
    """Count, mean and variance of C numbers over all rows seen so far, merged batch by batch."""

    def __init__(self, components: int) -> None:
        self.count = 0
        self.mean = np.zeros(components)
        self.squares = np.zeros(components)

    @property
    def deviation(self) -> NDArray[np.float64]:
        """`(C,)` population standard deviations; at least 0.001."""
        return np.maximum(np.sqrt(self.squares / max(self.count, 1)), _LEAST_DEVIATION)

    def update(self, rows: NDArray[np.float64]) -> None:
        """Take in `(N, C)` numbers."""
        count = self.count + len(rows)
        if count == self.count:
            return
        mean = rows.mean(axis=0)
        apart = mean - self.mean
        self.squares = self.squares + ((rows - mean) ** 2).sum(axis=0) + apart**2 * self.count * len(rows) / count
        self.mean = self.mean + apart * len(rows) / count
        self.count = count


class MixtureReward:
    """The weighted sum of several rewards.

    Args:
        rewards: Names, mappings with `name` and arguments, or reward models; at least one.
        weights: One per reward; None weighs each with 1.
        clips: Per reward [lowest, highest] that its score is clipped to before it is weighed, or None.
        total_clip: [lowest, highest] of the sum, or None.
        normalise: Standardise each score by its running mean and deviation.
        hop_seconds: Time between windows, above 0; None takes the shortest hop of the components.

    Attributes:
        components: Labels of the components: their names, numbered from the second of the same name on.
        models: The reward models.
        last_scores: `(N, C)` scores of the components in the last call of `score`: their own, before
            normalisation, clipping and weighing.
        normalising: Whether `score` standardises and counts; False measures.

    Example:
        >>> mixture = MixtureReward(["harmony", {"name": "silence", "allowance": 0.1}], weights=[1.0, 0.5])
        >>> mixture.components, mixture.range
        (('harmony', 'silence'), (-1.5, 1.0))
    """

    name = "mixture"

    def __init__(
        self,
        rewards: list[Any],
        weights: list[float] | None = None,
        clips: list[Any] | None = None,
        total_clip: list[float] | None = None,
        normalise: bool = False,
        hop_seconds: float | None = None,
    ) -> None:
        if isinstance(rewards, (str, Mapping)) or not len(rewards):
            raise ConfigError(f"rewards is {rewards!r}; expected a list, such as [coherence, {{name: silence}}].")
        self.models: tuple[RewardModel, ...] = tuple(
            create_from_spec(registry, spec) if isinstance(spec, (str, dict)) else spec for spec in rewards
        )
        for model in self.models:
            check_reward(model)
            if isinstance(model, MixtureReward):
                raise ConfigError("A mixture inside a mixture: list its rewards in the outer one instead.")
        self.components = _labels([model.name for model in self.models])
        self.weights = np.asarray(self._one_each("weights", weights, 1.0), dtype=np.float64)
        if not np.isfinite(self.weights).all() or not self.weights.any():
            raise ConfigError(f"weights are {self.weights.tolist()}; they must be finite, and one must not be 0.")
        self.clips = tuple(_pair("clips", clip) for clip in self._one_each("clips", clips, None))
        self.total_clip = _pair("total_clip", total_clip)
        self.normalising = normalise
        self.moments = RunningMoments(len(self.models))
        self.last_scores = np.zeros((0, len(self.models)))
        self.window_seconds = max(model.window_seconds for model in self.models)
        self.min_window_seconds = max(model.min_window_seconds for model in self.models)
        self.hop_seconds = min(m.hop_seconds for m in self.models) if hop_seconds is None else hop_seconds
        check_above_zero(self, ("hop_seconds",))
        # The statistics tie a score to the windows before it.
        self.causal = all(model.causal for model in self.models) and not normalise
        self.needs: frozenset[str] = frozenset().union(*(model.needs for model in self.models))
        self.range = self._range(normalise)

    @property
    def version(self) -> str:
        """Changes with the components' versions, weights and clips."""
        parts = [[model.name, model.version] for model in self.models]
        told = json.dumps([parts, self.weights.tolist(), self.clips, self.total_clip, self.normalising])
        return f"1-{hashlib.sha256(told.encode()).hexdigest()[:8]}"

    def score(self, windows: Windows) -> NDArray[np.float32]:
        """Return `(N,)` weighted sums; the components' own scores are in `last_scores` afterwards.

        Raises:
            RewardError: A component returned a wrong shape or a number that is not finite; it is named.
        """
        self.last_scores = np.stack([self._own(index, windows) for index in range(len(self.models))], axis=1)
        return self.combine(self.last_scores).astype(np.float32)

    def combine(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the sums `(N,)` of components' scores `(N, C)`: standardised, clipped, weighed, clipped."""
        values = scores
        if self.normalising:
            if self.moments.count >= WARM_UP:
                values = (scores - self.moments.mean) / self.moments.deviation
            self.moments.update(scores)
        columns = [
            values[:, index] if clip is None else np.clip(values[:, index], *clip)
            for index, clip in enumerate(self.clips)
        ]
        total = np.stack(columns, axis=1) @ self.weights
        return total if self.total_clip is None else np.clip(total, *self.total_clip)

    @property
    def learns(self) -> bool:
        """Whether a component learns; setting it sets it in each component that can."""
        return any(learns(model) for model in self.models)

    @learns.setter
    def learns(self, value: bool) -> None:
        for model in self.models:
            if hasattr(model, "learns"):
                model.learns = value

    def learn(self, records: Sequence[EpisodeRecord], codec: Codec, rng: np.random.Generator) -> dict[str, float]:
        """Let each component learn from a rollout, with its own stream of `rng`; figures are "component/figure"."""
        figures: dict[str, float] = {}
        for label, model in zip(self.components, self.models, strict=True):
            stream = np.random.default_rng(int(rng.integers(2**63)))
            found = learn_from(model, records, codec, stream)
            figures |= {f"{label}/{name}": value for name, value in found.items()}
        return figures

    def state(self) -> dict[str, Any]:
        """Return the running statistics and the states of the components, for a checkpoint."""
        moments = self.moments
        return {
            "count": moments.count,
            "mean": moments.mean.tolist(),
            "squares": moments.squares.tolist(),
            "rewards": [reward_state(model) for model in self.models],
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        if len(state["mean"]) != len(self.models):
            raise ConfigError(f"The state is of {len(state['mean'])} rewards; this mixture has {len(self.models)}.")
        for model, part in zip(self.models, state.get("rewards", [None] * len(self.models)), strict=True):
            load_reward_state(model, part)
        self.moments.count = int(state["count"])
        self.moments.mean = np.array(state["mean"], dtype=np.float64)
        self.moments.squares = np.array(state["squares"], dtype=np.float64)

    def _own(self, index: int, windows: Windows) -> NDArray[np.float64]:
        """Return what one component says, `(N,)`, of the last part of `windows` that is as long as its own."""
        model, count = self.models[index], len(windows.played)
        scores = model.score(last_part(windows, model))
        return check_scores(f"{self.name}/{self.components[index]}", scores, count, "a batch").astype(np.float64)

    def _one_each(self, key: str, values: Sequence[Any] | None, default: Any) -> list[Any]:
        if values is None:
            return [default] * len(self.models)
        if len(values) != len(self.models):
            raise ConfigError(
                f"{key} has {len(values)} entries for {len(self.models)} rewards ({', '.join(self.components)}); "
                "give one each."
            )
        return list(values)

    def _range(self, normalise: bool) -> tuple[float, float]:
        low = high = 0.0
        for model, weight, clip in zip(self.models, self.weights.tolist(), self.clips, strict=True):
            ends = (-np.inf, np.inf) if normalise else model.range
            if clip is not None:
                ends = (float(np.clip(ends[0], *clip)), float(np.clip(ends[1], *clip)))
            if weight:
                low, high = low + min(weight * e for e in ends), high + max(weight * e for e in ends)
        if self.total_clip is not None:
            low, high = (float(np.clip(end, *self.total_clip)) for end in (low, high))
        return low, high


def last_part(windows: Windows, model: RewardModel) -> Windows:
    """Return the end of `windows` that is at most as long as the windows of `model`, with what it needs."""
    rate, samples = windows.sample_rate, windows.played.shape[1]
    first = max(samples - round(model.window_seconds * rate), 0)
    target, truth = windows.target, windows.truth
    return Windows(
        heard=windows.heard[:, first:],
        played=windows.played[:, first:],
        sample_rate=rate,
        target=target[:, first:] if target is not None and "target" in model.needs else None,
        truth=tuple(None if known is None else known.crop(first / rate, samples / rate) for known in truth)
        if truth is not None and "truth" in model.needs
        else None,
    )


def _labels(names: Sequence[str]) -> tuple[str, ...]:
    seen: Counter[str] = Counter()
    labels = []
    for name in names:
        seen[name] += 1
        labels.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return tuple(labels)


def _pair(key: str, clip: Any) -> tuple[float, float] | None:
    if clip is None:
        return None
    if isinstance(clip, (list, tuple)) and len(clip) == 2 and float(clip[0]) < float(clip[1]):
        return float(clip[0]), float(clip[1])
    raise ConfigError(f"{key} has {clip!r}; expected [lowest, highest], or null for none.")
