"""Ward's cost on a GPU: one program for each few keys, which it reads once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import launch
from .configs import config


@triton.jit
def _merge_costs(
    keys, mass, key, key_mass, costs, count, width,
    BLOCK_K: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Costs of ``BLOCK_K`` keys."""
    row = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    there = row < count
    squares = tl.zeros([BLOCK_K], tl.float32)
    for start in range(0, width, BLOCK_S):
        column = start + tl.arange(0, BLOCK_S)
        inside = column < width
        at = row[:, None].to(tl.int64) * width + column[None]
        many = tl.load(keys + at, there[:, None] & inside[None], 0.0).to(tl.float32)
        one = tl.load(key + column, inside, 0.0).to(tl.float32)
        difference = many - one[None]
        squares += tl.sum(difference * difference, 1)
    a = tl.load(mass + row, there, 1.0).to(tl.float32)
    b = tl.load(key_mass).to(tl.float32)
    tl.store(costs + row, a * b / (a + b) * squares, there)


@torch.library.custom_op("vismem::merge_costs", mutates_args=())
def merge_costs(keys: Tensor, mass: Tensor, key: Tensor, key_mass: Tensor) -> Tensor:
    """Run the kernel, see :func:`vismem.kernels.ward.merge_costs`."""
    return run(keys, mass, key, key_mass)


@merge_costs.register_fake
def _(keys: Tensor, mass: Tensor, key: Tensor, key_mass: Tensor) -> Tensor:
    return keys.new_empty(len(keys), dtype=torch.float32)


def run(keys: Tensor, mass: Tensor, key: Tensor, key_mass: Tensor) -> Tensor:
    """Start the kernel; also on tensors without data, to compile it."""
    keys, mass, key = keys.contiguous(), mass.contiguous(), key.contiguous()
    costs = torch.empty(len(keys), dtype=torch.float32, device=keys.device)
    chosen = config(keys.shape[1])
    grid = (triton.cdiv(len(keys), chosen.tiles["BLOCK_K"]),)
    launch(
        _merge_costs, grid, keys, mass, key, key_mass, costs, len(keys), keys.shape[1],
        **chosen.options,
    )  # fmt: skip
    return costs
