"""One call of an operator, as the compiler, the checks and the clock see it.

Cases take the operators from this checkout, as the package ``kernels``: vismem need not be there.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["Case", "Inputs", "load_cases", "normal"]

sys.path.insert(1, str(Path(__file__).parents[2]))
# Whoever asked for a package of this name before may have been given some folder called so.
if getattr(sys.modules.get("kernels"), "__file__", "") is None:
    del sys.modules["kernels"]
Inputs = tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Case:
    """A size of an operator.

    Args:
        op: Name of the operator.
        name: Of the size.
        inputs: Makes the arguments on a device from a seed; on ``meta``, without values.
        ours: Triton's form as it is started, without any choice: ``kernels.<op>.triton.run``.
        reference: The specification; given the arguments in float64 where they are floating.
        torch: PyTorch's form, ``kernels.<op>.cpu``, which also runs on a GPU.
        baselines: Other ways to the same result in PyTorch, by name.
        moved: Bytes that have to be read and written at least.
        flops: Operations that have to be done at least.
        tolerance: Largest relative error (Frobenius) of the floating results.
        processor: Whether it is of a size that is timed on a processor; else on a GPU.
        small: Whether it is of a size for the interpreter, where it is checked and not timed.
        same: Compares results instead, giving a complaint or None, where an error will not do
            (indices with ties).
        tensor_cores: Kernels that have to use them, by name (``_attend``): ``wgmma`` where Hopper's
            own instructions are meant, ``mma`` where tiles are too small for these.
        parts: Cuts the arguments so that the references of the parts, one after the other along
            their first dimension, are that of the whole; where the whole would not fit.
    """

    op: str
    name: str
    inputs: Callable[[str, int], Inputs]
    ours: Callable[..., Any]
    reference: Callable[..., Any]
    torch: Callable[..., Any]
    baselines: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    moved: float = 0.0
    flops: float = 0.0
    tolerance: float = 1e-5
    processor: bool = False
    small: bool = False
    same: Callable[[Any, Any], str | None] | None = None
    tensor_cores: Mapping[str, str] = field(default_factory=dict)
    parts: Callable[[Inputs], Iterable[Inputs]] | None = None


def normal(device: str, seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers; an empty promise of them on ``meta``."""
    if device == "meta":
        return torch.empty(*shape, dtype=dtype, device="meta")
    draws = torch.Generator(device).manual_seed(seed)
    return torch.randn(*shape, generator=draws, device=device).to(dtype)


@cache
def load_cases(folder: Path = Path(__file__).parent / "cases") -> tuple[Case, ...]:
    """The cases of all operators, in the order of their files."""
    cases: list[Case] = []
    for path in sorted(folder.glob("*.py")):
        spec = importlib.util.spec_from_file_location(f"cases_{path.stem}", path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        cases += module.CASES
    return tuple(cases)
