"""One step of k-means without a loop over clusters and without an ``(N, K, D)`` tensor.

Squares of differences do not cancel, but cost two operations a number where a product has its
hardware. So a product rules out, by a bound on its rounding, the centroids that cannot be the
nearest, and only those that are left are measured: one a row, but for near ties.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..product import bfloat16_is_fast, products, rounding

CHUNK = 1 << 18  # numbers of rows held at once; 1 MB of float32 stays in cache
ROWS = 32  # at least, as products of fewer are slow


def kmeans_assign(x: Tensor, centroids: Tensor, expanded: bool) -> tuple[Tensor, Tensor]:
    """Find the nearest, see :func:`vismem.kernels.kmeans.kmeans_assign`."""
    if not expanded:
        direct = _direct_op if torch.compiler.is_compiling() else _direct
        return direct(x, centroids)
    squares = _expanded(x, centroids)
    labels = squares.sqrt().argmin(1)
    return labels, squares.gather(1, labels[:, None])[:, 0]


def _expanded(x: Tensor, centroids: Tensor) -> Tensor:
    """``(N, K)`` squares by one matrix product; cancels where a row is near its centroid."""
    return (x**2).sum(1, keepdim=True) + (centroids**2).sum(1) - 2 * (x @ centroids.T)


def _direct(x: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Labels and squares, as many rows at a time as stay in cache."""
    exact = torch.promote_types(x.dtype, torch.float32)
    wide, coarse = centroids.to(exact), x.dtype == torch.bfloat16 and bfloat16_is_fast(x.device)
    # What all centroids have in common would be most of the rounding; but bfloat16 stays as it is.
    centre = wide.mean(0)
    compared = centroids if coarse else wide - centre
    norms, compared = (wide if coarse else compared).square().sum(1), compared * -2
    labels = torch.empty(len(x), dtype=torch.int64, device=x.device)
    squares = torch.empty(len(x), dtype=exact, device=x.device)
    unsure, left = [], []
    size = max(ROWS, CHUNK // max(1, x.shape[1]))
    for start in range(0, len(x), size):
        here = slice(start, start + size)
        rows = x[here].to(exact)
        labels[here], near = _near(x[here] if coarse else rows - centre, compared, norms)
        squares[here] = _squares(rows, wide, labels[here])
        several = torch.nonzero(near.sum(1) > 1)[:, 0]
        unsure.append(several + start)
        left.append(near[several])
    several = torch.cat(unsure) if unsure else labels
    if len(several):
        rows = x[several].to(exact)
        found = _direct(rows, wide) if coarse else _settle(rows, wide, torch.cat(left))
        labels[several], squares[several] = found
    return labels, squares


def _squares(x: Tensor, centroids: Tensor, labels: Tensor) -> Tensor:
    """Of the difference of each row to one centroid, ``(n,)``."""
    difference = centroids.index_select(0, labels)
    return difference.sub_(x).square_().sum(1)


def _near(x: Tensor, doubled: Tensor, norms: Tensor) -> tuple[Tensor, Tensor]:
    """The centroid that a product says is nearest, and which it does not rule out: ``(n, K)``.

    A sum of ``D`` products is wrong by ``D`` roundings of ``|x| |c| <= (|x|^2 + |c|^2) / 2`` at
    most, however it is summed. So a centroid is farther than the one that seems the nearest if its
    square less its error is above the other's with its error.

    Args:
        x: ``(n, D)``.
        doubled: The centroids times -2, ``(K, D)``.
        norms: Their squares, ``(K,)``.
    """
    rough = x.dtype == torch.bfloat16  # summed in float32, then rounded
    share = 2 * (x.shape[1] + 8) * (2.0**-24 if rough else rounding(x))
    if rough:
        lower = products(x, doubled).float()
        rounded = lower.abs().mul_(2.0**-8)
        lower.sub_(rounded).add_(norms * (1 - share))
    else:
        lower = products(x, doubled, norms * (1 - share))
    least, label = lower.min(1)
    norm = torch.linalg.vector_norm(x, dim=1, dtype=norms.dtype)
    error = share * (2 * norms[label] + 1.01 * norm.square())
    if rough:
        error += 2.01 * rounded.gather(1, label[:, None])[:, 0]
    # Not "at most": what is not a number is near.
    return label, ~(lower > (least + error)[:, None])


def _settle(x: Tensor, centroids: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
    """Measure the differences to the centroids that are near; the first at the least root."""
    row, column = torch.nonzero(near, as_tuple=True)
    squares = x.new_full(near.shape, torch.inf)
    size = max(1, CHUNK // max(1, x.shape[1]))
    pairs = zip(row.split(size), column.split(size), strict=True)
    measured = [_squares(x.index_select(0, one), centroids, other) for one, other in pairs]
    squares[row, column] = torch.cat(measured)
    labels = squares.sqrt().argmin(1)
    return labels, squares.gather(1, labels[:, None])[:, 0]


@torch.library.custom_op("vismem::kmeans_assign_torch", mutates_args=())
def _direct_op(x: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    return _direct(x, centroids)


@_direct_op.register_fake
def _(x: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    exact = torch.promote_types(x.dtype, torch.float32)
    return x.new_empty(len(x), dtype=torch.int64), x.new_empty(len(x), dtype=exact)


def kmeans_update(
    x: Tensor, weights: Tensor, labels: Tensor, clusters: int
) -> tuple[Tensor, Tensor]:
    """Add each row to its cluster, see :func:`vismem.kernels.kmeans.kmeans_update`."""
    exact = torch.promote_types(x.dtype, torch.float32)
    weights = weights.to(exact)
    sums = torch.zeros(clusters, x.shape[1], dtype=exact, device=x.device)
    mass = torch.zeros(clusters, dtype=exact, device=x.device)
    sums.index_add_(0, labels, x * weights[:, None])
    mass.index_add_(0, labels, weights)
    return (sums / mass.masked_fill(mass == 0, 1)[:, None]).to(x.dtype), mass
