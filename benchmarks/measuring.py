"""What the timing benchmarks share: clocks, and numbers on the command line."""

from __future__ import annotations

import argparse
from time import perf_counter, process_time

#: Seconds on the wall, or those of this process alone.
CLOCKS = {"wall": perf_counter, "cpu": process_time}


def positive(text: str) -> int:
    """Return a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)
