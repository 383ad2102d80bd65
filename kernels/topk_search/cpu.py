"""Exact top-k search in PyTorch.

Only the best groups of rows are sorted. Where the hardware multiplies bfloat16 or int8 faster than
float32, such products propose half as many rows again as are asked for; these are measured in
float32, and where the bound on the error of the others leaves a doubt, everything is.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..product import bfloat16_is_fast, products
from .keys import keys

CHUNK = 1 << 20  # numbers converted to float32 at once; 4 MB
SCORES = 1 << 22  # at once, 16 MB
GROUP = 64  # rows
LEVELS = 127  # of int8, to each side


def topk_search(bank: Tensor, query: Tensor, k: int, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """Search ``(Q, D)`` queries, see :func:`vismem.kernels.topk_search.topk_search`."""
    if torch.compiler.is_compiling():
        return _search_op(bank, query, k, scale)
    return _search(bank, query, k, scale)


def _search(bank: Tensor, query: Tensor, k: int, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    size = max(GROUP, SCORES // max(1, len(query)))
    best = [(query.new_empty(len(query), 0).float(), query.new_empty(len(query), 0).long())]
    for start in range(0, len(bank), size):
        here = slice(start, start + size)
        part = None if scale is None else scale[here].float()
        scores, rows = _best_of_part(bank[here], query, k, part)
        best.append((scores, rows + start))
    if len(best) == 2:
        return best[1]
    scores, rows = (torch.cat(parts, 1) for parts in zip(*best, strict=True))
    return _first(scores, rows, k)


def _best_of_part(
    bank: Tensor, query: Tensor, k: int, scale: Tensor | None
) -> tuple[Tensor, Tensor]:
    proposals = k + k // 2 + 8
    proposed = _propose(bank, query, scale) if len(bank) > 8 * proposals else None
    if proposed is None:
        return _best(_scores(bank, query, scale), k)
    rough, error = proposed
    rough, rows = _best(rough, proposals)
    taken = bank.index_select(0, rows.flatten()).float().unflatten(0, rows.shape)
    scores = torch.bmm(taken, query.float()[:, :, None])[..., 0]
    if scale is not None:
        scores *= scale[rows]
    scores, rows = _first(scores, rows, k)
    # The last of the proposals bounds all that were not proposed. What is not a number is a doubt.
    last = rough[:, -1]
    doubt = torch.nonzero(~(scores[:, -1] > last + error(last)))[:, 0]
    if len(doubt):
        scores[doubt], rows[doubt] = _best(_scores(bank, query[doubt], scale), k)
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


def _best(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` best of each row ``(Q, M)`` and where they are, the first of equals first.

    A group whose largest is not among the ``k`` largest of all groups has none of them.
    """
    count = scores.shape[1]
    if count < 4 * k * GROUP:
        where = torch.arange(count, device=scores.device)
        return _first(scores, where.expand(scores.shape), k)
    whole = count - count % GROUP
    largest = scores[:, :whole].unflatten(1, (-1, GROUP)).amax(2)
    if whole < count:
        largest = torch.cat([largest, scores[:, whole:].amax(1, keepdim=True)], 1)
    groups = _first(largest, torch.arange(largest.shape[1], device=scores.device), k)[1]
    # In order, so that of the rows behind the end only copies of the last one are there.
    members = groups[:, :, None] * GROUP + torch.arange(GROUP, device=scores.device)
    members = members.flatten(1)
    beyond = members >= count
    members = members.clamp_max(count - 1)
    found = scores.gather(1, members).masked_fill_(beyond, -torch.inf)
    return _first(found, torch.where(beyond, members + 1, members), k)


def _first(scores: Tensor, where: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` best of scores that belong to some places, the lowest place of equals first."""
    best = keys(scores, where).topk(min(k, scores.shape[1]), 1).indices
    return scores.gather(1, best), where.expand(scores.shape).gather(1, best)


@torch.library.custom_op("vismem::topk_search_torch", mutates_args=())
def _search_op(bank: Tensor, query: Tensor, k: int, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    return _search(bank, query, k, scale)


@_search_op.register_fake
def _(bank: Tensor, query: Tensor, k: int, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    shape = len(query), k
    return query.new_empty(shape, dtype=torch.float32), query.new_empty(shape, dtype=torch.int64)
