"""`jamgym evaluate` over a grid of (t_f, k): the two trade-offs of live accompaniment, measured with intervals.

Coherence should rise with the future visibility t_f and fall with the chunk size k. Every method plays the
same episodes in every cell; anchors, which depend on neither, play them once. Each result is on the disk
before the next one is begun, so an interrupted grid goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from jamgym.benchmark.comparison import ANCHORS, usable_metrics
from jamgym.benchmark.evaluation import (
    EvaluationConfig,
    make_env,
    make_metrics,
    make_source,
    playable_specs,
)
from jamgym.benchmark.grid.cells import CellStore, Player, Scores
from jamgym.benchmark.grid.plots import plot_grid
from jamgym.benchmark.grid.report import markdown, report
from jamgym.benchmark.grid.results import GridResults
from jamgym.benchmark.runner import decode_played, play, score
from jamgym.episode import Episode, EpisodeSource
from jamgym.errors import ConfigError
from jamgym.files import digest, write_text
from jamgym.policy import Policy
from jamgym.registry import policies
from jamgym.reward import RewardModel
from jamgym.specs import create_from_spec

if TYPE_CHECKING:
    from jamgym.run import Run


@dataclass(frozen=True)
class _Task:
    """One thing to play: a player in a cell, or an anchor, which has none."""

    player: Player
    t_f: int | None = None
    k: int | None = None


def evaluate_grid(config: EvaluationConfig, run: Run) -> dict[str, float]:
    """Play every cell that has not been played; if none is left, write the results.

    Writes cells/*.json, and at the end grid.json, table.md, report.txt and grid.png into the run folder.

    Returns:
        "label/metric/spearman_t_f" and "label/metric/spearman_k" to the correlation over all cells; nothing
        after a Ctrl-C that left cells to play.

    Raises:
        LookaheadError: A t_f cannot be played live and `allow_lookahead` is not set.
        ConfigError: A name or setting is wrong, or does not fit the cells that are there; raised before anything
            is played.
        CorpusError: There are too few songs; raised before anything is played.
        CheckpointError: A checkpoint is missing, damaged or of another codec.
    """
    source = make_source(config)
    t_f, k = sorted(config.grid.t_f), sorted(config.grid.k)
    live = []
    for ahead in t_f:
        # Impossible timing is refused before the songs are encoded.
        live.append([make_env(config, source, ahead, size).timing.playable_live for size in k][0])
    metrics = make_metrics(config.metrics)
    players = make_players(config, source)
    episodes = source.fixed(config.episodes, config.seed)
    usable, omitted = usable_metrics(metrics, episodes)
    if not usable:
        raise ConfigError(f"No metric can be scored on this corpus. {' '.join(omitted.values())}")
    setting = _setting(config, source, usable, episodes)
    store = CellStore(run, setting)
    tasks = [_Task(player, ahead, size) for player, ahead, size in _plan(players, t_f, k)]
    done = {task: store.read(task.player, task.t_f, task.k) for task in tasks}
    missing = [task for task, scores in done.items() if scores is None]
    finished = (len(tasks) - len(missing)) * len(episodes)
    with run.progress(len(tasks) * len(episodes), "grid", finished) as bar:
        maker = _Maker(config, source)
        for task in missing:
            if run.stop_requested:
                return {}

            def advance(count: int, task: _Task = task) -> None:
                cell = "anchor" if task.t_f is None else f"t_f={task.t_f:+d} k={task.k}"
                bar.advance(count, policy=f"{task.player.label}/{task.player.seed}", cell=cell)

            begun = time.monotonic()
            # An anchor is to bound the music, so nothing of it may be late; the cell below needs the fewest calls.
            ahead, size = (t_f[0], k[-1]) if task.t_f is None or task.k is None else (task.t_f, task.k)
            env = make_env(config, source, ahead, size, **({"latency": "none"} if task.player.anchor else {}))
            records = play(maker.make(task.player, ahead, size), env, episodes, advance, config.seed)
            scores = score(records, usable, source.codec, decode_played(records, source.codec))
            env.close()
            store.write(task.player, task.t_f, task.k, scores, time.monotonic() - begun)
            done[task] = scores
    results = GridResults(
        t_f=tuple(t_f),
        k=tuple(k),
        live=tuple(live),
        metrics=tuple(metric.name for metric in usable),
        methods=_stack(players, done, t_f, k),
        anchors={task.player.label: scores for task, scores in done.items() if task.player.anchor and scores},
        song_ids=tuple(episode.song_id for episode in episodes),
        omitted=omitted,
        omitted_policies=playable_specs(config, source)[1],
        setting={**setting, "corpus_name": source.corpus.name, "allow_lookahead": config.allow_lookahead},
        players={label: [p.identity for p in players if p.label == label] for label in _labels(players)},
        seed=config.seed,
        resamples=config.resamples,
    )
    write_grid(results, run)
    return _figures(results)


def make_players(config: EvaluationConfig, source: EpisodeSource) -> list[Player]:
    """Return anchors and methods, each policy made once to see that it can be.

    `checkpoints` are the training seeds of one method; every other policy is a method of one seed, or an anchor.

    Raises:
        ConfigError: Two policies have one label, an argument is wrong, or there is no agent.
        UnknownNameError: A policy is not known.
        CorpusError: There are too few songs for a policy that was asked for.
        CheckpointError: A checkpoint is missing, damaged or of another codec.
    """
    label = config.grid.label
    specs, _ = playable_specs(config, source)
    if config.checkpoints and label in specs:
        raise ConfigError(
            f"A policy and the checkpoints are both labelled {label!r}. Give the policy another label, or the "
            "checkpoints with --grid.label OTHER."
        )
    if len(set(config.checkpoints)) < len(config.checkpoints):
        raise ConfigError("A checkpoint is named twice; each training seed must be there once.")
    seeds = [Player(label, seed, {"name": "decoder", "checkpoint": p}) for seed, p in enumerate(config.checkpoints)]
    players = []
    maker = _Maker(config, source)
    for player in [*(Player(name, 0, spec) for name, spec in specs.items()), *seeds]:
        made = maker.make(player, config.grid.t_f[0], config.grid.k[0])
        anchor = made.privileged or made.name in ANCHORS
        players.append(replace(player, anchor=anchor, network=_digest_of(getattr(made, "decoder", None))))
    if all(player.anchor for player in players):
        raise ConfigError(
            "A grid needs an agent: only anchors are named, which depend on neither t_f nor k. Add a decoder to "
            "policies, or --checkpoints '[runs/a/decoder.safetensors, ...]'."
        )
    return players


def write_grid(results: GridResults, run: Run) -> None:
    """Write grid.json, table.md, report.txt and grid.png into the run folder."""
    run.write_json("grid.json", results.to_json())
    write_text(run.folder / "table.md", markdown(results))
    plot_grid(results, run.folder / "grid.png")
    write_text(run.folder / "report.txt", report(results))


class _Maker:
    """Makes a player's policy for a cell; the network is read once and goes on to the next cell."""

    def __init__(self, config: EvaluationConfig, source: EpisodeSource) -> None:
        self._config = config
        self._source = source
        self._player: Player | None = None
        self._network: Any = None

    def make(self, player: Player, t_f: int, k: int) -> Policy:
        if player != self._player:
            self._player, self._network = player, None
        # Training seeds draw their own samples, so that what is left of chance is not the same in all of them.
        known = {"codec": self._source.codec, "k": k, "t_f": t_f, "source": self._source}
        known["seed"] = self._config.seed + player.seed
        if self._network is not None:
            known["decoder"] = self._network
        policy: Policy = create_from_spec(
            policies, player.spec if isinstance(player.spec, str) else dict(player.spec), known
        )
        self._network = getattr(policy, "decoder", None)
        return policy


def _plan(
    players: Sequence[Player], t_f: Sequence[int], k: Sequence[int]
) -> Iterator[tuple[Player, int | None, int | None]]:
    """Yield what is to be played: anchors, then seed by seed every cell."""
    yield from ((player, None, None) for player in players if player.anchor)
    for player in players:
        if not player.anchor:
            yield from ((player, ahead, size) for ahead in t_f for size in k)


def _digest_of(network: Any) -> str:
    """Return a hash of a network's weights; "" of a policy that has none."""
    import torch

    if not isinstance(network, torch.nn.Module):
        return ""
    found = hashlib.sha256()
    for name, value in network.state_dict().items():
        found.update(name.encode())
        # As bytes: numpy has no bfloat16.
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def _setting(
    config: EvaluationConfig, source: EpisodeSource, metrics: Sequence[RewardModel], episodes: Sequence[Episode]
) -> dict[str, Any]:
    """Return everything besides player, t_f and k that the scores depend on."""
    names = ("corpus", "codec", "split", "frames", "latency", "late_policy", "salvage", "backlog", "instruments")
    given = asdict(config)
    return {
        **{name: given[name] for name in names},
        "max_songs": config.max_songs,
        "seed": config.seed,
        # A policy draws for all rows from one stream, so their number matters.
        "envs": min(config.envs, config.episodes),
        "codec_version": source.codec.version,
        "corpus_version": source.corpus.version,
        "metrics": {metric.name: metric.version for metric in metrics},
        # A version says nothing about the arguments.
        "metric_settings": given["metrics"],
        "episodes": len(episodes),
        "episodes_digest": digest([[e.song_id, e.target_name, e.start_frame] for e in episodes]),
    }


def _labels(players: Sequence[Player]) -> list[str]:
    return list(dict.fromkeys(player.label for player in players))


def _stack(
    players: Sequence[Player], done: dict[_Task, Scores | None], t_f: Sequence[int], k: Sequence[int]
) -> dict[str, dict[str, np.ndarray[Any, np.dtype[np.float64]]]]:
    """Return method to measure to `(S, A, B, E)`."""
    found: dict[str, dict[str, Any]] = {}
    for label in _labels([player for player in players if not player.anchor]):
        seeds = [player for player in players if player.label == label]
        cells = [[[done[_Task(player, a, b)] or {} for b in k] for a in t_f] for player in seeds]
        found[label] = {
            measure: np.array([[[cell[measure] for cell in line] for line in one] for one in cells])
            for measure in cells[0][0][0]
        }
    return found


def _figures(results: GridResults) -> dict[str, float]:
    found = {}
    for method in results.methods:
        for metric in results.metrics:
            statistics = results.statistics(method, metric)
            for name, trend in (("t_f", statistics.by_t_f), ("k", statistics.by_k)):
                if trend is not None:
                    found[f"{method}/{metric}/spearman_{name}"] = trend.overall.estimate
    return found
