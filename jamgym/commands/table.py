"""The commands of jamgym: where each one's settings and program are, and what its help says.

Modules are named, not imported: ``jamgym --help`` needs none of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jamgym.errors import JamgymError


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        name: What the user types; one word, or two for a command below another one.
        summary: One line for the list of commands.
        config: ``module:Dataclass`` of its settings.
        program: ``module:function`` that is called as ``function(config, run)`` and returns figures; of a quick
            command as ``function(config)``, and it returns the text to show.
        examples: Command lines for its help.
        quick: Whether it takes seconds: no run folder, no seed and nothing to resume.
        distributed: Whether several processes of torchrun can share its work.
        positional: Setting that a word without a name stands for; empty where there is none.
    """

    name: str
    summary: str
    config: str
    program: str
    examples: tuple[str, ...]
    quick: bool = False
    distributed: bool = False
    positional: str = ""

    def load(self) -> tuple[type[Any], Callable[..., Any]]:
        """Import and return the settings' class and the program."""
        return _load(self.config), _load(self.program)


def _load(path: str) -> Any:
    module_name, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except ModuleNotFoundError as error:
        raise JamgymError(
            f"This command needs the module {error.name!r}, which is not installed. Install jamgym with all its "
            "dependencies: pip install jamgym."
        ) from error


COMMANDS: tuple[Command, ...] = (
    Command(
        "demo",
        "Fine-tune the shipped decoder with PPO for some minutes and compare it with its start.",
        "jamgym.commands.demo:DemoConfig",
        "jamgym.commands.demo:run_demo",
        ("jamgym demo", "jamgym demo --out runs/demo --seed 1"),
    ),
    Command(
        "train-codec",
        "Train the codec that turns audio into codes.",
        "jamgym.codecs.training_settings:CodecTrainingConfig",
        "jamgym.codecs.training:train_codec",
        (
            "jamgym train-codec --config configs/train-codec/spectral.yaml",
            "jamgym train-codec --corpus stems --corpus.path songs --out runs/codec",
        ),
    ),
    Command(
        "train-coherence",
        "Train the reward `coherence`, `discriminative` or the held-out `judge`.",
        "jamgym_rewards.training_settings:CoherenceTrainingConfig",
        "jamgym_rewards.training:train_coherence",
        (
            "jamgym train-coherence --config configs/train-coherence/coherence.yaml",
            "jamgym train-coherence --config configs/train-coherence/judge.yaml --seed 7",
            "jamgym train-coherence --model discriminative --max_minutes 12",
        ),
    ),
    Command(
        "pretrain",
        "Train a decoder by maximum likelihood over random future visibility and chunk size.",
        "jamgym_agents.mle.settings:PretrainConfig",
        "jamgym_agents.pretraining:pretrain",
        (
            "jamgym pretrain --config configs/pretrain/tiny.yaml",
            "jamgym pretrain --out runs/mle --resume",
            "torchrun --nproc-per-node 4 -m jamgym.cli pretrain --config configs/pretrain/small.yaml --out runs/mle",
        ),
        distributed=True,
    ),
    Command(
        "finetune",
        "Fine-tune a decoder with PPO against a reward model.",
        "jamgym_agents.ppo.settings:FinetuneConfig",
        "jamgym_agents.finetuning:finetune",
        (
            "jamgym finetune --config configs/finetune/demo.yaml",
            "jamgym finetune --corpus stems --corpus.path my_songs --out runs/mine",
            "jamgym finetune --reward my_package.rewards:Groove --reward.weight 0.5",
            "jamgym finetune --out runs/mine --resume",
        ),
    ),
    Command(
        "evaluate",
        "Score policies on held-out songs with confidence intervals.",
        "jamgym.benchmark.evaluation:EvaluationConfig",
        "jamgym.benchmark.evaluation:evaluate",
        (
            "jamgym evaluate --config configs/evaluate/default.yaml",
            "jamgym evaluate --corpus stems --corpus.path my_songs --seed 3",
            "jamgym evaluate --config configs/evaluate/grid.yaml --checkpoints '[runs/a/decoder.safetensors]'",
            "jamgym evaluate --grid.t_f '[-50, -25]' --grid.k '[1, 5]' --policies '[truth, decoder]' --out runs/grid",
        ),
    ),
    Command(
        "accompany",
        "Play along with an audio file, and hear the result.",
        "jamgym.commands.accompany:AccompanyConfig",
        "jamgym.commands.accompany:accompany",
        (
            "jamgym accompany my_song.wav",
            "jamgym accompany my_song.mp3 --instrument bass --seconds 60 --gain_db 3 --out runs/bass",
            "jamgym accompany my_song.wav --policy decoder --policy.checkpoint runs/first/decoder.safetensors",
            "jamgym accompany my_song.wav --latency '{name: lognormal, median_seconds: 0.06, sigma: 0.3}'",
        ),
        positional="audio",
    ),
    Command(
        "profile",
        "Measure how long a policy takes per call on this machine, and write it as latency models.",
        "jamgym.benchmark.profiling:ProfileConfig",
        "jamgym.benchmark.profiling:profile",
        (
            "jamgym profile --config configs/profile/default.yaml --out runs/profile",
            "jamgym profile --policy decoder --policy.checkpoint runs/first/decoder.safetensors --threads 1",
            "jamgym profile --k_choices '[1, 2, 5]' --t_f -10",
        ),
    ),
    Command(
        "rewards",
        "List every known reward: its range, what it needs, its windows, and what it costs.",
        "jamgym.commands.rewards:RewardsConfig",
        "jamgym.commands.rewards:list_rewards",
        (
            "jamgym rewards",
            "jamgym rewards --cost false",
            "jamgym rewards --reward my_package.rewards:Groove --reward.block_seconds 0.1",
            "jamgym rewards score --help",
        ),
        quick=True,
    ),
    Command(
        "rewards score",
        "Score audio files with a reward, window by window.",
        "jamgym.commands.score:ScoreConfig",
        "jamgym.commands.score:score",
        (
            "jamgym rewards score coherence --heard band.wav --played solo.wav",
            "jamgym rewards score coherence --heard band.wav --played solo.wav --out scores",
            "jamgym rewards score my_package.rewards:Groove --reward.block_seconds 0.1 --heard a.wav --played b.wav",
        ),
        quick=True,
        positional="reward",
    ),
)
