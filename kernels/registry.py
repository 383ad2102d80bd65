"""Which form of an operator runs: Triton's where it can, PyTorch's anywhere.

``VISMEM_KERNELS`` says it for a process, `using` for a block of code: ``auto`` takes Triton's form
on a CUDA device that can run it and says once, in the log, why it does not; ``torch`` never takes
it; ``triton`` refuses to go on without it. PyTorch's form runs on any device.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor

from .launch import LEAST_CAPABILITY

__all__ = ["Mode", "uses_triton", "using"]

Mode = Literal["auto", "torch", "triton"]
_log = logging.getLogger(__name__)


def _checked(mode: str) -> Mode:
    if mode not in get_args(Mode):
        raise ValueError(f"VISMEM_KERNELS is one of {', '.join(get_args(Mode))}, not {mode!r}")
    return mode  # type: ignore[return-value]


_mode: Mode = _checked(os.environ.get("VISMEM_KERNELS", "auto"))


@contextmanager
def using(mode: Mode) -> Iterator[None]:
    """Choose the form for a block of code; of the whole process, not of the thread.

    Args:
        mode: ``auto``, ``torch`` or ``triton``.

    Raises:
        ValueError: If it is none of these.
    """
    global _mode
    before, _mode = _mode, _checked(mode)
    try:
        yield
    finally:
        _mode = before


def uses_triton(op: str, like: Tensor, obstacle: str | None = None) -> bool:
    """Whether Triton's form of an operator runs on a tensor.

    Args:
        op: Name of the operator.
        like: A tensor of the call; its device decides.
        obstacle: Why Triton's form cannot take this call, if it cannot.

    Raises:
        RuntimeError: If Triton's form is asked for by name and cannot run.
    """
    if _mode == "torch" or (_mode == "auto" and like.device.type == "cpu"):
        return False
    reason = _unavailable(like.device.type) or obstacle
    if reason is None:
        return True
    if _mode == "triton":
        raise RuntimeError(
            f"{op} cannot run in Triton: {reason}; set VISMEM_KERNELS=auto to run it in PyTorch"
        )
    if not torch.compiler.is_compiling():
        _tell(op, reason)
    return False


# Asked once while a graph is traced, and true from then on.
@torch.compiler.assume_constant_result
def _unavailable(device: str) -> str | None:
    """Why no kernel can run on a kind of device; None if one can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if device == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return None
    if device != "cuda" or torch.version.hip:
        return f"its kernels are made for CUDA devices, not {device}"
    found = torch.cuda.get_device_capability()
    if found < LEAST_CAPABILITY:
        return f"its kernels need compute capability {LEAST_CAPABILITY}, this device has {found}"
    return None


@lru_cache
def _tell(op: str, reason: str) -> None:
    _log.warning("%s runs in PyTorch: %s", op, reason)
