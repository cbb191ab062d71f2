"""Training of codec `spectral`: reconstruct stems and mixes under a multi-resolution spectral loss."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from jamgym.checkpoint import differing_settings
from jamgym.codecs.clips import ClipPool
from jamgym.codecs.losses import spectral_loss, tone_loss
from jamgym.codecs.spectral_network import SpectralConfig, SpectralNetwork
from jamgym.codecs.tones import tone_targets
from jamgym.codecs.training_settings import CodecTrainingConfig
from jamgym.corpus import sample_rate_difference
from jamgym.errors import CheckpointError, ConfigError, CorpusError, JamgymError
from jamgym.ranges import check_finite

if TYPE_CHECKING:
    from jamgym.run import Run


def learning_rate(step: int, steps: int, peak: float, warm_up: int = 200) -> float:
    """Return the rate at `step`: linear warm-up, then cosine to 2 % of `peak`."""
    rise = min(1.0, (step + 1) / warm_up)
    return peak * rise * (0.02 + 0.98 * 0.5 * (1 + float(np.cos(np.pi * step / steps))))


def check_same_architecture(path: Path | str, found: Mapping[str, Any], wanted: SpectralConfig) -> None:
    """Refuse an architecture that the network at `path` does not have; what `found` does not say may be anything.

    Raises:
        ConfigError: A setting differs; the message names all that do.
    """
    if text := differing_settings(found, asdict(wanted)):
        raise ConfigError(
            f"{path} has {text}. Training goes on with the network that is there: give the architecture that it has, "
            "or start from random weights in a new run folder, with init_from: null."
        )


def check_weights(network: SpectralNetwork, steps: int) -> None:
    """Raise `JamgymError` for weights that half precision cannot hold: a huge step may follow a finite gradient."""
    kept = {key: value for key, value in network.state_dict().items() if ".cluster_" not in key}
    bad = [key for key, value in kept.items() if not torch.isfinite(value.half()).all()]
    if bad:
        raise JamgymError(
            f"After {steps} steps {len(bad)} of {len(kept)} tensors, such as {bad[0]}, do not fit half precision. "
            "The last checkpoint, if any, is intact; resume it, or start again, with a lower learning_rate."
        )


def _start_from(network: SpectralNetwork, other: SpectralNetwork) -> None:
    """Copy weights and give each code the use that keeps it alive for a while."""
    network.load_state_dict(other.state_dict())
    network.quantizer.cluster_size.fill_(1.0)
    network.quantizer.cluster_sum.copy_(network.quantizer.codebooks)


def first_network(config: CodecTrainingConfig, path: Path, state: dict[str, Any] | None) -> SpectralNetwork:
    """Return the network before its first step, or that of the checkpoint `state` at `path`.

    Raises:
        ConfigError: `architecture` asks for another network than the one that training goes on with.
        CheckpointError: The checkpoint does not fit, or `init_from` is missing or damaged.
    """
    from jamgym.codecs.spectral import SpectralCodec

    network = SpectralNetwork(config.architecture)
    if state is not None:
        # Not from init_from, which may be gone by now. Older checkpoints do not say their architecture.
        check_same_architecture(path, state.get("architecture", {}), config.architecture)
        try:
            network.load_state_dict(state["network"])
        except RuntimeError as error:
            raise CheckpointError(f"{path} does not fit the architecture; give the one it has: {error}") from error
    elif config.init_from is not None:
        other = SpectralCodec(config.init_from).network
        check_same_architecture(config.init_from, asdict(other.config), config.architecture)
        _start_from(network, other)
    return network


def train_codec(config: CodecTrainingConfig, run: Run) -> dict[str, float]:
    """Train, checkpoint, resume; writes `codec.safetensors` into the run folder.

    Returns:
        Validation figures: loss, chroma cosine to the original and to a transposed control.

    Raises:
        ConfigError: The checkpoint or `init_from` has another architecture.
        CorpusError: The corpus has another sample rate or no songs.
        CheckpointError: The checkpoint or `init_from` is missing, damaged or does not fit.
        JamgymError: Training diverged; nothing is written then.
    """
    from jamgym import registry
    from jamgym.checkpoint import load_state, save_state
    from jamgym.codecs.quality import codec_quality
    from jamgym.codecs.spectral import SpectralCodec
    from jamgym.specs import create_from_spec

    rate_hz, hop = config.architecture.sample_rate, config.architecture.hop
    torch.manual_seed(config.seed)
    corpus = create_from_spec(registry.corpora, config.corpus, {"sample_rate": rate_hz})
    if text := sample_rate_difference(corpus, rate_hz, "the architecture"):
        raise CorpusError(text)
    path, first = run.folder / "checkpoint.safetensors", 0
    state = load_state(path, expect={"kind": "train-codec"}) if path.exists() else None
    network = first_network(config, path, state)
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=1e-3)
    if state is not None:
        optimizer.load_state_dict(state["optimizer"])
        first = int(state["step"])
        torch.set_rng_state(state["torch_rng"])
    if run.resumed:
        run.truncate(first - 1)  # step `first` comes again, also where a run was killed before its first checkpoint
    pool = ClipPool(corpus, "train", config.songs, lambda ids: run.loading(ids, "loading train songs"))
    samples, frequencies = config.clip_frames * hop, network.decoder.bank.frequencies
    saved = time.monotonic()

    def save(step: int) -> None:
        check_weights(network, step)
        run.keep_settings()
        state = {
            "network": network.state_dict(),
            "architecture": asdict(config.architecture),
            "optimizer": optimizer.state_dict(),
            "step": step,
            "torch_rng": torch.get_rng_state(),
        }
        save_state(path, state, {"kind": "train-codec"})

    done = first
    network.train()
    with run.progress(config.steps, "train-codec", done=first) as progress:
        for step in range(first, config.steps):
            # Clips depend on the step alone, so that a resumed run meets the same ones.
            audio = pool.draw(np.random.default_rng([config.seed, step]), config.batch, samples)
            rate = learning_rate(step, config.steps, config.learning_rate)
            for group in optimizer.param_groups:
                group["lr"] = rate
            with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
                made = network(audio, config.frozen_codes)
            reconstruction = spectral_loss(made.audio.float(), audio)
            tones = tone_loss(made.levels.float(), tone_targets(audio, rate_hz, hop, frequencies))
            loss = reconstruction + config.tone_weight * tones + config.commitment * made.commitment
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = float(torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0))
            check_finite(step, float(loss.detach()), norm)
            optimizer.step()
            done = step + 1
            progress.advance(1, loss=float(reconstruction.detach()))
            if step % 50 == 0:
                run.log(
                    step,
                    {
                        "loss/spectral": float(reconstruction.detach()),
                        "loss/tones": float(tones.detach()),
                        "loss/commitment": float(made.commitment.detach()),
                        "optimizer/grad_norm": norm,
                        "optimizer/learning_rate": rate,
                        **{f"codes/live_{q}": float(share) for q, share in enumerate(made.live)},
                    },
                )
            if run.stop_requested or time.monotonic() - saved > 60 * config.checkpoint_minutes:
                save(done)
                saved = time.monotonic()
            if run.stop_requested:
                break
    save(done)
    network.eval()
    codec = SpectralCodec.from_network(network)
    metadata = {"config": asdict(config), "steps": done}
    codec.save(Path(run.folder) / "codec.safetensors", metadata)
    figures = codec_quality(codec, corpus, songs=24)
    run.write_json("metrics.json", figures)
    return figures
