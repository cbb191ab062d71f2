"""Losses and advantages of sequence PPO as pure functions.

Shapes: B episodes, C chunks (calls), T frames, Q codebooks, V entries. Masks are True where an entry
counts; what lies under a False may be anything, NaN included, and changes nothing.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

#: Log-probability in nats that `exact_kl` puts in place of -inf in q.
EXCLUDED = -20.0

#: KL(teacher || policy), KL(policy || teacher), or the mean of the two.
TeacherKL = Literal["forward", "reverse", "both"]


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of `values` where `mask` is True; 0 if it is True nowhere."""
    kept = torch.where(mask, values, torch.zeros_like(values))
    return kept.sum() / mask.sum().clamp_min(1)


def generalized_advantages(
    rewards: Tensor, values: Tensor, last_value: Tensor, lengths: Tensor, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Return advantages and returns `(B, C)` (Schulman et al. 2016), zero beyond each episode's length.

    Args:
        rewards: `(B, C)` reward of each chunk.
        values: `(B, C)` value before each chunk.
        last_value: `(B,)` value after the last chunk: of the *terminal* observation if the episode was
            truncated, 0 if it terminated.
        lengths: `(B,)` number of chunks.
        gamma: Discount per chunk.
        gae_lambda: Trace decay per chunk.
    """
    chunks = rewards.shape[1]
    valid = torch.arange(chunks) < lengths.unsqueeze(1)
    rewards = torch.where(valid, rewards, torch.zeros_like(rewards))
    values = torch.where(valid, values, torch.zeros_like(values))
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    is_last = torch.arange(chunks) == (lengths - 1).unsqueeze(1)
    following = torch.where(is_last, last_value.unsqueeze(1), following)
    delta = rewards + gamma * following - values
    advantages = torch.zeros_like(rewards)
    running = torch.zeros_like(last_value)
    for chunk in reversed(range(chunks)):
        running = torch.where(valid[:, chunk], delta[:, chunk] + gamma * gae_lambda * running, running)
        advantages[:, chunk] = running
    advantages = torch.where(valid, advantages, torch.zeros_like(advantages))
    return advantages, torch.where(valid, advantages + values, torch.zeros_like(values))


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Return `values` with mean 0 and deviation 1 over `mask`, and 0 elsewhere."""
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean).square(), mask)
    return torch.where(mask, (values - mean) * torch.rsqrt(variance + 1e-8), torch.zeros_like(values))


def chunks_to_tokens(per_chunk: Tensor, k: int, frames: int, codebooks: int) -> Tensor:
    """Spread `(B, C)` over the tokens of each chunk: `(B, frames, Q)`."""
    spread = per_chunk.repeat_interleave(k, dim=1)[:, :frames]
    return spread.unsqueeze(-1).expand(-1, -1, codebooks)


def clipped_policy_loss(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor, clip: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the PPO loss with the ratio clipped per token (Schulman et al. 2017).

    All arguments are `(B, T, Q)`. Also returns the share of clipped tokens, the mean ratio and the
    k3 estimate of KL(old || new). A token whose old log-probability is -inf does not count: it was drawn, so it
    was excluded by rounding alone, at the edge of top-k or top-p, and has no ratio.
    """
    mask = mask & (old_log_probs != -torch.inf)
    zero = torch.zeros_like(log_probs)
    difference = torch.where(mask, log_probs - old_log_probs, zero)
    advantages = torch.where(mask, advantages, zero)
    ratio = difference.exp()
    loss = -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    with torch.no_grad():
        figures = {
            "clip_fraction": masked_mean(((ratio - 1).abs() > clip).float(), mask),
            "ratio": masked_mean(ratio, mask),
            "approx_kl": masked_mean((ratio - 1) - difference, mask),
        }
    return masked_mean(loss, mask), figures


def value_loss(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """Return the mean squared error of `values` `(B, C)` over `mask`."""
    # Masked before the square, so that what lies under a False gets no gradient, not even 0 * NaN.
    return masked_mean(torch.where(mask, values - returns, torch.zeros_like(values)).square(), mask)


def exact_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return KL(p || q) over the vocabulary: `(..., V)` log-probabilities to `(...)` nats.

    Codes that p excludes (-inf) contribute 0, also where q excludes them too. A code that only q excludes
    counts as if q gave it `EXCLUDED` nats: under top-k the two sets differ soon, and an infinite
    divergence has no gradient to come back by.
    """
    kept = log_p > -torch.inf
    # Replaced before the product, not after: 0 * inf would be NaN in the gradient.
    finite_p = torch.where(kept, log_p, torch.zeros_like(log_p))
    finite_q = torch.where(log_q > -torch.inf, log_q, torch.full_like(log_q, EXCLUDED))
    return torch.where(kept, finite_p.exp() * (finite_p - finite_q), torch.zeros_like(log_p)).sum(-1)


def teacher_divergence(policy: Tensor, teacher: Tensor, kind: TeacherKL) -> Tensor:
    """Return the KL between `(..., V)` log-probabilities of policy and teacher: `(...)` nats.

    The teacher sees what the policy does not. "forward" is least where the policy is the mean of its teachers over
    all that may come (on-policy distillation, Agarwal et al. 2024, arXiv 2306.13649); "reverse" where it is their
    normalized geometric mean, which keeps what none of them excludes, silence above all (the term of ReaLchords,
    Wu et al. 2024); "both" is half of the Jeffreys divergence. Codes that the policy excludes (top-k, top-p) count
    in the forward direction as `EXCLUDED`, without a gradient: it does not bring them back.
    """
    if kind == "forward":
        return exact_kl(teacher, policy)
    if kind == "reverse":
        return exact_kl(policy, teacher)
    return (exact_kl(teacher, policy) + exact_kl(policy, teacher)) / 2


def entropy(log_p: Tensor) -> Tensor:
    """Return the entropy in nats of `(..., V)` log-probabilities."""
    kept = log_p > -torch.inf
    finite = torch.where(kept, log_p, torch.zeros_like(log_p))
    return -torch.where(kept, finite.exp() * finite, torch.zeros_like(log_p)).sum(-1)
