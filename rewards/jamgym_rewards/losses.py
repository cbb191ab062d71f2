"""Losses of the learned rewards: tell the true stem of each example from wrong ones.

`coherence` learns by symmetric InfoNCE: among all played stems of the batch and all their wrong versions, find the
one that belongs to what is heard, and the other way round. `judge` learns by logistic regression and by choosing the
true stem among wrong versions and random stems. `discriminative` learns by balanced binary cross-entropy alone, so
that its output is the probability of a match where matches and mismatches are equally common.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jamgym_rewards.features import prepare
from jamgym_rewards.joint import JointNetwork, moments
from jamgym_rewards.negatives import PairBatch
from jamgym_rewards.towers import FusionNetwork, TwoTowers, halve

_MAX_SCALE = 60.0
#: Stems of other examples of the batch beside each example's own wrong versions.
_RANDOM_STEMS = 1
_PERMUTED_PAIRS = 4


def contrastive_loss(network: TwoTowers, batch: PairBatch) -> tuple[Tensor, dict[str, float]]:
    """Return symmetric InfoNCE over the batch, with every wrong version as a candidate, and figures."""
    spec = network.config.features
    heard = prepare(batch.heard, spec)
    played = prepare(batch.played.flatten(0, 1), spec)
    a, b = network.heard(heard.values), network.played(played.values)
    count, versions = batch.played.shape[:2]
    scores = network.all_pairs(a, halve(halve(heard.weight)), b, halve(halve(played.weight)))
    scale = network.log_scale.exp().clamp(max=_MAX_SCALE)
    target = torch.arange(count)
    loss_played = nn.functional.cross_entropy(scale * scores, target * versions)
    loss_heard = nn.functional.cross_entropy(scale * scores[:, ::versions].T, target)
    cube = scores.detach().view(count, count, versions)
    own = cube[target, target]
    return 0.5 * (loss_played + loss_heard), {
        "accuracy/batch": float((cube[:, :, 0].argmax(1) == target).float().mean()),
        "accuracy/wrong_versions": float((own[:, :1] > own[:, 1:]).float().mean()),
        "scale": float(scale.detach()),
    }


def match_loss(network: FusionNetwork, batch: PairBatch) -> tuple[Tensor, dict[str, float]]:
    """Return balanced logistic loss plus choice of the true stem, and figures."""
    spec = network.config.features
    count, versions = batch.played.shape[:2]
    strangers = [batch.played[:, 0].roll(1 + turn, 0) for turn in range(_RANDOM_STEMS)]
    candidates = torch.cat([batch.played, torch.stack(strangers, dim=1)], dim=1)
    total = candidates.shape[1]
    heard = prepare(batch.heard.repeat_interleave(total, 0), spec)
    logits = network(heard, prepare(candidates.flatten(0, 1), spec)).view(count, total)
    binary = nn.functional.softplus(-logits[:, 0]).mean() + nn.functional.softplus(logits[:, 1:]).mean()
    choice = nn.functional.cross_entropy(logits, torch.zeros(count, dtype=torch.long))
    return 0.5 * binary + choice, _accuracies(logits.detach(), versions)


def joint_loss(network: JointNetwork, batch: PairBatch) -> tuple[Tensor, dict[str, float]]:
    """Return balanced binary cross-entropy against wrong versions and permuted pairs, and figures."""
    spec = network.config.features
    count, versions = batch.played.shape[:2]
    heard = prepare(batch.heard, spec)
    played = prepare(batch.played.flatten(0, 1), spec)
    a, b = network.hear(heard), network.play(played).unflatten(0, (count, versions))
    a_weight, b_weight = moments(heard), moments(played).unflatten(0, (count, versions))
    # Each side is read once; what is heard then meets its own versions and, permuted, the true stems of others.
    strangers = [(b[:, 0].roll(1 + turn, 0), b_weight[:, 0].roll(1 + turn, 0)) for turn in range(_permuted(count))]
    b = torch.cat([b, *(stem[:, None] for stem, _ in strangers)], dim=1)
    b_weight = torch.cat([b_weight, *(weight[:, None] for _, weight in strangers)], dim=1)
    total = b.shape[1]
    weight = a_weight.repeat_interleave(total, 0) * b_weight.flatten(0, 1)
    logits = network.join(a.repeat_interleave(total, 0), b.flatten(0, 1), weight).view(count, total)
    loss = binary_loss(logits[:, 0], logits[:, 1:])
    found = logits.detach()
    return loss, {
        **_accuracies(found, versions),
        "probability/truth": float(found[:, 0].sigmoid().mean()),
        "probability/random_stem": float(found[:, versions:].sigmoid().mean()),
    }


def _accuracies(logits: Tensor, versions: int) -> dict[str, float]:
    """Return how often the true stem, in the first column, beats its wrong versions and the random stems."""
    return {
        "accuracy/wrong_versions": float((logits[:, :1] > logits[:, 1:versions]).float().mean()),
        "accuracy/random_stem": float((logits[:, :1] > logits[:, versions:]).float().mean()),
    }


def _permuted(count: int) -> int:
    return min(_PERMUTED_PAIRS, count - 1)


def binary_loss(matches: Tensor, mismatches: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return binary cross-entropy of logits of any shapes; both kinds weigh the same, however many there are.

    Args:
        matches: Logits that should be high.
        mismatches: Logits that should be low.
        smoothing: What the target of matches lies below 1 (one-sided label smoothing, arXiv 1606.03498).

    >>> round(float(binary_loss(torch.zeros(2), torch.zeros(5))), 4)
    0.6931
    """
    target = torch.full_like(matches, 1.0 - smoothing)
    high = nn.functional.binary_cross_entropy_with_logits(matches, target)
    return 0.5 * (high + nn.functional.softplus(mismatches).mean())


def batch_loss(network: nn.Module, batch: PairBatch) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of `network`'s kind, and figures."""
    if isinstance(network, TwoTowers):
        return contrastive_loss(network, batch)
    if isinstance(network, JointNetwork):
        return joint_loss(network, batch)
    assert isinstance(network, FusionNetwork)
    return match_loss(network, batch)
