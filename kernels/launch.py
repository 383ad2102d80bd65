"""How kernels are started: run on tensors, or only compiled, ahead of time and without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Compiled", "compiling", "launch"]

Compiled = tuple[str, Any]  # name of a kernel, and what Triton made of it
_compiled: list[Compiled] | None = None


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """Run a kernel.

    Args:
        kernel: Decorated by ``triton.jit``.
        grid: Programs along up to three axes; none run if one is 0.
        *args: Of the kernel.
        **options: Its constants, ``num_warps`` and ``num_stages``.
    """
    if _compiled is not None:
        made = kernel.warmup(*args, grid=grid, **options)
        _compiled.append((kernel.__name__, made))
    elif all(grid):
        kernel[grid](*args, **options)


@contextmanager
def compiling() -> Iterator[list[Compiled]]:
    """Compile what is launched in this block, for tensors on the device ``meta``, in order.

    The arguments are those of the real call, so what is looked at is what will run.
    """
    global _compiled
    before, _compiled = _compiled, []
    try:
        yield _compiled
    finally:
        _compiled = before
