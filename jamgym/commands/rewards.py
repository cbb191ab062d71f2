"""`jamgym rewards`: every known reward, with what it declares and what it costs on this machine.

One that cannot be imported, made or run is listed with the reason; the others are not touched by it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from jamgym.errors import ConfigError, PluginError
from jamgym.registry import rewards
from jamgym.reward import RewardModel, Windows, check_scores
from jamgym.scoring import check_reward
from jamgym.specs import check_spec, create_from_spec, spec_name
from jamgym.toys import ToyCorpus

_SAMPLE_RATE = 16_000
#: Stop measuring a reward after so many seconds.
_PATIENCE_SECONDS = 1.0
_HEADINGS = ("reward", "range", "needs", "window", "shortest", "hop", "causal", "cost")
_UNKNOWN = "?"


@dataclass(frozen=True)
class RewardsConfig:
    """Settings of `jamgym rewards`.

    Attributes:
        reward: List this one only: a name, or a mapping with `name` and its arguments; None lists all.
        cost: Measure how long scoring takes; loads the weights of learned rewards.
        batch: Windows that are scored at once while measuring.
    """

    reward: str | dict[str, Any] | None = None
    cost: bool = True
    batch: int = 8

    def __post_init__(self) -> None:
        """Refuse an empty batch."""
        if self.batch < 1:
            raise ConfigError(f"batch is {self.batch}; it must be at least 1 window.")


@dataclass(frozen=True)
class Listing:
    """What is known about one reward.

    Attributes:
        name: Registry name or class path.
        declared: The reward's own attributes: range, needs, windows, causal; those that are known.
        remark: Cost, or why there is none.
    """

    name: str
    declared: dict[str, Any]
    remark: str

    def row(self) -> tuple[str, ...]:
        """Return the cells of the table."""
        cells = {key: _UNKNOWN if value is None else _show(key, value) for key, value in self.declared.items()}
        return (self.name, *cells.values(), self.remark)


def list_rewards(config: RewardsConfig) -> str:
    """Return the table of rewards."""
    specs = rewards.names() if config.reward is None else [config.reward]
    found = [describe(spec, config.batch if config.cost else None) for spec in specs]
    rows = [_HEADINGS, *(listing.row() for listing in found)]
    width = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS) - 1)]
    lines = ["  ".join([*map(str.ljust, row, width), row[-1]]).rstrip() for row in rows]
    if config.cost:
        lines += [
            "",
            f"Cost: time per window in batches of {config.batch} on this machine, as it is now, and how many seconds "
            "of music are scored per second.",
        ]
    return "\n".join(lines)


def describe(spec: str | dict[str, Any], batch: int | None) -> Listing:
    """Return what can be found out about the reward `spec`, whatever is wrong with it.

    Args:
        spec: A name, or a mapping with `name` and arguments.
        batch: Windows per batch for the cost; None measures nothing.
    """
    name = spec_name(spec)
    declared = _declared(None)
    try:
        declared = _declared(rewards.resolve(name))
        check_spec(rewards, spec)
        reward = create_from_spec(rewards, spec)
        check_reward(reward)
        declared = _declared(reward)
        return Listing(name, declared, "not measured" if batch is None else cost(reward, batch))
    except PluginError as error:
        return Listing(name, declared, _one_line(f"cannot be imported from {rewards.paths().get(name, name)}", error))
    except ConfigError as error:
        # Of jamgym's own making: it says what is missing and how to give it.
        return Listing(name, declared, " ".join(str(error).split()))
    except (Exception, SystemExit) as error:
        return Listing(name, declared, _one_line("fails", error))


def cost(reward: RewardModel, batch: int) -> str:
    """Return how long `reward` takes for a window, and for a second of music with a window every hop.

    Raises:
        RewardError: A score is not finite, or the shape is wrong.
    """
    windows = toy_windows(reward, batch)
    # The first call reads weights and fills caches.
    check_scores(reward.name, reward.score(windows), batch, "toy music")
    began = time.perf_counter()
    times: list[float] = []
    while len(times) < 5 and (not times or time.perf_counter() - began < _PATIENCE_SECONDS):
        before = time.perf_counter()
        reward.score(windows)
        times.append(time.perf_counter() - before)
    seconds = max(float(np.median(times)), 1e-9) / batch
    return f"{1000 * seconds:.3g} ms, {_digits(reward.hop_seconds / seconds)} x real time"


def toy_windows(reward: RewardModel, batch: int) -> Windows:
    """Return `batch` full windows of toy music: two stems heard, one played, beats and chords known."""
    length = max(round(reward.window_seconds * _SAMPLE_RATE), 1)
    starts = 0.25 * np.arange(batch)
    seconds = reward.window_seconds + float(starts[-1])
    song = ToyCorpus(songs=1, seconds=seconds + 0.1, sample_rate=_SAMPLE_RATE).load("test-0000")
    assert song.truth is not None
    first = np.rint(starts * _SAMPLE_RATE).astype(int)
    stems = [np.stack([stem.audio[a : a + length] for a in first]) for stem in song.stems]
    truth = tuple(song.truth.crop(float(start), float(start) + reward.window_seconds) for start in starts)
    return Windows(
        heard=stems[1] + stems[2],
        played=stems[0],
        sample_rate=_SAMPLE_RATE,
        target=stems[0].copy() if "target" in reward.needs else None,
        truth=truth if "truth" in reward.needs else None,
    )


def _declared(source: Any) -> dict[str, Any]:
    """Return the attributes that the table shows; None for one that `source`, an object or its class, has not."""
    names = ("range", "needs", "window_seconds", "min_window_seconds", "hop_seconds", "causal")
    found = {name: getattr(source, name, None) for name in names}
    # On the class, a property or a slot is not yet a value.
    return {name: None if hasattr(value, "__get__") else value for name, value in found.items()}


def _show(key: str, value: Any) -> str:
    try:
        if key == "range":
            return f"{value[0]:g} to {value[1]:g}"
        if key == "needs":
            return ", ".join(sorted(value)) or "-"
        return ("yes" if value else "no") if key == "causal" else f"{value:g} s"
    except Exception:  # a third party's attribute may be anything; one odd cell is no reason to list nothing
        return _UNKNOWN


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.2g}"


def _one_line(what: str, error: BaseException) -> str:
    cause = error.__cause__ if isinstance(error, PluginError) and error.__cause__ else error
    return " ".join(f"{what}: {type(cause).__name__}: {cause}".split())
