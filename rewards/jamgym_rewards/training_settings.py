"""The settings of `jamgym train-coherence`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from jamgym.errors import ConfigError
from jamgym.ranges import check_above_zero, check_at_least
from jamgym.specs import Spec

Model = Literal["coherence", "judge", "discriminative"]
MODELS: tuple[Model, ...] = get_args(Model)
#: The least value of settings that a count or a rate can have.
_LEAST = {
    **dict.fromkeys(("songs", "validation_songs", "batch"), 2),  # a pair is told from other songs' pairs
    **dict.fromkeys(("steps", "evaluate_every", "threads"), 1),
    **dict.fromkeys(("learning_rate", "weight_decay", "checkpoint_minutes", "seed"), 0),
}


@dataclass(frozen=True)
class CoherenceTrainingConfig:
    """Settings of `jamgym train-coherence`.

    Attributes:
        model: "coherence" or "discriminative" (even training songs), or "judge" (odd ones).
        corpus: Corpus name, or a mapping with `name` and its arguments; at 16 kHz.
        codec: Codec that the played stem goes through, or None.
        songs: Training songs held in memory.
        validation_songs: Held-out songs for calibration and figures.
        steps: Optimiser steps.
        max_minutes: Anneal and stop after so many minutes if that comes before `steps`; None: never. With it, the
            weights depend on the machine's speed.
        batch: Pairs per step.
        learning_rate: Peak of a warm-up and cosine schedule.
        weight_decay: AdamW weight decay.
        window_seconds: Shortest and longest training window.
        seed: Seed of weights, songs' targets and windows.
        threads: CPU threads; None: torch's own choice.
        bf16: Compute matrix products in bfloat16.
        evaluate_every: Steps between validations in TensorBoard.
        checkpoint_minutes: Minutes between checkpoints.
        weights_out: Where to write the weights; None: into the run folder.
    """

    model: Model = "coherence"
    corpus: Spec = "band"
    codec: Spec | None = "spectral"
    songs: int = 800
    validation_songs: int = 120
    steps: int = 3000
    max_minutes: float | None = None
    batch: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.02
    window_seconds: tuple[float, float] = (2.0, 4.0)
    seed: int = 0
    threads: int | None = None
    bf16: bool = True
    evaluate_every: int = 250
    checkpoint_minutes: float = 3.0
    weights_out: str | None = None

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        if self.model not in MODELS:
            raise ConfigError(f"model is {self.model!r}; it must be one of {', '.join(MODELS)}.")
        check_at_least(self, _LEAST)
        check_above_zero(self, ("max_minutes",))
        if not 1.0 <= self.window_seconds[0] <= self.window_seconds[1]:
            raise ConfigError(f"window_seconds is {self.window_seconds}; give (shortest, longest), at least 1 second.")
