"""Random pages and lists of them, and how far two results are apart."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from vismem.kernels.memory_attention import Reads

TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=draws(seed)).to(dtype)


def pages(
    batch: int, count: int, heads: tuple[int, int], widths: tuple[int, int], size: tuple[int, int],
    *, seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu",
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Query, keys and values; ``heads`` are ``H, G``, ``widths`` ``D, E``, ``size`` ``P, T``."""
    query = 2 * normal(batch, count, heads[0], widths[0], seed=seed)
    keys = normal(*size, heads[1], widths[0], seed=seed + 1)
    values = normal(*size, heads[1], widths[1], seed=seed + 2)
    return tuple(part.to(device, dtype) for part in (query, keys, values))  # type: ignore[return-value]


def stream(
    batch: int, count: int, size: tuple[int, int], length: int, width: int,
    *, far: int = 1, window: int = 2**31 - 1, turns: int = 0, seed: int = 0, device: str = "cpu",
) -> Reads:  # fmt: skip
    """Lists of ``length`` entries, ragged, some of none, the last of them holding the queries."""
    generator, (many, tokens) = draws(seed), size

    def below(most: int) -> int:
        return int(torch.randint(most, (), generator=generator))

    lists, starts = [], []
    for _ in range(batch):
        number, entries = 0, []
        for _ in range(below(length) + 1 if length else 0):
            first = below(tokens)
            extent = below(tokens - first + 1)
            entries.append((below(many + 1) - 1, first, extent, number))
            number += extent
        lists.append(entries)
        starts.append(max(0, number - count) + below(3))
    reads = Reads.of(lists, starts, far=far, window=window, device=device)
    angles = 6.28 * torch.rand(
        batch, min(turns, reads.entries.shape[1]), width // 2, generator=generator
    )
    if not angles.shape[1]:
        return reads
    return replace(reads, cos=angles.cos().to(device), sin=angles.sin().to(device))


def error(found: Tensor, wanted: Tensor) -> float:
    """Relative, of the whole (Frobenius); infinite where anything is NaN."""
    assert found.shape == wanted.shape
    off = (found.double() - wanted.double()).norm() / wanted.double().norm().clamp_min(1e-30)
    return float("inf") if off.isnan() else float(off)


def sums_agree(found: Tensor, wanted: Tensor, tolerance: float) -> bool:
    """Of logarithms of sums; minus infinity must stand at the same places."""
    none = wanted == float("-inf")
    same = bool(((found == float("-inf")) == none).all())
    return same and bool(((found - wanted)[~none].abs() <= tolerance * 20).all())
