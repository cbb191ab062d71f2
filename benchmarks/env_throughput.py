"""How many steps per second the environments make, beside gymnasium's own on the same machine.

    python benchmarks/env_throughput.py                          about a minute
    python benchmarks/env_throughput.py --envs 64 --k 5          another setting
    python benchmarks/env_throughput.py --clock cpu              on a machine that others use too
    python benchmarks/env_throughput.py --rollout --out out.json also PPO with the shipped decoder

Every case runs once per repeat, one after the other, so a load on the machine meets all of them. Rates are medians
over the repeats; a ratio is the median of the ratios within a repeat. A repeat plays whole episodes: drawing, resetting
and recording them is part of every rate. Songs are encoded beforehand, as they are once per process in training.
"""

import argparse
import gc
import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from measuring import CLOCKS, positive
from rich.console import Console
from rich.table import Table
from rollout_share import encode_all, rollout_share

from jamgym import AccompanimentEnv, AccompanimentVectorEnv, EpisodeSource, Timing
from jamgym.testing import ToyCodec, ToyCorpus, ToyReward

#: What gymnasium's environments made on the machine that the targets were set on, in the same units.
GYMNASIUM_THERE = {"cartpole_vector": 4.0e6, "cartpole_single": 121e3}


@dataclass
class Case:
    """One measured environment: `play` makes `calls` calls in each of `envs` rows."""

    name: str
    label: str
    envs: int
    calls: int
    play: Callable[[], None]
    rates: list[float] = field(default_factory=list)

    @property
    def steps_per_second(self) -> float:
        """Median over the repeats of calls times rows per second."""
        return float(np.median(self.rates))


@dataclass(frozen=True)
class Ratio:
    """Quotient of two cases, paired within each repeat."""

    name: str
    label: str
    value: float


@dataclass(frozen=True)
class Target:
    """A wish and what was found. `scaled` asks as much of this machine as `target` asked of the reference machine."""

    name: str
    label: str
    value: float
    target: float
    met: bool
    at_most: bool = False
    scaled: float | None = None
    scaled_met: bool | None = None


def random_actions(space: gymnasium.Space[Any], count: int = 64) -> list[Any]:
    """Return actions drawn beforehand, so that drawing them costs no measured time."""
    space.seed(0)
    return [space.sample() for _ in range(count)]


def vector_case(name: str, label: str, env: Any, calls: int, actions: list[Any]) -> Case:
    """Return the case of anything with `num_envs` and a batched `step`, reset already."""

    def play() -> None:
        step, count = env.step, len(actions)
        for call in range(calls):
            step(actions[call % count])

    return Case(name, label, env.num_envs, calls, play)


def single_case(name: str, label: str, env: Any, calls: int) -> Case:
    """Return the case of a single environment that is reset when an episode is over."""
    actions = random_actions(env.action_space)
    env.reset(seed=0)

    def play() -> None:
        step, reset, count = env.step, env.reset, len(actions)
        for call in range(calls):
            _, _, terminated, truncated, _ = step(actions[call % count])
            if terminated or truncated:
                reset()

    return Case(name, label, 1, calls, play)


def make_source(frames: int, songs: int) -> EpisodeSource:
    """Return toy songs of four codebooks, all encoded already."""
    codec = ToyCodec(num_codebooks=4)
    seconds = 2 * frames * codec.hop_samples / codec.sample_rate
    return encode_all(EpisodeSource(ToyCorpus(songs=songs, seconds=max(seconds, 2.0)), codec, frames=frames))


