"""Training of the rewards `coherence`, `discriminative` and `judge`: tell the true stem from wrong ones.

One loop for all; what differs is the network, its loss (`jamgym_rewards.losses`) and the songs. The training rewards
`coherence` and `discriminative` get the even places in the corpus's list of training songs, the held-out `judge` the
odd ones.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from jamgym import registry
from jamgym.checkpoint import load_state, save_state
from jamgym.codec import Codec
from jamgym.corpus import Corpus, Split
from jamgym.errors import ConfigError, CorpusError
from jamgym.files import atomic_path
from jamgym.ranges import check_finite
from jamgym.specs import create_from_spec, spec_name
from jamgym_rewards.coherence import CoherenceReward, calibration_key
from jamgym_rewards.discriminative import DiscriminativeReward
from jamgym_rewards.features import SAMPLE_RATE, Analysis, FeatureSpec, prepare
from jamgym_rewards.gating import FLOOR
from jamgym_rewards.judge import JudgeReward
from jamgym_rewards.learned import Calibration, LearnedReward, round_to_half, save_weights
from jamgym_rewards.losses import batch_loss
from jamgym_rewards.negatives import FeaturePair, draw_batch, render_pair
from jamgym_rewards.separation import PARTS, Part
from jamgym_rewards.training_settings import CoherenceTrainingConfig, Model
from jamgym_rewards.validation import auc_figures, mean_figure, score_variants

if TYPE_CHECKING:
    from jamgym.run import Run

_REWARDS: dict[str, type[LearnedReward]] = {
    "coherence": CoherenceReward,
    "judge": JudgeReward,
    "discriminative": DiscriminativeReward,
}
#: First of every second training song: those of the judge are unknown to the rewards that agents train on.
_FIRST_SONG = {"coherence": 0, "judge": 1, "discriminative": 0}


def build_pool(
    config: CoherenceTrainingConfig,
    corpus: Corpus,
    codec: Codec | None,
    analysis: Analysis,
    split: Split,
    run: Run,
    part: Part = "both",
    stoppable: bool = True,
) -> list[FeaturePair]:
    """Render one pair per song of `split` and keep its features in memory (about 1 MB a song).

    Training pairs have random levels; validation pairs keep their own. `part` says what is kept of both sides,
    `stoppable` whether Ctrl-C ends it before the next song.
    """
    ids = list(corpus.song_ids(split))
    natural = split != "train"
    if not natural:
        ids = ids[_FIRST_SONG[config.model] :: 2]
    ids = ids[: config.validation_songs if natural else config.songs]
    pairs = []
    kept = "" if part == "both" else f", {part}"
    for place, song_id in enumerate(run.loading(ids, f"features of {split} songs{kept}", stoppable)):
        rng = np.random.default_rng([config.seed, natural, place])
        pair = render_pair(corpus, song_id, analysis, codec, rng, natural, part)
        if pair is not None:
            pairs.append(pair)
    if len(pairs) < 2:
        raise CorpusError(
            f"Corpus {corpus.name!r} gave {len(pairs)} usable pair in split {split!r} for {config.model!r}; at least 2 "
            "songs with two sounding stems are needed. Add songs, or check that the stems are not silent."
        )
    return pairs


def raw_scores(network: nn.Module, spec: FeatureSpec, heard: Tensor, played: Tensor) -> NDArray[np.float64]:
    """Return the network's outputs `(N,)` for cut decibels, in evaluation mode."""
    was_training = network.training
    network.eval()
    with torch.no_grad():
        found = [
            network(prepare(a, spec), prepare(b, spec)) for a, b in zip(heard.split(64), played.split(64), strict=True)
        ]
    network.train(was_training)
    return torch.cat(found).double().numpy()


def schedule(progress: float, step: int, peak: float, warm_up: int = 100) -> float:
    """Return the learning rate at `progress` in 0 to 1: linear warm-up, then cosine to 2 % of `peak`."""
    rise = min(1.0, (step + 1) / warm_up)
    return peak * rise * (0.02 + 0.98 * 0.5 * (1.0 + float(np.cos(np.pi * min(progress, 1.0)))))


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


