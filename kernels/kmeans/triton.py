"""One step of k-means on a GPU, without atomics: the same input gives the same bits.

The nearest is found in two passes, as in PyTorch's form: products rule out all centroids that a
bound on their rounding allows to, and differences, which do not cancel, settle the others.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import launch
from . import configs

SCORES = 1 << 23  # of rows and centroids at once; 32 MB, which the second pass finds in the cache


@triton.jit
def _bounds(
    x, centroids, centre, scores, row_norms, norms, count, clusters, width,
    CENTRED: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """``|c|^2 - 2 x c`` of a tile, from the centre where there is one, and the norms."""
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    cluster = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    here, there = row < count, cluster < clusters
    product = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    row_norm, norm = tl.zeros([BLOCK_N], tl.float32), tl.zeros([BLOCK_K], tl.float32)
    for start in range(0, width, BLOCK_D):
        column = start + tl.arange(0, BLOCK_D)
        inside = column < width
        at = row[:, None].to(tl.int64) * width + column[None]
        a = tl.load(x + at, here[:, None] & inside[None], 0.0)
        at = cluster[:, None].to(tl.int64) * width + column[None]
        b = tl.load(centroids + at, there[:, None] & inside[None], 0.0)
        if CENTRED:
            common = tl.load(centre + column, inside, 0.0)
            a, b = a - common[None], b - common[None]
        product = tl.dot(a, tl.trans(b), product, input_precision="ieee")
        a, b = a.to(tl.float32), b.to(tl.float32)
        row_norm += tl.sum(a * a, 1)
        norm += tl.sum(b * b, 1)
    at = row[:, None].to(tl.int64) * clusters + cluster[None]
    tl.store(scores + at, norm[None] - 2.0 * product, here[:, None] & there[None])
    if tl.program_id(1) == 0:
        tl.store(row_norms + row, row_norm, here)
    if tl.program_id(0) == 0:
        tl.store(norms + cluster, norm, there)


@triton.jit
def _settle(
    x, centroids, scores, row_norms, norms, labels, squares, clusters, width, share,
    BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Of one row: measure what its scores leave over, in order, and keep the first of the least."""
    row = tl.program_id(0).to(tl.int64)
    row_norm = tl.load(row_norms + row)
    limit = float("inf")
    for start in range(0, clusters, BLOCK_K):
        cluster = start + tl.arange(0, BLOCK_K)
        there = cluster < clusters
        score = tl.load(scores + row * clusters + cluster, there, float("inf"))
        error = share * (2.0 * tl.load(norms + cluster, there, 0.0) + row_norm)
        highest = score + error
        limit = tl.minimum(limit, tl.min(tl.where(highest == highest, highest, float("inf")), 0))
    best, label, least = float("inf"), -1, float("inf")
    for start in range(0, clusters, BLOCK_K):
        cluster = start + tl.arange(0, BLOCK_K)
        there = cluster < clusters
        score = tl.load(scores + row * clusters + cluster, there, float("inf"))
        error = share * (2.0 * tl.load(norms + cluster, there, 0.0) + row_norm)
        # Not "at most": what is not a number is near.
        near = there & ((score - error > limit) == 0)
        one = start - 1
        for _ in range(tl.sum(near.to(tl.int32), 0)):
            one = tl.min(tl.where(near & (cluster > one), cluster, clusters), 0)
            sums = tl.zeros([BLOCK_D], tl.float32)
            for first in range(0, width, BLOCK_D):
                column = first + tl.arange(0, BLOCK_D)
                inside = column < width
                a = tl.load(x + row * width + column, inside, 0.0).to(tl.float32)
                b = tl.load(centroids + one.to(tl.int64) * width + column, inside, 0.0)
                difference = a - b.to(tl.float32)
                sums += difference * difference
            square = tl.sum(sums, 0)
            root = tl.sqrt_rn(square)
            # Not a number is less than any number; and the first is found even at infinity.
            less = (root < best) | ((root != root) & (best == best)) | (label < 0)
            best = tl.where(less, root, best)
            label = tl.where(less, one, label)
            least = tl.where(less, square, least)
    tl.store(labels + row, label.to(tl.int64))
    tl.store(squares + row, least)


