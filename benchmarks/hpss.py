"""How fast the batched harmonic/percussive separation is, beside librosa or scipy, and how equal.

    python benchmarks/hpss.py                     # some ten seconds
    python benchmarks/hpss.py --clips 8 --repeats 5 --out hpss.json

The yardstick is `librosa.decompose.hpss` where librosa can be imported, else the two median filters of
scipy that do nearly all of its work, with the same masks. Both sides get the magnitudes of the same clips
of 5 s at 16 kHz. Times are processor time of this process, so what else the machine does hardly counts;
torch runs on one thread.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from jamgym_rewards.hpss import POWER, TAPS, hpss_masks, soft_mask

SECONDS = 5
RATE = 16_000


def magnitudes(clips: int) -> torch.Tensor:
    """Return `(clips, 513, 501)` magnitudes of chords, hits and noise."""
    rng = np.random.default_rng(0)
    seconds = np.arange(SECONDS * RATE) / RATE
    audio = rng.normal(0, 0.02, (clips, len(seconds)))
    for hertz in (110.0, 277.2, 659.3):
        audio += 0.2 * np.sin(2 * np.pi * hertz * rng.uniform(0.8, 1.2, (clips, 1)) * seconds)
    audio[:, (seconds % 0.5) < 0.01] += rng.normal(0, 0.5, (clips, int(((seconds % 0.5) < 0.01).sum())))
    wave = torch.from_numpy(audio.astype(np.float32))
    spectrum = torch.stft(wave, 1024, 160, 400, torch.hann_window(400), pad_mode="constant", return_complex=True)
    return spectrum.abs()


def yardstick() -> tuple[str, Callable[[NDArray[np.float32]], NDArray[np.float32]]]:
    """Return the name of the other implementation, and a function `(F, T)` to harmonic masks `(F, T)`."""
    try:
        from librosa.decompose import hpss
    except ImportError:
        from scipy.ndimage import median_filter

        def by_scipy(one: NDArray[np.float32]) -> NDArray[np.float32]:
            harmonic = median_filter(one, size=(1, TAPS), mode="reflect")
            percussive = median_filter(one, size=(TAPS, 1), mode="reflect")
            return soft_mask(torch.from_numpy(harmonic), torch.from_numpy(percussive), POWER).numpy()

        return "scipy.ndimage.median_filter", by_scipy
    return "librosa.decompose.hpss", lambda one: hpss(one, kernel_size=TAPS, power=POWER, mask=True)[0]


def measure(clips: int, repeats: int) -> dict[str, float | str]:
    """Return milliseconds per clip of both, their ratio, and the largest difference of a mask."""
    torch.set_num_threads(1)
    name, other = yardstick()
    batch = magnitudes(clips)
    theirs = np.stack([other(one) for one in batch.numpy()])
    ours = hpss_masks(batch)[0].numpy()
    spent: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(repeats):
        start = time.process_time()
        hpss_masks(batch)
        between = time.process_time()
        for one in batch.numpy():
            other(one)
        spent["ours"].append(between - start)
        spent["theirs"].append(time.process_time() - between)
    return {
        "yardstick": name,
        "torch_ms_per_clip": 1000 * median(spent["ours"]) / clips,
        "yardstick_ms_per_clip": 1000 * median(spent["theirs"]) / clips,
        "ratio": median(b / a for a, b in zip(spent["ours"], spent["theirs"], strict=True)),
        "largest_difference": float(np.abs(ours - theirs).max()),
    }


def main() -> None:
    """Measure, print a table, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=4, help="clips of 5 s in the batch")
    parser.add_argument("--repeats", type=int, default=5, help="times that both are run")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    figures = measure(arguments.clips, arguments.repeats)
    table = Table(title=f"harmonic/percussive masks of {arguments.clips} clips of {SECONDS} s")
    table.add_column("measure")
    table.add_column("value", justify="right")
    for name, value in figures.items():
        table.add_row(name, value if isinstance(value, str) else f"{value:.4g}")
    Console().print(table)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
