"""What pretraining changes: the network, its optimizer and the moving average of its weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from jamgym_agents.decoder import AccompanimentDecoder


def _parameter_groups(decoder: AccompanimentDecoder, decay: float) -> list[dict[str, Any]]:
    matrices = [p for p in decoder.parameters() if p.dim() >= 2]
    vectors = [p for p in decoder.parameters() if p.dim() < 2]
    return [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]


@dataclass
class Learner:
    """What training changes, and what a checkpoint therefore holds.

    Attributes:
        decoder: The network that is trained.
        optimizer: Over its parameters.
        average: Moving average of its weights, if there is one.
    """

    decoder: AccompanimentDecoder
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None

    @classmethod
    def create(cls, decoder: AccompanimentDecoder, weight_decay: float, ema_decay: float) -> Learner:
        """Return the learner of `decoder` before its first step; an `ema_decay` of 0 keeps no average."""
        groups = _parameter_groups(decoder, weight_decay)
        average = None
        if ema_decay > 0:
            average = AveragedModel(decoder, multi_avg_fn=get_ema_multi_avg_fn(ema_decay))
        return cls(decoder.train(), torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98)), average)

    @property
    def result(self) -> AccompanimentDecoder:
        """The network to validate and to keep: the average, or the trained one if there is none."""
        return self.decoder if self.average is None else cast(AccompanimentDecoder, self.average.module)

    def step(self, rate: float) -> float:
        """Follow the gradients that were gathered; return their norm, before clipping to 1.

        Does nothing if the norm is not finite.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        norm = float(nn.utils.clip_grad_norm_(self.decoder.parameters(), 1.0))
        if math.isfinite(norm):
            self.optimizer.step()
            if self.average is not None:
                self.average.update_parameters(self.decoder)
        return norm

    def state(self, step: int) -> dict[str, Any]:
        """Return all that is needed to go on after `step` steps."""
        state = {"decoder": self.decoder.state_dict(), "optimizer": self.optimizer.state_dict(), "step": step}
        return state if self.average is None else {**state, "average": self.average.state_dict()}

    def restore(self, state: dict[str, Any]) -> int:
        """Take over a `state`; return its number of steps."""
        self.decoder.load_state_dict(state["decoder"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            if "average" in state:
                self.average.load_state_dict(state["average"])
            else:  # The run had none so far: it starts here.
                self.average.module.load_state_dict(state["decoder"])
        return int(state["step"])
