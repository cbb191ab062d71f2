"""What one player did in one cell of a grid, kept in the run folder so that a stopped grid can go on.

A cell is written once it is played and scored, and holds the setting that it was played under. On resuming,
a cell is taken as it is if that setting is still asked for; if it is not, nothing is mixed: it is an error.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from jamgym.benchmark.labels import file_stem
from jamgym.errors import ConfigError
from jamgym.files import RunError, is_bare_name, plain

if TYPE_CHECKING:
    from jamgym.run import Run

#: Measure to `(episodes,)` numbers.
Scores = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Player:
    """One policy of the grid.

    Attributes:
        label: The method, or the anchor.
        seed: Number of the training seed within the method.
        spec: Name and arguments of the policy.
        anchor: Whether it only bounds the table; an anchor has one cell, which stands for all.
        network: Hash of its weights, if it has any: those that come with the package may be others tomorrow.
    """

    label: str
    seed: int
    spec: str | Mapping[str, Any] = field(hash=False)
    anchor: bool = False
    network: str = ""

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What makes this player another one, as plain data: its arguments and its weights.

        Raises:
            RunError: The checkpoint cannot be read.
        """
        found: dict[str, Any] = {"spec": plain(self.spec), "network": self.network}
        checkpoint = self.spec.get("checkpoint") if isinstance(self.spec, Mapping) else None
        # The name of a decoder that comes with the package is no path, and its weights are hashed in `network`.
        if checkpoint is not None and not (self.network and is_bare_name(checkpoint)):
            try:
                found["checkpoint_sha256"] = hashlib.sha256(Path(checkpoint).read_bytes()).hexdigest()
            except OSError as error:
                raise RunError(f"Could not read the checkpoint {checkpoint}: {error.strerror or error}.") from error
        return found


class CellStore:
    """The cells of a run folder.

    Args:
        run: Where they are.
        setting: Everything besides player, t_f and k that the scores depend on, as plain data.
    """

    def __init__(self, run: Run, setting: Mapping[str, Any]) -> None:
        self._run = run
        self._setting = plain(setting)

    def read(self, player: Player, t_f: int | None, k: int | None) -> Scores | None:
        """Return the scores of a cell, or None if it has not been played.

        Args:
            player: Who plays.
            t_f: Future visibility in frames; None for an anchor.
            k: Chunk size in frames; None for an anchor.

        Raises:
            ConfigError: The cell was played under another setting, or by another policy of that label.
            RunError: The file is damaged.
        """
        path = self._run.folder / _name(player, t_f, k)
        if not path.exists():
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            scores = {name: np.array(values, dtype=np.float64) for name, values in found["scores"].items()}
            before = {**found["setting"], "policy": found["policy"]}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{path} is damaged ({error}). Delete it and resume: its cell is played anew.") from error
        now = {**self._setting, "policy": player.identity}
        changed = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
        if changed:
            raise ConfigError(
                f"{path} was played with another setting of {', '.join(changed)}. Resume with the same settings, or "
                "start another run with --out: cells of two settings cannot be compared."
            )
        return scores

    def write(self, player: Player, t_f: int | None, k: int | None, scores: Scores, seconds: float) -> None:
        """Write a cell, atomically; `seconds` is what it took."""
        cell = {"label": player.label, "seed": player.seed, "t_f": t_f, "k": k, "seconds": round(seconds, 2)}
        identity = {"policy": player.identity, "setting": self._setting}
        self._run.write_json(_name(player, t_f, k), {**cell, **identity, "scores": scores})


def _name(player: Player, t_f: int | None, k: int | None) -> str:
    name = file_stem(player.label)
    if t_f is None:
        return f"cells/{name}.json"
    return f"cells/{name}-seed{player.seed}-t_f{t_f:+d}-k{k}.json"
