"""What the other tests stand on: Triton's interpreter, mended, multiplies and rounds as a GPU."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton")
if torch.cuda.is_available():
    pytest.skip("kernels run on the GPU here", allow_module_level=True)

import triton
import triton.language as tl


@triton.jit
def _product(a, b, out, N: tl.constexpr):
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None]
    product = tl.dot(tl.load(a + at), tl.load(b + at))
    tl.store(out + at, product.to(out.dtype.element_ty))


@triton.jit
def _round(wide, narrow, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(narrow + at, tl.load(wide + at).to(tl.bfloat16))


@pytest.mark.usefixtures("in_triton")
def test_products_of_bfloat16_are_products_of_numbers() -> None:
    draws = torch.Generator().manual_seed(0)
    a, b = (torch.randn(16, 16, generator=draws).bfloat16() for _ in range(2))
    out = torch.empty(16, 16)
    _product[(1,)](a, b, out, N=16)
    torch.testing.assert_close(out, a.float() @ b.float())


@pytest.mark.usefixtures("in_triton")
def test_bfloat16_is_rounded_to_the_nearest() -> None:
    wide = torch.randn(4096, generator=torch.Generator().manual_seed(0))
    wide[:4] = torch.tensor([float("inf"), float("-inf"), float("nan"), 1.00390625])
    narrow = torch.empty(4096, dtype=torch.bfloat16)
    _round[(1,)](wide, narrow, N=4096)
    torch.testing.assert_close(narrow, wide.bfloat16(), rtol=0, atol=0, equal_nan=True)


CANARY = """
import os, torch
os.environ["TRITON_INTERPRET"] = "1"
import triton, triton.language as tl
@triton.jit
def product(a, b, out, N: tl.constexpr):
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None]
    tl.store(out + at, tl.dot(tl.load(a + at), tl.load(b + at)))
a, out = torch.eye(16).bfloat16(), torch.empty(16, 16)
product[(1,)](a, a, out, N=16)
print(out[0, 0].item() == 1)
"""


def test_canary(tmp_path) -> None:
    """The interpreter as it comes still needs mending; if not, delete interpreter.py."""
    script = tmp_path / "canary.py"
    script.write_text(CANARY)
    made = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=True, timeout=120
    )
    assert made.stdout.strip() == "False"
