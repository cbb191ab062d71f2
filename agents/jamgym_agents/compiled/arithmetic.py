"""What both the blocks and the depth module are made of, in compiled loops.

Every number is the work of one thread, so the number of threads changes nothing.

Shapes: R rows, C width.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import prange

from jamgym_agents.compiled.arrays import Floats, Linear, Matrix, Norm
from jamgym_agents.compiled.compiling import parallel, serial, strict
from jamgym_agents.compiled.intrinsics import prefer_wide_vectors, to_float32

#: So many are done before threads have shared them out.
FEW_PRODUCTS = 2**16
_ROUND = np.float32(1.5 * 2**23)
_LOG2_E = np.float32(1 / math.log(2))
#: log(2) as a number of few bits, whose small multiples are exact, and what is missing.
_LOG_2 = np.float32(round(math.log(2) * 2**9) / 2**9)
_LOG_2_REST = np.float32(math.log(2) - round(math.log(2) * 2**9) / 2**9)
_C2, _C3, _C4, _C5, _C6, _C7 = (np.float32(1 / math.factorial(n)) for n in range(2, 8))
#: Below it, e^x is less than the smallest normal number.
_LOWEST = np.float32(-87.0)
_HIGHEST = np.float32(88.0)
#: Numbers in a vector of 512 bits.
_LANES = 16


@strict
def exp(x: np.float32) -> np.float32:
    """Return e^x within three roundings, 0 below -87; for x up to 88.

    A library's would be called number by number; this one lets the compiler do several at once. 2^n e^r, n an integer
    and r within log(2) / 2, by Taylor's series.
    """
    bounded = min(max(x, _LOWEST), _HIGHEST)
    n = np.float32(np.float32(bounded * _LOG2_E + _ROUND) - _ROUND)
    r = np.float32(np.float32(bounded - n * _LOG_2) - n * _LOG_2_REST)
    series = _C2 + r * (_C3 + r * (_C4 + r * (_C5 + r * (_C6 + r * _C7))))
    power = np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
    result = power * (np.float32(1.0) + r * (np.float32(1.0) + r * series))
    # So that NaN stays NaN.
    return x if x != x else (np.float32(0.0) if x < _LOWEST else result)


@serial
def maximum(x: Floats) -> np.float32:
    """Return the largest number of `x` `(C,)`, passing over NaN.

    Several at once, where numba's own `max` looks at one after the other to find NaN.
    """
    prefer_wide_vectors()
    lanes = np.full(_LANES, -np.inf, np.float32)
    whole = len(x) - len(x) % _LANES
    for begin in range(0, whole, _LANES):
        for j in range(_LANES):
            lanes[j] = x[begin + j] if x[begin + j] > lanes[j] else lanes[j]
    result = np.float32(-np.inf)
    for j in range(_LANES):
        result = lanes[j] if lanes[j] > result else result
    for j in range(whole, len(x)):
        result = x[j] if x[j] > result else result
    return result


@serial
def dot(a: Matrix, b: Floats) -> np.float32:
    """Return the product of two rows of numbers of one length."""
    prefer_wide_vectors()
    total = np.float32(0.0)
    for j in range(len(a)):
        total += to_float32(a[j]) * b[j]
    return total


@serial
def dot_tile(a: Matrix, b: Matrix, c: Matrix, d: Matrix, x: Floats, r: int) -> Any:
    """Return the products of each of a to d with four rows of `x` from row r on: numbers are read once."""
    prefer_wide_vectors()
    a0, a1, a2, a3 = np.float32(0.0), np.float32(0.0), np.float32(0.0), np.float32(0.0)
    b0, b1, b2, b3 = np.float32(0.0), np.float32(0.0), np.float32(0.0), np.float32(0.0)
    c0, c1, c2, c3 = np.float32(0.0), np.float32(0.0), np.float32(0.0), np.float32(0.0)
    d0, d1, d2, d3 = np.float32(0.0), np.float32(0.0), np.float32(0.0), np.float32(0.0)
    x0, x1, x2, x3 = x[r], x[r + 1], x[r + 2], x[r + 3]
    for j in range(len(a)):
        aj, bj, cj, dj = to_float32(a[j]), to_float32(b[j]), to_float32(c[j]), to_float32(d[j])
        a0 += aj * x0[j]
        a1 += aj * x1[j]
        a2 += aj * x2[j]
        a3 += aj * x3[j]
        b0 += bj * x0[j]
        b1 += bj * x1[j]
        b2 += bj * x2[j]
        b3 += bj * x3[j]
        c0 += cj * x0[j]
        c1 += cj * x1[j]
        c2 += cj * x2[j]
        c3 += cj * x3[j]
        d0 += dj * x0[j]
        d1 += dj * x1[j]
        d2 += dj * x2[j]
        d3 += dj * x3[j]
    return (a0, a1, a2, a3), (b0, b1, b2, b3), (c0, c1, c2, c3), (d0, d1, d2, d3)


def _linear(weights: Linear, x: Floats, y: Floats) -> None:
    weight, scale, bias = weights
    count, rows = len(weight), len(x)
    tiled = rows - rows % 4
    for four in prange((count + 3) // 4):
        # If the outputs are no multiple of four, the last one is computed again.
        last = count - 1
        a, b, c, d = 4 * four, min(4 * four + 1, last), min(4 * four + 2, last), min(4 * four + 3, last)
        outputs = (a, b, c, d)
        for r in range(0, tiled, 4):
            products = dot_tile(weight[a], weight[b], weight[c], weight[d], x, r)
            for m in range(4):
                for n in range(4):
                    y[r + n, outputs[m]] = products[m][n] * scale[outputs[m]] + bias[outputs[m]]
        for r in range(tiled, rows):
            for i in outputs:
                y[r, i] = dot(weight[i], x[r]) * scale[i] + bias[i]


_serial_linear, _parallel_linear = serial(_linear), parallel(_linear)


@serial
def linear(weights: Linear, x: Floats, y: Floats) -> None:
    """Set `y` `(R, out)` to the product of the weights and `x` `(R, in)`, plus the bias."""
    if weights.weight.size * len(x) > FEW_PRODUCTS:
        _parallel_linear(weights, x, y)
    else:
        _serial_linear(weights, x, y)


@serial
def gelu(x: Floats) -> None:
    """Put GELU of `x` `(R, C)` in its place.

    The error function is formula 7.1.26 of Abramowitz and Stegun 1964, within 1.5e-7.
    """
    prefer_wide_vectors()
    for r in range(x.shape[0]):
        for j in range(x.shape[1]):
            value = x[r, j]
            z = abs(value) * np.float32(math.sqrt(0.5))
            t = np.float32(1.0) / (np.float32(1.0) + np.float32(0.3275911) * z)
            series = np.float32(1.421413741) + t * (np.float32(-1.453152027) + t * np.float32(1.061405429))
            series = t * (np.float32(0.254829592) + t * (np.float32(-0.284496736) + t * series))
            # 1 - erf(z), from which small results are taken without loss.
            rest = np.float32(0.5) * series * exp(-z * z)
            x[r, j] = value * (np.float32(1.0) - rest if value > 0 else rest)


@serial
def normalise(weights: Norm, x: Floats, y: Floats) -> None:
    """Set `y` to the layer normalisation of `x`, both `(R, C)`."""
    count = np.float32(x.shape[1])
    for r in range(x.shape[0]):
        mean = np.float32(0.0)
        for j in range(x.shape[1]):
            mean += x[r, j]
        mean /= count
        variance = np.float32(0.0)
        for j in range(x.shape[1]):
            variance += (x[r, j] - mean) ** 2
        scale = np.float32(1.0) / np.float32(math.sqrt(variance / count + np.float32(weights.epsilon)))
        for j in range(x.shape[1]):
            y[r, j] = (x[r, j] - mean) * scale * weights.scale[j] + weights.shift[j]
