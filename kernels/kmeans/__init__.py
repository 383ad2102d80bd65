"""One step of k-means: to which centroid each row belongs, and the mean of each cluster."""

from __future__ import annotations

import torch
from torch import Tensor

from ..registry import uses_triton
from .cpu import kmeans_assign as _assign
from .cpu import kmeans_update as _update

__all__ = ["kmeans_assign", "kmeans_update"]


def kmeans_assign(x: Tensor, centroids: Tensor, *, expanded: bool = False) -> tuple[Tensor, Tensor]:
    """Find the nearest centroid of each row: the first of those at the least distance.

    The least is taken over the roots, as k-means codes do that compute a distance: two squares
    that differ in the last bit can have one root, and then the first of the two is the nearest.

    Args:
        x: ``(N, D)``, any floating type; half types are measured in float32.
        centroids: ``(K, D)`` of the same type.
        expanded: Whether the square is computed as ``|x|^2 + |c|^2 - 2 x c``, in the type of
            ``x``, in place of ``|x - c|^2``, as some published codes do. It cancels: a square can
            come out slightly negative, its root is NaN, and NaN is the nearest. It always runs in
            PyTorch.

    Returns:
        Labels ``(N,)`` int64, and squared distances to the chosen centroid ``(N,)``: float32 for
        half types, else, and where ``expanded``, in the type of ``x``.

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
    obstacle = "the expanded form is PyTorch's arithmetic" if expanded else _obstacle(x)
    if uses_triton("kmeans_assign", x, obstacle):
        from .triton import kmeans_assign as _triton

        return _triton(x, centroids)
    return _assign(x, centroids, expanded)


def kmeans_update(
    x: Tensor, weights: Tensor, labels: Tensor, clusters: int
) -> tuple[Tensor, Tensor]:
    """Give the weighted mean of the rows of each cluster; the same input gives the same bits.

    Args:
        x: ``(N, D)``, any floating type; half types are summed in float32.
        weights: ``(N,)``, not negative, in the type of ``x`` or in float32.
        labels: ``(N,)`` int64, each in ``0 .. clusters - 1``.
        clusters: How many clusters, ``K``.

    Returns:
        Means ``(K, D)`` in the type of ``x``, zero where a cluster has no weight, and the sum of
        weights of each cluster ``(K,)``, float32 for half types, else in the type of ``x``.

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
    if weights.dtype not in (x.dtype, torch.float32) or not x.is_floating_point():
        raise ValueError(f"weights must be of the floating type of x, {x.dtype}, or float32")
    if uses_triton("kmeans_update", x, _obstacle(x)):
        from .triton import kmeans_update as _triton

        return _triton(x, weights, labels, clusters)
    return _update(x, weights, labels, clusters)


def _obstacle(x: Tensor) -> str | None:
    return "rows of float64 keep their precision" if x.dtype == torch.float64 else None
