"""Pictures and sound of one row: a text timeline, spectrograms, stereo audio. Pure numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from jamgym.codec import Audio
from jamgym.event_log import EventLog
from jamgym.playback import CONCEALED, DELAYED, GAP, NOTHING, ON_TIME, REPEATED
from jamgym.timing import Timing

if TYPE_CHECKING:
    from jamgym.simulation import Simulation

SYMBOLS = {NOTHING: " ", ON_TIME: "#", GAP: ".", REPEATED: "=", CONCEALED: "~", DELAYED: ">"}
COLOURS = {
    NOTHING: (32, 32, 32),
    ON_TIME: (64, 176, 88),
    GAP: (208, 64, 48),
    REPEATED: (224, 168, 48),
    CONCEALED: (176, 128, 64),
    DELAYED: (64, 128, 208),
}


def render(simulation: Simulation, row: int, mode: str) -> Any:
    """Return the picture of `row` in `mode` "ansi", "rgb_array" or "audio"."""
    if mode == "ansi":
        return timeline(simulation.event_log(row), simulation.row_timings[row])
    episode = simulation.episodes[row]
    heard = np.zeros(0, dtype=np.float32) if episode is None else episode.heard
    played = simulation.played_audio(row)
    if mode == "audio":
        return stereo(heard[: len(played)], played)
    return picture(heard, played, simulation.event_log(row).status)


def timeline(log: EventLog, timing: Timing, last: int = 12) -> str:
    """Return the last calls as text: when each was released, finished and due, and what its slots played.

    A slot is `#` on time, `.` silent, `=` repeated, `~` concealed, `>` played after a stall. A call's line holds the
    slots that were skipped after it, too. Times are seconds from the start of frame 0.
    """
    calls, rate = len(log.finish), timing.sample_rate
    kind = "" if timing.playable_live else "  LOOK-AHEAD ORACLE"
    lines = [
        f"t_f={timing.t_f} k={timing.k} budget={timing.budget / rate:.3f}s calls={calls} "
        f"late={log.late_frames} underruns={log.underruns}{kind}",
        " call  release    start   finish      due    slack  slots",
    ]
    for row in range(max(calls - last, 0), calls):
        call = int(log.call[row])
        due = timing.deadline(call * timing.k)
        slots = "".join(SYMBOLS[int(s)] for s in log.status[log.slots_of(row)])
        times = (log.release[row], log.start[row], log.finish[row], due, due - log.finish[row])
        lines.append(f"{call:5d} " + " ".join(f"{time / rate:8.3f}" for time in times) + f"  {slots}")
    return "\n".join(lines)


def stereo(heard: Audio, played: Audio) -> NDArray[np.float32]:
    """Return `(S, 2)` float32: left heard, right played; the shorter one is padded with silence."""
    both = np.zeros((max(len(heard), len(played)), 2), dtype=np.float32)
    both[: len(heard), 0] = heard
    both[: len(played), 1] = played
    return both


def picture(
    heard: Audio, played: Audio, status: NDArray[np.int8], width: int = 320, height: int = 96
) -> NDArray[np.uint8]:
    """Return `(2 * height + 16, width, 3)` uint8: heard above played, and beneath them the slots' states."""
    top = log_spectrogram(heard, width, height)
    full = np.zeros(len(heard), dtype=np.float32)
    full[: len(played)] = played[: len(full)]
    bottom = log_spectrogram(full, width, height)
    grey = np.concatenate([top, bottom])
    image = np.repeat(grey[:, :, None], 3, axis=2)
    bar = np.empty((16, width, 3), dtype=np.uint8)
    bar[:] = COLOURS[NOTHING]
    if len(status) and len(played):
        share = max(len(heard), len(played)) / len(played)
        slot = (np.arange(width) * len(status) * share / width).astype(np.int64)
        shown = slot < len(status)
        palette = np.array([COLOURS[s] for s in sorted(COLOURS)], dtype=np.uint8)
        bar[:, shown] = palette[status[slot[shown]]]
    return np.concatenate([image, bar])


def log_spectrogram(audio: Audio, width: int, height: int, size: int = 512) -> NDArray[np.uint8]:
    """Return `(height, width)` uint8 brightness over 80 dB, low frequencies at the bottom."""
    padded = np.pad(audio, (0, size))
    starts = np.linspace(0, max(len(audio) - 1, 0), width).astype(np.int64)
    frames = padded[starts[:, None] + np.arange(size)] * np.hanning(size).astype(np.float32)
    power = np.abs(np.fft.rfft(frames, axis=1)).T
    # Bins spaced by a square law give the low octaves more lines than a linear axis would.
    bins = (np.linspace(0.0, 1.0, height) ** 2 * (len(power) - 1)).astype(np.int64)
    level = 20.0 * np.log10(power[bins] / (size / 4) + 1e-4)
    return np.clip((level + 80.0) / 80.0 * 255.0, 0, 255).astype(np.uint8)[::-1]
