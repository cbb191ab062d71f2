"""Maximum-likelihood pretraining of the decoder over random (t_f, k).

What makes a small decoder listen: spans of its own past are hidden in a part of the sequences (history
dropout), and auxiliary heads name the chord and the target's chroma. Whether it listens is measured from
the first validation on: the loss with the true input against that with another song's input.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from jamgym.corpus import Split
from jamgym.errors import ConfigError, JamgymError
from jamgym_agents.decoder import AccompanimentDecoder, DecoderConfig, DecoderOutput
from jamgym_agents.token_data import TokenBatch, TokenSet, load_tokens

if TYPE_CHECKING:
    from jamgym.run import Run


@dataclass(frozen=True)
class PretrainConfig:
    """Settings of `jamgym pretrain`.

    Attributes:
        corpus: Corpus name, or a mapping with `name` and its arguments.
        codec: Codec name, or a mapping with `name` and its arguments.
        songs: Training songs; None uses all.
        validation_songs: Validation songs.
        frames: Frames per training sequence.
        steps: Optimiser steps.
        batch: Sequences per step.
        learning_rate: Peak of a warm-up and cosine schedule.
        warm_up: Steps of warm-up.
        weight_decay: Of matrices.
        t_f_low: Least future visibility drawn, in frames.
        t_f_high: Greatest future visibility drawn.
        k_choices: Chunk sizes drawn.
        history_dropout: Share of sequences in which spans of the own past are hidden.
        loss_share: Share of frames, drawn anew each step, whose codes are predicted; the vocabulary is
            half of the cost, and neighbouring frames teach much the same.
        root_weight: Weight of the auxiliary chord-root losses.
        chroma_weight: Weight of the auxiliary target-chroma loss.
        lookahead_weight: Weight of the loss on coming input frames, for a decoder with `lookahead_frames`.
        bf16: Compute matrix products in bfloat16.
        validate_every: Steps between validations.
        checkpoint_minutes: Minutes between checkpoints.
        seed: Seed of weights, batches, dropout and (t_f, k).
        init_from: A decoder checkpoint to start from; None starts from random weights.
        architecture: The network; sizes that belong to the codec are taken from the codec.
    """

    corpus: str | dict[str, Any] = "band"
    codec: str | dict[str, Any] = "spectral"
    songs: int | None = 500
    validation_songs: int = 48
    frames: int = 250
    steps: int = 800
    batch: int = 16
    learning_rate: float = 1.5e-3
    warm_up: int = 60
    weight_decay: float = 0.05
    t_f_low: int = -50
    t_f_high: int = 50
    k_choices: tuple[int, ...] = (1, 2, 5, 12, 25)
    history_dropout: float = 0.5
    loss_share: float = 0.5
    root_weight: float = 0.3
    chroma_weight: float = 0.3
    lookahead_weight: float = 0.3
    bf16: bool = True
    validate_every: int = 200
    checkpoint_minutes: float = 3.0
    seed: int = 0
    init_from: str | None = None
    architecture: DecoderConfig = field(default_factory=DecoderConfig)

    def __post_init__(self) -> None:
        """Refuse values without meaning."""
        if self.t_f_low > self.t_f_high:
            raise ConfigError(f"t_f_low is {self.t_f_low}, above t_f_high {self.t_f_high}; swap them.")
        if not self.k_choices or min(self.k_choices) < 1:
            raise ConfigError(f"k_choices is {self.k_choices}; give chunk sizes of at least 1 frame.")
        if self.architecture.lookahead_frames < 0:
            raise ConfigError(f"lookahead_frames is {self.architecture.lookahead_frames}; 0 predicts none.")


def draw_conditions(rng: np.random.Generator, size: int, config: PretrainConfig) -> tuple[Tensor, Tensor]:
    """Draw `(B,)` t_f and k."""
    t_f = rng.integers(config.t_f_low, config.t_f_high + 1, size=size)
    return torch.from_numpy(t_f), torch.from_numpy(rng.choice(np.array(config.k_choices), size=size))


def hidden_spans(rng: np.random.Generator, size: int, frames: int, share: float) -> Tensor:
    """Return the mask `(B, frames)` of past frames to hide: spans of 10 frames and more in `share` of the rows."""
    mask = np.zeros((size, frames), dtype=bool)
    for row in np.flatnonzero(rng.random(size) < share):
        for _ in range(int(rng.integers(1, 5))):
            start = int(rng.integers(frames))
            mask[row, start : start + int(rng.integers(10, max(11, frames // 2)))] = True
    return torch.from_numpy(mask)


def token_loss(logits: Tensor, codes: Tensor) -> Tensor:
    """Return the cross-entropy `(B, T, Q)` in nats of `codes` under `logits` `(B, T, Q, V)`."""
    return F.cross_entropy(logits.float().flatten(0, -2), codes.flatten(), reduction="none").view(codes.shape)


def auxiliary_losses(output: DecoderOutput, batch: TokenBatch) -> dict[str, Tensor]:
    """Return the mean auxiliary losses; silent frames and frames without a chord do not count."""
    root = batch.root.flatten()
    sounding = batch.chroma.sum(-1) > 0.5
    shares = batch.chroma / batch.chroma.sum(-1, keepdim=True).clamp_min(1e-6)
    per_frame = -(shares * output.chroma.float().log_softmax(-1)).sum(-1)
    losses = {
        "root": F.cross_entropy(output.root.float().flatten(0, 1), root),
        "input_root": F.cross_entropy(output.input_root.float().flatten(0, 1), root),
        "chroma": (per_frame * sounding).sum() / sounding.sum().clamp_min(1),
    }
    if output.lookahead is not None:
        logits, codes = output.lookahead.logits.float(), output.lookahead.codes
        losses["lookahead"] = F.cross_entropy(logits, codes, reduction="sum") / max(len(codes), 1)
    return losses


def learning_rate(step: int, config: PretrainConfig) -> float:
    """Return the rate at `step`: linear warm-up, then cosine to 2 % of the peak."""
    rise = min(1.0, (step + 1) / max(config.warm_up, 1))
    return config.learning_rate * rise * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / config.steps)))


@torch.no_grad()
def input_use(
    decoder: AccompanimentDecoder,
    batch: TokenBatch,
    t_f: int,
    k: int,
    rows: int = 32,
    bf16: bool = False,
    hide_past: bool = False,
    all_codebooks: bool = False,
) -> dict[str, np.ndarray]:
    """Measure per sequence `(B,)` how the loss depends on the input.

    The loss is that of the first codebook, which carries most of what is heard, or the mean of all. With
    `hide_past` the network sees none of what was played, so all that it knows comes from the input;
    otherwise the true past of 40 ms ago tells nearly everything about the next frame.

    Returns:
        `true`: loss with the sequence's own input; `other`: with the input of another song of the batch;
        `root`: share of frames whose chord root the output stream names right.
    """
    others = np.array([_other_song(batch.song, row) for row in range(len(batch.song))])
    result: dict[str, list[np.ndarray]] = {"true": [], "other": [], "root": []}
    for start in range(0, len(batch.song), rows):
        part = slice(start, start + rows)
        for name, heard in (("true", batch.heard[part]), ("other", batch.heard[others[part]])):
            count = len(heard)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                _, hidden = decoder.trunk(
                    heard,
                    batch.target[part],
                    batch.instrument[part],
                    torch.full((count,), t_f),
                    torch.full((count,), k),
                    torch.ones(count, heard.shape[1] - 1, dtype=torch.bool) if hide_past else None,
                )
                if all_codebooks:
                    logits = decoder.depth_logits(hidden, batch.target[part])
                else:
                    partial = hidden.new_zeros(*hidden.shape[:2], decoder.config.latent_dim)
                    logits = decoder.depth.level_logits(hidden, partial, 0).unsqueeze(2)
            loss = token_loss(logits, batch.target[part][..., : logits.shape[2]])
            result[name].append(loss.mean((1, 2)).numpy())
            if name == "true":
                right = decoder.root_head(hidden.float()).argmax(-1) == batch.root[part]
                result["root"].append(right.float().mean(1).numpy())
    return {name: np.concatenate(values) for name, values in result.items()}


def _other_song(songs: np.ndarray, row: int) -> int:
    """Return the next row of the batch that holds another song."""
    for step in range(1, len(songs)):
        other = (row + step) % len(songs)
        if songs[other] != songs[row]:
            return other
    raise ConfigError("All validation sequences are of one song; use at least two validation songs.")


def validate(decoder: AccompanimentDecoder, batch: TokenBatch, bf16: bool) -> dict[str, float]:
    """Return losses with the true and another song's input at t_f in {-25, 0, 25}, k = 5, and intervals."""
    decoder.eval()
    figures = {}
    for t_f in (-25, 0, 25):
        use = input_use(decoder, batch, t_f, 5, bf16=bf16)
        gain = use["other"] - use["true"]
        figures[f"validation/loss_true_tf{t_f}"] = float(use["true"].mean())
        figures[f"validation/loss_other_tf{t_f}"] = float(use["other"].mean())
        figures[f"validation/input_gain_tf{t_f}"] = float(gain.mean())
        figures[f"validation/input_gain_ci_tf{t_f}"] = float(1.96 * gain.std(ddof=1) / math.sqrt(len(gain)))
        figures[f"validation/root_accuracy_tf{t_f}"] = float(use["root"].mean())
        alone = input_use(decoder, batch, t_f, 5, bf16=bf16, hide_past=True)
        figures[f"validation/loss_past_hidden_tf{t_f}"] = float(alone["true"].mean())
    decoder.train()
    return figures


