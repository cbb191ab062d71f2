"""Rollout buffer of whole episodes: codes once, values and rewards per chunk, log-probabilities per token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from torch import Tensor

from jamgym.record import EpisodeRecord
from jamgym_agents.ppo.losses import generalized_advantages, whiten

_ON_TIME = 1


@dataclass(frozen=True)
class EpisodeBatch:
    """B whole episodes of at most C chunks, T = C k frames.

    Attributes:
        heard: `(B, T, Q)` input codes; what was never heard is hidden by the visibility mask.
        frames: `(B,)` frames of each episode; what lies behind them is padding, which nobody ever heard.
        played: `(B, T, Q)` codes that were played.
        instrument: `(B,)`.
        t_f: `(B,)` future visibility that each episode was played with, in frames.
        log_probs: `(B, T, Q)` under the policy that played.
        token_mask: `(B, T)` frames whose tokens are trained: the episode's own, in chunks that were
            played whole. A chunk with a late frame was heard other than it was drawn, so its
            log-probabilities cannot be recomputed from what was played; it keeps its reward and value.
        chunk_mask: `(B, C)` chunks that exist.
        values: `(B, C)`.
        advantages: `(B, C)`, whitened over the rollout.
        returns: `(B, C)`.
    """

    heard: Tensor
    frames: Tensor
    played: Tensor
    instrument: Tensor
    t_f: Tensor
    log_probs: Tensor
    token_mask: Tensor
    chunk_mask: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor

    def rows(self, index: Tensor) -> EpisodeBatch:
        """Return the episodes at `index`."""
        return EpisodeBatch(**{name: value[index] for name, value in vars(self).items()})


class EpisodeBuffer(RolloutBuffer):
    """Holds one episode per environment; `n_steps` is the number of calls of the longest one.

    Follows `RolloutBuffer` in construction and life cycle (reset, add, compute, get); observations are
    not stored per step, since an episode's codes are stored once.
    """

    k: int = 1
    codebooks: int = 1

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: torch.device | str = "auto",
        gae_lambda: float = 0.95,
        gamma: float = 0.99,
        n_envs: int = 1,
        k: int = 1,
        codebooks: int = 1,
    ) -> None:
        self.k, self.codebooks = k, codebooks
        super().__init__(buffer_size, observation_space, action_space, device, gae_lambda, gamma, n_envs)

    def reset(self) -> None:
        """Forget the last rollout."""
        n, chunks, k, q = self.n_envs, self.buffer_size, self.k, self.codebooks
        self.values = np.zeros((n, chunks), dtype=np.float32)
        self.rewards = np.zeros((n, chunks), dtype=np.float32)
        self.log_probs = np.zeros((n, chunks * k, q), dtype=np.float32)
        self.lengths = np.zeros(n, dtype=np.int64)
        self.batch: EpisodeBatch | None = None
        self.pos, self.full, self.generator_ready = 0, False, False

    def add_call(self, values: np.ndarray, log_probs: np.ndarray, rewards: np.ndarray, alive: np.ndarray) -> None:
        """Add one call of every environment that is still in its episode.

        Args:
            values: `(N,)` before the call.
            log_probs: `(N, k, Q)` of the emitted tokens.
            rewards: `(N,)` of the chunk.
            alive: `(N,)` whether the call belongs to the row's episode.
        """
        call = self.pos
        self.values[alive, call] = values[alive]
        self.rewards[alive, call] = rewards[alive]
        self.log_probs[alive, call * self.k : (call + 1) * self.k] = log_probs[alive]
        self.lengths[alive] += 1
        self.pos += 1

    def finish(self, records: list[EpisodeRecord], last_values: np.ndarray) -> None:
        """Take the codes of the finished episodes and compute advantages.

        Args:
            records: One per environment.
            last_values: `(N,)` value of the terminal observation, 0 where the episode terminated.
        """
        n, frames, q = self.n_envs, self.buffer_size * self.k, self.codebooks
        heard = np.zeros((n, frames, q), dtype=np.int64)
        played = np.zeros((n, frames, q), dtype=np.int64)
        on_time = np.zeros((n, frames), dtype=bool)
        exists = np.zeros((n, frames), dtype=bool)
        for row, record in enumerate(records):
            length = len(record.played_codes)
            heard[row, :length] = record.episode.input_codes
            played[row, :length] = record.played_codes
            on_time[row, :length] = record.status == _ON_TIME
            exists[row, :length] = True
        whole = (on_time | ~exists).reshape(n, -1, self.k).all(2).repeat(self.k, axis=1)
        lengths = torch.from_numpy(self.lengths)
        values = torch.from_numpy(self.values)
        advantages, returns = generalized_advantages(
            torch.from_numpy(self.rewards),
            values,
            torch.from_numpy(last_values.astype(np.float32)),
            lengths,
            self.gamma,
            self.gae_lambda,
        )
        chunk_mask = torch.arange(self.buffer_size) < lengths.unsqueeze(1)
        self.advantages, self.returns = advantages.numpy(), returns.numpy()
        self.batch = EpisodeBatch(
            heard=torch.from_numpy(heard),
            frames=torch.from_numpy(exists.sum(1)),
            played=torch.from_numpy(played),
            instrument=torch.tensor([record.episode.instrument for record in records]),
            t_f=torch.tensor([int(record.timing.t_f) for record in records]),
            log_probs=torch.from_numpy(self.log_probs),
            token_mask=torch.from_numpy(exists & whole),
            chunk_mask=chunk_mask,
            values=values,
            advantages=whiten(advantages, chunk_mask),
            returns=returns,
        )
        self.full = True

    def episodes(self, batch_size: int, generator: torch.Generator) -> Iterator[EpisodeBatch]:
        """Yield the rollout in random minibatches of `batch_size` whole episodes."""
        if self.batch is None:
            raise RuntimeError("The rollout is not finished.")
        order = torch.randperm(self.n_envs, generator=generator)
        for start in range(0, self.n_envs, batch_size):
            yield self.batch.rows(order[start : start + batch_size])
