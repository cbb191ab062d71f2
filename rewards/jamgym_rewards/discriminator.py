"""How the discriminator of the reward `adversarial` learns: when it is due, from which examples, one update at a time.

All of it is deterministic under the random generator that it is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor, nn

from jamgym.errors import ConfigError, RewardError
from jamgym_rewards.features import prepare, unpack
from jamgym_rewards.joint import JointNetwork
from jamgym_rewards.losses import binary_loss
from jamgym_rewards.negatives import Packed


@dataclass(frozen=True)
class UpdateSchedule:
    """When the discriminator learns, as in GAPT: regularly at first, later only when the agent fools it.

    Attributes:
        every: At first it learns from the first rollout and from every so-manieth one.
        early_rollouts: So many rollouts are "at first".
        threshold: Afterwards it learns when the mean reward of the last rollouts lies above this.
        mean_over: So many rollouts are "the last", fewer where there are fewer.
    """

    every: int = 5
    early_rollouts: int = 50
    threshold: float = 1.0
    mean_over: int = 3

    def __post_init__(self) -> None:
        """Refuse values without meaning."""
        if self.every < 1 or self.mean_over < 1 or self.early_rollouts < 0:
            raise ConfigError(
                f"every is {self.every}, mean_over {self.mean_over} and early_rollouts {self.early_rollouts}; "
                "the first two must be at least 1, the last at least 0."
            )

    def due(self, rollout: int, rewards: Sequence[float]) -> bool:
        """Return whether the discriminator learns from `rollout`.

        Args:
            rollout: Its number, from 1.
            rewards: Mean reward of each rollout so far, this one included.

        >>> [n for n in range(1, 12) if UpdateSchedule().due(n, [0.7])]
        [1, 5, 10]
        """
        if rollout <= self.early_rollouts:
            return rollout == 1 or rollout % self.every == 0
        return float(np.mean(rewards[-self.mean_over :])) > self.threshold


@dataclass(frozen=True)
class DiscriminatorLearning:
    """How the discriminator learns when it does.

    Attributes:
        passes: Passes over the rollout's windows.
        batch: Windows of each kind per step.
        learning_rate: Of AdamW.
        weight_decay: Of AdamW.
        label_smoothing: What the target of true windows lies below 1.
        max_grad_norm: Gradients are clipped to this norm.
        replay: Played windows of earlier rollouts that are kept and shown again; 0 keeps none.
    """

    passes: int = 2
    batch: int = 32
    learning_rate: float = 5e-4
    weight_decay: float = 0.01
    label_smoothing: float = 0.1
    max_grad_norm: float = 1.0
    replay: int = 0

    def __post_init__(self) -> None:
        """Refuse values without meaning."""
        if self.passes < 1 or self.batch < 1 or self.replay < 0:
            raise ConfigError("passes and batch must be at least 1, and replay at least 0.")
        if not 0.0 <= self.label_smoothing < 0.5:
            raise ConfigError(f"label_smoothing is {self.label_smoothing}; it must be in [0, 0.5).")
        if not (self.learning_rate > 0 and self.max_grad_norm > 0 and self.weight_decay >= 0):
            raise ConfigError("learning_rate and max_grad_norm must be above 0, and weight_decay not below it.")


@dataclass(frozen=True)
class WindowFeatures:
    """N windows as packed decibels `(N, pitch_bins + bands, T)` uint8 of both sides."""

    heard: Packed
    played: Packed

    def __len__(self) -> int:
        return len(self.played)

    def rows(self, index: NDArray[np.int64]) -> WindowFeatures:
        """Return the windows at `index`."""
        return WindowFeatures(self.heard[index], self.played[index])

    @classmethod
    def join(cls, parts: Sequence[WindowFeatures]) -> WindowFeatures:
        """Return the windows of all `parts`, at least one, which have one length."""
        return cls(np.concatenate([part.heard for part in parts]), np.concatenate([part.played for part in parts]))


@dataclass(frozen=True)
class Examples:
    """Windows of one length: the truth and what was played. Their numbers may differ."""

    real: WindowFeatures
    fake: WindowFeatures


def match_logits(network: JointNetwork, windows: WindowFeatures) -> Tensor:
    """Return the network's logits `(N,)` of `windows`."""
    spec = network.config.features
    heard, played = (unpack(torch.from_numpy(side)) for side in (windows.heard, windows.played))
    return network(prepare(heard, spec), prepare(played, spec))


def minibatches(groups: Sequence[Examples], batch: int, rng: Generator) -> Iterator[Examples]:
    """Yield every played window once, in random order, beside as many true ones; groups without a kind are left out."""
    found: list[tuple[Examples, NDArray[np.int64], NDArray[np.int64]]] = []
    for group in groups:
        if not len(group.real) or not len(group.fake):
            continue
        fakes = rng.permutation(len(group.fake))
        # As often as it takes, each round in an order of its own.
        rounds = -(-len(fakes) // len(group.real))
        reals = np.concatenate([rng.permutation(len(group.real)) for _ in range(rounds)])
        for first in range(0, len(fakes), batch):
            part = slice(first, min(first + batch, len(fakes)))
            found.append((group, reals[part], fakes[part]))
    for place in rng.permutation(len(found)):
        group, reals, fakes = found[place]
        yield Examples(group.real.rows(reals), group.fake.rows(fakes))


def update(
    network: JointNetwork, optimizer: torch.optim.Optimizer, batch: Examples, settings: DiscriminatorLearning
) -> dict[str, float]:
    """Take one step that raises the logits of the truth and lowers those of what was played.

    Returns:
        Loss, share of windows on the right side of 0, mean probability of the truth and of what was played.

    Raises:
        RewardError: Loss or gradient is not finite; this step is not taken.
    """
    real, fake = match_logits(network, batch.real), match_logits(network, batch.fake)
    loss = binary_loss(real, fake, settings.label_smoothing)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(network.parameters(), settings.max_grad_norm)
    if not torch.isfinite(loss.detach() + norm):
        raise _not_finite(f"loss {float(loss.detach())}, gradient norm {float(norm)}")
    optimizer.step()
    real, fake = real.detach(), fake.detach()
    return {
        "loss": float(loss.detach()),
        "accuracy": 0.5 * float((real > 0).float().mean() + (fake < 0).float().mean()),
        "probability_real": float(real.sigmoid().mean()),
        "probability_fake": float(fake.sigmoid().mean()),
        "grad_norm": float(norm),
    }


def check_finite(network: nn.Module) -> None:
    """Raise `RewardError` if a weight is not finite."""
    if not all(bool(torch.isfinite(parameter).all()) for parameter in network.parameters()):
        raise _not_finite("a weight is no finite number")


def _not_finite(what: str) -> RewardError:
    return RewardError(
        f"The update of reward 'adversarial' is not finite: {what}. The discriminator is left as it was before the "
        "update, and the last checkpoint, if any, is intact; resume it, or start again, with a lower learning_rate "
        "or with label_smoothing."
    )


def keep_some(kept: WindowFeatures | None, fresh: WindowFeatures, limit: int, rng: Generator) -> WindowFeatures | None:
    """Return at most `limit` windows drawn from those kept and fresh ones; `kept` of another length are dropped."""
    if limit == 0:
        return None
    if kept is not None and kept.played.shape[1:] == fresh.played.shape[1:]:
        fresh = WindowFeatures.join([kept, fresh])
    return fresh.rows(np.sort(rng.permutation(len(fresh))[:limit]))
