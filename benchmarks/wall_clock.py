"""How well the wall clock paces: jitter, drift and memory of one long stream in real time.

    python benchmarks/wall_clock.py                    # ten minutes at 25 calls a second
    python benchmarks/wall_clock.py --minutes 1 --policy-ms 8 --out wall.json

Run it on a machine that does nothing else: what is measured is the operating system as much as the clock.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from jamgym import AccompanimentEnv, EpisodeSource
from jamgym.clocks import WallClock
from jamgym.testing import ToyCodec, ToyCorpus


def measure(minutes: float, k: int, t_f: int, policy_ms: float) -> dict[str, float]:
    """Play `minutes` of music on the wall clock and return figures in milliseconds and megabytes."""
    codec = ToyCodec()
    frames = round(minutes * 60 * codec.sample_rate / codec.hop_samples)
    seconds = frames * codec.hop_samples / codec.sample_rate
    source = EpisodeSource(ToyCorpus(songs=1, seconds=seconds + 1), codec, frames=frames)
    env = AccompanimentEnv(source=source, reward=None, t_f=t_f, k=k, clock="wall")
    assert isinstance(env.clock, WallClock)
    env.reset(seed=0)
    action = np.ones(env.action_space.shape, dtype=np.int64)
    calls = int(env.simulation.calls[0])
    jitter = np.zeros(calls)
    jitter[0] = env.clock.jitter
    warm_up = min(calls // 10, 250)
    memory = 0
    for call in track(range(1, calls), description="playing in real time"):
        if call == warm_up:
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        time.sleep(policy_ms / 1000)
        env.step(action)
        jitter[call] = env.clock.jitter
    milliseconds = 1000 * jitter
    p50, p99 = np.percentile(milliseconds, [50, 99])
    # Jitter is counted from R(i) on one time line that is anchored once, so the last one is the drift.
    return {
        "minutes": minutes,
        "calls": float(calls),
        "jitter_p50_ms": float(p50),
        "jitter_p99_ms": float(p99),
        "jitter_max_ms": float(milliseconds.max()),
        "last_release_ms": float(milliseconds[-1]),
        "late_frames": float(env.event_log().late_frames),
        "memory_growth_mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024,
    }


def main() -> None:
    """Measure, print a table, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="minutes of music")
    parser.add_argument("--k", type=int, default=1, help="frames of 40 ms per call")
    parser.add_argument("--t-f", type=int, default=-5, help="future visibility in frames")
    parser.add_argument("--policy-ms", type=float, default=2.0, help="what a call takes")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    figures = measure(arguments.minutes, arguments.k, arguments.t_f, arguments.policy_ms)
    table = Table(title="wall clock: time from when an observation was due to when it was handed out")
    table.add_column("measure")
    table.add_column("value", justify="right")
    for name, value in figures.items():
        table.add_row(name, f"{value:.3f}")
    Console().print(table)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
