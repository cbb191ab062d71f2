"""Frames per second and time per call of `StreamingDecoder`, beside decoders that encode their history anew.

    python benchmarks/decoder_throughput.py                                      about half an hour
    python benchmarks/decoder_throughput.py --k 1 25 --batch 1 --history 60      two cells and the checks
    python benchmarks/decoder_throughput.py --clock cpu --threads 1              on a machine that others use too
    python benchmarks/decoder_throughput.py --size 512 8 --limit 60 --json out.json

The references are described in `decoder_references.py`: (a) the same weights without any cache, (b) a decoder in the
scheme of arXiv 2510.22105, which caches within a chunk. Both attend to the whole history, so `StreamingDecoder` is
measured with its window, as it is shipped, and without one, which is like for like; and with its window in compiled
loops, which needs numba (the extra `fast`), with weights in single precision and with weights that a file has rounded
to half precision or to eight bits. The row "history for nothing" is (b) with a history of one frame: what its own
k + Q - 1 steps take, and so the most that any way to remember the history could gain. All of them take turns of a few
calls, with equal histories, on one machine. A ratio is the median over the turns of what the reference took by what
`StreamingDecoder` took.

Nothing is extrapolated: a decoder that reaches `--limit` in a cell stops there, and a call that is given up shows as
"> seconds", so that its ratio is a lower bound. Histories are put into the state before, which is not timed.
Weights are drawn, except those of the shipped decoder in the last checks: time does not depend on them.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import torch
from decoder_contestants import (
    Contestant,
    Forgetful,
    Music,
    Record,
    Reference,
    Streaming,
    filled_state,
    hear_until,
    spread,
    time_calls,
)
from decoder_live_checks import Check, flat_cost, real_time
from decoder_references import CodeHistory, FusedDecoder, ReencodingDecoder
from measuring import CLOCKS, positive
from rich.console import Console
from rich.table import Table

from jamgym_agents.compiled.streaming import CompiledStreamingDecoder
from jamgym_agents.decoder import AccompanimentDecoder, DecoderConfig
from jamgym_agents.eight_bit import round_to_eight_bits
from jamgym_agents.streaming import DecoderState, StreamingDecoder

FRAMES_PER_SECOND = 25
EIGHT_BITS, HALVES = "streaming_compiled_eight_bits", "streaming_compiled_half"
COMPILED = "streaming_compiled"
STREAMING, UNBOUNDED = "streaming", "streaming_unbounded"
REENCODING, FUSED = "reencoding", "fused"
FREE = "fused_free"
OURS = (EIGHT_BITS, HALVES, COMPILED, STREAMING, UNBOUNDED)
#: In tables; `StreamingDecoder` is named by how it computes.
LABELS = {
    EIGHT_BITS: "compiled, 8 bits",
    HALVES: "compiled, 16 bits",
    COMPILED: "compiled, 32 bits",
    STREAMING: "torch",
    UNBOUNDED: "torch, no window",
    REENCODING: "(a) no cache",
    FUSED: "(b) cache per chunk",
    FREE: "(b), history for nothing",
}


@dataclass(frozen=True)
class Row:
    """What one decoder did in one cell.

    Attributes:
        name: Which decoder.
        k: Frames per call.
        batch: Rows.
        history_seconds: Length of the history.
        calls: Completed calls.
        median_ms: Of a call; None if none was completed.
        p99_ms: Of a call.
        at_least_ms: How long the first call had taken when it was given up; None if calls were completed.
        frames_per_second: Over all rows; of a call that was given up, an upper bound.
        ratios: What this one took by what each `StreamingDecoder` took; lower bounds if no call was completed.
    """

    name: str
    k: int
    batch: int
    history_seconds: int
    calls: int
    median_ms: float | None
    p99_ms: float | None
    at_least_ms: float | None
    frames_per_second: float
    ratios: dict[str, float]


def ratio(slow: Record, fast: Record) -> float:
    """Return the median over common turns of the quotient of median times; a lower bound if `slow` was given up."""
    turns = slow.blocks.keys() & fast.blocks.keys()
    if turns:
        return float(np.median([np.median(slow.blocks[turn]) / np.median(fast.blocks[turn]) for turn in turns]))
    return (slow.given_up or float(np.median(slow.calls))) / float(np.median(fast.calls))


def make_rows(records: dict[str, Record], k: int, batch: int, seconds: int) -> list[Row]:
    """Return the rows of one cell."""
    rows = []
    for name, record in records.items():
        times = 1000 * np.array(record.calls)
        middle = float(np.median(times)) if len(times) else None
        least = None if record.given_up is None else 1000 * record.given_up
        ours = {other: ratio(record, records[other]) for other in OURS if other in records}
        rows.append(
            Row(
                name=name,
                k=k,
                batch=batch,
                history_seconds=seconds,
                calls=len(times),
                median_ms=middle,
                p99_ms=float(np.percentile(times, 99)) if len(times) else None,
                at_least_ms=least,
                frames_per_second=1000 * k * batch / (middle or least or np.inf),
                ratios={} if name in OURS else ours,
            )
        )
    return rows


class Grid:
    """Measures cells.

    Args:
        args: Options.
        config: Architecture of all decoders.
    """

    def __init__(self, args: argparse.Namespace, config: DecoderConfig) -> None:
        self.args = args
        generator = torch.Generator().manual_seed(args.seed)
        shape = (config.num_codebooks, config.cardinality, config.latent_dim)
        torch.manual_seed(args.seed)
        decoder = AccompanimentDecoder(config, torch.randn(shape, generator=generator)).eval()
        # As they would come from files; the one whose weights are used in place is learning.
        eight_bits, halves = (copy.deepcopy(decoder).requires_grad_(False) for _ in range(2))
        round_to_eight_bits(eight_bits)
        halves.half().float()
        self.streams: dict[str, StreamingDecoder] = {
            EIGHT_BITS: CompiledStreamingDecoder(eight_bits),
            HALVES: CompiledStreamingDecoder(halves),
            COMPILED: CompiledStreamingDecoder(decoder),
            STREAMING: StreamingDecoder(decoder),
        }
        self.whole_history = decoder
        if config.window is not None:
            self.whole_history = AccompanimentDecoder(replace(config, window=None)).eval()
            self.whole_history.load_state_dict(decoder.state_dict())
            self.streams[UNBOUNDED] = StreamingDecoder(self.whole_history)
        # A state of one row serves all cells of its history.
        self.start = cache(self._start)

    def _start(self, decoder: AccompanimentDecoder, frames: int) -> DecoderState:
        longest = max(self.args.k)
        stream = StreamingDecoder(decoder)
        if decoder.config.window is None:
            # Room for all calls, so that none of them has to make it; with a window the memory stays as it is.
            stream = StreamingDecoder(decoder, capacity=frames + frames // 10 + 2 * longest)
        return filled_state(stream, self.music(1, frames), frames, longest)

    def music(self, batch: int, frames: int) -> Music:
        """Return the codes of a history."""
        return Music.random(self.whole_history.config, batch, frames, self.args.t_f, self.args.seed)

    def contestant(self, name: str, music: Music, frames: int, k: int) -> Streaming:
        """Return a `StreamingDecoder` whose next call starts at `frames` and hears k frames."""
        stream = self.streams[name]
        start = spread(self.start(stream.decoder, frames), stream.decoder, 1)
        hear_until(stream, start, music, frames - k)
        return Streaming(stream, start, len(music.heard), k, self.args.seed)

    def measure(self, k: int, batch: int, seconds: int) -> list[Row]:
        """Return the rows of one cell."""
        args, config = self.args, self.whole_history.config
        # Whole chunks, so that the next call starts one.
        frames = seconds * FRAMES_PER_SECOND // k * k
        music = self.music(batch, frames)
        history = CodeHistory(music.heard[:, : music.visible(frames - k)], music.played, music.instrument)
        contestants: dict[str, Contestant] = {name: self.contestant(name, music, frames, k) for name in self.streams}
        contestants[REENCODING] = Reference(ReencodingDecoder(self.whole_history, args.t_f, k), history, args.seed)
        fused = FusedDecoder(config, args.t_f, k).eval()
        contestants[FUSED] = Reference(fused, history, args.seed)
        start = CodeHistory(history.heard[:, :1], history.played[:, :1], history.instrument)
        contestants[FREE] = Forgetful(fused, start, args.seed)
        fresh = music.heard[:, music.visible(frames - k) : music.visible(frames)]
        settings = (args.calls, args.warm_up, args.block, args.limit, CLOCKS[args.clock])
        records = time_calls(contestants, fresh, frames, *settings)
        return make_rows(records, k, batch, seconds)


def speed_checks(rows: list[Row]) -> list[Check]:
    """Return the wishes for the ratio to (b) after 60 s of history."""
    found = []
    for row in rows:
        wish = {1: 3.0, 25: 10.0}.get(row.k)
        if row.name != FUSED or row.history_seconds != 60 or wish is None:
            continue
        for ours, value in row.ratios.items():
            bound = " (lower bound)" if row.median_ms is None else ""
            label = f"{LABELS[ours]}: times as fast as (b), k={row.k}, batch {row.batch}, 60 s{bound}"
            found.append(Check(f"{ours}/fused/k{row.k}/batch{row.batch}", label, value, wish, value >= wish))
    return found


def amount(value: float | None) -> str:
    """Return a number for people."""
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def make_table(title: str, rows: list[Row], ours: list[str]) -> Table:
    """Return the table of all cells."""
    table = Table(title=title, title_justify="left")
    for heading in ("history s", "batch", "k"):
        table.add_column(heading, justify="right")
    table.add_column("decoder", no_wrap=True)
    for heading in ("n calls", "median ms", "p99 ms", "frames/s", *(f"x {LABELS[name]}" for name in ours)):
        table.add_column(heading, justify="right")
    cell = None
    for row in rows:
        here = (row.history_seconds, row.batch, row.k)
        if cell not in (None, here):
            table.add_section()
        given_up = row.median_ms is None
        table.add_row(
            *(map(str, here) if here != cell else ("", "", "")),
            LABELS[row.name],
            str(row.calls),
            f"> {amount(row.at_least_ms)}" if given_up else amount(row.median_ms),
            amount(row.p99_ms),
            ("< " if given_up else "") + amount(row.frames_per_second),
            *(("> " if given_up else "") + amount(row.ratios[name]) if name in row.ratios else "" for name in ours),
        )
        cell = here
    return table


def check_table(checks: list[Check]) -> Table:
    """Return the table of wishes and what was found."""
    table = Table("check", title="Checks", title_justify="left")
    for heading in ("found", "wish", ""):
        table.add_column(heading, justify="right")
    for check in checks:
        sign = "<=" if check.at_most else ">="
        wish = "" if check.target is None else f"{sign} {amount(check.target)}"
        table.add_row(check.label, amount(check.value), wish, {True: "met", False: "missed", None: ""}[check.met])
    return table


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--size", type=positive, nargs=2, metavar=("DIM", "LAYERS"), help="width, a multiple of 128, and blocks")
    add("--k", type=positive, nargs="+", default=[1, 5, 25], help="frames per call (1 5 25)")
    add("--batch", type=positive, nargs="+", default=[1, 16], help="rows (1 16)")
    add("--history", type=positive, nargs="+", default=[10, 60, 600], help="seconds of history (10 60 600)")
    add("--window", type=int, help="frames that StreamingDecoder looks back on (that of DecoderConfig); 0 for all")
    add("--t-f", type=int, default=-12, help="future visibility in frames, at most 0 (-12)")
    add("--calls", type=positive, default=30, help="calls of each decoder in a cell (30)")
    add("--warm-up", type=positive, default=2, help="calls before them, which do not count unless they are long (2)")
    add("--block", type=positive, default=5, help="calls in one turn (5)")
    add("--limit", type=float, default=20.0, help="seconds that each decoder may take in a cell (20)")
    add("--stream-seconds", type=positive, default=10, help="seconds that are streamed to see whether cost grows (10)")
    add("--stream-history", type=positive, default=600, help="seconds before the later ones of them (600)")
    add("--clock", choices=CLOCKS, default="wall", help="wall, or cpu: the time of this process, with --threads 1")
    add("--threads", type=positive, default=2, help="of torch (2)")
    add("--seed", type=int, default=0, help="of weights, codes and sampling (0)")
    add("--json", type=Path, help="write everything to this JSON file")
    args = parser.parse_args(argv)
    if args.t_f > 0:
        parser.error(f"--t-f is {args.t_f}; a decoder that plays live hears nothing ahead: give at most 0")
    if args.clock == "cpu" and args.threads > 1:
        parser.error("--clock cpu adds up the time of all threads; it needs --threads 1")
    if args.size and args.size[0] % 128:
        parser.error(
            f"--size is {args.size[0]} wide; give a multiple of 128: heads are 64 wide and share keys in pairs"
        )
    return args


def main(argv: list[str] | None = None) -> None:
    """Measure, print the tables and write the file."""
    args = parse(argv)
    torch.set_num_threads(args.threads)
    config = DecoderConfig(aligned_frames=4, aligned_past=8)  # the shipped architecture
    if args.size:
        dim, layers = args.size
        config = replace(config, dim=dim, layers=layers, heads=dim // 64, kv_heads=dim // 128, depth_dim=3 * dim // 2)
    if args.window is not None:
        config = replace(config, window=args.window or None)
    grid = Grid(args, config)
    console = Console(width=154)
    rows: list[Row] = []
    for seconds, batch, k in product(args.history, args.batch, args.k):
        with console.status(f"history {seconds} s, batch {batch}, k {k}"):
            rows += grid.measure(k, batch, seconds)
    size = f"width {config.dim}, {config.layers} blocks, window {config.window}"
    title = f"{size}, t_f={args.t_f}, {args.threads} threads, {args.clock} clock; x: how many times as fast"
    console.print(make_table(title, rows, list(grid.streams)))
    checks = speed_checks(rows)
    with console.status("streaming"):
        for name, stream in grid.streams.items():
            checks += flat_cost(stream, name, LABELS[name], args)
    with console.status("the shipped decoder in real time"):
        checks += real_time(args)
    console.print(check_table(checks))
    if args.json is not None:
        report = {
            "settings": {key: value for key, value in vars(args).items() if key != "json"},
            "decoder": asdict(config),
            "machine": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "processor": platform.machine(),
                "cores": os.cpu_count(),
                "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
            },
            "rows": [asdict(row) for row in rows],
            "checks": [asdict(check) for check in checks],
        }
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
