"""The two rules of Flash-VStream 2025: cluster for a synopsis, search for a detail.

Source: Zhang et al., "Flash-VStream: Efficient Real-Time Understanding for Long Video Streams",
ICCV 2025 (https://arxiv.org/abs/2506.23825; https://github.com/IVGSZ/Flash-VStream, folder
``Flash-VStream-Qwen``), re-implemented from a description.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vismem.memory.published.clustering import lloyd

__all__ = [
    "Argsort",
    "Method",
    "OrderedClusters",
    "kmeans_ordered",
    "retrieve_detail",
    "stable_argsort",
]

Method = Literal["klarge_retrieve", "nearest", "sample"]
Argsort = Callable[[Tensor, bool], Tensor]


def stable_argsort(values: Tensor, descending: bool) -> Tensor:
    """Sort ``(N,)`` values; of equal ones the first stays first.

    The published sort is not stable. Where its ties matter, give another function in this place.
    """
    return torch.sort(values, stable=True, descending=descending).indices


class OrderedClusters(NamedTuple):
    """Slots in order of their timestamps.

    Args:
        slots: ``(K, P, D)``.
        weights: ``(K,)`` float32.
        timestamps: ``(K,)`` float32, means of row numbers.
        labels: ``(N,)`` slot that each row went to.
        prepended: How many slots at the beginning are rows that went to another slot, too.
    """

    slots: Tensor
    weights: Tensor
    timestamps: Tensor
    labels: Tensor
    prepended: int

    def members(self) -> list[list[int]]:
        """Numbers of the rows of each slot."""
        rows: list[list[int]] = [[row] for row in range(self.prepended)]
        rows += [[] for _ in range(len(self.slots) - self.prepended)]
        for row, label in enumerate(self.labels.tolist()):
            rows[label].append(row)
        return rows


def kmeans_ordered(
    x: Tensor,
    slots: int,
    weights: Tensor,
    generator: torch.Generator,
    coins: random.Random,
    argsort: Argsort = stable_argsort,
) -> OrderedClusters:
    """Cluster rows, and sort the clusters by the mean number of their rows.

    The start is a random choice of the distinct rows. Where there are fewer of them than slots,
    they are the clusters, each of weight one, and the first rows of all fill up in front.

    Args:
        x: ``(N, P, D)``, more rows than slots.
        slots: ``K``, at least one.
        weights: ``(N,)``, of the rows in the means.
        generator: Draws the start, one permutation of the distinct rows.
        coins: Draws a row for every cluster that becomes empty.
        argsort: Sorts the timestamps.

    Raises:
        ValueError: If a cluster ends without a row, where the published code divides by zero.

    Example:
        >>> x = torch.tensor([0.0, 9.0, 0.1, 9.1]).reshape(4, 1, 1)
        >>> draws = torch.Generator().manual_seed(0), random.Random(0)
        >>> kmeans_ordered(x, 2, torch.ones(4), *draws).members()
        [[0, 2], [1, 3]]
    """
    count = len(x)
    rows = x.reshape(count, -1).float()
    distinct = torch.unique(rows, dim=0)  # in lexicographic order
    if len(distinct) < slots:
        centroids, labels = distinct, _nearest(rows, [distinct])
        mass = rows.new_ones(len(distinct))
    else:
        start = distinct[torch.randperm(len(distinct), generator=generator)[:slots]]
        centroids, mass, labels = lloyd(rows, start, weights.float(), coins, expanded=True)
    sizes = torch.bincount(labels, minlength=len(centroids)).double()
    if not sizes.all():
        raise ValueError(
            "a cluster was left without a row, where the published rule has no timestamp; "
            "frames as alike as these need another memory, or another seed"
        )
    sums = sizes.new_zeros(len(centroids)).index_add_(0, labels, torch.arange(count).double())
    timestamps = (sums / sizes).float()
    order = argsort(timestamps, False)
    prepended = slots - len(centroids)
    place = torch.empty_like(order)
    place[order] = torch.arange(prepended, slots)
    return OrderedClusters(
        torch.cat([rows[:prepended], centroids[order]]).to(x.dtype).unflatten(1, x.shape[1:]),
        torch.cat([mass.new_ones(prepended), mass[order]]),
        torch.cat([torch.arange(prepended).float(), timestamps[order]]),
        place[labels],
        prepended,
    )


def _nearest(queries: Tensor, blocks: Iterable[Tensor]) -> Tensor:
    """Number of the row nearest to each query, ``(Q, F)`` and rows ``(n, F)`` block by block.

    Distances come from ``|a|^2 + |b|^2 - 2ab``, as published without a clamp: rounding below zero
    gives NaN, which counts as nearest.
    """
    own = queries.square().sum(1, keepdim=True)
    squares = [own + rows.square().sum(1) - 2 * queries @ rows.T for rows in blocks]
    return torch.cat(squares, dim=1).sqrt().argmin(dim=1)


def retrieve_detail(
    low: Sequence[Tensor],
    slots: Tensor,
    weights: Tensor,
    timestamps: Tensor,
    count: int,
    method: Method = "klarge_retrieve",
    argsort: Argsort = stable_argsort,
) -> Tensor:
    """Choose the patches that are given in high resolution.

    Args:
        low: All patches in low resolution, in blocks ``(n, P, D)`` that sum up to ``T``.
        slots: ``(K, P, D)`` of the synopsis.
        weights: ``(K,)``.
        timestamps: ``(K,)``.
        count: How many to choose; all, where there are no more.
        method: The patches nearest to the heaviest slots, those that the timestamps of these slots
            name, or patches at equal distances.
        argsort: Sorts the weights.

    Returns:
        Indices of patches, int64, in order of weight; a patch may come more than once.
    """
    patches = sum(map(len, low))
    if patches <= count:
        return torch.arange(patches)
    if method == "sample":
        return torch.linspace(0, patches - 1, count).round().long()
    heaviest = argsort(weights, True)[:count]
    if method == "nearest":
        return timestamps[heaviest].round().long()
    if not len(heaviest):
        return heaviest
    return _nearest(slots[heaviest].flatten(1), (block.flatten(1) for block in low))
