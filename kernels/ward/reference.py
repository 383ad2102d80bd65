"""The specification of Ward's cost, readable and slow."""

from __future__ import annotations

from torch import Tensor


def merge_costs(keys: Tensor, mass: Tensor, key: Tensor, key_mass: Tensor) -> Tensor:
    """All in float64, see :func:`vismem.kernels.ward.merge_costs`."""
    distance2 = (keys.double() - key.double()).square().sum(1)
    mass, key_mass = mass.double(), key_mass.double()
    return (mass * key_mass / (mass + key_mass) * distance2).float()
