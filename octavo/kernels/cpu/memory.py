"""Numba arrays over memory given by its address, and scratch room aligned to a cache line."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.np.numpy_support import carray

from octavo.kv.row_codec import instruction

__all__ = ["address_of", "aligned", "floats", "ints32", "ints64", "keep_alive", "octets", "prefetch"]


@instruction
def _pointer(typingctx: Any, address: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), codegen


@njit(inline="always")
def floats(address, count):
    """fp32 `[count]` at an address."""
    return carray(_pointer(address), (count,), np.float32)


@njit(inline="always")
def octets(address, count):
    """uint8 `[count]` at an address."""
    return carray(_pointer(address), (count,), np.uint8)


@njit(inline="always")
def ints32(address, count):
    return carray(_pointer(address), (count,), np.int32)


@njit(inline="always")
def ints64(address, count):
    return carray(_pointer(address), (count,), np.int64)


@njit(inline="always")
def address_of(array):
    """Valid up to the array's last mention: Numba frees an array right after it. See `keep_alive`."""
    return np.int64(array.ctypes.data)


@instruction
def keep_alive(typingctx: Any, array: Any) -> Any:
    """A last mention: the array is not freed before this line."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.get_dummy_value()

    return types.void(array), codegen


@instruction
def prefetch(typingctx: Any, address: Any) -> Any:
    """Ask for the cache line at an address; any address will do."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer, word, word, word])
        call = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        read, near, data = (ir.Constant(word, value) for value in (0, 2, 1))  # into L2 cache
        builder.call(call, [builder.inttoptr(args[0], pointer), read, near, data])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@njit(inline="always")
def aligned(address):
    """The next address on a cache line."""
    return (address + 63) & ~63
