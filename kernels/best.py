"""The best of many scores, exactly, the lower place before the higher of equal scores.

Ties are settled by whole numbers that sort as scores do, and then by their places.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["GROUP", "LAST", "best", "first", "keys", "places", "scores"]

LAST = 0x7FFFFFFF  # the highest place
GROUP = 64  # scores of which the largest decides whether the others are looked at
NAN = 0x7FC00000  # bits of one that is not a number, above those of infinity


def keys(scores: Tensor, places: Tensor) -> Tensor:
    """One int64 a score: float32 as an ordered number above, and how far the place is from the end.

    Args:
        scores: Float32; not a number is the largest.
        places: Of the same shape or one that broadcasts to it, int64 in ``0 .. LAST``.
    """
    bits = torch.where(scores == 0, 0.0, scores).view(torch.int32)  # zero has two signs
    bits = torch.where(scores.isnan(), NAN, bits)
    ordered = bits ^ ((bits >> 31) & LAST)
    return (ordered.long() << 32) | (LAST - places)


def places(keys: Tensor) -> Tensor:
    """The places of keys, int64."""
    return LAST - (keys & LAST)


def scores(keys: Tensor) -> Tensor:
    """The scores of keys, float32."""
    ordered = (keys >> 32).to(torch.int32)
    return (ordered ^ ((ordered >> 31) & LAST)).view(torch.float32)


def best(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` best of each row ``(Q, M)`` and where they are, the first of equals first.

    A group whose largest is not among the ``k`` largest of all groups has none of them.
    """
    count = scores.shape[1]
    if count < 4 * k * GROUP:
        where = torch.arange(count, device=scores.device)
        return first(scores, where.expand(scores.shape), k)
    whole = count - count % GROUP
    largest = scores[:, :whole].unflatten(1, (-1, GROUP)).amax(2)
    if whole < count:
        largest = torch.cat([largest, scores[:, whole:].amax(1, keepdim=True)], 1)
    groups = first(largest, torch.arange(largest.shape[1], device=scores.device), k)[1]
    # In order, so that of the rows behind the end only copies of the last one are there.
    members = groups[:, :, None] * GROUP + torch.arange(GROUP, device=scores.device)
    members = members.flatten(1)
    beyond = members >= count
    members = members.clamp_max(count - 1)
    found = scores.gather(1, members).masked_fill_(beyond, -torch.inf)
    return first(found, torch.where(beyond, members + 1, members), k)


def first(scores: Tensor, where: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` best of scores that belong to some places, the lowest place of equals first."""
    chosen = keys(scores, where).topk(min(k, scores.shape[1]), 1).indices
    return scores.gather(1, chosen), where.expand(scores.shape).gather(1, chosen)
