"""What numpy's arrays can't say: eight bytes at once from anywhere, trailing zeros, prefetches.

The caller makes sure that the eight bytes are inside the array. Where numba's compiler is switched
off (NUMBA_DISABLE_JIT, as in the bounds test), plain Python does the same, and checks.
"""

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_FOR_READING, _KEEP, _DATA = 0, 3, 1  # LLVM's words for a prefetch into all levels of cache
_I32, _I64 = ir.IntType(32), ir.IntType(64)


def _load_u64_plainly(data: Any, at: int) -> Any:
    if at < 0 or at + 8 > len(data):
        raise IndexError(at)
    return np.uint64(int.from_bytes(bytes(data[at : at + 8]), "little"))


def _make_load_u64(typing_context: Any, data: Any, at: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        place = cgutils.gep_inbounds(builder, array.data, arguments[1])
        word = builder.load(builder.bitcast(place, _I64.as_pointer()))
        word.align = 1
        return word

    return types.uint64(data, types.int64), generate


def _trailing_zeros_plainly(word: Any) -> Any:
    assert word
    return np.int64((int(word) & -int(word)).bit_length() - 1)


def _make_trailing_zeros(typing_context: Any, word: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.IntType(1)(1))

    return types.int64(types.uint64), generate


def _prefetch_plainly(array: Any, at: int) -> None:
    if not 0 <= at < len(array):
        raise IndexError(at)


def _make_prefetch(typing_context: Any, array: Any, at: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        found = context.make_array(signature.args[0])(context, builder, arguments[0])
        first = builder.bitcast(found.data, cgutils.voidptr_t)
        skipped = builder.mul(arguments[1], found.itemsize)
        last = builder.sub(found.itemsize, found.itemsize.type(1))
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, _I32, _I32, _I32])
        fetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        for byte in (skipped, builder.add(skipped, last)):
            place = cgutils.pointer_add(builder, first, byte)
            builder.call(fetch, [place, _I32(_FOR_READING), _I32(_KEEP), _I32(_DATA)])
        return context.get_dummy_value()

    return types.void(array, types.int64), generate


_settings: Any = numba.config
_is_plain = bool(_settings.DISABLE_JIT)

load_u64: Any = _load_u64_plainly if _is_plain else intrinsic(_make_load_u64)
"""load_u64(data, at) returns data[at:at + 8] as a little-endian uint64."""

trailing_zeros: Any = _trailing_zeros_plainly if _is_plain else intrinsic(_make_trailing_zeros)
"""trailing_zeros(word) returns how many of a uint64's lowest bits are 0; it must not be 0."""

prefetch: Any = _prefetch_plainly if _is_plain else intrinsic(_make_prefetch)
"""prefetch(array, at) asks for the first and the last byte of array[at], and doesn't wait."""
