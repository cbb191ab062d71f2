"""Training of codec `spectral`: reconstruct stems and mixes under a multi-resolution spectral loss."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from jamgym.checkpoint import differing_settings
from jamgym.codecs.spectral_network import SpectralConfig, SpectralNetwork
from jamgym.codecs.tones import tone_targets
from jamgym.corpus import Corpus, sample_rate_difference
from jamgym.errors import CheckpointError, ConfigError, CorpusError, JamgymError
from jamgym.ranges import check_at_least, check_finite

if TYPE_CHECKING:
    from jamgym.run import Run

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


#: (window, hop) in samples of the spectra that the loss compares.
RESOLUTIONS = ((4096, 1280), (2048, 640), (1024, 320), (512, 160), (256, 128))


class RealFFT(torch.autograd.Function):
    """`torch.fft.rfft` over the last axis whose backward stays real: a third of the time of the built-in one."""

    @staticmethod
    def forward(ctx: Any, frames: Tensor) -> Tensor:
        """Transform `(..., N)`, N even, into `(..., N / 2 + 1)`."""
        ctx.size = frames.shape[-1]
        return torch.fft.rfft(frames)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Return the gradient `(..., N)`: every inner bin stands for itself and its mirror image."""
        weight = grad.real.new_full((grad.shape[-1],), 0.5)
        weight[0] = weight[-1] = 1.0
        return torch.fft.irfft(grad * weight, ctx.size, norm="forward")


def magnitudes(audio: Tensor, size: int, hop: int) -> Tensor:
    """Return `(B, frames, bins)` magnitudes of Hann windows that lie inside `(B, S)` audio."""
    frames = audio.unfold(1, size, hop) * torch.hann_window(size)
    spectrum = torch.view_as_real(RealFFT.apply(frames))
    return torch.sqrt(spectrum.square().sum(-1) + 1e-8 * size) / size**0.5


def pitch_weights(size: int, sample_rate: int = 16_000) -> Tensor:
    """Return weights `(bins,)` with mean 1 that count octaves rather than hertz, roughly.

    With equal weights seven eighths of the loss lie above 1 kHz, and the codec loses the pitch of basses.
    """
    weight = 1.0 / (torch.fft.rfftfreq(size, 1.0 / sample_rate) + 100.0)
    return weight / weight.mean()


def spectral_loss(decoded: Tensor, audio: Tensor) -> Tensor:
    """Return the mean over resolutions of log-magnitude L1 and spectral convergence (Yamamoto et al. 2020)."""
    total = decoded.new_zeros(())
    for size, hop in RESOLUTIONS:
        made = magnitudes(decoded, size, hop)
        with torch.no_grad():
            wanted = magnitudes(audio, size, hop)
        log_error = (torch.log(made + 3e-3) - torch.log(wanted + 3e-3)).abs().mean((0, 1)) @ pitch_weights(size)
        distance = (made - wanted).square().sum((1, 2)).sqrt() / (wanted.square().sum((1, 2)).sqrt() + 0.1)
        total = total + log_error / made.shape[2] + distance.mean()
    return total / len(RESOLUTIONS)


def tone_loss(levels: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean L1 of log levels; tones that should sound count ten times as much as silent ones."""
    error = (torch.log(levels + 1e-3) - torch.log(wanted + 1e-3)).abs()
    weight = 1.0 + 9.0 * (wanted > 2e-3)
    return (error * weight).sum() / weight.sum()


class ClipPool:
    """Stems and mixes of a corpus in memory as int16; draws random clips at random gains."""

    def __init__(self, corpus: Corpus, split: Any, songs: int) -> None:
        self._songs: list[np.ndarray] = []
        ids = list(corpus.song_ids(split))[:songs]
        if not ids:
            raise CorpusError(
                f"Corpus {corpus.name!r} has no songs in split {split!r}; add some, or name another corpus."
            )
        for song_id in ids:
            song = corpus.load(song_id)
            stems = np.stack([stem.audio for stem in song.stems])
            self._songs.append(np.round(np.clip(stems, -1, 1) * 32767).astype(np.int16))

    def draw(self, rng: np.random.Generator, batch: int, samples: int) -> Tensor:
        """Return `(batch, samples)`: one stem, all but one, or all, at -18 to +6 dB, at most 0.99."""
        clips = np.zeros((batch, samples), dtype=np.float32)
        for row in range(batch):
            stems = self._songs[int(rng.integers(len(self._songs)))]
            start = int(rng.integers(max(stems.shape[1] - samples, 1)))
            part = stems[:, start : start + samples].astype(np.float32) / 32767
            kind = rng.random()
            if kind < 0.5:
                clip = part[int(rng.integers(len(part)))]
            elif kind < 0.9:
                clip = part.sum(0) - part[int(rng.integers(len(part)))]
            else:
                clip = part.sum(0)
            gain = 10.0 ** (rng.uniform(-18.0, 6.0) / 20.0)
            peak = float(np.abs(clip).max()) * gain
            clips[row, : len(clip)] = clip * (gain if peak < 0.99 else gain * 0.99 / peak)
            if rng.random() < 0.1:  # silence has to be a sound of its own: cut in or out somewhere
                cut = int(rng.integers(samples))
                clips[row, :cut] = 0 if rng.random() < 0.5 else clips[row, :cut]
                clips[row, cut:] = 0 if rng.random() < 0.5 else clips[row, cut:]
        return torch.from_numpy(clips)


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
    pool = ClipPool(corpus, "train", config.songs)
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
