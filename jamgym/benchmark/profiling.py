"""`jamgym profile`: how long a policy takes per call on this machine, as figures and as latency models."""

from __future__ import annotations

import math
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain, cycle, islice
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from jamgym.benchmark.call_times import CallTimes, fit_cost, plain_table, rows, sentences, summarise
from jamgym.benchmark.table import ORACLE, markdown_grid
from jamgym.codec import Codec
from jamgym.corpus import Split
from jamgym.episode import Episode, EpisodeSource
from jamgym.errors import ConfigError
from jamgym.files import write_text
from jamgym.latency import CostLatency
from jamgym.latency_trace import write_trace
from jamgym.policy import Policy
from jamgym.registry import codecs, corpora, policies
from jamgym.specs import create_from_spec, spec_name
from jamgym.timing import Timing
from jamgym.vector_env import AccompanimentVectorEnv

if TYPE_CHECKING:
    from jamgym.run import Run


@dataclass(frozen=True)
class ProfileConfig:
    """What is measured.

    Attributes:
        policy: Whose calls are measured.
        corpus: Where songs come from.
        codec: Turns audio into codes; its hop and rate give the length of a chunk.
        split: Songs that are used.
        k_choices: Chunk sizes in frames; with at least two, the cost a + b * k is fitted.
        t_f: Future visibility in frames, signed; gives the latency budget.
        frames: Frames per episode.
        allow_lookahead: Accept a t_f that cannot be played live.
        episodes: Episodes that each chunk size plays at least once, whole.
        calls: Calls that are measured per chunk size at least; episodes are repeated until there are as many.
        warm_up: Calls per chunk size that are made first and not measured.
        threads: Threads of torch while measuring; null leaves them as they are.
        seed: Seed of episodes and policy.
    """

    policy: str | dict[str, Any] = "decoder"
    corpus: str | dict[str, Any] = "band"
    codec: str | dict[str, Any] = "spectral"
    split: Split = "test"
    k_choices: tuple[int, ...] = (1, 5, 25)
    t_f: int = -25
    frames: int = 250
    allow_lookahead: bool = False
    episodes: int = 2
    calls: int = 100
    warm_up: int = 5
    threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("frames", "episodes", "calls"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        for name in ("warm_up", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 0.")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads is {self.threads}; it must be at least 1, or null to leave torch's number.")
        chunks = self.k_choices
        if not chunks or min(chunks) < 1 or len(set(chunks)) < len(chunks):
            raise ConfigError(
                f"k_choices is {list(chunks)}; give distinct chunk sizes of at least 1, such as [1, 5, 25]."
            )


def profile(config: ProfileConfig, run: Run) -> dict[str, float]:
    """Measure, and write cost.json, trace-k{k}.jsonl, metrics.json, table.md and report.txt into the run folder.

    One stream at a time: the time of a batch is nobody's latency. After Ctrl-C, the chunk sizes that were
    measured whole are written.

    Returns:
        "k{k}/measure" and "cost/parameter" to seconds or shares.

    Raises:
        LookaheadError: t_f cannot be played live and `allow_lookahead` is not set.
        CorpusError: The split has no usable episode.
        ConfigError: A name or setting is wrong; raised before anything is measured.
    """
    codec: Codec = create_from_spec(codecs, config.codec)
    corpus = create_from_spec(corpora, config.corpus, {"sample_rate": codec.sample_rate})
    source = EpisodeSource(corpus, codec, config.split, config.frames)
    envs = {k: _make_env(config, source, k) for k in config.k_choices}
    known = {"codec": codec, "t_f": config.t_f, "source": source, "seed": config.seed}
    players: dict[int, Policy] = {k: create_from_spec(policies, config.policy, {**known, "k": k}) for k in envs}
    episodes = source.fixed(config.episodes, config.seed)
    plans = {k: plan(episodes, k, config.calls) for k in envs}
    measured: dict[int, NDArray[np.float64]] = {}
    with _torch_threads(config.threads) as threads:
        with run.progress(sum(map(len, plans.values())), "profile") as task:
            for k, env in envs.items():
                if run.stop_requested:
                    break
                times: list[float] = []
                warm = chain.from_iterable(call_seconds(players[k], env, episode) for episode in cycle(plans[k]))
                for _ in islice(warm, config.warm_up):
                    pass
                for episode in plans[k]:
                    if run.stop_requested:
                        break
                    times += call_seconds(players[k], env, episode)
                    task.advance(1, k=k)
                else:
                    measured[k] = np.array(times)
    if not measured:
        return {}
    return _write(config, run, measured, {k: env.timing for k, env in envs.items()}, threads)


def plan(episodes: Sequence[Episode], k: int, calls: int) -> list[Episode]:
    """Return the episodes to play in chunks of `k`: each at least once, and repeated for at least `calls` calls."""
    chosen: list[Episode] = []
    made = 0
    for episode in cycle(episodes):
        if len(chosen) >= len(episodes) and made >= calls:
            return chosen
        chosen.append(episode)
        made += -(-episode.frames // k)
    raise ConfigError("There are no episodes to play; give at least one.")


def call_seconds(policy: Policy, env: AccompanimentVectorEnv, episode: Episode, seed: int = 0) -> Iterator[float]:
    """Play `episode` in the one row of `env`, and yield the seconds that each call of `policy.act` took."""
    observation, _ = env.reset(seed=seed, options={"episodes": [episode]})
    policy.reset(np.ones(1, dtype=np.bool_), [episode])
    over = False
    while not over:
        start = perf_counter()
        codes = policy.act(observation)
        seconds = perf_counter() - start
        observation, _, terminated, truncated, _ = env.step(codes.reshape(1, -1))
        over = bool(terminated[0] or truncated[0])
        yield seconds


def _make_env(config: ProfileConfig, source: EpisodeSource, k: int) -> AccompanimentVectorEnv:
    return AccompanimentVectorEnv(
        1,
        autoreset_mode="Disabled",
        source=source,
        reward=None,
        t_f=config.t_f,
        k=k,
        allow_lookahead=config.allow_lookahead,
    )


@contextmanager
def _torch_threads(count: int | None) -> Iterator[int | None]:
    """Let torch use `count` threads in the block; yields its number, or None if nobody has imported torch."""
    if count is None:
        torch = sys.modules.get("torch")
        yield None if torch is None else torch.get_num_threads()
        return
    import torch as needed

    before = needed.get_num_threads()
    needed.set_num_threads(count)
    try:
        yield count
    finally:
        needed.set_num_threads(before)


def _write(
    config: ProfileConfig,
    run: Run,
    measured: dict[int, NDArray[np.float64]],
    timings: dict[int, Timing],
    threads: int | None,
) -> dict[str, float]:
    """Write everything; returns the figures."""
    found = {k: summarise(seconds, timings[k]) for k, seconds in measured.items()}
    for k, seconds in measured.items():
        rate = timings[k].sample_rate
        write_trace(run.folder / f"trace-k{k}.jsonl", np.rint(seconds * rate).astype(np.int64), rate, k)
    cost = fit_cost(measured) if len(measured) > 1 else None
    machine = {"torch_threads": threads, "processors": os.cpu_count()}
    setting = {"policy": config.policy, "t_f": config.t_f, "k_choices": list(measured), "frames": config.frames}
    if cost is not None:
        run.write_json("cost.json", {**asdict(cost), "measured": {**setting, **machine}})
    figures = {
        "setting": setting,
        "machine": machine,
        "budget_seconds": _budget(timings),
        "chunks": {k: asdict(times) for k, times in found.items()},
        "cost": None if cost is None else asdict(cost),
    }
    run.write_json("metrics.json", figures)
    _write_tables(config, run, found, cost, timings, threads)
    flat = {f"k{k}/{name}": float(value) for k, times in found.items() for name, value in asdict(times).items()}
    return {**flat, **{f"cost/{name}": value for name, value in (asdict(cost) if cost else {}).items()}}


def _write_tables(
    config: ProfileConfig,
    run: Run,
    found: dict[int, CallTimes],
    cost: CostLatency | None,
    timings: dict[int, Timing],
    threads: int | None,
) -> None:
    header, body = rows(found, cost)
    said = sentences(found, cost)
    title = f"Time per call of {spec_name(config.policy)}, t_f={config.t_f:+d}, budget {1000 * _budget(timings):g} ms"
    title += "" if threads is None else f", torch threads: {threads}"
    if _budget(timings) < 0:
        title += f": {ORACLE}, cannot be played live"
    hint = f"Replay, with the same k: {_option('trace', run.folder / f'trace-k{max(found)}.jsonl')}"
    if cost is not None:
        hint += f"\nAny k: {_option('cost', run.folder / 'cost.json')}"
    text = "\n".join([title, "", *plain_table(header, body), "", *said, hint]) + "\n"
    markdown = "\n".join([f"# {title}", "", *markdown_grid(header, body), "", *said]) + "\n"
    for name, content in (("report.txt", text), ("table.md", markdown)):
        write_text(run.folder / name, content)


def _option(name: str, path: Path) -> str:
    """Return the option that plays with the latency in `path`, quoted for YAML and for the shell."""
    import yaml

    spec = {"name": name, "path": str(path)}
    flow = yaml.safe_dump(spec, default_flow_style=True, sort_keys=False, allow_unicode=True, width=math.inf)
    return f"--latency {shlex.quote(flow.strip())}"


def _budget(timings: dict[int, Timing]) -> float:
    timing = next(iter(timings.values()))
    return timing.seconds(timing.budget)
