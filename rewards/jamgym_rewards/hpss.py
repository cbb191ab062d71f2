"""Harmonic/percussive separation of spectrograms, batched: median filters and soft masks.

Sustained notes are ridges along time, hits are ridges along frequency. A median over time keeps the
first, a median over frequency keeps the second, and the two medians share out each cell (Fitzgerald
2010). Conventions are those of ``librosa.decompose.hpss``: 31 taps, edges mirrored with the edge cell
repeated, masks ``h^2 / (h^2 + p^2)``, 0.5 each where both medians are zero.

The medians are exact. Four neighbouring windows share all but three of their cells, so what they share is put
in order once, and only the few middle ones of it: the median of a window is the middle of four of those and its
own three. What is shared consists of sorted runs of four cells, whose merged pairs serve other places too.
All steps are minima and maxima of whole arrays, so the filter runs at the speed of memory on any device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

#: Taps of both median filters.
TAPS = 31
#: Exponent of the soft masks.
POWER = 2.0


#: Windows that are worked out together.
_GROUP = 4

Item = TypeVar("Item")
Exchange = Callable[[Item, Item], tuple[Item, Item]]


def _exchange(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return torch.minimum(a, b), torch.maximum(a, b)


class _Later:
    """A tensor, or a minimum or maximum that is worked out when somebody asks for it."""

    def __init__(self, value: Tensor | None = None, work: Callable[[], Tensor] | None = None) -> None:
        self._value, self._work = value, work

    def __call__(self) -> Tensor:
        if self._work is not None:
            self._value, self._work = self._work(), None
        assert self._value is not None
        return self._value

    @staticmethod
    def exchange(a: _Later, b: _Later) -> tuple[_Later, _Later]:
        return _Later(work=lambda: torch.minimum(a(), b())), _Later(work=lambda: torch.maximum(a(), b()))


def _merge(a: list[Item], b: list[Item], exchange: Exchange[Item]) -> list[Item]:
    if not a or not b:
        return a or b
    if len(a) == len(b) == 1:
        return list(exchange(a[0], b[0]))
    even, odd = _merge(a[::2], b[::2], exchange), _merge(a[1::2], b[1::2], exchange)
    merged = [even[0]]
    for index, value in enumerate(odd):
        if index + 1 < len(even):
            merged.extend(exchange(value, even[index + 1]))
        else:
            merged.append(value)
    merged.extend(even[len(odd) + 1 :])
    return merged


def merge(a: list[Tensor], b: list[Tensor]) -> list[Tensor]:
    """Merge two ascending lists of equally shaped tensors, elementwise (Batcher's odd-even merge)."""
    return _merge(a, b, _exchange)


def order(values: list[Tensor]) -> list[Tensor]:
    """Put equally shaped tensors into ascending order, elementwise."""
    if len(values) < 2:
        return values
    half = len(values) // 2
    return merge(order(values[:half]), order(values[half:]))


def ranks(a: list[Tensor], b: list[Tensor], first: int, last: int) -> list[Tensor]:
    """Return entries `first` to `last - 1` of `merge(a, b)`, working out nothing that they do not need."""
    first_list, second_list = ([_Later(value) for value in part] for part in (a, b))
    return [node() for node in _merge(first_list, second_list, _Later.exchange)[first:last]]


def _runs(cells: list[Tensor], count: int, known: dict[int, list[Tensor]]) -> list[Tensor]:
    """Return the `_GROUP * count` cells from each group on, ascending; `cells[i]` holds the i-th of every group."""
    if count not in known:
        if count == 1:
            known[1] = order(cells)
        else:
            first = 1 << ((count - 1).bit_length() - 1)
            head, tail = (_runs(cells, part, known) for part in (first, count - first))
            places = len(cells[0]) - count + 1
            known[count] = merge([v[:places] for v in head], [v[first : first + places] for v in tail])
    return known[count]


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
    if taps < 2 * _GROUP:
        padded = x.index_select(-2, _mirrored(size, taps // 2, x.device))
        return order([padded[..., i : i + size, :] for i in range(taps)])[taps // 2]
    groups = -(-size // _GROUP)
    # Cells beyond the end that fill the last group are never part of a window that is kept.
    index = _mirrored(size, taps // 2 + _GROUP, x.device)[_GROUP:]
    padded = x.index_select(-2, index).movedim(-2, 0)

    def cell(offset: int, count: int = groups) -> Tensor:
        return padded[offset : offset + _GROUP * (count - 1) + 1 : _GROUP]

    own = _GROUP - 1  # cells of a window that not all of its group have
    shared = taps - own
    whole, rest = divmod(shared, _GROUP)
    quads = [cell(own + i, groups + whole - 1) for i in range(_GROUP)]
    first = 1 << (whole.bit_length() - 1)
    known: dict[int, list[Tensor]] = {}
    a = [value[:groups] for value in _runs(quads, first, known)]
    b = order([cell(own + _GROUP * whole + i) for i in range(rest)])
    if whole > first:
        b = merge([value[first : first + groups] for value in _runs(quads, whole - first, known)], b)
    middle = taps // 2
    core = ranks(a, b, middle - own, middle + 1)
    medians = []
    for place in range(_GROUP):
        extra = order([cell(i) for i in range(place, own)] + [cell(taps + i) for i in range(place)])
        # The middle of two ascending lists is the least, over splits, of the larger of the two last ones taken.
        median = core[-1]
        for taken in range(1, _GROUP):
            median = torch.minimum(median, torch.maximum(core[own - taken], extra[taken - 1]))
        medians.append(median)
    return torch.stack(medians, dim=1).flatten(0, 1)[:size].movedim(0, -2)


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
