"""What one pretraining step sees: crops of songs, a (t_f, k) per sequence, hidden spans, scored frames.

All of it depends on the seed and the step alone. So a resumed run meets the same batches, and each process of
several can draw the whole batch and keep its own rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from jamgym_agents.mle.settings import PretrainConfig
from jamgym_agents.mle.token_data import TokenBatch, TokenSet


@dataclass(frozen=True)
class StepInputs:
    """One step's batch of B sequences of T frames, or some rows of it.

    Attributes:
        tokens: Codes and labels.
        t_f: `(B,)` future visibility in frames.
        k: `(B,)` chunk sizes in frames.
        hidden: `(B, T - 1)` mask of played frames that the network may not see.
        scored: `(M,)` ascending indices of the frames whose codes are predicted.
    """

    tokens: TokenBatch
    t_f: Tensor
    k: Tensor
    hidden: Tensor
    scored: Tensor

    def rows(self, part: slice) -> StepInputs:
        """Return the sequences in `part`."""
        return replace(
            self, tokens=self.tokens.rows(part), t_f=self.t_f[part], k=self.k[part], hidden=self.hidden[part]
        )

    def to(self, device: torch.device) -> StepInputs:
        """Return it with all tensors on `device`."""
        moved = {name: getattr(self, name).to(device) for name in ("t_f", "k", "hidden", "scored")}
        return StepInputs(tokens=self.tokens.to(device), **moved)


def draw_step(data: TokenSet, config: PretrainConfig, step: int) -> StepInputs:
    """Draw the whole batch of `step`, on the CPU."""
    rng = np.random.default_rng([config.seed, step])
    tokens = data.batch(rng, config.batch, config.frames)
    t_f, k = draw_conditions(rng, config, step)
    hidden = hidden_past(rng, config)
    count = max(1, round(config.loss_share * config.frames))
    scored = torch.from_numpy(np.sort(rng.permutation(config.frames)[:count]))
    return StepInputs(tokens, t_f, k, hidden, scored)


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """Return the seed of the dropout masks that process `rank` draws in `step`."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def draw_conditions(rng: np.random.Generator, config: PretrainConfig, step: int) -> tuple[Tensor, Tensor]:
    """Draw `(B,)` t_f and k of `step`."""
    size = config.batch
    first = step < config.ahead_first * config.steps
    if first:
        t_f = rng.integers((config.t_f_high + 1) // 2, config.t_f_high + 1, size=size)
    elif config.ahead_share is None:
        t_f = rng.integers(config.t_f_low, config.t_f_high + 1, size=size)
    else:
        ahead = rng.random(size) < config.ahead_share
        t_f = rng.integers(np.where(ahead, 0, config.t_f_low), np.where(ahead, config.t_f_high + 1, 0))
    k = rng.choice(np.array(config.k_choices), size=size)
    if first:
        t_f = t_f + k - 1  # as much beyond the chunk's last frame as beyond that of a chunk of one
    return torch.from_numpy(t_f), torch.from_numpy(k)


def hidden_past(rng: np.random.Generator, config: PretrainConfig) -> Tensor:
    """Return the mask `(B, T - 1)` of played frames that the network may not see."""
    hidden = hidden_spans(rng, config.batch, config.frames - 1, config.history_dropout)
    if config.past_dropout:
        hidden |= torch.from_numpy(rng.random((config.batch, 1)) < config.past_dropout)
    return hidden


def hidden_spans(rng: np.random.Generator, size: int, frames: int, share: float) -> Tensor:
    """Return the mask `(B, frames)` of past frames to hide: spans of 10 frames and more in `share` of the rows."""
    mask = np.zeros((size, frames), dtype=bool)
    for row in np.flatnonzero(rng.random(size) < share):
        for _ in range(int(rng.integers(1, 5))):
            start = int(rng.integers(frames))
            mask[row, start : start + int(rng.integers(10, max(11, frames // 2)))] = True
    return torch.from_numpy(mask)
