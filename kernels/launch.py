"""How kernels are started: run on tensors, or only compiled, ahead of time and without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["Capability", "Compiled", "capability", "compiling", "launch"]

Capability = tuple[int, int]
Compiled = tuple[str, Any]  # name of a kernel, and what Triton made of it
LEAST_CAPABILITY = (8, 0)  # bfloat16 products and asynchronous copies came with Ampere
_compiled: list[Compiled] | None = None
_target: Capability | None = None


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


def capability() -> Capability:
    """What kernels are made for: the target of `compiling`, else the current device.

    ``(9, 0)`` is Hopper, ``(8, 0)`` Ampere. The interpreter has no limits; it is given the least.
    """
    if _target is not None:
        return _target
    return torch.cuda.get_device_capability() if torch.cuda.is_available() else LEAST_CAPABILITY


@contextmanager
def compiling(target: Capability | None = None) -> Iterator[list[Compiled]]:
    """Compile what is launched in this block, for tensors on the device ``meta``, in order.

    The arguments are those of the real call, so what is looked at is what will run.

    Args:
        target: What `capability` answers in this block; Triton's driver has to agree.
    """
    global _compiled, _target
    before, _compiled, _target = (_compiled, _target), [], target
    try:
        yield _compiled
    finally:
        _compiled, _target = before