def make_cases(args: argparse.Namespace, timing: Timing, source: EpisodeSource) -> list[Case]:
    """Return all cases on toy songs, and gymnasium's for comparison."""
    from jamgym.wrappers.sb3 import JamgymSB3VecEnv

    settings: dict[str, Any] = {"source": source, "t_f": timing.t_f, "k": timing.k, "reward": None}
    windowed = {"observation": "window", "window": args.window}
    late = {"latency": {"name": "lognormal", "median_seconds": timing.seconds(timing.budget) * 0.8, "sigma": 0.5}}
    calls = args.episodes * timing.num_calls

    def native(name: str, label: str, **change: Any) -> Case:
        env = AccompanimentVectorEnv(args.envs, **{**settings, **change})
        env.reset(seed=0)
        return vector_case(name, label, env, calls, random_actions(env.action_space))

    def adapted(name: str, label: str, **change: Any) -> Case:
        env = JamgymSB3VecEnv(AccompanimentVectorEnv(args.envs, **{**settings, **change}))
        env.seed(0)
        env.reset()
        return vector_case(name, label, env, calls, random_actions(env.env.action_space))

    sync = SyncVectorEnv(
        [lambda: AccompanimentEnv(**settings)] * args.sync_envs, autoreset_mode=AutoresetMode.SAME_STEP
    )
    sync.reset(seed=0)
    cartpole = CartPoleVectorEnv(num_envs=args.envs)
    cartpole.reset(seed=0)
    synced, poles = random_actions(sync.action_space), random_actions(cartpole.action_space)
    return [
        native("native_new", "native, new, reward=None"),
        native("native_window", f"native, window of {args.window}, reward=None", **windowed),
        native("native_late", "native, new, reward=None, most frames late", **late),
        native("native_audio", "native, new, toy reward on decoded audio", reward=ToyReward()),
        adapted("adapter_new", "SB3 adapter, new, reward=None"),
        adapted("adapter_window", f"SB3 adapter, window of {args.window}, reward=None", **windowed),
        # CartPole is quicker than the others, so it plays longer to be measured as well.
        vector_case("cartpole_vector", "gymnasium CartPoleVectorEnv", cartpole, 4 * calls, poles),
        vector_case("sync_new", "gymnasium SyncVectorEnv of the single env", sync, timing.num_calls, synced),
        single_case("single_new", "single env, new, reward=None", AccompanimentEnv(**settings), 4 * calls),
        single_case("cartpole_single", "gymnasium CartPole, raw", gymnasium.make("CartPole-v1").unwrapped, 16 * calls),
    ]


def measure(cases: list[Case], repeats: int, clock: Callable[[], float]) -> None:
    """Run every case once per repeat; a first round that is not kept warms up."""
    for repeat in range(repeats + 1):
        for case in cases:
            gc.collect()
            begun = clock()
            case.play()
            spent = clock() - begun
            if repeat:
                case.rates.append(case.envs * case.calls / max(spent, 1e-9))


def paired(above: Case, below: Case) -> float:
    """Return the median over the repeats of the ratio of two rates."""
    return float(np.median(np.divide(above.rates, below.rates)))


def make_ratios(cases: dict[str, Case]) -> list[Ratio]:
    """Return the ratios that do not depend on how fast the machine is."""
    pairs = [
        ("native_new", "cartpole_vector", "native new / CartPoleVectorEnv"),
        ("native_new", "sync_new", "native new / SyncVectorEnv"),
        ("adapter_new", "native_new", "SB3 adapter / native, new"),
        ("adapter_window", "native_window", "SB3 adapter / native, window"),
        ("native_window", "native_new", "native window / new"),
        ("native_late", "native_new", "native, most frames late / none"),
        ("native_audio", "native_new", "native, audio reward / None"),
        ("single_new", "cartpole_single", "single env / raw CartPole"),
    ]
    return [Ratio(f"{above}/{below}", label, paired(cases[above], cases[below])) for above, below, label in pairs]


def make_targets(cases: dict[str, Case], ratios: dict[str, Ratio], rollout: dict[str, float] | None) -> list[Target]:
    """Return the targets; those in steps per second also relative to gymnasium on this machine."""
    found = []
    for name, label, target, yardstick in (
        ("native_new", "native new, env-steps/s", 1.0e6, "cartpole_vector"),
        ("native_window", "native window, env-steps/s", 250e3, "cartpole_vector"),
        ("adapter_new", "SB3 adapter new, env-steps/s", 150e3, "cartpole_vector"),
        ("single_new", "single env, steps/s", 15e3, "cartpole_single"),
    ):
        rate, share = cases[name].steps_per_second, target / GYMNASIUM_THERE[yardstick]
        scaled = share * cases[yardstick].steps_per_second
        scaled_met = paired(cases[name], cases[yardstick]) >= share
        found.append(Target(name, label, rate, target, rate >= target, scaled=scaled, scaled_met=scaled_met))
    ratio = ratios["native_new/cartpole_vector"]
    found.append(Target(ratio.name, ratio.label, ratio.value, 0.25, ratio.value >= 0.25))
    if rollout is not None:
        share = rollout["share_of_rollout"]
        found.append(Target("share_of_rollout", "env share of a PPO rollout", share, 0.05, share <= 0.05, at_most=True))
    return found


