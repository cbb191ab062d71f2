"""Maximum-likelihood pretraining of the decoder over random (t_f, k).

What makes a small decoder listen: spans of its own past are hidden in a part of the sequences (history
dropout), and auxiliary heads name the chord, the target's chroma and the input to come. Whether it listens is
measured from the first validation on: the loss with the true input against that with another song's input.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from jamgym.checkpoint import differing_settings
from jamgym.codec import Codec
from jamgym.corpus import Corpus, Split
from jamgym.errors import ConfigError
from jamgym.ranges import check_finite
from jamgym_agents.decoder import AccompanimentDecoder, DecoderConfig, with_aligned_input
from jamgym_agents.mle.batch import StepInputs, draw_step, dropout_seed
from jamgym_agents.mle.distributed import Workers, join_workers
from jamgym_agents.mle.input_use import check_two_songs, validate
from jamgym_agents.mle.learner import Learner
from jamgym_agents.mle.live_sample import live_mix
from jamgym_agents.mle.losses import count_entries, losses, weighted_sum
from jamgym_agents.mle.settings import PretrainConfig, learning_rate
from jamgym_agents.mle.token_cache import load_tokens
from jamgym_agents.mle.token_data import TokenSet

if TYPE_CHECKING:
    from jamgym.run import Run

#: The first sound comes after so many steps, before the first validation.
FIRST_SOUND = 50
#: The cell that is played for people to hear, if it is validated: live, one second behind.
HEARD_CELL = (-25, 5)


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


def check_same_architecture(
    path: Path | str, found: DecoderConfig, wanted: DecoderConfig, resumed: bool = False
) -> None:
    """Refuse an architecture that the network at `path` does not have; the default asks for nothing.

    Args:
        path: For the message.
        found: Of the network that training goes on with.
        wanted: What the settings ask for.
        resumed: Whether the network is that of a run's checkpoint, to which nothing can be added.

    Raises:
        ConfigError: A setting other than the codec's sizes differs.
    """
    if wanted == DecoderConfig():
        return
    own = {"num_codebooks", "cardinality", "latent_dim"}
    asked = {key: value for key, value in asdict(wanted).items() if key not in own}
    if text := differing_settings(asdict(found), asked):
        added = (
            "leave architecture out; to add aligned_frames and aligned_past to it, start a new run with init_from"
            if resumed
            else "leave architecture out (or give all of it, with aligned_frames and aligned_past, to add them to one "
            "that has neither)"
        )
        raise ConfigError(
            f"{path} has {text}. Training goes on with the network that is there: {added}, or start from random "
            "weights in a new run folder, with init_from: null."
        )


def first_decoder(
    config: PretrainConfig, codec: Codec, path: Path, state: dict[str, Any] | None
) -> AccompanimentDecoder:
    """Return the network before its first step, or one that the checkpoint `state` at `path` can be put into.

    Raises:
        ConfigError: `architecture` asks for another network than the one that training goes on with.
        CheckpointError: `init_from` is missing, damaged, or of another codec.
    """
    from jamgym_agents.checkpoint import load_decoder, new_decoder

    torch.manual_seed(config.seed)
    if state is not None:
        # Not from init_from, which may be gone by now.
        architecture = DecoderConfig(**state["architecture"])
        check_same_architecture(path, architecture, config.architecture, resumed=True)
        return new_decoder(architecture, codec)
    if config.init_from is None:
        return new_decoder(config.architecture, codec)
    decoder = load_decoder(config.init_from, codec)
    if config.architecture.gives_aligned and not decoder.config.gives_aligned:
        decoder = with_aligned_input(decoder, config.architecture.aligned_past, config.architecture.aligned_frames)
    check_same_architecture(config.init_from, decoder.config, config.architecture)
    return decoder


def _pretrain(config: PretrainConfig, run: Run, workers: Workers) -> dict[str, float]:
    from jamgym import registry
    from jamgym.checkpoint import load_state, save_state
    from jamgym.specs import create_from_spec
    from jamgym_agents.checkpoint import save_decoder

    codec = create_from_spec(registry.codecs, config.codec)
    corpus = create_from_spec(registry.corpora, config.corpus, {"sample_rate": codec.sample_rate})
    path, first = run.folder / "checkpoint.safetensors", 0
    identity = {"kind": "pretrain", "codec": codec.version, "optimizer": config.optimizer}
    state = load_state(path, expect=identity) if path.exists() else None
    decoder = first_decoder(config, codec, path, state)
    data = _load_data(config, corpus, codec, run, workers)
    # The same sequences for every training seed.
    held_out = data["validation"].batch(np.random.default_rng(0), 128, config.frames)
    check_two_songs(held_out)
    learner = Learner.create(decoder.to(workers.device), config)
    if state is not None:
        first = learner.restore(state)
    if run.resumed:
        run.truncate(first)  # a run that was killed may have logged more than its checkpoint has, or has none
    if workers.sum([float(first)]) != [float(first * workers.count)]:
        raise ConfigError(f"Not every process sees the checkpoint {path}; --out must be a folder that all share.")
    model = workers.wrap(learner.decoder)

    def save(step: int) -> None:
        if workers.rank == 0:
            run.keep_settings()
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
            check_finite(step, loss, norm)
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
            data[split] = load_tokens(
                corpus,
                codec,
                split,
                songs,
                advance=lambda: progress.advance(1),
                processes=config.encode_processes,
                stop=lambda: run.stop_requested,
            )
    if workers.rank == 0:
        workers.wait()
    return data
