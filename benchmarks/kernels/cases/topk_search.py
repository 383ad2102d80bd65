"""Sizes of top-k search: questions meet a bank of embeddings."""

from __future__ import annotations

from collections.abc import Callable

import torch
from case import Case, Inputs, normal
from torch import Tensor

from kernels.topk_search import cpu, reference

K = 10
Found = tuple[Tensor, Tensor]


def _same(result: Found, wanted: Found) -> str | None:
    """Rows whose scores differ by the rounding of float32 alone may change places."""
    scores, rows = (part.cpu() for part in result)
    expected, places = (part.cpu() for part in wanted)
    if scores.shape != expected.shape:
        return f"results are {tuple(scores.shape)}, not {tuple(expected.shape)}"
    limit = 1e-5 * expected.abs().amax() + 1e-6
    if not bool(((scores.float() - expected).abs() <= limit).all()):
        return "scores differ"
    apart = torch.nn.functional.pad(expected[:, :-1] - expected[:, 1:], (1, 1), value=torch.inf)
    clear = (apart[:, 1:] > limit) & (apart[:, :-1] > limit)
    clear[:, -1] = False  # the next one is not known
    unequal = int((rows[clear] != places[clear]).sum())
    return f"{unequal} rows are not the best" if unequal else None


def _product(bank: Tensor, query: Tensor, k: int, scale: Tensor | None) -> Found:
    return (query @ bank.T).topk(k, 1)


def _converted(bank: Tensor, query: Tensor, k: int, scale: Tensor | None) -> Found:
    scores = query.float() @ bank.float().T
    return (scores if scale is None else scores * scale).topk(k, 1)


def _whole_numbers(bank: Tensor, query: Tensor, k: int, scale: Tensor | None) -> Found:
    """With a query of int8 too, which is another search: about 1 row in 40 is not of the best."""
    unit = query.abs().amax(1, keepdim=True) / 127
    whole = (query / unit).round().to(torch.int8)
    return (torch._int_mm(whole, bank.T) * scale * unit).topk(k, 1)


BASELINES: dict[torch.dtype, dict[str, Callable[..., Found]]] = {
    torch.float32: {"matmul + topk": _product},
    torch.bfloat16: {"matmul + topk": _product, "converted, matmul + topk": _converted},
    torch.int8: {"int8 query + topk": _whole_numbers, "converted, matmul + topk": _converted},
}


def _case(
    rows: int,
    width: int,
    queries: int,
    dtype: torch.dtype,
    *,
    processor: bool = False,
    small: bool = False,
) -> Case:
    quantised = dtype == torch.int8

    def inputs(device: str, seed: int) -> Inputs:
        query = normal(device, seed + 1, queries, width, dtype=torch.float32 if processor else half)
        if not quantised:
            bank = normal(device, seed, rows, width, dtype=dtype)
            return bank, query.to(dtype), K, None
        bank, scale = normal(device, seed, rows, width), normal(device, seed, rows).abs() + 1
        return (bank * 30).round().clamp(-127, 127).to(torch.int8), query, K, scale / 30

    def run(*parts: torch.Tensor) -> Found:
        from kernels.topk_search import triton

        return triton.run(*parts)

    half = torch.bfloat16 if quantised else dtype
    timed_in_half = half != torch.float32 and not (small or processor)
    used = {"_maxima": "wgmma" if queries > 16 else "mma"} if timed_in_half else {}
    return Case(
        "topk_search",
        f"{queries} in {rows} x {width}, {str(dtype)[6:]}",
        inputs,
        run,
        reference.topk_search,
        cpu.topk_search,
        BASELINES[dtype],
        moved=float(rows * (width * dtype.itemsize + 4 * quantised)),
        flops=2.0 * rows * width * queries,
        processor=processor,
        small=small,
        same=_same,
        tensor_cores=used,
    )


CASES = [
    _case(1_000_000, 256, 1, torch.bfloat16),
    _case(1_000_000, 256, 64, torch.bfloat16),
    _case(1_000_000, 256, 64, torch.int8),
    _case(1_000_000, 256, 16, torch.float32),
    _case(10_000_000, 256, 1, torch.int8),
    *(
        _case(200_000, 256, queries, dtype, processor=True)
        for dtype in (torch.float32, torch.bfloat16, torch.int8)
        for queries in (1, 16)
    ),
    _case(200, 40, 3, torch.float32, small=True),
    _case(200, 40, 3, torch.bfloat16, small=True),
    _case(200, 40, 3, torch.int8, small=True),
]
