"""What both the blocks and the depth module are made of, in compiled loops.

Every number is the work of one thread, so the number of threads changes nothing.

Shapes: R rows, C width.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import prange

from jamgym_agents.compiled.arrays import Bytes, Floats, Linear, Norm
from jamgym_agents.compiled.compiling import parallel, serial, strict

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
def dot(a: Floats | Bytes, b: Floats) -> np.float32:
    """Return the product of two rows of numbers of one length."""
    total = np.float32(0.0)
    for j in range(len(a)):
        total += np.float32(a[j]) * b[j]
    return total


@serial
def dot_tile(a: Floats | Bytes, b: Floats | Bytes, x: Floats, r: int) -> Any:
    """Return the products of `a`, then those of `b`, and four rows of `x` from row r on: each is read once."""
    a0, a1, a2, a3 = np.float32(0.0), np.float32(0.0), np.float32(0.0), np.float32(0.0)
    b0, b1, b2, b3 = np.float32(0.0), np.float32(0.0), np.float32(0.0), np.float32(0.0)
    x0, x1, x2, x3 = x[r], x[r + 1], x[r + 2], x[r + 3]
    for j in range(len(a)):
        left, right = np.float32(a[j]), np.float32(b[j])
        a0 += left * x0[j]
        a1 += left * x1[j]
        a2 += left * x2[j]
        a3 += left * x3[j]
        b0 += right * x0[j]
        b1 += right * x1[j]
        b2 += right * x2[j]
        b3 += right * x3[j]
    return (a0, a1, a2, a3), (b0, b1, b2, b3)


def _linear(weights: Linear, x: Floats, y: Floats) -> None:
    weight, scale, bias = weights
    count, rows = len(weight), len(x)
    tiled = rows - rows % 4
    for pair in prange((count + 1) // 2):
        # The last of an odd number of outputs is computed twice.
        i, j = 2 * pair, min(2 * pair + 1, count - 1)
        for r in range(0, tiled, 4):
            left, right = dot_tile(weight[i], weight[j], x, r)
            for n in range(4):
                y[r + n, i] = left[n] * scale[i] + bias[i]
                y[r + n, j] = right[n] * scale[j] + bias[j]
        for r in range(tiled, rows):
            y[r, i] = dot(weight[i], x[r]) * scale[i] + bias[i]
            y[r, j] = dot(weight[j], x[r]) * scale[j] + bias[j]


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
