"""The specification of one step of k-means, readable and slow, in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def kmeans_assign(x: Tensor, centroids: Tensor, expanded: bool = False) -> tuple[Tensor, Tensor]:
    """Measure every pair, see :func:`vismem.kernels.kmeans.kmeans_assign`."""
    x64, c64 = x.double()[:, None], centroids.double()[None]
    if expanded:
        squares = (x64**2).sum(-1) + (c64**2).sum(-1) - 2 * (x64 * c64).sum(-1)
    else:
        squares = ((x64 - c64) ** 2).sum(-1)
    labels = squares.sqrt().argmin(1)
    dtype = x.dtype if expanded else torch.promote_types(x.dtype, torch.float32)
    return labels, squares.gather(1, labels[:, None])[:, 0].to(dtype)


def kmeans_update(
    x: Tensor, weights: Tensor, labels: Tensor, clusters: int
) -> tuple[Tensor, Tensor]:
    """Go through the clusters, see :func:`vismem.kernels.kmeans.kmeans_update`."""
    means = torch.zeros(clusters, x.shape[1], dtype=torch.float64, device=x.device)
    mass = torch.zeros(clusters, dtype=torch.float64, device=x.device)
    for cluster in range(clusters):
        members, weight = x[labels == cluster].double(), weights[labels == cluster].double()
        mass[cluster] = weight.sum()
        if mass[cluster]:
            means[cluster] = (weight[:, None] * members).sum(0) / mass[cluster]
    return means.to(x.dtype), mass.to(torch.promote_types(x.dtype, torch.float32))
