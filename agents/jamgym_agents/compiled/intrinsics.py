"""What numba has no words for: told to LLVM directly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic


def _prefer_wide_vectors(_: Any) -> Any:
    def generate(context: Any, builder: Any, *_: Any) -> Any:
        # Past llvmlite's own check, which knows no attributes that have values.
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.none(), generate


def _to_float32(_: Any, number: Any) -> Any:
    def generate(_: Any, builder: Any, __: Any, values: Any) -> Any:
        (value,) = values
        if number == types.int16:
            return builder.fpext(builder.bitcast(value, ir.HalfType()), ir.FloatType())
        return value if number == types.float32 else builder.sitofp(value, ir.FloatType())

    return types.float32(number), generate


#: Lets the compiler use vectors of 512 bits, where there are some, in the function that calls it. LLVM would use half
#: of them, because the first processors that had them slowed down.
prefer_wide_vectors = cast(Callable[[], None], intrinsic(_prefer_wide_vectors))
#: Returns a number of an `arrays.Matrix` in single precision; of int16, the bits are those of half precision.
to_float32 = cast(Callable[[Any], np.float32], intrinsic(_to_float32))
