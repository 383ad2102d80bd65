"""One step of k-means: to which centroid each row belongs, and the mean of each cluster."""

from __future__ import annotations

import torch
from torch import Tensor

from .cpu import kmeans_assign as _assign
from .cpu import kmeans_update as _update

__all__ = ["kmeans_assign", "kmeans_update"]


def kmeans_assign(x: Tensor, centroids: Tensor, *, expanded: bool = False) -> tuple[Tensor, Tensor]:
    """Find the nearest centroid of each row: the first of those at the least distance.

    The least is taken over the roots, as k-means codes do that compute a distance: two squares
    that differ in the last bit can have one root, and then the first of the two is the nearest.

    Args:
        x: ``(N, D)``, any floating type; distances are computed in it.
        centroids: ``(K, D)`` of the same type.
        expanded: Whether the square is computed as ``|x|^2 + |c|^2 - 2 x c`` in place of
            ``|x - c|^2``. It is the faster form and cancels: a square can come out slightly
            negative, its root is NaN, and NaN is the nearest.

    Returns:
        Labels ``(N,)`` int64, and squared distances to the chosen centroid ``(N,)`` in the type
        of ``x``.

    Raises:
        ValueError: If the widths differ, there is no centroid, or the types differ.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [5.0]])
        >>> kmeans_assign(x, torch.tensor([[0.0], [4.0]]))
        (tensor([0, 0, 1]), tensor([0., 1., 1.]))
    """
    wide = x.ndim == 2 and centroids.ndim == 2 and x.shape[1] == centroids.shape[1]
    if not wide or not len(centroids) or x.dtype != centroids.dtype or not x.is_floating_point():
        raise ValueError(
            f"kmeans_assign takes x (N, D) and centroids (K >= 1, D) of one floating type, not "
            f"{tuple(x.shape)} {x.dtype} and {tuple(centroids.shape)} {centroids.dtype}"
        )
    return _assign(x, centroids, expanded)


def kmeans_update(
    x: Tensor, weights: Tensor, labels: Tensor, clusters: int
) -> tuple[Tensor, Tensor]:
    """Give the weighted mean of the rows of each cluster; the same input gives the same bits.

    Args:
        x: ``(N, D)``, any floating type; half types are summed in float32.
        weights: ``(N,)``, not negative, in the type of ``x``.
        labels: ``(N,)`` int64, each in ``0 .. clusters - 1``.
        clusters: How many clusters, ``K``.

    Returns:
        Means ``(K, D)``, zero where a cluster has no weight, and the sum of weights of each
        cluster ``(K,)``, both in the type of ``x``.

    Raises:
        ValueError: If the shapes or types do not go together.

    Example:
        >>> x, one = torch.tensor([[0.0], [2.0], [7.0]]), torch.ones(3)
        >>> kmeans_update(x, one, torch.tensor([0, 0, 2]), clusters=3)
        (tensor([[1.],
                [0.],
                [7.]]), tensor([2., 0., 1.]))
    """
    rows = x.shape[:1]
    if x.ndim != 2 or weights.shape != rows or labels.shape != rows or labels.dtype != torch.int64:
        raise ValueError(
            f"kmeans_update takes x (N, D), weights (N,) and labels (N,) int64, not "
            f"{tuple(x.shape)}, {tuple(weights.shape)} and {tuple(labels.shape)} {labels.dtype}"
        )
    if weights.dtype != x.dtype or not x.is_floating_point():
        raise ValueError(f"weights must have the floating type of x, {x.dtype}")
    return _update(x, weights, labels, clusters)
