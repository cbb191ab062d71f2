"""The settings of pretraining, and the learning rate that follows from them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from jamgym.errors import ConfigError, unknown_name_message
from jamgym.ranges import check_at_least, check_shares
from jamgym_agents.decoder import DecoderConfig

Optimizer = Literal["muon", "adamw"]
OPTIMIZERS: tuple[Optimizer, ...] = get_args(Optimizer)

#: The least value of settings that a count, a weight or a rate can have.
_LEAST = {
    "songs": 1,
    "validation_songs": 2,  # one song's loss is compared with another's input
    "encode_processes": 1,
    "frames": 2,
    "steps": 0,
    "batch": 1,
    "accumulate": 1,
    "learning_rate": 0.0,
    "warm_up": 0,
    "weight_decay": 0.0,
    "root_weight": 0.0,
    "chroma_weight": 0.0,
    "lookahead_weight": 0.0,
    "validate_every": 1,
    "checkpoint_minutes": 0.0,
    "seed": 0,
}


@dataclass(frozen=True)
class PretrainConfig:
    """Settings of `jamgym pretrain`.

    Attributes:
        corpus: Corpus name, or a mapping with `name` and its arguments.
        codec: Codec name, or a mapping with `name` and its arguments.
        songs: Training songs; None uses all.
        validation_songs: Validation songs.
        encode_processes: Processes that encode the songs, the first time they are used; each has one thread and a
            copy of corpus and codec.
        frames: Frames per training sequence.
        steps: Optimiser steps.
        batch: Sequences per step, over all processes.
        accumulate: Micro-batches per step, for less memory; changes a step by rounding only.
        optimizer: "muon" for the matrices between hidden states and "adamw" for the rest, or "adamw" for all.
        learning_rate: Peak of a warm-up and cosine schedule, one for both optimizers.
        warm_up: Steps of warm-up.
        weight_decay: Of matrices.
        t_f_low: Least future visibility drawn, in frames.
        t_f_high: Greatest future visibility drawn.
        ahead_share: Share of sequences whose t_f is drawn from 0 on, where the input tells most, the others' from
            below 0; None draws all evenly from t_f_low to t_f_high.
        ahead_first: Share of the steps, from the first on, in which every sequence hears all of its chunks and at least
            half of t_f_high beyond them, so that the network learns first how what is heard is played to.
        k_choices: Chunk sizes drawn.
        history_dropout: Share of sequences in which spans of the own past are hidden.
        past_dropout: Share of sequences in which all of the own past is hidden, so that only the input tells what to
            play.
        loss_share: Share of frames, drawn anew each step, whose codes are predicted; the vocabulary is
            half of the cost, and neighbouring frames teach much the same.
        root_weight: Weight of the auxiliary chord-root losses.
        chroma_weight: Weight of the auxiliary target-chroma loss.
        lookahead_weight: Weight of the loss on coming input frames, for a decoder with `lookahead_frames`.
        ema_decay: Decay per step of a moving average of the weights, such as 0.999, which is then what is validated
            and saved as the decoder; 0 keeps none.
        device: "auto" takes CUDA where it is, else the processor.
        bf16: Compute matrix products in bfloat16.
        validate_every: Steps between validations.
        validation_t_f: Future visibilities that are validated, in frames, each with every `validation_k`.
        validation_k: Chunk sizes that are validated.
        checkpoint_minutes: Minutes between checkpoints.
        seed: Seed of weights, batches, dropout and (t_f, k).
        init_from: A decoder checkpoint, or the name of a shipped one, to start from, with its architecture, to which
            `aligned_frames` and `aligned_past` may be added; None starts from random weights.
        architecture: The network; sizes that belong to the codec are taken from the codec.
    """

    corpus: str | dict[str, Any] = "band"
    codec: str | dict[str, Any] = "spectral"
    songs: int | None = 500
    validation_songs: int = 48
    encode_processes: int = 1
    frames: int = 250
    steps: int = 800
    batch: int = 16
    accumulate: int = 1
    optimizer: Optimizer = "muon"
    learning_rate: float = 1.5e-3
    warm_up: int = 60
    weight_decay: float = 0.05
    t_f_low: int = -50
    t_f_high: int = 50
    ahead_share: float | None = None
    ahead_first: float = 0.0
    k_choices: tuple[int, ...] = (1, 2, 5, 12, 25)
    history_dropout: float = 0.5
    past_dropout: float = 0.0
    loss_share: float = 0.5
    root_weight: float = 0.3
    chroma_weight: float = 0.3
    lookahead_weight: float = 0.3
    ema_decay: float = 0.0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    bf16: bool = True
    validate_every: int = 200
    validation_t_f: tuple[int, ...] = (-25, 0, 25)
    validation_k: tuple[int, ...] = (5,)
    checkpoint_minutes: float = 3.0
    seed: int = 0
    init_from: str | None = None
    architecture: DecoderConfig = field(default_factory=DecoderConfig)

    def __post_init__(self) -> None:
        """Refuse values without meaning."""
        check_at_least(self, _LEAST)
        check_shares(self, ("history_dropout", "past_dropout", "loss_share", "ahead_share", "ahead_first"))
        if self.optimizer not in OPTIMIZERS:
            raise ConfigError(unknown_name_message("optimizer", self.optimizer, OPTIMIZERS))
        if self.t_f_low > self.t_f_high:
            raise ConfigError(f"t_f_low is {self.t_f_low}, above t_f_high {self.t_f_high}; swap them.")
        if self.ahead_share is not None and not self.t_f_low < 0 <= self.t_f_high:
            raise ConfigError(
                f"ahead_share is {self.ahead_share}, but t_f runs from {self.t_f_low} to {self.t_f_high}; it divides "
                "the sequences between t_f below 0 and t_f from 0 on, so there must be both, or ahead_share null."
            )
        if self.ahead_first and self.t_f_high < 1:
            raise ConfigError(f"ahead_first is {self.ahead_first}, but t_f_high {self.t_f_high} is not ahead; use 0.")
        if not self.k_choices or min(self.k_choices) < 1:
            raise ConfigError(f"k_choices is {self.k_choices}; give chunk sizes of at least 1 frame.")
        if self.architecture.lookahead_frames < 0:
            raise ConfigError(f"lookahead_frames is {self.architecture.lookahead_frames}; 0 predicts none.")
        if self.batch % self.accumulate:
            raise ConfigError(
                f"accumulate is {self.accumulate}, which does not divide batch = {self.batch}; all micro-batches of a "
                "step must have one size."
            )
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"ema_decay is {self.ema_decay}; give 0 for none, or a number below 1 such as 0.999.")
        if not self.validation_t_f or not self.validation_k or min(self.validation_k) < 1:
            raise ConfigError(
                f"validation_t_f is {self.validation_t_f} and validation_k {self.validation_k}; give at least one of "
                "each, and chunk sizes of at least 1 frame."
            )

    @property
    def validation_cells(self) -> list[tuple[int, int]]:
        """The pairs (t_f, k) that are validated."""
        return [(t_f, k) for k in self.validation_k for t_f in self.validation_t_f]


def learning_rate(step: int, config: PretrainConfig) -> float:
    """Return the rate at `step`: linear warm-up, then cosine to 2 % of the peak."""
    rise = min(1.0, (step + 1) / max(config.warm_up, 1))
    return config.learning_rate * rise * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / config.steps)))
