"""Harmonic/percussive separation of spectrograms, batched: median filters and soft masks.

Sustained notes are ridges along time, hits are ridges along frequency. A median over time keeps the
first, a median over frequency keeps the second, and the two medians share out each cell (Fitzgerald
2010). Conventions are those of ``librosa.decompose.hpss``: 31 taps, edges mirrored with the edge cell
repeated, masks ``h^2 / (h^2 + p^2)``, 0.5 each where both medians are zero.

The medians are exact. Instead of sorting each window, sorted runs are shared between windows: a sorted
run of 16 at each place is merged from two runs of 8, which serve other places too. All steps are minima
and maxima of whole arrays, so the filter runs at the speed of memory on any device.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Taps of both median filters.
TAPS = 31
#: Exponent of the soft masks.
POWER = 2.0


def _exchange(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return torch.minimum(a, b), torch.maximum(a, b)


def merge(a: list[Tensor], b: list[Tensor]) -> list[Tensor]:
    """Merge two ascending lists of equally shaped tensors, elementwise (Batcher's odd-even merge)."""
    if not a or not b:
        return a or b
    if len(a) == len(b) == 1:
        return list(_exchange(a[0], b[0]))
    even, odd = merge(a[::2], b[::2]), merge(a[1::2], b[1::2])
    merged = [even[0]]
    for index, value in enumerate(odd):
        if index + 1 < len(even):
            merged.extend(_exchange(value, even[index + 1]))
        else:
            merged.append(value)
    merged.extend(even[len(odd) + 1 :])
    return merged


def _run(x: Tensor, length: int, known: dict[int, list[Tensor]]) -> list[Tensor]:
    """Return `length` tensors; the j-th holds the j-th smallest of ``x[..., i : i + length, :]`` for every i."""
    if length not in known:
        first, second = (length + 1) // 2, length // 2
        places = x.shape[-2] - length + 1
        head = [value[..., :places, :] for value in _run(x, first, known)]
        tail = [value[..., first : first + places, :] for value in _run(x, second, known)]
        known[length] = merge(head, tail)
    return known[length]


def _mirrored(size: int, reach: int, device: torch.device) -> Tensor:
    """Return `(size + 2 reach,)` indices: ... 1 0 | 0 1 ... size-1 | size-1 size-2 ..."""
    index = torch.arange(-reach, size + reach, device=device) % (2 * size)
    return torch.where(index < size, index, 2 * size - 1 - index)


def median_filter(x: Tensor, taps: int, dim: int) -> Tensor:
    """Return the running median of `x` along one of its last two axes.

    Args:
        x: `(..., F, T)` without NaN.
        taps: Odd window length.
        dim: -2 or -1.

    Returns:
        `(..., F, T)`; the window of each cell is centred on it, with mirrored edges.
    """
    if taps < 1 or taps % 2 == 0:
        raise ValueError(f"taps is {taps}; it must be odd and at least 1.")
    if dim not in (-2, -1):
        raise ValueError(f"dim is {dim}; it must be -2 or -1.")
    if dim == -1:
        return median_filter(x.transpose(-1, -2).contiguous(), taps, -2).transpose(-1, -2)
    if taps == 1:
        return x
    size = x.shape[-2]
    padded = x.index_select(-2, _mirrored(size, taps // 2, x.device))
    known: dict[int, list[Tensor]] = {1: [padded]}
    low, high = (taps + 1) // 2, taps // 2
    a = [value[..., :size, :] for value in _run(padded, low, known)]
    b = [value[..., low : low + size, :] for value in _run(padded, high, known)]
    # The k-th smallest of two ascending lists is the least, over splits i + j = k, of max(a_i, b_j).
    median = a[-1]
    for taken in range(1, low):
        median = torch.minimum(median, torch.maximum(a[taken - 1], b[high - taken]))
    return torch.minimum(median, b[-1]) if low == high else median


def soft_mask(x: Tensor, reference: Tensor, power: float = POWER) -> Tensor:
    """Return ``x^power / (x^power + reference^power)``; 0.5 where both are zero."""
    larger = torch.maximum(x, reference)
    empty = larger < torch.finfo(x.dtype).tiny
    larger = torch.where(empty, torch.ones_like(larger), larger)
    share, rest = (x / larger) ** power, (reference / larger) ** power
    return torch.where(empty, torch.full_like(x, 0.5), share / torch.where(empty, torch.ones_like(x), share + rest))


def hpss_masks(magnitude: Tensor, taps: int = TAPS, power: float = POWER) -> tuple[Tensor, Tensor]:
    """Return the harmonic and the percussive mask of a batch of spectrograms; they sum to one.

    Args:
        magnitude: `(..., F, T)`, not negative.
        taps: Length of both median filters.
        power: Exponent of the masks.

    Returns:
        Two masks `(..., F, T)` in 0 to 1.

    Example:
        >>> tone = torch.zeros(1, 64, 80)
        >>> tone[:, 20] = 1.0
        >>> harmonic, percussive = hpss_masks(tone)
        >>> harmonic[0, 20].min().item(), percussive[0, 20].max().item()
        (1.0, 0.0)
    """
    if magnitude.dim() > 2 and magnitude.device.type == "cpu" and len(magnitude) > 1:
        # One after the other: the runs of one clip fit the cache, those of a batch do not.
        pairs = [hpss_masks(one, taps, power) for one in magnitude]
        return torch.stack([pair[0] for pair in pairs]), torch.stack([pair[1] for pair in pairs])
    harmonic = median_filter(magnitude, taps, -1)
    percussive = median_filter(magnitude, taps, -2)
    mask = soft_mask(harmonic, percussive, power)
    return mask, soft_mask(percussive, harmonic, power)
