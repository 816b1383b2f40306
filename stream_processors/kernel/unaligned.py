"""Eight bytes at once from any position of a byte array: what numpy's arrays can't say.

The caller sees to it that the eight bytes are inside the array. With numba's compiler switched off
(NUMBA_DISABLE_JIT, as the bounds test runs the kernel) plain Python does it, and checks.
"""

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic


def _load_u64_plainly(data: Any, at: int) -> Any:
    if at < 0 or at + 8 > len(data):
        raise IndexError(at)
    return np.uint64(int.from_bytes(bytes(data[at : at + 8]), "little"))


def _make_load_u64(typing_context: Any, data: Any, at: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        place = cgutils.gep_inbounds(builder, array.data, arguments[1])
        word = builder.load(builder.bitcast(place, ir.IntType(64).as_pointer()))
        word.align = 1
        return word

    return types.uint64(data, types.int64), generate


_settings: Any = numba.config
load_u64: Any = _load_u64_plainly if _settings.DISABLE_JIT else intrinsic(_make_load_u64)
"""load_u64(data, at) returns data[at:at + 8] as a little-endian uint64."""
