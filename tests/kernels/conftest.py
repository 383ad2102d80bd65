"""Triton's kernels run here in its interpreter, or on a GPU where there is one."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# The benchmark of the kernels imports its parts by name.
sys.path.append(str(Path(__file__).parents[2] / "benchmarks/kernels"))


@pytest.fixture
def device() -> str:
    """Where the kernels of `in_triton` run."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def in_triton() -> Iterator[None]:
    """Run operators in Triton's form."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    from interpreter import install
    from vismem.kernels.registry import using

    if not torch.cuda.is_available():
        install()
    with using("triton"):
        yield
