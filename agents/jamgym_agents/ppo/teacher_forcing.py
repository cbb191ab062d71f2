"""Log-probabilities of whole episodes in one pass, under the distribution they were drawn from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from jamgym_agents.decoder import AccompanimentDecoder
from jamgym_agents.ppo.buffer import EpisodeBatch
from jamgym_agents.sampling import Sampling, guide, transform


def episode_log_probs(
    decoder: AccompanimentDecoder, batch: EpisodeBatch, t_f: Tensor, k: int, sampling: Sampling, bf16: bool
) -> tuple[Tensor, Tensor]:
    """Return log-probabilities `(B, T, Q, V)` and hidden states `(B, T, C)`, teacher-forced.

    Args:
        decoder: Whose.
        batch: Episodes.
        t_f: `(B,)` future visibility in frames: that of the episodes, or a teacher's.
        k: Frames per chunk.
        sampling: The distribution; with guidance, a second pass hears nothing.
        bf16: Compute matrix products in bfloat16.
    """
    logits, hidden = _logits(decoder, batch, t_f, k, bf16)
    if sampling.guided:
        unconditional, _ = _logits(decoder, batch, torch.full_like(t_f, -batch.played.shape[1]), k, bf16)
        logits = guide(logits, unconditional, sampling.guidance)
    return transform(logits, sampling), hidden


@torch.no_grad()
def with_log_probs(
    batch: EpisodeBatch, log_probs: Callable[[EpisodeBatch], Tensor], episodes_at_once: int
) -> EpisodeBatch:
    """Return `batch` with the log-probabilities of what was played in the update's precision.

    The rollout runs in float32; without this its difference to bfloat16 would look like a step.

    Args:
        batch: Episodes.
        log_probs: Returns `(B, T, Q, V)` of some of them.
        episodes_at_once: How many it is given at a time.
    """
    parts = []
    for start in range(0, len(batch.played), episodes_at_once):
        part = batch.rows(torch.arange(start, min(start + episodes_at_once, len(batch.played))))
        parts.append(log_probs(part).gather(-1, part.played.unsqueeze(-1)).squeeze(-1))
    return replace(batch, log_probs=torch.cat(parts))


def _logits(
    decoder: AccompanimentDecoder, batch: EpisodeBatch, t_f: Tensor, k: int, bf16: bool
) -> tuple[Tensor, Tensor]:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        _, hidden = decoder.trunk(
            batch.heard,
            batch.played,
            batch.instrument,
            t_f,
            torch.full_like(t_f, k),
            exist=batch.frames,
        )
        return decoder.depth_logits(hidden, batch.played), hidden
