"""Sizes of Ward's cost: an observation meets all clusters of a memory."""

from __future__ import annotations

import torch
from case import Case, Inputs, normal

from kernels.ward import cpu, reference


def _case(clusters: int, width: int, *, processor: bool = False, small: bool = False) -> Case:
    def inputs(device: str, seed: int) -> Inputs:
        keys = normal(device, seed, clusters, width, dtype=torch.float32)
        mass = normal(device, seed + 1, clusters).abs() + 0.1
        return keys, mass, normal(device, seed + 2, width), mass[:1].reshape(())

    def run(*parts: torch.Tensor) -> torch.Tensor:
        from kernels.ward import triton

        return triton.run(*parts)

    def broadcast(keys, mass, key, one):
        return mass * one / (mass + one) * (keys - key).square().sum(1)

    return Case(
        "merge_costs",
        f"{clusters} x {width}",
        inputs,
        run,
        reference.merge_costs,
        cpu.merge_costs,
        {"broadcast": broadcast},
        moved=4.0 * clusters * width,
        flops=3.0 * clusters * width,
        processor=processor,
        small=small,
    )


CASES = [
    _case(4096, 1024),
    _case(256, 16384),
    _case(512, 1024, processor=True),
    _case(5, 40, small=True),
]
