"""Whether a stream costs the same after ten minutes, and what share of real time the shipped decoder takes.

`decoder_throughput.py` calls it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from decoder_contestants import SAMPLING, Music, filled_state, hear_until, spread, state_bytes
from measuring import CLOCKS

from jamgym import AccompanimentVectorEnv, EpisodeSource, Timing
from jamgym.benchmark.profiling import call_seconds
from jamgym.registry import codecs
from jamgym.testing import ToyCorpus
from jamgym_agents.decoder_policy import DecoderPolicy
from jamgym_agents.streaming import DecoderState, StreamingDecoder

FRAMES_PER_SECOND = 25
CHUNKS = (1, 5)
#: Frames of an episode of the shipped decoder.
EPISODE_FRAMES = 250


@dataclass(frozen=True)
class Check:
    """What was found, and a wish; without one, `target` and `met` are None: it is there to compare with."""

    name: str
    label: str
    value: float
    target: float | None
    met: bool | None
    at_most: bool = False

    @classmethod
    def less(cls, name: str, label: str, value: float, target: float | None) -> Check:
        """Return the wish that `value` be at most `target`."""
        return cls(name, label, value, target, None if target is None else value <= target, at_most=True)


def flat_cost(stream: StreamingDecoder, name: str, label: str, args: argparse.Namespace) -> list[Check]:
    """Stream from the beginning and from ten minutes on, one row, call by call in turns, and compare.

    Both streams play on for 10 s, hearing what a call hears, and all their calls count. The later one has its history
    put into the state; nothing tells it from one that was streamed all the way but that its chunks were longer.
    """
    checks = []
    decoder, clock = stream.decoder, CLOCKS[args.clock]
    span, longest = args.stream_seconds * FRAMES_PER_SECOND, max(CHUNKS)
    late = args.stream_history * FRAMES_PER_SECOND // longest * longest
    music = Music.random(decoder.config, 1, late + span, args.t_f, args.seed)
    filled = filled_state(stream, music, late, longest)
    # Without a window cost must grow; its figures are there to compare with.
    bounded = decoder.config.window is not None
    for k in CHUNKS:
        states = {0: stream.initial_state(1), late: spread(filled, decoder, 1)}
        hear_until(stream, states[late], music, late - k)
        # The blocks that filled the history made the ring a little longer than calls of k frames need it.
        states[0].longest = states[late].longest
        sizes: dict[int, int] = {}
        times: dict[int, list[float]] = {begin: [] for begin in states}
        spare = stream.initial_state(1)
        for frame in range(0, 10 * k, k):
            _call(stream, spare, music, frame, k, clock)
        for frame in range(0, span // k * k, k):
            for begin, state in states.items():
                times[begin].append(_call(stream, state, music, begin + frame, k, clock))
        for begin, state in states.items():
            sizes[begin] = state_bytes(state)
        when = f"after {args.stream_history} s by the first {args.stream_seconds} s, k={k}"
        cost, size = float(np.median(times[late]) / np.median(times[0])), sizes[late] / sizes[0]
        means = f"{1000 * np.median(times[0]):.1f} ms, then {1000 * np.median(times[late]):.1f} ms"
        held = f"{sizes[0] / 1e6:.1f} MB, then {sizes[late] / 1e6:.1f} MB"
        checks += [
            Check.less(f"{name}/flat_cost/k{k}", f"{label}: call {when} ({means})", cost, 1.1 if bounded else None),
            Check.less(f"{name}/flat_memory/k{k}", f"{label}: state {when} ({held})", size, 1.0 if bounded else None),
        ]
    return checks


def _call(
    stream: StreamingDecoder, state: DecoderState, music: Music, frame: int, k: int, clock: Callable[[], float]
) -> float:
    """Make the call that starts at `frame`, and return its seconds."""
    begun = clock()
    hear_until(stream, state, music, frame)
    stream.generate(state, k, SAMPLING)
    return clock() - begun


def real_time(args: argparse.Namespace) -> list[Check]:
    """Play whole episodes with the shipped decoder, k = 1, and time the calls of its policy on the wall clock.

    Plainly and with guidance, in torch's operations and in compiled loops, in turns.
    """
    codec = codecs.create("spectral")
    timing = Timing.of(codec, t_f=args.t_f, k=1, frames=EPISODE_FRAMES)
    seconds = 1 + EPISODE_FRAMES * codec.hop_samples / codec.sample_rate
    corpus = ToyCorpus(songs=4, seconds=seconds, sample_rate=codec.sample_rate)
    source = EpisodeSource(corpus, codec, frames=EPISODE_FRAMES)
    env = AccompanimentVectorEnv(1, autoreset_mode="Disabled", source=source, reward=None, t_f=args.t_f, k=1)
    policies = {
        prefix + name: DecoderPolicy(codec, k=1, t_f=args.t_f, seed=args.seed, guidance=guidance, compiled=compiled)
        for prefix, compiled in (("", False), ("compiled_", True))
        for name, guidance in (("", 1.0), ("guided_", 3.0))
    }
    times: dict[str, list[float]] = {name: [] for name in policies}
    for episode in source.fixed(2, args.seed):
        for name, policy in policies.items():
            times[name] += call_seconds(policy, env, episode)
    frame = codec.hop_samples / codec.sample_rate
    budget = timing.seconds(timing.budget)
    checks = []
    for name, called in times.items():
        # The first call of the first episode wakes everything up; it would be made before the music starts.
        kept = np.array(called[1:])
        share, p99 = float(np.median(kept)) / frame, float(np.percentile(kept, 99))
        held = f"{1000 * p99:.1f} of {1000 * budget:.0f} ms"
        how = [word for word in ("compiled", "guided") if word in name]
        label = ", ".join(["shipped decoder", *how, "k=1"])
        checks += [
            Check.less(f"{name}share_of_real_time", f"{label}: share of the {1000 * frame:.0f} ms", share, 0.25),
            Check.less(
                f"{name}p99_of_budget", f"{label}: p99 by the budget at t_f={args.t_f} ({held})", p99 / budget, 1.0
            ),
        ]
    return checks
