"""Whole numbers that sort as scores do, with the lower place before the higher of equal scores."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["LAST", "keys", "places", "scores"]

LAST = 0x7FFFFFFF  # the highest place
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
