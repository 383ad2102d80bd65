"""What merging one cluster with each of many would cost."""

from __future__ import annotations

import torch
from torch import Tensor

from ..registry import uses_triton
from .cpu import merge_costs as _cpu

__all__ = ["merge_costs"]


def merge_costs(keys: Tensor, mass: Tensor, key: Tensor, key_mass: Tensor) -> Tensor:
    """Ward's cost: how much the variance inside clusters would grow.

    For clusters of mass ``a`` and ``b`` whose means are ``d`` apart it is ``a b / (a + b) d^2``.

    Args:
        keys: Means of the clusters, ``(K, S)``, any floating type; may be empty.
        mass: Their masses, ``(K,)`` above 0.
        key: Mean of the one, ``(S,)``.
        key_mass: Its mass, ``()`` above 0.

    Returns:
        ``(K,)`` float32.

    Raises:
        ValueError: If the shapes do not fit.

    Source: Ward, "Hierarchical Grouping to Optimize an Objective Function", 1963.

    Example:
        >>> two = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
        >>> merge_costs(two, torch.tensor([1.0, 3.0]), torch.zeros(2), torch.tensor(1.0)).tolist()
        [0.0, 18.75]
    """
    if keys.ndim != 2 or key.shape != keys.shape[1:] or mass.shape != keys.shape[:1]:
        raise ValueError(
            f"merge_costs takes keys (K, S), mass (K,) and key (S,), "
            f"not {tuple(keys.shape)}, {tuple(mass.shape)} and {tuple(key.shape)}"
        )
    if uses_triton("merge_costs", keys, _obstacle(keys)):
        from .triton import merge_costs as _triton

        return _triton(keys, mass, key, key_mass)
    return _cpu(keys, mass, key, key_mass)


def _obstacle(keys: Tensor) -> str | None:
    return "keys of float64 keep their precision" if keys.dtype == torch.float64 else None
