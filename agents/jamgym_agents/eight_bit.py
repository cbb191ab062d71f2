"""Weights in eight bits, for files: half the size of half precision.

Each row of a matrix is stored as int8 times one scale, so that its largest weight is 127 steps; everything else, the
codec's vectors among it, is stored in half precision. Networks compute in single precision as before.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

#: Ends the name of the scales that belong to a tensor of int8.
SCALE = ".scale"
#: Steps from 0 to the largest weight of a row.
STEPS = 127


def to_eight_bits(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `tensors` for a file: matrices `(R, C)` as int8 with scales `(R,)`, the others in half precision.

    Raises:
        ValueError: A matrix is not finite: its rows would have no scale.
    """
    found = {}
    for name, tensor in tensors.items():
        if tensor.dim() != 2 or not tensor.numel():
            found[name] = tensor.half()
            continue
        if not tensor.isfinite().all():
            raise ValueError(f"{name} has weights that are not finite; there is nothing to store.")
        # Single precision: the scale of a row of tiny weights would vanish in half.
        steps, found[name + SCALE] = _steps(tensor.float())
        found[name] = steps.round().to(torch.int8)
    return found


def _steps(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return `matrix` `(R, C)` in steps of its rows' scales, and those scales `(R,)`."""
    scale = matrix.abs().amax(1) / STEPS
    return matrix / scale.clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(1), scale


def as_eight_bits(matrix: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return `matrix` `(R, C)` as int8 and scales `(R,)` if that loses nothing but rounding, else None.

    It loses nothing if the matrix was stored in eight bits once.
    """
    steps, scale = _steps(matrix)
    whole = steps.round()
    # Not more than a step's rounding in single precision; NaN is not.
    return (whole.to(torch.int8), scale) if ((steps - whole).abs() < 1e-4).all() else None


def from_eight_bits(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return in single precision what `to_eight_bits` made; other tensors are only converted.

    Raises:
        ValueError: A tensor of int8 is no matrix, or has not one scale for each row.
    """
    found = {}
    scales = {name + SCALE for name, tensor in tensors.items() if tensor.dtype == torch.int8}
    for name, tensor in tensors.items():
        if name in scales:
            continue
        found[name] = tensor.float()
        if tensor.dtype == torch.int8:
            scale = tensors.get(name + SCALE)
            if scale is None or tensor.dim() != 2 or scale.shape != tensor.shape[:1]:
                raise ValueError(f"{name} is stored in eight bits without one scale for each of its rows.")
            found[name] *= scale.float().unsqueeze(1)
    return found


def round_to_eight_bits(module: nn.Module) -> None:
    """Give `module` the weights that it would have after a file in eight bits, which compiled loops read faster.

    All its parameters and buffers must be of floating point.

    Raises:
        ValueError: A matrix is not finite.
    """
    module.load_state_dict(from_eight_bits(to_eight_bits(module.state_dict())))
