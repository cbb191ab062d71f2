"""The decoder with a critic as a stable-baselines3 policy."""

from __future__ import annotations

import copy
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn

from jamgym.errors import ConfigError
from jamgym_agents.decoder import AccompanimentDecoder
from jamgym_agents.decoder_policy import DecoderPolicy
from jamgym_agents.sampling import Sampling


class ChunkCritic(nn.Module):
    """Value of a state from the decoder's hidden state before a chunk.

    It reads a *detached* hidden state, so value errors never move the actor, and its last layer starts
    at zero, so that the first advantages are the rewards and not a random network's noise.
    """

    def __init__(self, dim: int, width: int = 256) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, width), nn.GELU(), nn.Linear(width, width), nn.GELU()
        )
        self.head = nn.Linear(width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return values `(...)` of hidden states `(..., C)`."""
        return self.head(self.body(hidden.detach().float())).squeeze(-1)


class DecoderActorCritic(BasePolicy):
    """An `AccompanimentDecoder` that acts as a stream and is trained on whole episodes.

    Args:
        observation_space: Of the environment, mode "new".
        action_space: `MultiDiscrete([V] * (k * Q))`.
        lr_schedule: Of stable-baselines3; the actor's rate.
        use_sde: Must be False.
        decoder: The network to fine-tune; it is copied, and the copy's dropout is off for good.
        k: Frames per call.
        sampling: One distribution for rollout, update and reference.
        critic_learning_rate: Of the critic.
        betas: Of Adam.
        weight_decay: Of the actor.
        seed: Of the sampling.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        use_sde: bool = False,
        *,
        decoder: AccompanimentDecoder,
        k: int,
        sampling: Sampling | None = None,
        critic_learning_rate: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
        seed: int = 0,
    ) -> None:
        if use_sde:
            raise ValueError("use_sde has no meaning for codes; leave it False.")
        super().__init__(observation_space, action_space)
        self.k = k
        self.sampling = sampling or Sampling()
        self.decoder = copy.deepcopy(decoder).requires_grad_(True)
        for module in self.decoder.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        self.critic = ChunkCritic(decoder.config.dim)
        self.player = self._new_player(seed)
        # `predict` has a stream of its own: callbacks evaluate in the middle of rollouts.
        self.predictor = self._new_player(seed)
        self.optimizer = torch.optim.AdamW(
            [
                {"params": list(self.decoder.parameters()), "lr": lr_schedule(1), "weight_decay": weight_decay},
                {"params": list(self.critic.parameters()), "lr": critic_learning_rate, "weight_decay": 0.0},
            ],
            betas=betas,
        )

    def _new_player(self, seed: int) -> DecoderPolicy:
        return DecoderPolicy(
            codec=None,  # type: ignore[arg-type]  # only needed to load a checkpoint
            k=self.k,
            seed=seed,
            decoder=self.decoder,
            **asdict(self.sampling),
        )

    @torch.no_grad()
    def act(self, observation: dict[str, np.ndarray]) -> tuple[np.ndarray, Tensor, Tensor]:
        """Decode one chunk in every row.

        Returns:
            Actions `(N, k * Q)`, values `(N,)` before the chunk and log-probabilities `(N, k, Q)`.
        """
        chunk = self.player.step(observation)
        values = self.critic(chunk.hidden)
        return chunk.codes.flatten(1).numpy(), values, chunk.log_probs

    @torch.no_grad()
    def peek_values(self, observation: dict[str, np.ndarray]) -> Tensor:
        """Return the values `(N,)` of observations after the last chunk, leaving the stream as it is."""
        player = copy.copy(self.player)
        player._state = copy.deepcopy(self.player._state)
        player.k = 1
        player._generator = torch.Generator().manual_seed(0)
        return self.critic(player.step(observation).hidden)

    def forward(self, obs: dict[str, Tensor], deterministic: bool = False) -> Tensor:
        """Return actions `(N, k * Q)`, as `predict` does."""
        return self._predict(obs, deterministic)

    def _predict(self, observation: Any, deterministic: bool = False) -> Tensor:
        arrays = {key: np.asarray(value) for key, value in observation.items()}
        self.predictor.sampling = replace(self.sampling, temperature=0.0) if deterministic else self.sampling
        return self.predictor.step(arrays).codes.flatten(1)

    def save(self, path: str) -> None:
        """Refuse: a policy alone would be pickled, and could not be loaded.

        Raises:
            ConfigError: Says what to save instead.
        """
        raise ConfigError(
            "A policy is not saved by itself. Save what plays with jamgym_agents.checkpoint.save_decoder(path, "
            "model.policy.decoder, codec.version, {}), or the whole model with model.save(path)."
        )
