"""Sizes of choosing blocks: a question meets the mean keys, or bounds, of all blocks of a layer."""

from __future__ import annotations

import torch
from case import Case, Inputs, normal

from kernels.block_topk import cpu, reference

GROUPS, WIDTH, CHOSEN = 4, 128, 64


def _case(count: int, rule: str, *, processor: bool = False) -> Case:
    dtype = torch.float32 if processor else torch.bfloat16
    pair = (2,) if rule == "minmax" else ()

    def inputs(device: str, seed: int) -> Inputs:
        reps = normal(device, seed + 1, count, *pair, GROUPS, WIDTH, dtype=dtype)
        if pair and device != "meta":
            reps = reps.sort(1).values
        return normal(device, seed, GROUPS, WIDTH, dtype=dtype), reps

    def run(query, reps):
        from kernels.block_topk import triton

        return triton.run(query, reps, CHOSEN, rule == "minmax")

    def plain(query, reps):
        query = query.float().flatten()
        if rule == "mean":
            scores = reps.float().flatten(1) @ query
        else:
            scores = (reps.float().flatten(2) * query).amax(1).sum(1)
        return torch.topk(scores, CHOSEN)

    def same(found, wanted) -> str | None:
        """Scores; rows of equal ones but for rounding may stand in another order."""
        off = (found[0].double() - wanted[0].double()).abs().max()
        return f"scores are {off:.1e} apart" if off > 1e-3 else None

    return Case(
        "block_topk",
        f"{rule} {count} x {GROUPS * WIDTH}",
        inputs,
        run,
        lambda query, reps: reference.block_topk(query, reps, CHOSEN, rule),
        lambda query, reps: cpu.block_topk(query, reps, CHOSEN, rule),
        {"product and topk": plain},
        moved=float(count * (len(pair) + 1) * GROUPS * WIDTH * dtype.itemsize),
        flops=2.0 * count * GROUPS * WIDTH * (len(pair) + 1),
        processor=processor,
        same=same,
    )


CASES = [
    _case(2**14, "mean"),
    _case(2**14, "minmax"),
    _case(2**17, "mean"),
    _case(2**14, "mean", processor=True),
    _case(2**14, "minmax", processor=True),
]
