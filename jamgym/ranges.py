"""Checks of numbers in settings and in training, with one wording."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from jamgym.errors import ConfigError, JamgymError


def check_at_least(settings: Any, least: Mapping[str, float]) -> None:
    """Refuse attributes of `settings` below their least value, or not finite; None stands for "not set" and passes.

    Raises:
        ConfigError: Names the attribute, its value and the least one.

    >>> from types import SimpleNamespace
    >>> check_at_least(SimpleNamespace(songs=None, steps=-3), {"songs": 1, "steps": 0})
    Traceback (most recent call last):
    jamgym.errors.ConfigError: steps is -3; it must be at least 0, and finite.
    """
    for name, low in least.items():
        value = getattr(settings, name)
        if value is not None and not low <= value < math.inf:
            raise ConfigError(f"{name} is {value}; it must be at least {low}, and finite.")


def check_above_zero(settings: Any, names: Iterable[str]) -> None:
    """Refuse attributes of `settings` that are 0, negative or not finite; None passes.

    Raises:
        ConfigError: Names the attribute and its value.
    """
    for name in names:
        value = getattr(settings, name)
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"{name} is {value}; it must be above 0, and finite.")


def check_between(settings: Any, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Refuse attributes of `settings` outside their range, ends included, or not finite; None passes.

    Raises:
        ConfigError: Names the attribute, its value and the range.
    """
    for name, (low, high) in ranges.items():
        value = getattr(settings, name)
        if value is not None and not low <= value <= high:
            raise ConfigError(f"{name} is {value}; it must be from {low:g} to {high:g}.")


def check_shares(settings: Any, names: Iterable[str]) -> None:
    """Refuse attributes of `settings` that are not from 0 to 1; None passes.

    Raises:
        ConfigError: Names the attribute and its value.
    """
    check_between(settings, dict.fromkeys(names, (0.0, 1.0)))


def check_finite(step: int, loss: float, norm: float) -> None:
    """Raise `JamgymError` for a loss or a gradient norm after which the weights would be NaN."""
    if not math.isfinite(loss) or not math.isfinite(norm):
        raise JamgymError(
            f"The gradient of step {step} has norm {norm} at loss {loss}. The last checkpoint, if any, is intact; "
            "resume it, or start again, with a lower learning_rate, or with bf16 off."
        )
