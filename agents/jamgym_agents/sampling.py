"""One transformed distribution for rollout, update and reference: guidance, temperature, top-k and top-p.

Classifier-free guidance (Ho and Salimans, arXiv 2207.12598; for codec tokens AudioGen, arXiv 2209.15352) needs a
network that also plays without its condition. A decoder for every t_f is one: sequences far behind begin unheard.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from jamgym.errors import ConfigError

#: Temperatures below it count as 0.
LOWEST_TEMPERATURE = 1e-6


@dataclass(frozen=True)
class Sampling:
    """How codes are drawn.

    Attributes:
        temperature: Divides the logits; 0, or what is hardly above it, always takes the likeliest code.
        top_k: Keep the so many likeliest codes; 0 keeps all.
        top_p: Keep the likeliest codes up to this total probability; 1 keeps all.
        guidance: How far to go from what the network would play if it heard nothing (0) to what it plays from what
            it hears (1) and beyond, where what it hears counts for more. Any value but 1 decodes twice as many rows.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance: float = 1.0

    @property
    def greedy(self) -> bool:
        """Whether the temperature is so low that it is 0: logits divided by it would overflow."""
        return self.temperature < LOWEST_TEMPERATURE

    @property
    def deterministic(self) -> bool:
        """Whether there is nothing to draw."""
        return self.greedy or self.top_k == 1

    def check_draws(self) -> None:
        """Refuse to learn from what is `deterministic`.

        Raises:
            ConfigError: Says what to give instead.
        """
        if self.deterministic:
            raise ConfigError(
                f"The sampling has temperature {self.temperature} and top_k {self.top_k}, which leaves nothing to "
                "learn from; give a temperature above 0 and a top_k other than 1."
            )

    @property
    def guided(self) -> bool:
        """Whether logits of the network that hears nothing are needed."""
        return self.guidance != 1

    def __post_init__(self) -> None:
        """Refuse values without meaning."""
        if not (0 <= self.temperature < math.inf and self.top_k >= 0 and 0 < self.top_p <= 1):
            raise ConfigError(
                f"{self} is not valid: temperature and top_k are at least 0, top_p is above 0 and at most 1."
            )
        if not 0 <= self.guidance < math.inf:
            raise ConfigError(
                f"guidance is {self.guidance}; give 1 for none, or up to about 5 to make the input count for more."
            )


def guide(logits: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """Return logits `(..., V)` moved from those without the input, `unconditional`, to those with it and beyond."""
    return torch.lerp(unconditional.float(), logits.float(), guidance)


def transform(logits: Tensor, sampling: Sampling) -> Tensor:
    """Return log-probabilities `(..., V)` of the distribution that `sampling` draws from.

    Excluded codes get -inf. A temperature of 0 puts all probability on the likeliest code.
    """
    logits = logits.float()
    if sampling.greedy:
        best = logits.argmax(-1, keepdim=True)
        return torch.full_like(logits, -torch.inf).scatter(-1, best, 0.0)
    if sampling.temperature != 1:
        logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        floor = logits.topk(sampling.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < floor, -torch.inf)
    if sampling.top_p < 1:
        ordered, order = logits.softmax(-1).sort(-1, descending=True)
        # A code stays if the codes before it have not reached top_p yet, so the likeliest always stays.
        outside = (ordered.cumsum(-1) - ordered) >= sampling.top_p
        logits = logits.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), -torch.inf)
    return logits.log_softmax(-1)


def draw(log_probs: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw one code `(...)` from each distribution `(..., V)`: by its inverse, one random number each.

    No sync with the device. A distribution that is not finite gives some code: whoever trains finds out from the loss.
    """
    reached = log_probs.exp().cumsum(-1)
    total = reached[..., -1:]
    number = total * torch.rand(total.shape, generator=generator, device=total.device, dtype=total.dtype)
    # Rounding may lift the number to the total, which no code would lie above.
    number = torch.minimum(number, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(reached, number, right=True).squeeze(-1).clamp_max(log_probs.shape[-1] - 1)
