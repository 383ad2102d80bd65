"""The rule of Flash-VStream 2025: cluster for a synopsis, search for a detail.

Here are its two halves, what they give together, and the form for a whole video; the form for a
stream is `vismem.memory.published.flash`.

Source: Zhang et al., "Flash-VStream: Efficient Real-Time Understanding for Long Video Streams",
ICCV 2025 (https://arxiv.org/abs/2506.23825; https://github.com/IVGSZ/Flash-VStream, folder
``Flash-VStream-Qwen``), re-implemented from a description.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from vismem.kernels.kmeans import kmeans_assign
from vismem.memory.base import Recall
from vismem.memory.published.clustering import lloyd
from vismem.memory.published.positions import Grid, memory_positions, pool_rows

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


@dataclass(frozen=True)
class PublishedFlashConfig:
    """Sizes of the memory; the published ones but for the width, which is the encoder's.

    Args:
        token_dim: Width of a feature, ``D``.
        synopsis_slots: Slots of the synopsis, low in resolution.
        detail_slots: Patches of the detail, high in resolution.
        pool: Rows and columns of patches that the synopsis averages into one.
        method: How the detail is chosen, see `retrieve_detail`.
        seed: Of both generators.
    """

    token_dim: int = 1280
    synopsis_slots: int = 60
    detail_slots: int = 30
    pool: int = 2
    method: Method = "klarge_retrieve"
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.token_dim, self.pool) < 1 or min(self.synopsis_slots, self.detail_slots) < 0:
            raise ValueError(f"no sizes of a memory: {self}")
        if self.method not in get_args(Method):
            raise ValueError(f"method must be one of {get_args(Method)}, not {self.method!r}")


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
        x: ``(N, P, D)``; returned as they are where there are no more than slots.
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
    if count <= slots:
        return OrderedClusters(x, weights, torch.arange(count).float(), torch.arange(count), 0)
    rows = x.reshape(count, -1).float()
    distinct = torch.unique(rows, dim=0)  # in lexicographic order
    if len(distinct) < slots:
        centroids, labels = distinct, kmeans_assign(rows, distinct, expanded=True)[0]
        mass = rows.new_ones(len(distinct))
    else:
        start = distinct[torch.randperm(len(distinct), generator=generator)[:slots]]
        clusters = lloyd(rows, start, weights.float(), coins, expanded=True)
        centroids, mass, labels = clusters.centroids, clusters.mass, clusters.labels
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


def _nearest(queries: Tensor, blocks: Sequence[Tensor]) -> Tensor:
    """Number of the row nearest to each query, ``(Q, F)`` and rows ``(n, F)`` block by block."""
    found = [kmeans_assign(queries, rows, expanded=True) for rows in blocks]
    starts = torch.tensor([0, *map(len, blocks[:-1])]).cumsum(0)
    rows = torch.stack([labels for labels, _ in found]) + starts[:, None]
    # A square below zero has the root NaN, which is the nearest, as in one search of all.
    block = torch.stack([squares for _, squares in found]).sqrt().argmin(0)
    return rows.gather(0, block[None])[0]


def compress(
    config: PublishedFlashConfig,
    slots: Tensor,
    weights: Tensor,
    generator: torch.Generator,
    coins: random.Random,
    argsort: Argsort = stable_argsort,
) -> tuple[Tensor, Tensor, Tensor]:
    """Bring a synopsis down to its size; one that is no larger begins anew.

    Args:
        config: The size.
        slots: ``(N, P, D)``.
        weights: ``(N,)``.
        generator: See `kmeans_ordered`.
        coins: See `kmeans_ordered`.
        argsort: Sorts the timestamps.

    Returns:
        Slots ``(K, P, D)``, weights ``(K,)`` and timestamps ``(K,)``.

    Raises:
        ValueError: As `kmeans_ordered`.
    """
    if len(slots) <= config.synopsis_slots:
        weights = torch.ones(len(slots))
    if config.synopsis_slots == 0:
        return slots[:0], weights[:0], weights[:0]
    return kmeans_ordered(slots, config.synopsis_slots, weights, generator, coins, argsort)[:3]


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
    return _nearest(slots[heaviest].flatten(1), [block.flatten(1) for block in low])


@dataclass(frozen=True)
class FlashSnapshot:
    """What the memory gives to a language model; it never changes.

    Args:
        grid: Rows and columns of high-resolution patches.
        pool: How many times shorter the sides of the synopsis are.
        detail: ``(h*w, D)`` features for each patch of the detail, in order of weight.
        detail_positions: ``(n,)`` their indices.
        synopsis: ``(K, h*w / pool**2, D)``.
        weights: ``(K,)`` float32.
        timestamps: ``(K,)`` float32; indices of patches at first, of slots later on.
        times: ``(n + K,)`` seconds of the patches that the two lines above name.
    """

    grid: tuple[int, int]
    pool: int
    detail: tuple[Tensor, ...]
    detail_positions: Tensor
    synopsis: Tensor
    weights: Tensor
    timestamps: Tensor
    times: Tensor

    @property
    def detail_grid(self) -> Grid:
        """Grid of the detail's patches."""
        return Grid(len(self.detail), *self.grid)

    @property
    def synopsis_grid(self) -> Grid:
        """Grid of the synopsis's patches."""
        h, w = self.grid
        return Grid(len(self.synopsis), h // self.pool, w // self.pool)

    def rows(self) -> Tensor:
        """Features in published order, ``(N, D)``: all of the detail, then all of the synopsis."""
        return torch.cat([*self.detail, self.synopsis.flatten(0, 1)])

    def positions(self) -> Tensor:
        """Ids ``(3, N/4)`` of the tokens that the rows become; see `memory_positions`."""
        return memory_positions(
            self.synopsis_grid, self.timestamps, self.detail_grid, self.detail_positions
        )

    def read(self, query: Tensor | None = None, **context: Any) -> Recall:
        """Give all rows in published order; the published memory does not look at the query.

        Times and sources are those that the memory itself names to the language model: true of the
        detail, but of the synopsis only until it is first compressed.
        """
        patches = torch.cat([self.detail_positions, self.timestamps.round().long()])
        weights = torch.cat([torch.ones_like(self.detail_positions), self.weights.long()])
        h, w = self.grid
        counts = torch.full_like(patches, h * w)
        counts[len(self.detail) :] //= self.pool**2
        tokens = self.rows().half()
        return Recall(
            tokens,
            self.times.repeat_interleave(counts),
            weights.repeat_interleave(counts),
            torch.zeros(len(tokens)),
            patches.repeat_interleave(counts),
        )


def compress_video(
    high: Tensor,
    config: PublishedFlashConfig,
    grid: tuple[int, int],
    low: Tensor | None = None,
    argsort: Argsort = stable_argsort,
    *,
    generator: torch.Generator | None = None,
    coins: random.Random | None = None,
) -> FlashSnapshot:
    """Compress a whole video at once, as published for training and for benchmarks.

    Args:
        high: ``(T, h*w, D)``.
        config: Sizes and seed.
        grid: ``(h, w)``, multiples of ``2 * pool``.
        low: ``(T, h*w / pool**2, D)``; means of `high` where none are given.
        argsort: Sorts weights and timestamps.
        generator: In place of one of the seed.
        coins: In place of those of the seed.

    Returns:
        The memory; its times are the numbers of the patches.
    """
    low = pool_rows(high, grid, config.pool) if low is None else low
    slots, weights, timestamps = compress(
        config,
        low,
        torch.ones(len(low)),
        generator or torch.Generator().manual_seed(config.seed),
        coins or random.Random(config.seed),
        argsort,
    )
    chosen = retrieve_detail(
        [low], slots, weights, timestamps, config.detail_slots, config.method, argsort
    )
    return FlashSnapshot(
        grid,
        config.pool,
        tuple(high[chosen]),
        chosen,
        slots,
        weights,
        timestamps,
        torch.cat([chosen, timestamps.round()]).double(),
    )
