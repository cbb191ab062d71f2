"""The results of a grid: every score of every method, seed and cell, and what they show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jamgym.benchmark.grid.statistics import GridStatistics, Trend, grid_statistics
from jamgym.benchmark.statistics import RESAMPLES, Interval, by_song, mean_interval

Values = NDArray[np.float64]


@dataclass(frozen=True)
class GridResults:
    """Scores of some methods over A x B cells of (t_f, k), all on the same E episodes.

    Attributes:
        t_f: The A future visibilities in frames, ascending.
        k: The B chunk sizes in frames, ascending.
        live: For each t_f whether it can be played live; the others are look-ahead oracles.
        metrics: Names of the reward models that could be scored.
        methods: Method to measure to `(S, A, B, E)` numbers; S is the method's number of training seeds.
        anchors: Anchor to measure to `(E,)` numbers.
        song_ids: `(E,)` songs; intervals count songs, not episodes.
        omitted: Metric that could not be scored to a sentence that says why.
        omitted_policies: Policy that could not play to a sentence that says why.
        setting: What was played, as plain data.
        players: Label to what its policies are, one per seed, as plain data.
        seed: Seed of resampling.
        resamples: Bootstrap samples.
    """

    t_f: tuple[int, ...]
    k: tuple[int, ...]
    live: tuple[bool, ...]
    metrics: tuple[str, ...]
    methods: Mapping[str, Mapping[str, Values]]
    anchors: Mapping[str, Mapping[str, Values]]
    song_ids: tuple[str, ...]
    omitted: Mapping[str, str] = field(default_factory=dict)
    omitted_policies: Mapping[str, str] = field(default_factory=dict)
    setting: Mapping[str, Any] = field(default_factory=dict)
    players: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    seed: int = 0
    resamples: int = RESAMPLES

    @property
    def left_out(self) -> tuple[str, ...]:
        """Why metrics and policies are left out."""
        return (*self.omitted.values(), *self.omitted_policies.values())

    @property
    def songs(self) -> int:
        """Number of distinct songs."""
        return len(set(self.song_ids))

    @property
    def measures(self) -> tuple[str, ...]:
        """What is worth a table: the metrics, and late frames where there are any."""
        late = any(values["late_frames"].any() for values in self.methods.values())
        return (*self.metrics, *(("late_frames",) if late else ()))

    def seeds(self, method: str) -> int:
        """Return the number of training seeds of `method`."""
        return len(next(iter(self.methods[method].values())))

    def statistics(self, method: str, measure: str) -> GridStatistics:
        """Return the intervals of `method` under a measure of `measures`."""
        return self._statistics[method][measure]

    def anchor(self, label: str, measure: str) -> Interval:
        """Return an anchor's mean over songs with its 95 % interval."""
        return self._anchors[label][measure]

    @cached_property
    def _statistics(self) -> dict[str, dict[str, GridStatistics]]:
        return {
            method: {
                measure: grid_statistics(
                    self._by_song(values[measure]), self.t_f, self.k, resamples=self.resamples, seed=self.seed
                )
                for measure in self.measures
            }
            for method, values in self.methods.items()
        }

    @cached_property
    def _anchors(self) -> dict[str, dict[str, Interval]]:
        return {
            label: {
                measure: mean_interval(
                    by_song(values[measure], self.song_ids), resamples=self.resamples, seed=self.seed
                )
                for measure in self.measures
            }
            for label, values in self.anchors.items()
        }

    def _by_song(self, values: Values) -> Values:
        """Average `(S, A, B, E)` within each song: `(S, A, B, J)`."""
        rows = [by_song(row, self.song_ids) for row in values.reshape(-1, len(self.song_ids))]
        return np.array(rows).reshape(*values.shape[:3], -1)

    def to_json(self) -> dict[str, Any]:
        """Return every number as plain data: settings, per-episode values, intervals, trends."""
        return {
            "setting": dict(self.setting),
            "t_f": list(self.t_f),
            "k": list(self.k),
            "lookahead_oracles": [ahead for ahead, live in zip(self.t_f, self.live, strict=True) if not live],
            "seed": self.seed,
            "resamples": self.resamples,
            "confidence": 0.95,
            "songs": list(self.song_ids),
            "omitted_metrics": dict(self.omitted),
            "omitted_policies": dict(self.omitted_policies),
            "policies": {label: list(players) for label, players in self.players.items()},
            "anchors": {
                label: {
                    "values": {measure: numbers.tolist() for measure, numbers in values.items()},
                    "means": {measure: self.anchor(label, measure).to_json() for measure in self.measures},
                }
                for label, values in self.anchors.items()
            },
            "methods": {
                method: {
                    "seeds": self.seeds(method),
                    "cells": self._cells(method, values),
                    "statistics": {
                        measure: _statistics_json(self.statistics(method, measure)) for measure in self.measures
                    },
                }
                for method, values in self.methods.items()
            },
        }

    def _cells(self, method: str, values: Mapping[str, Values]) -> list[dict[str, Any]]:
        return [
            {
                "t_f": ahead,
                "k": size,
                "lookahead_oracle": not self.live[a],
                "means": {measure: self.statistics(method, measure).cells[a][b].to_json() for measure in self.measures},
                "values_by_seed": [
                    {measure: numbers[s, a, b].tolist() for measure, numbers in values.items()}
                    for s in range(self.seeds(method))
                ],
            }
            for a, ahead in enumerate(self.t_f)
            for b, size in enumerate(self.k)
        ]


def _statistics_json(found: GridStatistics) -> dict[str, Any]:
    corners = found.extremes
    return {
        "songs": found.songs,
        "seeds": found.seeds,
        "spearman_with_t_f": _trend(found.by_t_f),
        "spearman_with_k": _trend(found.by_k),
        "extremes": None
        if corners is None
        else {
            "best_corner": corners.best.to_json(),
            "worst_corner": corners.worst.to_json(),
            "intervals_touch": corners.touch,
            "paired_difference": corners.difference.to_json(),
        },
    }


def _trend(trend: Trend | None) -> dict[str, Any] | None:
    if trend is None:
        return None
    return {"over_all_cells": trend.overall.to_json(), "mean_within_lines": trend.within.to_json()}
