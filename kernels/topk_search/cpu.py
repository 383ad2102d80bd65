"""Exact top-k search in PyTorch.

Only the best groups of rows are sorted. Where the hardware multiplies bfloat16 or int8 faster than
float32, such products propose half as many rows again as are asked for; these are measured in
float32, and where the bound on the error of the others leaves a doubt, everything is.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..best import GROUP, best, first
from ..product import bfloat16_is_fast, products

CHUNK = 1 << 20  # numbers converted to float32 at once; 4 MB
SCORES = 1 << 22  # at once, 16 MB
LEVELS = 127  # of int8, to each side


def topk_search(bank: Tensor, query: Tensor, k: int, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """Search ``(Q, D)`` queries, see :func:`vismem.kernels.topk_search.topk_search`."""
    if torch.compiler.is_compiling():
        return _search_op(bank, query, k, scale)
    return _search(bank, query, k, scale)


def _search(bank: Tensor, query: Tensor, k: int, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    size = max(GROUP, SCORES // max(1, len(query)))
    found = [(query.new_empty(len(query), 0).float(), query.new_empty(len(query), 0).long())]
    for start in range(0, len(bank), size):
        here = slice(start, start + size)
        part = None if scale is None else scale[here].float()
        scores, rows = _best_of_part(bank[here], query, k, part)
        found.append((scores, rows + start))
    if len(found) == 2:
        return found[1]
    scores, rows = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
    return first(scores, rows, k)


def _best_of_part(
    bank: Tensor, query: Tensor, k: int, scale: Tensor | None
) -> tuple[Tensor, Tensor]:
    proposals = k + k // 2 + 8
    proposed = _propose(bank, query, scale) if len(bank) > 8 * proposals else None
    if proposed is None:
        return best(_scores(bank, query, scale), k)
    rough, error = proposed
    rough, rows = best(rough, proposals)
    taken = bank.index_select(0, rows.flatten()).float().unflatten(0, rows.shape)
    scores = torch.bmm(taken, query.float()[:, :, None])[..., 0]
    if scale is not None:
        scores *= scale[rows]
    scores, rows = first(scores, rows, k)
    # The last of the proposals bounds all that were not proposed. What is not a number is a doubt.
    last = rough[:, -1]
    doubt = torch.nonzero(~(scores[:, -1] > last + error(last)))[:, 0]
    if len(doubt):
        scores[doubt], rows[doubt] = best(_scores(bank, query[doubt], scale), k)
    return scores, rows


def _propose(
    bank: Tensor, query: Tensor, scale: Tensor | None
) -> tuple[Tensor, Callable[[Tensor], Tensor]] | None:
    """Rough scores ``(Q, M)`` and a bound on their errors by size; None if they are no faster."""
    if bank.dtype == query.dtype == torch.bfloat16 and bfloat16_is_fast(bank.device):
        # Summed in float32 and rounded to 8 bits; the bound has one bit to spare.
        return products(query, bank).float(), lambda scores: 2.0**-7 * scores.abs()
    if scale is None or bank.device.type != "cpu" or not torch.cpu._is_vnni_supported():
        return None
    # Two numbers of int8 for each of a query: 16 bits of it.
    unit = query.float().abs().amax(1, keepdim=True).clamp_min(1e-30) / LEVELS
    high = (query.float() / unit).round()
    low = ((query.float() / unit - high) * (2 * LEVELS)).round()
    digits = torch.cat([high, low]).to(torch.int8)
    sums = torch._int_mm(digits, bank.T).float()
    rough = sums[len(query) :].mul_(1 / (2 * LEVELS)).add_(sums[: len(query)])
    rough *= scale * unit
    largest = scale.abs().amax() * unit[:, 0] * bank.shape[1]
    return rough, lambda scores: 0.26 * largest + 2.0**-20 * scores.abs()


def _scores(bank: Tensor, query: Tensor, scale: Tensor | None) -> Tensor:
    """All scores in float32, ``(Q, M)``; the bank is converted in chunks that stay in cache."""
    exact = torch.promote_types(torch.promote_types(bank.dtype, query.dtype), torch.float32)
    query = query.to(exact)
    if bank.dtype == exact:
        return products(query, bank).float()
    scores = query.new_empty(len(query), len(bank))
    size = max(GROUP, CHUNK // max(1, bank.shape[1]))
    for start in range(0, len(bank), size):
        here = slice(start, start + size)
        scores[:, here] = products(query, bank[here].to(exact))
    return (scores if scale is None else scores.mul_(scale)).float()


@torch.library.custom_op("vismem::topk_search_torch", mutates_args=())
def _search_op(bank: Tensor, query: Tensor, k: int, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    return _search(bank, query, k, scale)


@_search_op.register_fake
def _(bank: Tensor, query: Tensor, k: int, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    shape = len(query), k
    return query.new_empty(shape, dtype=torch.float32), query.new_empty(shape, dtype=torch.int64)
