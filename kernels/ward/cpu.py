"""Ward's cost on a processor: one pass over the keys in chunks that stay in cache.

Differences are squared as they are: by norms and a product, close keys of large norm would cancel.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 2**17  # numbers; half a megabyte of float32


def merge_costs(keys: Tensor, mass: Tensor, key: Tensor, key_mass: Tensor) -> Tensor:
    """Float32 throughout, see :func:`vismem.kernels.ward.merge_costs`."""
    count, width = keys.shape
    key = key.float()
    rows = max(1, CHUNK // max(width, 1))
    distance2 = torch.empty(count, dtype=torch.float32, device=keys.device)
    for start in range(0, count, rows):
        difference = keys[start : start + rows].float() - key
        torch.sum(difference.square_(), 1, out=distance2[start : start + rows])
    return (mass * key_mass / (mass + key_mass)).float() * distance2