def _parameter_groups(decoder: AccompanimentDecoder, decay: float) -> list[dict[str, Any]]:
    matrices = [p for p in decoder.parameters() if p.dim() >= 2]
    vectors = [p for p in decoder.parameters() if p.dim() < 2]
    return [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]


def pretrain(config: PretrainConfig, run: Run) -> dict[str, float]:
    """Train, validate, checkpoint, resume; writes `decoder.safetensors` into the run folder.

    Returns:
        The last validation's figures.
    """
    from jamgym import registry
    from jamgym.checkpoint import load_state, save_state
    from jamgym.config import create_from_spec
    from jamgym_agents.checkpoint import load_decoder, new_decoder, save_decoder

    codec = create_from_spec(registry.codecs, config.codec)
    corpus = create_from_spec(registry.corpora, config.corpus)
    torch.manual_seed(config.seed)
    if config.init_from is None:
        decoder = new_decoder(config.architecture, codec)
    else:
        decoder = load_decoder(config.init_from, codec)
    data: dict[str, TokenSet] = {}
    sizes: dict[Split, int | None] = {"train": config.songs, "validation": config.validation_songs}
    for split, songs in sizes.items():
        total = len(list(corpus.song_ids(split))[:songs])
        with run.progress(total, f"encoding {split} songs") as progress:
            data[split] = load_tokens(corpus, codec, split, songs, advance=lambda: progress.advance(1))
    held_out = data["validation"].batch(np.random.default_rng(config.seed), 128, config.frames)
    optimizer = torch.optim.AdamW(_parameter_groups(decoder, config.weight_decay), lr=1e-3, betas=(0.9, 0.98))
    path, first = run.folder / "checkpoint.safetensors", 0
    if path.exists():
        state = load_state(path, expect={"kind": "pretrain", "codec": codec.version})
        decoder.load_state_dict(state["decoder"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["torch_rng"])
        first = int(state["step"])
        run.truncate(first)

    def save(step: int) -> None:
        state = {
            "decoder": decoder.state_dict(),
            "optimizer": optimizer.state_dict(),
            "torch_rng": torch.get_rng_state(),
            "step": step,
        }
        save_state(path, state, {"kind": "pretrain", "codec": codec.version})

    saved, done = time.monotonic(), first
    decoder.train()
    with run.progress(config.steps, "pretrain", done=first) as progress:
        for step in range(first, config.steps):
            # Everything drawn depends on the step alone, so that a resumed run meets the same batches.
            rng = np.random.default_rng([config.seed, step])
            batch = data["train"].batch(rng, config.batch, config.frames)
            t_f, k = draw_conditions(rng, config.batch, config)
            hidden = hidden_spans(rng, config.batch, config.frames - 1, config.history_dropout)
            count = max(1, round(config.loss_share * config.frames))
            scored = torch.from_numpy(np.sort(rng.permutation(config.frames)[:count]))
            rate = learning_rate(step, config)
            for group in optimizer.param_groups:
                group["lr"] = rate
            with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
                output = decoder(batch.heard, batch.target, batch.instrument, t_f, k, hidden, scored, lookahead=True)
            tokens = token_loss(output.logits, batch.target[:, scored]).mean((0, 1))
            extra = auxiliary_losses(output, batch)
            loss = (
                tokens.mean()
                + config.root_weight * (extra["root"] + 0.5 * extra["input_root"])
                + config.chroma_weight * extra["chroma"]
                + config.lookahead_weight * extra.get("lookahead", 0.0)
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
            if not torch.isfinite(norm):
                raise JamgymError(
                    f"The gradient of step {step} has norm {float(norm)} at loss {float(loss.detach())}. The last "
                    "checkpoint is intact; resume it with a lower learning_rate, or with bf16 off."
                )
            optimizer.step()
            done = step + 1
            progress.advance(1, loss=float(tokens.mean().detach()))
            if step % 25 == 0:
                figures = {f"loss/codebook_{q}": float(value) for q, value in enumerate(tokens.detach())}
                figures |= {f"loss/{name}": float(value.detach()) for name, value in extra.items()}
                run.log(done, {**figures, "optimizer/grad_norm": float(norm), "optimizer/learning_rate": rate})
            if done % config.validate_every == 0 or done == config.steps:
                run.log(done, validate(decoder, held_out, config.bf16))
            if run.stop_requested or time.monotonic() - saved > 60 * config.checkpoint_minutes:
                save(done)
                saved = time.monotonic()
            if run.stop_requested:
                break
    save(done)
    save_decoder(run.folder / "decoder.safetensors", decoder, codec.version, {"config": asdict(config), "steps": done})
    figures = validate(decoder, held_out, bf16=False)
    run.write_json("metrics.json", figures)
    return figures