def train_coherence(config: CoherenceTrainingConfig, run: Run) -> dict[str, float]:
    """Train, checkpoint, resume, calibrate; write weights and their card.

    Returns:
        Validation figures: "auc/<wrong version>" and calibrated means "mean/truth" and "mean/random_stem", each
        with "_low" and "_high", the ends of its 95 % interval over songs.

    Raises:
        ConfigError: The corpus or the codec is not at 16 kHz.
        JamgymError: Loss or gradient of a step is not finite; the step is not taken.
    """
    with _threads(config.threads), torch.random.fork_rng(devices=[]):
        return _train(config, run)


def _train(config: CoherenceTrainingConfig, run: Run) -> dict[str, float]:
    corpus: Corpus = create_from_spec(registry.corpora, config.corpus, {"sample_rate": SAMPLE_RATE})
    codec: Codec | None = None if config.codec is None else create_from_spec(registry.codecs, config.codec)
    for what in (corpus, codec):
        if what is not None and what.sample_rate != SAMPLE_RATE:
            raise ConfigError(f"{what.name!r} is at {what.sample_rate} Hz; train-coherence needs {SAMPLE_RATE} Hz.")
    torch.manual_seed(config.seed)
    network = _REWARDS[config.model].build()
    spec: FeatureSpec = network.config.features  # type: ignore[union-attr, assignment]
    analysis = Analysis(spec)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=config.weight_decay
    )
    path, identity = run.folder / "checkpoint.safetensors", {"kind": "train-coherence", "model": config.model}
    step, spent = 0, 0.0
    if path.exists():
        state = load_state(path, expect=identity)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["torch_rng"])
        step, spent = int(state["step"]), float(state["seconds"])
    if run.resumed:
        run.truncate(step)  # a run that was killed may have logged more than its checkpoint has, or has none
    held_out = build_pool(config, corpus, codec, analysis, "validation", run)
    pool = build_pool(config, corpus, codec, analysis, "train", run)
    began = time.monotonic() - spent
    saved = time.monotonic()

    def save() -> None:
        state = {
            "network": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "torch_rng": torch.get_rng_state(),
            "step": step,
            "seconds": time.monotonic() - began,
        }
        run.keep_settings()
        save_state(path, state, identity)

    network.train()
    with run.progress(config.steps, f"train {config.model}", done=step) as progress:
        while step < config.steps and not run.stop_requested:
            elapsed = (time.monotonic() - began) / 60.0
            share = max(step / config.steps, 0.0 if config.max_minutes is None else elapsed / config.max_minutes)
            if share >= 1.0:
                break
            rate = schedule(share, step, config.learning_rate)
            for group in optimizer.param_groups:  # the decay as well: that of a checkpoint may be another one
                group.update(lr=rate, weight_decay=config.weight_decay)
            # Windows depend on the step alone, so that a resumed run meets the same ones.
            rng = np.random.default_rng([config.seed, 5, step])
            batch = draw_batch(pool, spec, rng, config.batch, config.window_seconds)
            with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
                loss, figures = batch_loss(network, batch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            check_finite(step, float(loss.detach()), float(norm))
            optimizer.step()
            step += 1
            progress.advance(1, loss=float(loss.detach()), **figures)
            if step % 20 == 0 or step == config.steps:
                logged = {"loss": float(loss.detach()), "grad_norm": float(norm), "learning_rate": rate, **figures}
                run.log(step, {f"train/{name}": value for name, value in logged.items()})
            if step % config.evaluate_every == 0:
                table = score_variants(lambda a, b: raw_scores(network, spec, a, b), held_out, spec, windows=1)
                found = auc_figures(table, -np.inf)
                run.log(step, {f"validation/auc_{kind}": figure.value for kind, figure in found.items()})
            if time.monotonic() - saved > 60.0 * config.checkpoint_minutes:
                save()
                saved = time.monotonic()
    save()
    if run.stop_requested:
        return {}
    return _finish(config, run, network, corpus, codec, held_out, len(pool), step, time.monotonic() - began)


def calibrate(model: Model, network: nn.Module, held_out: list[FeaturePair]) -> tuple[Calibration, dict[str, float]]:
    """Return the calibration of a network on held-out pairs, and the figures of the calibrated score.

    Returns:
        The calibration; "auc/<wrong version>" and "mean/<version>", each with the ends of its interval.
    """
    reward = _REWARDS[model]
    spec: FeatureSpec = network.config.features  # type: ignore[union-attr, assignment]
    outputs = score_variants(lambda a, b: raw_scores(network, spec, a, b), held_out, spec, windows=3, seed=1)
    table = {kind: reward.squash(values) for kind, values in outputs.items()}
    calibration = Calibration(random=float(table["random_stem"].mean()), truth=float(table["truth"].mean()))
    low, high = reward.range
    calibrated = {kind: np.clip(calibration(values), low, high) for kind, values in table.items()}
    figures: dict[str, float] = {}
    found = {f"auc/{kind}": figure for kind, figure in auc_figures(calibrated, FLOOR).items()}
    found |= {f"mean/{kind}": mean_figure(values) for kind, values in calibrated.items()}
    for name, figure in found.items():
        figures |= {name: figure.value, f"{name}_low": figure.low, f"{name}_high": figure.high}
    return calibration, figures


def part_calibrations(
    config: CoherenceTrainingConfig, corpus: Corpus, codec: Codec | None, network: nn.Module, run: Run
) -> dict[str, dict[str, float]]:
    """Return what weights and card say of each mode that hears one part: its calibration and its figures."""
    analysis = Analysis(network.config.features)  # type: ignore[union-attr, arg-type]
    found: dict[str, dict[str, float]] = {}
    for part in PARTS[1:]:
        # Training has ended, and is yet to be saved.
        pairs = build_pool(config, corpus, codec, analysis, "validation", run, part, stoppable=False)
        calibration, figures = calibrate(config.model, network, pairs)
        found |= {calibration_key(part): asdict(calibration), f"figures_{part}": figures}
    return found


def as_notes(found: Mapping[str, Any]) -> dict[str, str]:
    """Return plain data as the metadata of weights hold them."""
    return {name: json.dumps(value) for name, value in found.items()}


def _finish(
    config: CoherenceTrainingConfig,
    run: Run,
    network: nn.Module,
    corpus: Corpus,
    codec: Codec | None,
    held_out: list[FeaturePair],
    songs: int,
    steps: int,
    seconds: float,
) -> dict[str, float]:
    """Calibrate and measure on the held-out songs, write weights and card."""
    round_to_half(network)
    calibration, figures = calibrate(config.model, network, held_out)
    modes = part_calibrations(config, corpus, codec, network, run) if config.model == "coherence" else {}
    out = Path(config.weights_out) if config.weights_out else run.folder / f"{config.model}.safetensors"
    save_weights(out, config.model, network, calibration, as_notes({"figures": figures, **modes}))
    made = replace(config, weights_out=None)  # where the weights lie is no part of how they were made
    card = {
        "model": config.model,
        "weights": sum(parameter.numel() for parameter in network.parameters()),
        "data": {
            "corpus": spec_name(config.corpus),
            "codec": None if config.codec is None else spec_name(config.codec),
            "training_songs": songs,
            "validation_songs": len(held_out),
            "half": f"{('even', 'odd')[_FIRST_SONG[config.model]]} training songs",
        },
        "seed": config.seed,
        "steps": steps,
        "seconds": round(seconds),
        "score": _REWARDS[config.model].convention,
        "calibration": asdict(calibration),
        "figures": figures,
        "modes": modes,
        "command": _command(made),
        "config": asdict(made),
    }
    with atomic_path(out.with_suffix(".json")) as path:
        path.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    run.write_json("metrics.json", figures)
    run.log(steps, {f"final/{name}": value for name, value in figures.items()})
    return figures


def _command(config: CoherenceTrainingConfig) -> str:
    """Return the command line with every setting that differs from its default: it trains the same weights again."""
    words = ["jamgym", "train-coherence"]
    for field in fields(config):
        if (value := getattr(config, field.name)) != field.default:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            words += [f"--{field.name}", text]
    return shlex.join(words)
