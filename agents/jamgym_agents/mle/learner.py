"""What pretraining changes: the network, its optimizers and the moving average of its weights."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from jamgym_agents.decoder import AccompanimentDecoder
from jamgym_agents.mle.settings import PretrainConfig


def _hidden_matrices(decoder: AccompanimentDecoder) -> list[Tensor]:
    """Return the matrices between hidden states: not those that make frames, codes or classes of them or reverse."""
    parts = [*decoder.blocks, *decoder.depth.expand, decoder.depth.so_far]
    if decoder.lookahead is not None:
        parts.append(decoder.lookahead.expand)
    return [m.weight for part in parts for m in part.modules() if isinstance(m, nn.Linear)]


def make_optimizers(decoder: AccompanimentDecoder, config: PretrainConfig) -> dict[str, torch.optim.Optimizer]:
    """Return the optimizers that share the parameters of `decoder`, each with the rate of its groups still to be set.

    Muon (Jordan et al. 2024) makes every update of a hidden matrix orthogonal; with updates as large as AdamW's (Liu
    et al. 2025, arXiv 2502.16982) both follow one rate. AdamW has the rest; vectors do not decay.
    """
    own = _hidden_matrices(decoder) if config.optimizer == "muon" else []
    taken = {id(parameter) for parameter in own}
    rest = [parameter for parameter in decoder.parameters() if id(parameter) not in taken]
    groups = [
        {"params": [p for p in rest if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
    ]
    found: dict[str, torch.optim.Optimizer] = {"adamw": torch.optim.AdamW(groups, betas=(0.9, 0.98))}
    if own:
        found["muon"] = torch.optim.Muon(own, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw")
    return found


@dataclass
class Learner:
    """What training changes, and what a checkpoint therefore holds.

    Attributes:
        decoder: The network that is trained.
        optimizers: By name; together over its parameters.
        average: Moving average of its weights, if there is one.
    """

    decoder: AccompanimentDecoder
    optimizers: dict[str, torch.optim.Optimizer]
    average: AveragedModel | None

    @classmethod
    def create(cls, decoder: AccompanimentDecoder, config: PretrainConfig) -> Learner:
        """Return the learner of `decoder` before its first step; an `ema_decay` of 0 keeps no average."""
        average = None
        if config.ema_decay > 0:
            average = AveragedModel(decoder, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay))
        return cls(decoder.train(), make_optimizers(decoder, config), average)

    @property
    def result(self) -> AccompanimentDecoder:
        """The network to validate and to keep: the average, or the trained one if there is none."""
        return self.decoder if self.average is None else cast(AccompanimentDecoder, self.average.module)

    def step(self, rate: float) -> float:
        """Follow the gradients that were gathered; return their norm, before clipping to 1.

        Does nothing if the norm is not finite.
        """
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = rate
        norm = float(nn.utils.clip_grad_norm_(self.decoder.parameters(), 1.0))
        if math.isfinite(norm):
            for optimizer in self.optimizers.values():
                optimizer.step()
            if self.average is not None:
                self.average.update_parameters(self.decoder)
        return norm

    def state(self, step: int) -> dict[str, Any]:
        """Return all that is needed to go on after `step` steps."""
        optimizers = {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}
        state: dict[str, Any] = {
            "decoder": self.decoder.state_dict(),
            "architecture": asdict(self.decoder.config),
            "optimizers": optimizers,
            "step": step,
        }
        return state if self.average is None else {**state, "average": self.average.state_dict()}

    def restore(self, state: dict[str, Any]) -> int:
        """Take over a `state`; return its number of steps."""
        self.decoder.load_state_dict(state["decoder"])
        for name, optimizer in self.optimizers.items():
            decays = [group["weight_decay"] for group in optimizer.param_groups]
            optimizer.load_state_dict(state["optimizers"][name])
            for group, decay in zip(optimizer.param_groups, decays, strict=True):
                group["weight_decay"] = decay  # that of the checkpoint may be another one
        if self.average is not None:
            if "average" in state:
                self.average.load_state_dict(state["average"])
            else:  # The run had none so far: it starts here.
                self.average.module.load_state_dict(state["decoder"])
        return int(state["step"])
