"""Actions: codes, or audio that goes through the codec."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from jamgym.codec import Codes
from jamgym.errors import ActionError
from jamgym.simulation import Simulation

ActionMode = Literal["tokens", "audio"]
ACTION_MODES: tuple[ActionMode, ...] = get_args(ActionMode)


class TokenActions:
    """Codes as they are: `MultiDiscrete([V] * (K * Q))`, frame after frame."""

    def space(self, simulation: Simulation) -> spaces.Space[Any]:
        """Return the action space of one row."""
        return spaces.MultiDiscrete(
            np.full(simulation.chunk * simulation.codec.num_codebooks, simulation.codec.cardinality)
        )

    def reset(self, rows: NDArray[np.int64]) -> None:
        """Codes have no past."""

    def read(self, simulation: Simulation, actions: Any) -> Codes:
        """Return `actions`, `(N, K * Q)` or `(N, K, Q)` integers in [0, V), as `(N, K, Q)`.

        Raises:
            ActionError: Wrong shape, dtype or value. Nothing has changed; step again or reset.
        """
        array = np.asarray(actions)
        n, k, q = simulation.rows, simulation.chunk, simulation.codec.num_codebooks
        if array.shape not in ((n, k * q), (n, k, q)):
            raise ActionError(
                f"The action has shape {array.shape}; expected {(n, k * q)} or {(n, k, q)}: "
                f"{n} rows, k={k} frames, Q={q} codebooks, frame after frame."
            )
        if array.dtype.kind not in "iu":
            raise ActionError(
                f"The action has dtype {array.dtype}; expected integers (codes). Round or argmax before stepping."
            )
        low, high = array.min(), array.max()
        if low < 0 or high >= simulation.codec.cardinality:
            raise ActionError(
                f"The action holds {int(low if low < 0 else high)}; codes of codec {simulation.codec.name!r} are in "
                f"[0, {simulation.codec.cardinality})."
            )
        return array.reshape(n, k, q)


class AudioActions:
    """Audio: `Box(-1, 1, (K * hop,))`, encoded as one stream per row.

    What is played has gone through the codec, so that rewards and token histories hear the same thing.

    Args:
        simulation: Gives the codec and the rows.
    """

    def __init__(self, simulation: Simulation) -> None:
        self._encoder = simulation.codec.encoder(simulation.rows)
        self._rows = simulation.rows

    def space(self, simulation: Simulation) -> spaces.Space[Any]:
        """Return the action space of one row."""
        return spaces.Box(-1.0, 1.0, (simulation.chunk * simulation.codec.hop_samples,), np.float32)

    def reset(self, rows: NDArray[np.int64]) -> None:
        """Forget what `rows` have sent."""
        mask = np.zeros(self._rows, dtype=np.bool_)
        mask[rows] = True
        self._encoder.reset(mask)

    def read(self, simulation: Simulation, actions: Any) -> Codes:
        """Return the codes `(N, K, Q)` of samples `(N, K * hop)` in [-1, 1].

        In a row with a smaller k only the first k * hop samples go into the stream.

        Raises:
            ActionError: Wrong shape, dtype or value. Nothing has changed; step again or reset.
        """
        codec, k = simulation.codec, simulation.chunk
        array = np.asarray(actions)
        shape = (simulation.rows, k * codec.hop_samples)
        if array.shape != shape:
            raise ActionError(
                f"The action has shape {array.shape}; expected {shape}: {k} frames of {codec.hop_samples} samples."
            )
        if array.dtype.kind != "f":
            raise ActionError(f"The action has dtype {array.dtype}; expected floats, samples in [-1, 1].")
        if not np.isfinite(array).all():
            raise ActionError("The action holds NaN or infinite samples; replace them before stepping.")
        loudest = float(np.abs(array).max())
        if loudest > 1.0:
            raise ActionError(
                f"The action reaches {loudest:.3g}; samples are in [-1, 1]. Clip or scale before stepping."
            )
        array = array.astype(np.float32)
        sizes = simulation.clock.k
        codes = np.zeros((simulation.rows, k, codec.num_codebooks), dtype=np.int16)
        for size in np.unique(sizes).tolist():
            rows = np.flatnonzero(sizes == size)
            part = array[rows, : size * codec.hop_samples]
            codes[rows, :size] = self._encoder.push(part, None if len(rows) == simulation.rows else rows)
        return codes


def make_actions(mode: ActionMode, simulation: Simulation) -> TokenActions | AudioActions:
    """Return the reader of actions of `mode`."""
    return AudioActions(simulation) if mode == "audio" else TokenActions()
