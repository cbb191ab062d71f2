"""Maximum-likelihood pretraining of the decoder over random (t_f, k).

What makes a small decoder listen: spans of its own past are hidden in a part of the sequences (history
dropout), and auxiliary heads name the chord, the target's chroma and the input to come. Whether it listens is
measured from the first validation on: the loss with the true input against that with another song's input.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from jamgym.codec import Codec
from jamgym.corpus import Corpus, Split
from jamgym.errors import ConfigError, JamgymError
from jamgym_agents.decoder import AccompanimentDecoder, DecoderConfig
from jamgym_agents.mle.batch import StepInputs, draw_step, dropout_seed
from jamgym_agents.mle.distributed import Workers, join_workers
from jamgym_agents.mle.input_use import validate
from jamgym_agents.mle.learner import Learner
from jamgym_agents.mle.live_sample import live_mix
from jamgym_agents.mle.losses import count_entries, losses, weighted_sum
from jamgym_agents.mle.token_data import TokenSet, load_tokens

if TYPE_CHECKING:
    from jamgym.run import Run

#: The first sound comes after so many steps, before the first validation.
FIRST_SOUND = 50
#: The cell that is played for people to hear, if it is validated: live, one second behind.
HEARD_CELL = (-25, 5)


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
        batch: Sequences per step, over all processes.
        accumulate: Micro-batches per step, for less memory; changes a step by rounding only.
        optimizer: "muon" for the matrices between hidden states and "adamw" for the rest, or "adamw" for all.
        learning_rate: Peak of a warm-up and cosine schedule, one for both optimizers.
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
        ema_decay: Decay per step of a moving average of the weights, such as 0.999, which is then what is validated
            and saved as the decoder; 0 keeps none.
        device: "auto" takes CUDA where it is, else the processor.
        bf16: Compute matrix products in bfloat16.
        validate_every: Steps between validations.
        validation_t_f: Future visibilities that are validated, in frames, each with every `validation_k`.
        validation_k: Chunk sizes that are validated.
        checkpoint_minutes: Minutes between checkpoints.
        seed: Seed of weights, batches, dropout and (t_f, k).
        init_from: A decoder checkpoint to start from, with its architecture; None starts from random weights.
        architecture: The network; sizes that belong to the codec are taken from the codec.
    """

    corpus: str | dict[str, Any] = "band"
    codec: str | dict[str, Any] = "spectral"
    songs: int | None = 500
    validation_songs: int = 48
    frames: int = 250
    steps: int = 800
    batch: int = 16
    accumulate: int = 1
    optimizer: Literal["muon", "adamw"] = "muon"
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
        if self.t_f_low > self.t_f_high:
            raise ConfigError(f"t_f_low is {self.t_f_low}, above t_f_high {self.t_f_high}; swap them.")
        if not self.k_choices or min(self.k_choices) < 1:
            raise ConfigError(f"k_choices is {self.k_choices}; give chunk sizes of at least 1 frame.")
        if self.architecture.lookahead_frames < 0:
            raise ConfigError(f"lookahead_frames is {self.architecture.lookahead_frames}; 0 predicts none.")
        if self.accumulate < 1 or self.batch % self.accumulate:
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


def gather_gradients(
    model: nn.Module, decoder: AccompanimentDecoder, inputs: StepInputs, config: PretrainConfig, workers: Workers
) -> dict[str, Tensor]:
    """Set the gradients of one step, micro-batch by micro-batch; return this process's share of each loss.

    Args:
        model: `decoder`, or its data-parallel wrapper.
        decoder: The network.
        inputs: The whole step's batch.
        config: Settings.
        workers: This process among the others.
    """
    counts = count_entries(inputs, decoder.config.lookahead_frames)
    decoder.zero_grad(set_to_none=True)
    shares: dict[str, Tensor] = {}
    pieces = workers.pieces(config.batch, config.accumulate)
    for number, rows in enumerate(pieces, start=1):
        part = inputs.rows(rows).to(workers.device)
        with workers.accumulating(model, more=number < len(pieces)):
            with torch.autocast(workers.device.type, torch.bfloat16, enabled=config.bf16):
                output = model(
                    part.tokens.heard,
                    part.tokens.target,
                    part.tokens.instrument,
                    part.t_f,
                    part.k,
                    part.hidden,
                    part.scored,
                    lookahead=True,
                )
            found = losses(output, part, counts)
            # The wrapper averages over processes, but their shares are to be summed.
            (weighted_sum(found, config) * workers.count).backward()
        shares = {name: shares.get(name, 0.0) + value.detach() for name, value in found.items()}
    return shares


def pretrain(config: PretrainConfig, run: Run) -> dict[str, float]:
    """Train, validate, checkpoint, resume; writes `decoder.safetensors` into the run folder.

    Under torchrun, process 0 writes and the others, with a `WorkerRun`, share its work.

    Returns:
        The last validation's figures; none in the other processes.
    """
    with join_workers(config.device) as workers:
        workers.pieces(config.batch, config.accumulate)  # refuses a batch that cannot be shared, before the work
        return _pretrain(config, run, workers)


