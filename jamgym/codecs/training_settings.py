"""Settings of the training of codec `spectral`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from jamgym.codecs.losses import RESOLUTIONS
from jamgym.codecs.spectral_network import SpectralConfig
from jamgym.errors import ConfigError
from jamgym.ranges import check_at_least

#: The least value of settings that a count, a weight or a rate can have.
_LEAST = {
    **dict.fromkeys(("songs", "batch", "clip_frames"), 1),
    **dict.fromkeys(("learning_rate", "commitment", "tone_weight", "checkpoint_minutes", "steps", "seed"), 0),
}


@dataclass(frozen=True)
class CodecTrainingConfig:
    """Settings of `jamgym train-codec`.

    Attributes:
        corpus: Corpus name, or a mapping with `name` and its arguments.
        songs: Training songs held in memory.
        steps: Optimiser steps; 0 writes and measures the network that training would start from.
        batch: Clips per step.
        clip_frames: Frames per clip; together at least as long as the longest window of the loss, 4096 samples.
        learning_rate: Peak of a warm-up and cosine schedule.
        commitment: Weight of the commitment loss.
        tone_weight: Weight of the oscillators' levels against those measured from the audio.
        frozen_codes: Train the decoder alone: the same codes, sounding better.
        bf16: Compute matrix products in bfloat16.
        checkpoint_minutes: Minutes between checkpoints; 0 writes one after each step.
        seed: Seed of weights, clips and gains.
        init_from: A codec.safetensors to start from; None starts from random weights. A resumed run goes on from its
            checkpoint and does not read it again.
        architecture: The network; a resumed run and `init_from` must have the same.
    """

    corpus: str | dict[str, Any] = "band"
    songs: int = 400
    steps: int = 8000
    batch: int = 16
    clip_frames: int = 60
    learning_rate: float = 1e-3
    commitment: float = 0.25
    tone_weight: float = 1.0
    frozen_codes: bool = False
    bf16: bool = True
    checkpoint_minutes: float = 3.0
    seed: int = 0
    init_from: str | None = None
    architecture: SpectralConfig = field(default_factory=SpectralConfig)

    def __post_init__(self) -> None:
        """Refuse values without meaning."""
        check_at_least(self, _LEAST)
        hop, window = self.architecture.hop, max(size for size, _ in RESOLUTIONS)
        # Only the loss needs whole windows; the encoder and the measurement of tones pad theirs with silence.
        if self.clip_frames * hop < window:
            raise ConfigError(
                f"clip_frames is {self.clip_frames}, {self.clip_frames * hop} samples at hop {hop}, but the longest "
                f"window of the loss has {window} samples; give at least {math.ceil(window / hop)}."
            )
