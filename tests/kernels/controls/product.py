"""A matrix product in good and bad shape: what the check of compiled kernels must tell apart."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from case import Case, Inputs

from kernels.launch import launch


@triton.jit
def _product(
    a, b, out, M, N, K,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    total = tl.zeros([BM, BN], tl.float32)
    for start in range(0, K, BK):
        k = start + tl.arange(0, BK)
        rows = tl.load(a + m[:, None] * K + k[None], (m[:, None] < M) & (k[None] < K), 0.0)
        columns = tl.load(b + n[None] * K + k[:, None], (n[None] < N) & (k[:, None] < K), 0.0)
        total = tl.dot(rows, columns, total, input_precision=PRECISION)
    inside = (m[:, None] < M) & (n[None] < N)
    tl.store(out + m[:, None] * N + n[None], total.to(out.dtype.element_ty), inside)


def _case(
    name: str, width: int = 512, tile: tuple[int, int, int] = (64, 64, 64),
    warps: int = 4, stages: int = 2, dtype: torch.dtype = torch.float16, precision: str = "tf32",
) -> Case:  # fmt: skip
    def inputs(device: str, seed: int) -> Inputs:
        return tuple(torch.empty(512, width, dtype=dtype, device=device) for _ in "ab")

    def run(a: torch.Tensor, b: torch.Tensor) -> None:
        out = a.new_empty(512, 512)
        m, n, k = tile
        launch(
            _product, (512 // m, 512 // n), a, b, out, 512, 512, width,
            BM=m, BN=n, BK=k, PRECISION=precision, num_warps=warps, num_stages=stages,
        )  # fmt: skip

    return Case("product", name, inputs, run, run, run, tensor_cores={"_product": "wgmma"})


CASES = [
    _case("good"),
    _case("spilling", tile=(256, 256, 32)),
    _case("large", tile=(128, 256, 128), warps=8, stages=4),
    _case("misaligned", width=501),
    _case("exact", tile=(32, 32, 32), dtype=torch.float32, precision="ieee"),
]
