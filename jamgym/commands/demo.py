"""`jamgym demo`: fine-tune the shipped decoder with PPO, compare it with its start, and say what was found."""

from __future__ import annotations

import json
import os
import shlex
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jamgym.benchmark.evaluation import EvaluationConfig, evaluate, prepare
from jamgym.benchmark.labels import labelled_specs, with_checkpoints, without_other_songs
from jamgym.benchmark.statistics import FEWEST_SONGS, too_few
from jamgym.corpus import INSTRUMENTS
from jamgym.errors import ConfigError
from jamgym.files import write_text
from jamgym.run import Run
from jamgym_agents.finetuning import finetune
from jamgym_agents.ppo.settings import FinetuneConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Targets of the demo: note-in-chord has no meaning for drums.
PITCHED = tuple(name for name in INSTRUMENTS if name not in ("other", "drums", "voice"))
#: Settings of `finetune` that hold for the evaluation as well: the policies are compared as they were trained.
SHARED = ("corpus", "codec", "t_f", "k", "frames", "latency", "late_policy", "allow_lookahead")
#: Label of the fine-tuned decoder that comes with the package.
SHIPPED_LABEL = "ppo_shipped"
#: A penalty that grew by less is no news.
_AUDIBLE = 0.01


def _recipe() -> FinetuneConfig:
    return FinetuneConfig(
        # Near a teacher that knows what comes, a policy rests where it is not sure.
        reward={
            "name": "mixture",
            "rewards": ["coherence", "silence", "level", "flicker"],
            "weights": [1.0, 1.0, 0.5, 0.5],
        },
        instruments=PITCHED,
        max_songs=64,
        rollouts=30,
        max_minutes=5.0,
        kl_reference=0.0,
        kl_teacher=0.2,
        teacher_guidance=3.0,
        critic_warm_up=1,
    )


def _comparison() -> EvaluationConfig:
    recipe = _recipe()
    shared = {name: getattr(recipe, name) for name in SHARED}
    return EvaluationConfig(instruments=PITCHED, episodes=128, save_audio=3, **shared)


@dataclass(frozen=True)
class DemoConfig:
    """Settings of `jamgym demo`.

    Attributes:
        finetune: The PPO run, on training songs.
        evaluation: The comparison, on held-out songs; its policies are the demo's own, and where, how and in what time
            they play is what `finetune` says.
        seed: Seed of both.
    """

    finetune: FinetuneConfig = field(default_factory=_recipe)
    evaluation: EvaluationConfig = field(default_factory=_comparison)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.evaluation.grid.given:
            raise ConfigError("The demo compares at one t_f and k; measure a grid with `jamgym evaluate` afterwards.")
        if not isinstance(self.finetune.t_f, int):
            raise ConfigError(
                f"finetune.t_f is {list(self.finetune.t_f)}, but the demo trains and compares at one t_f. Use `jamgym "
                "finetune`, and then `jamgym evaluate` with --grid.t_f."
            )
        _refuse_overridden(self)


def _refuse_overridden(config: DemoConfig) -> None:
    """Raise `ConfigError` for a setting that the demo would put aside; one at its default counts as not given."""
    default, given = _comparison(), config.evaluation
    for name in SHARED:
        value, used = getattr(given, name), getattr(config.finetune, name)
        if value not in (getattr(default, name), used):
            raise ConfigError(
                f"evaluation.{name} is {value!r}, but the demo evaluates as it trains: finetune.{name} is {used!r}. "
                f"Give --finetune.{name}, which holds for both, and no evaluation.{name}."
            )
    for part, seed in (("evaluation", given.seed), ("finetune", config.finetune.seed)):
        if seed not in (0, config.seed):
            raise ConfigError(f"{part}.seed is {seed}, but the demo has one seed, {config.seed}; give --seed instead.")
    if given.policies != default.policies:
        raise ConfigError(
            f"evaluation.policies is {list(given.policies)}, but the demo's policies are its own. Name other decoders "
            "to compare with by --evaluation.checkpoints, or use `jamgym evaluate` afterwards."
        )


