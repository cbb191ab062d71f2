"""What rewards by rule share: they judge each window by itself, and the length of windows is an argument."""

from __future__ import annotations


class RuleReward:
    """Base of rewards that are formulas: no weights, no state. A subclass gives `name`, `range` and `score`.

    Args:
        window_seconds: Length of a window.
        hop_seconds: Time between windows.
        min_window_seconds: Shortest window.
    """

    name: str
    range: tuple[float, float]
    version = "1"
    causal = True
    needs: frozenset[str] = frozenset()

    def __init__(self, window_seconds: float, hop_seconds: float, min_window_seconds: float) -> None:
        self.window_seconds = window_seconds
        self.hop_seconds = hop_seconds
        self.min_window_seconds = min_window_seconds