@triton.jit
def _means(
    x, weights, order, ends, means, mass, width, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Some columns of the mean of one cluster, whose rows follow each other in ``order``."""
    cluster = tl.program_id(0)
    column = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = column < width
    end = tl.load(ends + cluster)
    begin = tl.load(ends + cluster - 1, cluster > 0, 0)
    sums, total = tl.zeros([BLOCK_N, BLOCK_D], tl.float32), tl.zeros([BLOCK_N], tl.float32)
    for start in range(begin, end, BLOCK_N):
        place = start + tl.arange(0, BLOCK_N)
        there = place < end
        row = tl.load(order + place, there, 0)
        weight = tl.load(weights + row, there, 0.0).to(tl.float32)
        at = row[:, None] * width + column[None]
        rows = tl.load(x + at, there[:, None] & inside[None], 0.0).to(tl.float32)
        sums += weight[:, None] * rows
        total += weight
    all_weight = tl.sum(total, 0)
    mean = tl.sum(sums, 0) / tl.where(all_weight == 0.0, 1.0, all_weight)
    at = cluster.to(tl.int64) * width + column
    tl.store(means + at, mean.to(means.dtype.element_ty), inside)
    if tl.program_id(1) == 0:
        tl.store(mass + cluster, all_weight)


@torch.library.custom_op("vismem::kmeans_assign", mutates_args=())
def kmeans_assign(x: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Run the kernels, see :func:`vismem.kernels.kmeans.kmeans_assign`."""
    return run(x, centroids)


@kmeans_assign.register_fake
def _(x: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(len(x), dtype=torch.int64), x.new_empty(len(x), dtype=torch.float32)


def run(x: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Start both passes for some rows after the other; also without data, to compile them."""
    x, centroids = x.contiguous(), centroids.contiguous()
    (count, width), clusters, device = x.shape, len(centroids), x.device
    centred = x.dtype == torch.float32  # half types would be rounded by it
    centre = centroids.mean(0) if centred else centroids
    labels = torch.empty(count, dtype=torch.int64, device=device)
    squares = torch.empty(count, dtype=torch.float32, device=device)
    # Tensor cores cut where others round.
    share = 2.0 * (width + 8) * (2.0**-24 if centred else 2.0**-23)
    chosen, last = configs.bounds(x.dtype), configs.settle()
    size = min(count, max(chosen.tiles["BLOCK_N"], SCORES // clusters))
    scores = torch.empty(size, clusters, dtype=torch.float32, device=device)
    row_norms = torch.empty(size, dtype=torch.float32, device=device)
    norms = torch.empty(clusters, dtype=torch.float32, device=device)
    for start in range(0, count, size or 1):
        rows = x[start : start + size]
        grid = (
            triton.cdiv(len(rows), chosen.tiles["BLOCK_N"]),
            triton.cdiv(clusters, chosen.tiles["BLOCK_K"]),
        )
        launch(
            _bounds, grid, rows, centroids, centre, scores, row_norms, norms,
            len(rows), clusters, width, CENTRED=centred, **chosen.options,
        )  # fmt: skip
        launch(
            _settle, (len(rows),), rows, centroids, scores, row_norms, norms,
            labels[start:], squares[start:], clusters, width, share, **last.options,
        )  # fmt: skip
    return labels, squares


@torch.library.custom_op("vismem::kmeans_update", mutates_args=())
def kmeans_update(
    x: Tensor, weights: Tensor, labels: Tensor, clusters: int
) -> tuple[Tensor, Tensor]:
    """Run the kernel, see :func:`vismem.kernels.kmeans.kmeans_update`."""
    return run_update(x, weights, labels, clusters)


@kmeans_update.register_fake
def _(x: Tensor, weights: Tensor, labels: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    return x.new_empty(clusters, x.shape[1]), x.new_empty(clusters, dtype=torch.float32)


def run_update(x: Tensor, weights: Tensor, labels: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """Bring the rows of each cluster together by a stable sort, and add them in that order."""
    x, weights = x.contiguous(), weights.contiguous()
    sorted_labels, order = torch.sort(labels, stable=True)
    ends = torch.searchsorted(sorted_labels, torch.arange(clusters, device=x.device), right=True)
    means = torch.empty(clusters, x.shape[1], dtype=x.dtype, device=x.device)
    mass = torch.empty(clusters, dtype=torch.float32, device=x.device)
    chosen = configs.means()
    grid = (clusters, max(1, triton.cdiv(x.shape[1], chosen.tiles["BLOCK_D"])))
    launch(_means, grid, x, weights, order, ends, means, mass, x.shape[1], **chosen.options)
    return means, mass
