"""`jamgym evaluate`: policies on held-out songs, with intervals, tables, figures and audio."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jamgym.audio import within_full_scale
from jamgym.benchmark.comparison import Comparison, compare
from jamgym.benchmark.labels import file_stem, labelled_specs, safe_name, with_checkpoints, without_other_songs
from jamgym.benchmark.plots import plot_comparison, plot_episode
from jamgym.benchmark.runner import check_distinct
from jamgym.benchmark.statistics import RESAMPLES
from jamgym.benchmark.table import markdown, rich_table, sentences
from jamgym.codec import Codec
from jamgym.corpus import Split
from jamgym.episode import EpisodeSource
from jamgym.errors import ConfigError
from jamgym.files import write_text
from jamgym.playback import Backlog, LatePolicy, Salvage
from jamgym.policy import Policy
from jamgym.ranges import check_at_least
from jamgym.registry import codecs, corpora, policies, rewards
from jamgym.reward import RewardModel
from jamgym.reward_learning import freeze
from jamgym.specs import Spec, create_from_spec
from jamgym.vector_env import AccompanimentVectorEnv

if TYPE_CHECKING:
    from jamgym.run import Run

__all__ = ["Comparison", "EvaluationConfig", "compare", "evaluate", "make_policies", "write_comparison"]


@dataclass(frozen=True)
class GridConfig:
    """The settings of a grid: every pair of a future visibility and a chunk size is one cell.

    Attributes:
        t_f: Future visibilities of the grid in frames, signed, in place of the single `t_f`; empty for no grid.
        k: Chunk sizes of the grid in frames, in place of the single `k`; empty for no grid.
        label: What the tables call the method whose training seeds `checkpoints` are.
    """

    t_f: tuple[int, ...] = ()
    k: tuple[int, ...] = ()
    label: str = "decoder"

    def __post_init__(self) -> None:
        for name, other in (("t_f", "k"), ("k", "t_f")):
            values = getattr(self, name)
            if not values and getattr(self, other):
                raise ConfigError(f"grid.{name} is empty but grid.{other} is not; a grid needs values of both.")
            if len(set(values)) < len(values):
                raise ConfigError(f"grid.{name} is {list(values)}; each value must be there once.")
        if any(size < 1 for size in self.k):
            raise ConfigError(f"grid.k is {list(self.k)}; a chunk has at least 1 frame.")
        if not self.label:
            raise ConfigError("grid.label is empty; it must be a word.")

    @property
    def given(self) -> bool:
        """Whether a grid is asked for."""
        return bool(self.t_f)


@dataclass(frozen=True)
class EvaluationConfig:
    """What is played, by whom, and how it is scored.

    Attributes:
        corpus: Where songs come from.
        codec: Turns audio into codes.
        split: Songs that are used.
        policies: Names, or mappings with "name", arguments, and optionally "label" for the tables.
        checkpoints: Paths of decoder checkpoints, or names of shipped ones, to evaluate beside `policies`, labelled by
            their run folder.
        metrics: Reward models.
        t_f: Future visibility in frames, signed.
        k: Frames per call.
        grid: Play every pair of a t_f and a k, and measure what each does; `checkpoints` are then training seeds.
        frames: Frames per episode.
        latency: How long calls take: "none", a mapping such as {name: constant, seconds: 0.05}, or a list to draw from.
        late_policy: What a late slot plays: "silence", "repeat", "conceal", or "stall" to wait.
        salvage: "frame" plays what is still in time of a late chunk, "chunk" drops all of it.
        backlog: "queue" makes every call, "skip" jumps to the newest one when the next would be late.
        allow_lookahead: Accept a t_f that cannot be played live; tables say so.
        episodes: Number of episodes, of distinct songs as far as there are.
        envs: Episodes played at a time.
        instruments: Classes that may be the target; null allows all.
        max_songs: Use only the first so many songs of the split; null uses all.
        save_audio: Number of episodes whose heard, played, mix and truth are written as WAV.
        resamples: Bootstrap samples.
        seed: Seed of episodes, latencies, policies and resampling.
    """

    corpus: str | dict[str, Any] = "band"
    codec: str | dict[str, Any] = "spectral"
    split: Split = "test"
    policies: tuple[str | dict[str, Any], ...] = (
        "silence",
        "random_stem",
        {"name": "decoder", "label": "mle"},
        {"name": "decoder", "label": "ppo_shipped", "checkpoint": "ppo"},
        "truth",
    )
    checkpoints: tuple[str, ...] = ()
    metrics: tuple[str | dict[str, Any], ...] = ("coherence", "judge", "note_in_chord", "beat", "silence", "flicker")
    t_f: int = -25
    k: int = 5
    grid: GridConfig = field(default_factory=GridConfig)
    frames: int = 250
    latency: str | dict[str, Any] | tuple[str | dict[str, Any], ...] = "none"
    late_policy: LatePolicy = "silence"
    salvage: Salvage = "frame"
    backlog: Backlog = "queue"
    allow_lookahead: bool = False
    episodes: int = 64
    envs: int = 32
    instruments: tuple[str, ...] | None = None
    max_songs: int | None = None
    save_audio: int = 4
    resamples: int = RESAMPLES
    seed: int = 0

    def __post_init__(self) -> None:
        check_at_least(self, dict.fromkeys(("k", "frames", "episodes", "envs", "resamples"), 1))
        check_at_least(self, dict.fromkeys(("save_audio", "seed"), 0))
        if not self.policies and not self.checkpoints:
            raise ConfigError("policies is empty; name at least one, such as [silence, decoder, truth].")


def evaluate(config: EvaluationConfig, run: Run) -> dict[str, float]:
    """Evaluate and write metrics.json, table.md, report.txt, figures and WAVs into the run folder.

    With a grid, write what `jamgym.benchmark.grid.evaluate.evaluate_grid` does.

    Returns:
        "label/measure" to the mean over songs.

    Raises:
        LookaheadError: t_f cannot be played live and `allow_lookahead` is not set.
        CorpusError: The split has no usable episode, or too few songs for a policy that was asked for.
        ConfigError: A name or setting is wrong; raised, as all of these, before anything is played.
    """
    if config.grid.given:
        from jamgym.benchmark.grid.evaluate import evaluate_grid

        return evaluate_grid(config, run)
    source, metrics, players = prepare(config)
    comparison = compare(
        players,
        lambda: make_env(config, source, config.t_f, config.k),
        source.fixed(config.episodes, config.seed),
        metrics,
        run,
        seed=config.seed,
        resamples=config.resamples,
        keep_audio=config.save_audio,
        omitted_policies=playable_specs(config, source)[1],
    )
    write_comparison(comparison, source.codec, run)
    return {
        f"{label}/{measure}": comparison.interval(label, measure).estimate
        for label in comparison.labels
        for measure in (*comparison.metrics, "late_frames")
    }


def prepare(config: EvaluationConfig) -> tuple[EpisodeSource, list[RewardModel], dict[str, Policy]]:
    """Return episodes, metrics and policies; refuses what cannot be evaluated before any song is encoded.

    Raises:
        LookaheadError: t_f cannot be played live and `allow_lookahead` is not set.
        ConfigError: A name or setting is wrong.
        CorpusError: There are too few songs for a policy that was asked for.
        CheckpointError: A checkpoint is missing, damaged or of another codec.
    """
    source = make_source(config)
    make_env(config, source, config.t_f, config.k)
    return source, make_metrics(config.metrics), make_policies(config, source.codec, source)


def make_source(config: EvaluationConfig) -> EpisodeSource:
    """Return where the episodes come from, with its codec."""
    codec: Codec = create_from_spec(codecs, config.codec)
    corpus = create_from_spec(corpora, config.corpus, {"sample_rate": codec.sample_rate})
    return EpisodeSource(corpus, codec, config.split, config.frames, config.instruments, max_songs=config.max_songs)


def make_metrics(specs: Sequence[Spec]) -> list[RewardModel]:
    """Return the reward models of `specs`, as measures.

    Raises:
        ConfigError: Two of them have one name, or an argument is wrong.
    """
    metrics: list[RewardModel] = [create_from_spec(rewards, spec) for spec in specs]
    check_distinct(metrics)
    for metric in metrics:
        freeze(metric)  # what learns or counts is for training; a measure stays the same
    return metrics


def make_env(
    config: EvaluationConfig, source: EpisodeSource, t_f: int, k: int, **changes: Any
) -> AccompanimentVectorEnv:
    """Return the environment at one (t_f, k), without a reward of its own; `changes` replace other settings.

    Raises:
        LookaheadError: t_f cannot be played live and `allow_lookahead` is not set.
        ConfigError: A setting is impossible.
    """
    settings: dict[str, Any] = {
        "latency": config.latency,
        "late_policy": config.late_policy,
        "salvage": config.salvage,
        "backlog": config.backlog,
        "allow_lookahead": config.allow_lookahead,
        **changes,
    }
    rows = min(config.envs, config.episodes)
    return AccompanimentVectorEnv(rows, autoreset_mode="Disabled", source=source, reward=None, t_f=t_f, k=k, **settings)


def playable_specs(config: EvaluationConfig, source: EpisodeSource) -> tuple[dict[str, Spec], dict[str, str]]:
    """Return label to spec of `policies`, and why others are left out that only stand there by default.

    Raises:
        ConfigError: Two policies have one label.
        UnknownNameError: A policy is not known.
        CorpusError: There are too few songs for a policy that was asked for.
    """
    specs = labelled_specs(config.policies)
    omitted = without_other_songs(specs, source, optional=config.policies == EvaluationConfig.policies)
    return {label: spec for label, spec in specs.items() if label not in omitted}, omitted


def make_policies(config: EvaluationConfig, codec: Codec, source: EpisodeSource) -> dict[str, Policy]:
    """Return label to policy.

    Raises:
        ConfigError: Two policies have one label, or an argument is wrong.
        UnknownNameError: A policy is not known.
        CorpusError: There are too few songs for a policy that was asked for.
        CheckpointError: A checkpoint is missing, damaged or of another codec.
    """
    known = {"codec": codec, "k": config.k, "t_f": config.t_f, "source": source, "seed": config.seed}
    specs = with_checkpoints(playable_specs(config, source)[0], config.checkpoints)
    return {label: create_from_spec(policies, spec, known) for label, spec in specs.items()}


def write_comparison(comparison: Comparison, codec: Codec, run: Run) -> None:
    """Write metrics.json, table.md, report.txt, figures and the WAVs of the kept episodes into the run folder."""
    run.write_json("metrics.json", comparison.to_json())
    write_text(run.folder / "table.md", markdown(comparison))
    write_text(run.folder / "report.txt", report(comparison))
    plot_comparison(comparison, run.folder / "comparison.png")
    rate = codec.sample_rate
    for index in range(max((len(kept) for kept in comparison.audio.values()), default=0)):
        episode = comparison.records[comparison.labels[0]][index].episode
        folder = f"audio/{index:02d}-{safe_name(episode.song_id)}-{safe_name(episode.target_name)}"
        run.write_audio(f"{folder}/heard.wav", within_full_scale(episode.heard), rate)
        run.write_audio(f"{folder}/truth.wav", within_full_scale(episode.target), rate)
        for label in comparison.labels:
            played, name = comparison.audio[label][index], file_stem(label)
            run.write_audio(f"{folder}/{name}-played.wav", played, rate)
            run.write_audio(f"{folder}/{name}-mix.wav", within_full_scale(episode.heard + played), rate)
            record = comparison.records[label][index]
            plot_episode(record, codec, played, run.folder / folder / f"{name}.png", label)


def report(comparison: Comparison) -> str:
    """Return the table and its sentences as plain text for a terminal."""
    from rich.console import Console

    stream = io.StringIO()
    Console(file=stream, width=150, color_system=None).print(rich_table(comparison))
    return "\n".join([stream.getvalue().rstrip(), "", *sentences(comparison), *comparison.left_out]) + "\n"
