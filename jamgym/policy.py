"""The policy protocol: batched, stateful, one chunk of codes per call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from jamgym.codec import Codes
from jamgym.episode import Episode


@runtime_checkable
class Policy(Protocol):
    """Plays N parallel streams.

    Attributes:
        name: Registry name, or a label for tables.
        privileged: True if the policy looks at `episodes` (truth, random stem); such a policy is an
            anchor for tables, not an agent.
    """

    name: str
    privileged: bool

    def reset(self, rows: NDArray[np.bool_], episodes: Sequence[Episode]) -> None:
        """Start new episodes in the rows of mask `rows` `(N,)`; `episodes` has N entries."""
        ...

    def act(self, observation: Mapping[str, NDArray[Any]]) -> Codes:
        """Return codes `(N, k, Q)` for one batch of observations."""
        ...