def check_same_architecture(path: str, found: DecoderConfig, wanted: DecoderConfig) -> None:
    """Refuse an architecture that the network at `path` does not have; the default asks for nothing.

    Raises:
        ConfigError: A setting other than the codec's sizes differs.
    """
    if wanted == DecoderConfig():
        return
    own = {"num_codebooks", "cardinality", "latent_dim"}
    pairs = {key: (getattr(found, key), value) for key, value in asdict(wanted).items() if key not in own}
    if differing := {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}:
        text = ", ".join(f"{key} {there} where architecture says {asked}" for key, (there, asked) in differing.items())
        raise ConfigError(
            f"init_from {path} has {text}. Training goes on with the network that is there: leave architecture out, "
            "or start from random weights with init_from: null."
        )


def _pretrain(config: PretrainConfig, run: Run, workers: Workers) -> dict[str, float]:
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
        check_same_architecture(config.init_from, decoder.config, config.architecture)
    data = _load_data(config, corpus, codec, run, workers)
    held_out = data["validation"].batch(np.random.default_rng(config.seed), 128, config.frames)
    learner = Learner.create(decoder.to(workers.device), config)
    path, first = run.folder / "checkpoint.safetensors", 0
    identity = {"kind": "pretrain", "codec": codec.version, "optimizer": config.optimizer}
    if path.exists():
        first = learner.restore(load_state(path, expect=identity))
        run.truncate(first)
    if workers.sum([float(first)]) != [float(first * workers.count)]:
        raise ConfigError(f"Not every process sees the checkpoint {path}; --out must be a folder that all share.")
    model = workers.wrap(learner.decoder)

    def save(step: int) -> None:
        if workers.rank == 0:
            save_state(path, learner.state(step), identity)

    saved, busy, done, validated = time.monotonic(), 0.0, first, -1
    measured: dict[str, float] = {}
    with run.progress(config.steps, "pretrain", done=first) as progress:
        for step in range(first, config.steps):
            started = time.monotonic()
            torch.manual_seed(dropout_seed(config.seed, step, workers.rank))
            inputs = draw_step(data["train"], config, step)
            shares = gather_gradients(model, learner.decoder, inputs, config, workers)
            rate = learning_rate(step, config)
            norm = learner.step(rate)
            done = step + 1
            # One exchange for all that the processes have to agree on; whoever is asked to stop stops all.
            stop, *sums = workers.sum([float(run.stop_requested), *torch.stack(list(shares.values())).tolist()])
            figures = dict(zip(shares, sums, strict=True))
            loss = float(np.mean([value for name, value in figures.items() if name.startswith("codebook_")]))
            if not math.isfinite(norm):
                raise JamgymError(
                    f"The gradient of step {step} has norm {norm} at loss {loss}. The last checkpoint is intact; "
                    "resume it with a lower learning_rate, or with bf16 off."
                )
            run.stop_requested = run.stop_requested or stop > 0
            busy += time.monotonic() - started
            speed = config.batch * config.frames * (done - first) / busy
            progress.advance(1, **{"loss": loss, "frames/s": speed})
            if step % 25 == 0:
                logged = {f"loss/{name}": value for name, value in figures.items()}
                run.log(done, {**logged, "optimizer/grad_norm": norm, "optimizer/learning_rate": rate})
            due = done % config.validate_every == 0 or done == config.steps
            if workers.rank == 0 and due:
                validated, measured = done, validate(learner.result, held_out, config.validation_cells)
                run.log(done, measured)
            if workers.rank == 0 and (due or done == FIRST_SOUND):
                cells = config.validation_cells
                t_f, k = HEARD_CELL if HEARD_CELL in cells else cells[0]
                run.add_audio(
                    done, "validation/mix", live_mix(learner.result, codec, held_out, t_f, k), codec.sample_rate
                )
            if stop or time.monotonic() - saved > 60 * config.checkpoint_minutes:
                save(done)
                saved = time.monotonic()
            if stop:
                break
    save(done)
    if workers.rank > 0:
        return {}
    training = {"config": asdict(config), "steps": done}
    save_decoder(run.folder / "decoder.safetensors", learner.result, codec.version, training)
    if validated != done:
        measured = validate(learner.result, held_out, config.validation_cells)
    run.write_json("metrics.json", measured)
    return measured


def _load_data(config: PretrainConfig, corpus: Corpus, codec: Codec, run: Run, workers: Workers) -> dict[str, TokenSet]:
    data: dict[str, TokenSet] = {}
    if workers.rank > 0:
        workers.wait()  # Process 0 encodes; what it made is then read from the cache.
    sizes: dict[Split, int | None] = {"train": config.songs, "validation": config.validation_songs}
    for split, songs in sizes.items():
        total = len(list(corpus.song_ids(split))[:songs])
        with run.progress(total, f"encoding {split} songs") as progress:
            data[split] = load_tokens(corpus, codec, split, songs, advance=lambda: progress.advance(1))
    if workers.rank == 0:
        workers.wait()
    return data
