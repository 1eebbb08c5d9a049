"""Run a compiled function on every thread of torch's own OpenMP team.

Two thread pools on few cores wait for each other in busy loops. So the kernels bring none: they call the entry point
of the OpenMP runtime that torch has loaded, `GOMP_parallel`, which GNU's and LLVM's runtimes both offer. Where it
cannot be found the kernels run on one thread, and `why_serial` says so.
"""

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils

from octavo.kv.row_codec import instruction

__all__ = ["next_item", "run_team", "team_launcher", "why_serial"]


@cache
def team_launcher() -> int:
    """The address of GOMP_parallel, as libtorch sees it, or 0."""
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        path = Path(torch.__file__).parent / "lib" / name
        if path.exists():  # already loaded: this only finds its handle, and symbols are looked up in what it links to
            entry = getattr(ctypes.CDLL(str(path)), "GOMP_parallel", None)
            return ctypes.cast(entry, ctypes.c_void_p).value or 0 if entry is not None else 0
    return 0


def why_serial() -> str | None:
    """Why the kernels use one thread although torch uses more, or None."""
    if torch.get_num_threads() > 1 and not team_launcher():
        return "torch's OpenMP runtime was not found"
    return None


@instruction
def run_team(typingctx: Any, launcher: Any, threads: Any, worker: Any, args: Any) -> Any:
    """`worker(*args)` on each of `threads` threads at once, or on this one; returns when all have.

    `worker` must not raise.
    """
    call = worker.get_call_type(typingctx, args.types, {})

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        launcher, threads, _, packed = values
        compiled = worker.dispatcher.get_compile_result(call)
        context.active_code_library.add_linking_library(compiled.library)
        pointer = ir.IntType(8).as_pointer()
        body_type = ir.FunctionType(ir.VoidType(), [pointer])
        body = ir.Function(builder.module, body_type, builder.module.get_unique_name("team_body"))
        body.linkage = "internal"
        inner = ir.IRBuilder(body.append_basic_block())
        fields = cgutils.unpack_tuple(inner, inner.load(inner.bitcast(body.args[0], packed.type.as_pointer())))
        context.call_internal_no_propagate(inner, compiled.fndesc, call, fields)
        inner.ret_void()
        # void GOMP_parallel(void (*fn)(void *), void *data, unsigned num_threads, unsigned flags)
        count = ir.IntType(32)
        entry_type = ir.FunctionType(ir.VoidType(), [body_type.as_pointer(), pointer, count, count])
        entry = builder.inttoptr(launcher, entry_type.as_pointer())
        data = builder.bitcast(cgutils.alloca_once_value(builder, packed), pointer)
        with builder.if_else(builder.icmp_signed(">", threads, ir.Constant(threads.type, 1))) as (many, one):
            with many:
                builder.call(entry, [body, data, builder.trunc(threads, count), ir.Constant(count, 0)])
            with one:
                builder.call(body, [data])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, worker, args), codegen


@instruction
def next_item(typingctx: Any, counter: Any) -> Any:
    """Atomically add one to the int64 at an address; returns what it was. Orders what came before it on this thread."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        word = ir.IntType(64)
        pointer = builder.inttoptr(values[0], word.as_pointer())
        return builder.atomic_rmw("add", pointer, ir.Constant(word, 1), "acq_rel")

    return types.int64(types.int64), codegen