def run_demo(config: DemoConfig, run: Run) -> dict[str, float]:
    """Fine-tune, evaluate, and write the report; returns the evaluation's figures."""
    tuning = replace(config.finetune, seed=config.seed)
    folder = run.folder / "finetune"
    sampling = asdict(tuning.sampling)
    before = {"name": "decoder", "label": "mle", "checkpoint": tuning.checkpoint, **sampling}
    after = {"name": "decoder", "label": "ppo", "checkpoint": str(folder / "decoder.safetensors"), **sampling}
    # What more rollouts make of the same start is there already.
    shipped = {"name": "decoder", "label": SHIPPED_LABEL, "checkpoint": "ppo", **sampling}
    players = (before, after, shipped) if tuning.checkpoint in (None, "mle") else (before, after)
    evaluation = replace(
        config.evaluation,
        policies=("silence", "random_stem", *players, "truth"),
        seed=config.seed,
        **{name: getattr(tuning, name) for name in SHARED},
    )
    # What cannot be evaluated is refused now, not after the training; all but the decoder that is still to come.
    with_checkpoints(labelled_specs(evaluation.policies), evaluation.checkpoints)
    source, _, _ = prepare(replace(evaluation, policies=("silence", before, "truth")))
    omitted = without_other_songs({"random_stem": "random_stem"}, source, optional=True)
    if omitted:
        evaluation = replace(evaluation, policies=("silence", *players, "truth"))
    part = Run.create(
        folder,
        command="finetune",
        config=asdict(tuning),
        seed=config.seed,
        resume=(folder / "run.json").exists(),
        quiet=run.quiet,
        part_of=run,
    )
    with part:
        learnt = finetune(tuning, part)
    if part.stop_requested:
        run.stop_requested = True
        return learnt
    figures = evaluate(evaluation, run)
    text = (run.folder / "report.txt").read_text(encoding="utf-8")
    differences = json.loads((run.folder / "metrics.json").read_text(encoding="utf-8"))["paired_differences"]
    lines = [text, *omitted.values(), *closing_lines(differences, learnt, run.folder)]
    write_text(run.folder / "report.txt", "\n".join(lines) + "\n")
    return figures


def verdict(differences: list[Mapping[str, Any]]) -> str:
    """Return what PPO did, for good and for ill, from the paired differences between `ppo` and `mle`."""
    found = {row["measure"]: row for row in differences if (row["a"], row["b"]) == ("ppo", "mle")}
    coherence, judge = found.get("coherence"), found.get("judge")
    if coherence is None or judge is None:
        return "Coherence or judge was not scored, so nothing is said about PPO."
    if None in (coherence["low"], coherence["high"], judge["low"], judge["high"]):
        return "One held-out song gives no interval, so nothing is said about PPO; evaluate more songs."
    songs = int(min(coherence["songs"], judge["songs"]))
    if songs < FEWEST_SONGS:
        return f"Nothing is said about PPO: {too_few(songs)}."
    if coherence["low"] > 0:
        first = "PPO made the decoder more coherent with what it hears"
    elif coherence["high"] < 0:
        first = "PPO made the decoder less coherent"
    else:
        first = "this short run shows no sure change of coherence"
    if judge["low"] > 0:
        second = "and the held-out judge agrees"
    elif judge["high"] < 0:
        second = "but the held-out judge's score fell: the reward was gamed, not the music improved"
    else:
        second = "and the held-out judge sees no sure change"
    return " ".join([f"Found: {first}, {second}.", *_faults(found)])


def _faults(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each penalty that PPO made larger: a score of coherence may rise all the same."""
    worse = {"silence": "It rests more than before", "flicker": "Its sound flickers more than before"}
    return [
        f"{words}: its penalty {name} is {-row['estimate']:.3f} [{-row['high']:.3f}, {-row['low']:.3f}] larger, "
        "of 1 at most."
        for name, words in worse.items()
        if (row := found.get(name)) and row["high"] is not None and row["high"] < 0 and row["estimate"] <= -_AUDIBLE
    ]


def closing_lines(differences: list[Mapping[str, Any]], learnt: Mapping[str, float], folder: Path) -> list[str]:
    """Return what stands under the table: the finding, the long run, and where to listen and look."""
    rollouts = int(learnt["rollouts"])
    lines = [f"{verdict(differences)} ({rollouts} rollouts of PPO on training songs.)"]
    if any(SHIPPED_LABEL in (row["a"], row["b"]) for row in differences):
        lines.append(
            f"{SHIPPED_LABEL} comes with jamgym: what `jamgym finetune` made of the same start in some hours, with "
            "configs/finetune/long.yaml and then latencies.yaml. Play it with {name: decoder, checkpoint: ppo}."
        )
    board = Path(sys.executable).parent / "tensorboard"
    command = shlex.quote(os.path.relpath(board)) if board.exists() else "tensorboard"
    return [
        *lines,
        f"Listen: {folder / 'audio'} (heard, played, mix and truth of held-out songs).",
        f"Look: {folder / 'comparison.png'}",
        f"TensorBoard: {command} --logdir {shlex.quote(str(folder))}",
    ]