def amount(value: float) -> str:
    """Return a rate or ratio for people."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def make_table(
    title: str, cases: list[Case], ratios: list[Ratio], rollout: dict[str, float] | None, targets: list[Target]
) -> Table:
    """Return rates, ratios and targets in one table."""
    table = Table("measurement", title=title, title_justify="left")
    for heading in ("envs", "median", "least", "most", "target", "scaled to this machine"):
        table.add_column(heading, justify="right")
    for case in cases:
        values = (case.steps_per_second, min(case.rates), max(case.rates))
        table.add_row(f"{case.label}, steps/s", str(case.envs), *map(amount, values))
    table.add_section()
    for ratio in ratios:
        table.add_row(ratio.label, "", amount(ratio.value))
    if rollout is not None:
        table.add_section()
        envs = str(rollout["envs"])
        table.add_row("PPO rollout, shipped decoder, reward=None, steps/s", envs, amount(rollout["steps_per_second"]))
        table.add_row("env share of rollout and update", envs, amount(rollout["share_of_rollout_and_update"]))
    table.add_section()
    for target in targets:
        sign = "<=" if target.at_most else ">="
        verdict = f"{sign} {amount(target.target)}: {'met' if target.met else 'missed'}"
        scaled = (
            "" if target.scaled is None else f">= {amount(target.scaled)}: {'met' if target.scaled_met else 'missed'}"
        )
        table.add_row(target.label, "", amount(target.value), "", "", verdict, scaled)
    return table


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--envs", type=positive, default=256, help="rows N of the vector environments (256)")
    add("--sync-envs", type=positive, default=16, help="environments in SyncVectorEnv (16)")
    add("--k", type=positive, default=1, help="frames per call (1)")
    add("--frames", type=positive, default=250, help="frames per episode (250); shorter episodes mean more resets")
    add("--window", type=positive, default=100, help="frames of observation 'window' (100)")
    add("--songs", type=positive, default=16, help="toy songs (16)")
    add("--episodes", type=positive, default=2, help="episodes per row and repeat (2)")
    add("--repeats", type=positive, default=7, help="repeats that are kept (7)")
    add("--clock", choices=CLOCKS, default="wall", help="wall, or cpu: the time of this process alone")
    add("--rollout", action="store_true", help="also the env's share of PPO with the shipped decoder")
    add("--rollout-envs", type=positive, default=16, help="rows in the rollout (16)")
    add("--rollout-k", type=positive, default=5, help="frames per call in the rollout (5)")
    add("--rollouts", type=positive, default=3, help="rollouts that are kept (3)")
    add("--out", type=Path, help="write everything to this JSON file")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Measure, print the table and write the file."""
    args = parse(argv)
    source = make_source(args.frames, args.songs)
    timing = Timing.of(source.codec, t_f=-25, k=args.k, frames=args.frames)
    cases = make_cases(args, timing, source)
    clock = CLOCKS[args.clock]
    measure(cases, args.repeats, clock)
    named = {case.name: case for case in cases}
    ratios = make_ratios(named)
    rollout = None
    if args.rollout:
        rollout = rollout_share(args.rollout_envs, args.rollout_k, args.frames, args.rollouts, clock)
    targets = make_targets(named, {ratio.name: ratio for ratio in ratios}, rollout)
    title = (
        f"Env-steps per second: N={args.envs}, k={args.k}, Q=4, t_f=-25, episodes of {args.frames} frames with their "
        f"resets, {args.repeats} repeats, {args.clock} clock"
    )
    Console(width=150).print(make_table(title, cases, ratios, rollout, targets))
    if args.out is not None:
        report = {
            "settings": {key: value for key, value in vars(args).items() if key != "out"},
            "machine": {
                "python": platform.python_version(),
                "numpy": np.__version__,
                "gymnasium": gymnasium.__version__,
                "processor": platform.machine(),
                "cores": os.cpu_count(),
                "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
            },
            "rows": [
                {key: getattr(case, key) for key in ("name", "label", "envs", "calls", "steps_per_second", "rates")}
                for case in cases
            ],
            "ratios": [asdict(ratio) for ratio in ratios],
            "rollout": rollout,
            "targets": [asdict(target) for target in targets],
        }
        args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
