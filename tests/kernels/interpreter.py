"""Bfloat16 in Triton's interpreter as on a GPU; for tests alone.

The interpreter (3.6 to 3.9) keeps bfloat16 as whole numbers, multiplies these in ``tl.dot``, and
cuts where a GPU rounds. `canary` in test_interpreter.py fails once either is mended upstream.
"""

from __future__ import annotations

import numpy as np
import triton.language as tl
from triton.runtime import interpreter


def _rounded(data: np.ndarray) -> np.ndarray:
    """Float32 as the bits of the nearest bfloat16, even ones on ties."""
    bits = np.ascontiguousarray(data, np.float32).view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    return np.where(np.isnan(data), np.uint16(0x7FC0), rounded)


def _widened(handle: interpreter.TensorHandle) -> interpreter.TensorHandle:
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    wide = (handle.data.astype(np.uint32) << 16).view(np.float32)
    return interpreter.TensorHandle(wide, tl.float32)


def install() -> None:
    """Mend the interpreter of this process; a second call does nothing."""
    builder = interpreter.InterpreterBuilder
    if getattr(builder, "vismem_bfloat16", False):
        return
    dot, cast = builder.create_dot, builder.cast_impl

    def create_dot(self, a, b, d, precision, imprecise):
        return dot(self, _widened(a), _widened(b), d, precision, imprecise)

    def cast_impl(self, src, dst_type):
        if src.dtype.scalar == tl.float32 and dst_type.scalar == tl.bfloat16:
            return interpreter.TensorHandle(_rounded(src.data), tl.bfloat16)
        return cast(self, src, dst_type)

    builder.create_dot, builder.cast_impl = create_dot, cast_impl
    builder.vismem_bfloat16 = True
