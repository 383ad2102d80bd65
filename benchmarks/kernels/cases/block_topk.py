"""Sizes of choosing blocks: a question meets the mean keys, or bounds, of all blocks of a layer."""

from __future__ import annotations

import torch
from case import Case, Inputs, normal

from kernels.block_topk import cpu, reference

GROUPS, WIDTH, CHOSEN = 4, 128, 64


def _case(count: int, rule: str, *, processor: bool = False, small: bool = False) -> Case:
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
        """Scores, and blocks where those beside them are more than rounding apart."""
        scores = wanted[0].double()
        off = (found[0].double() - scores).abs().max()
        if not off <= 1e-3:
            return f"scores are {off:.1e} apart"
        clear = (scores[:-1] - scores[1:]) > 2e-3
        alone = clear[:-1] & clear[1:]  # the last has a neighbour that is not known
        unequal = int((found[1][1:-1][alone] != wanted[1][1:-1][alone]).sum())
        return f"{unequal} blocks are not the best" if unequal else None

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
        small=small,
        same=same,
    )


CASES = [
    _case(2**14, "mean"),
    _case(2**14, "minmax"),
    _case(2**17, "mean"),
    _case(2**14, "mean", processor=True),
    _case(2**14, "minmax", processor=True),
    _case(100, "mean", small=True),
    _case(100, "minmax", small=True),
]
