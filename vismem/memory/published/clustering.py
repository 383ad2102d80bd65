"""The operators below both published Flash-VStream memories: how many frames become few.

After Zhang et al., "Flash-VStream", 2024 (https://arxiv.org/abs/2406.08085) and its code
(https://github.com/IVGSZ/Flash-VStream, Apache-2.0), in our own words. Frames are ``(T, P, D)``
throughout: ``T`` frames of ``P`` tokens. Every rule leaves ``T <= slots`` frames as they are.

The published rules draw from two global streams of random numbers: a permutation for each
clustering that has more rows than slots, and whole numbers for empty clusters or the toss of a
coin. Both are arguments here; seeded alike, a generator of one's own gives the same numbers.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vismem.kernels.kmeans import kmeans_assign, kmeans_update

__all__ = [
    "Clusters",
    "NTMWeights",
    "Slots",
    "attention_feature",
    "drop",
    "k_drop",
    "k_merge",
    "kmeans",
    "lloyd",
    "merge",
    "ntm_write",
    "pooled_side",
    "spatial_pool",
    "weighted_kmeans",
]

MAX_ITERATIONS = 10
TOLERANCE = 1e-4  # on the sum over clusters of how far a centroid moved
SELF = -100.0  # stands on the diagonal, so that no frame is most similar to itself


class Clusters(NamedTuple):
    """Rows in clusters.

    Args:
        centroids: ``(K, D)``, or ``(K, P, D)`` of frames.
        mass: Sum of the weights in each cluster at the last assignment, ``(K,)``.
        labels: The cluster of each row at the last assignment, ``(N,)`` int64.
    """

    centroids: Tensor
    mass: Tensor
    labels: Tensor


class Slots(NamedTuple):
    """Frames after a rule that takes one after the other.

    Args:
        frames: ``(min(T, K), P, D)``.
        labels: The slot that each frame of the input went into, ``(T,)`` int64; -1 if dropped.
        similarity: What the rule compared last: ``(K - 1,)`` of neighbours for `drop` and
            `merge`, ``(K, K)`` for `k_merge`, ``None`` for `k_drop` and where all frames fit.
    """

    frames: Tensor
    labels: Tensor
    similarity: Tensor | None = None


# ---------------------------------------------------------------------- clusters


def lloyd(
    x: Tensor,
    centroids: Tensor,
    weights: Tensor,
    coins: random.Random,
    *,
    expanded: bool = False,
) -> Clusters:
    """Move centroids to the weighted means of their rows, at most ten times.

    Ends when the centroids together move by less than `TOLERANCE`, and gives them as they were
    *before* that last move, with the masses and labels that belong to it. A cluster without
    weight takes a row at random; several rows are drawn in the order of their clusters.

    Args:
        x: ``(N, D)`` rows.
        centroids: ``(K, D)`` to begin with.
        weights: ``(N,)``, not negative.
        coins: Draws the rows of clusters without weight, ``randint(0, N - 1)``.
        expanded: The form of the distance, see :func:`vismem.kernels.kmeans.kmeans_assign`; the
            code of 2024 computes it directly, that of 2025 expanded.

    Raises:
        ValueError: If shapes or types do not go together.
    """
    for _ in range(MAX_ITERATIONS):
        labels, _ = kmeans_assign(x, centroids, expanded=expanded)
        moved, mass = kmeans_update(x, weights, labels, len(centroids))
        empty = torch.nonzero(mass == 0)[:, 0]
        rows = [coins.randint(0, len(x) - 1) for _ in range(len(empty))]
        if rows:
            moved[empty] = x[rows]
        if (centroids - moved).norm(dim=1).sum() < TOLERANCE:
            break
        centroids = moved
    return Clusters(centroids, mass, labels)


def weighted_kmeans(
    x: Tensor,
    slots: int,
    permutations: torch.Generator,
    coins: random.Random,
    weights: Tensor | None = None,
) -> Clusters:
    """Cluster whole frames, beginning at frames taken at random; the published long memory.

    Args:
        x: ``(T, P, D)``.
        slots: How many clusters, at least one.
        permutations: Draws one ``randperm(T)`` where there are more frames than slots.
        coins: See :func:`lloyd`.
        weights: ``(T,)``; ones if none are given.

    Returns:
        Centroids ``(min(T, slots), P, D)`` in the order of their random beginnings, not of time.

    Example:
        >>> frames = torch.tensor([0.0, 1.0, 10.0]).reshape(3, 1, 1)
        >>> draws = torch.Generator().manual_seed(0), random.Random(0)
        >>> weighted_kmeans(frames, 2, *draws).centroids.flatten().sort().values
        tensor([ 0.5000, 10.0000])
    """
    frames = len(x)
    weights = x.new_ones(frames) if weights is None else weights
    if frames <= slots:
        return Clusters(x, weights, torch.arange(frames, device=x.device))
    rows = x.flatten(1)
    first = torch.randperm(frames, generator=permutations)[:slots].to(x.device)
    found = lloyd(rows, rows[first], weights, coins)
    return Clusters(found.centroids.unflatten(1, x.shape[1:]), found.mass, found.labels)


def kmeans(x: Tensor, slots: int, permutations: torch.Generator, coins: random.Random) -> Clusters:
    """Cluster whole frames that count the same, see :func:`weighted_kmeans`.

    The published form measures with ``cdist``, which differs from it by rounding alone.
    """
    return weighted_kmeans(x, slots, permutations, coins)


# ---------------------------------------------------------------------- one frame after the other


def _delete(rows: Tensor, row: int) -> Tensor:
    return torch.cat([rows[:row], rows[row + 1 :]])


def _forget(labels: Tensor, slot: int) -> None:
    """Delete a slot from the labels, in place: its frames are dropped, the slots behind move up."""
    labels[labels == slot] = -1
    labels -= (labels > slot).long()


def _cosine(one: Tensor, other: Tensor) -> Tensor:
    """Cosine of whole frames, ``(n, P, D)`` each: ``(n,)``."""
    return F.cosine_similarity(one.flatten(1), other.flatten(1), dim=1)


def drop(x: Tensor, slots: int, coins: random.Random) -> Slots:
    """Of the two neighbours that are most alike, drop one by the toss of a coin.

    Args:
        x: ``(T, P, D)``.
        slots: How many frames are kept, at least one.
        coins: One ``randint(0, 1)`` for each frame after the first ``slots``: 1 drops the later
            of the two, 0 the earlier.
    """
    labels = torch.arange(len(x), device=x.device)
    if len(x) <= slots:
        return Slots(x, labels)
    kept = x[:slots]
    alike = _cosine(kept[:-1], kept[1:])
    for number in range(slots, len(x)):
        new = x[number : number + 1]
        kept, alike = torch.cat([kept, new]), torch.cat([alike, _cosine(kept[-1:], new)])
        labels[number] = slots
        gone = int(alike.argmax()) + coins.randint(0, 1)
        _forget(labels, gone)
        kept = _delete(kept, gone)
        alike = _delete(alike, min(gone, slots - 1))
        if 0 < gone < slots:  # two frames have become neighbours
            alike[gone - 1] = _cosine(kept[gone - 1 : gone], kept[gone : gone + 1])[0]
    return Slots(kept, labels, alike)


def merge(x: Tensor, slots: int) -> Slots:
    """Put the plain mean in the place of the two neighbours that are most alike.

    The mean counts both the same, however many frames each already stands for. See :func:`drop`.
    """
    labels = torch.arange(len(x), device=x.device)
    if len(x) <= slots:
        return Slots(x, labels)
    kept = x[:slots]
    alike = _cosine(kept[:-1], kept[1:])
    for number in range(slots, len(x)):
        new = x[number : number + 1]
        kept, alike = torch.cat([kept, new]), torch.cat([alike, _cosine(kept[-1:], new)])
        labels[number] = slots
        left = int(alike.argmax())
        labels[labels == left] = left + 1
        _forget(labels, left)
        kept[left + 1] = (kept[left] + kept[left + 1]) / 2
        kept, alike = _delete(kept, left), _delete(alike, left)
        # The mean now stands at `left`; compare it with the neighbours that it has.
        first, last = max(left - 1, 0), min(left + 1, slots - 1)
        alike[first:last] = _cosine(kept[first:last], kept[first + 1 : last + 1])
    return Slots(kept, labels, alike)


def _all_alike(x: Tensor) -> Tensor:
    """Cosines of all pairs of frames, ``(T, T)``, with `SELF` on the diagonal."""
    directions = F.normalize(x.flatten(1), dim=1)
    return (directions @ directions.T).fill_diagonal_(SELF)


def _compare(alike: Tensor, x: Tensor, row: int) -> None:
    """Compute one row and the same column of a matrix of cosines anew, in place."""
    directions = F.normalize(x.flatten(1), dim=1)
    alike[row] = alike[:, row] = directions @ directions[row]
    alike[row, row] = SELF


def _with_new(kept: Tensor, alike: Tensor, new: Tensor) -> tuple[Tensor, Tensor, int, int]:
    """Add a frame; give all frames, their cosines, and the two most alike, earlier one first."""
    kept = torch.cat([kept, new])
    alike = F.pad(alike, (0, 1, 0, 1))
    _compare(alike, kept, -1)
    left, right = divmod(int(alike.argmax()), len(kept))
    return kept, alike, left, right


def k_drop(x: Tensor, slots: int, coins: random.Random) -> Slots:
    """Of the two frames that are most alike, neighbours or not, drop one by the toss of a coin.

    The coin is the other way round than that of :func:`drop`: 1 drops the earlier frame.
    """
    labels = torch.arange(len(x), device=x.device)
    if len(x) <= slots:
        return Slots(x, labels)
    kept, alike = x[:slots], _all_alike(x[:slots])
    for number in range(slots, len(x)):
        kept, alike, left, right = _with_new(kept, alike, x[number : number + 1])
        labels[number] = slots
        gone = left if coins.randint(0, 1) else right
        _forget(labels, gone)
        kept, alike = _delete(kept, gone), _delete(_delete(alike, gone).T, gone).T
    return Slots(kept, labels)


def k_merge(x: Tensor, slots: int) -> Slots:
    """Put the plain mean of the two frames that are most alike in the place of the later one."""
    labels = torch.arange(len(x), device=x.device)
    if len(x) <= slots:
        return Slots(x, labels)
    kept, alike = x[:slots], _all_alike(x[:slots])
    for number in range(slots, len(x)):
        kept, alike, left, right = _with_new(kept, alike, x[number : number + 1])
        labels[number] = slots
        labels[labels == left] = right
        _forget(labels, left)
        kept[right] = (kept[left] + kept[right]) / 2
        _compare(alike, kept, right)
        kept, alike = _delete(kept, left), _delete(_delete(alike, left).T, left).T
    return Slots(kept, labels, alike)


# ---------------------------------------------------------------------- tokens


def pooled_side(side: int, wanted: int) -> int:
    """Side of the grid that :func:`spatial_pool` gives: as wanted where that divides."""
    if not 0 < wanted <= side:
        raise ValueError(f"a grid of side {side} cannot be pooled to side {wanted}")
    return side // (side // wanted)


def spatial_pool(x: Tensor, side: int) -> Tensor:
    """Average the square grid of each frame down to a smaller one.

    The kernel is ``p // side`` for a grid of side ``p``, as published: rows and columns that do
    not fill one are left out, and the result can be larger than wanted, see :func:`pooled_side`.

    Args:
        x: ``(T, p * p, D)``, row by row.
        side: Side of the grid that is wanted.

    Returns:
        ``(T, q * q, D)`` with ``q = pooled_side(p, side)``; ``x`` itself where nothing changes.

    Raises:
        ValueError: If the grid is not square, or smaller than wanted.
    """
    full = math.isqrt(x.shape[1])
    if full * full != x.shape[1]:
        raise ValueError(f"{x.shape[1]} tokens are no square grid")
    if pooled_side(full, side) == full:
        return x
    if side == 1:
        return x.mean(1, keepdim=True)
    grid = x.unflatten(1, (full, full)).movedim(3, 1)
    return F.avg_pool2d(grid, full // side).flatten(2).transpose(1, 2)


@dataclass(frozen=True, eq=False)
class NTMWeights:
    """The learned part of the abstract memory: what memory and new tokens are compared by.

    The published module ("NeuralTuringMachine") also holds a value and an output layer and a
    normalisation, which its write never uses.

    Args:
        q_weight: ``(H, D)``, of the memory.
        q_bias: ``(H,)``.
        k_weight: ``(H, D)``, of the new tokens.
        k_bias: ``(H,)``.
    """

    q_weight: Tensor
    q_bias: Tensor
    k_weight: Tensor
    k_bias: Tensor

    @classmethod
    def random(cls, dim: int, hidden: int = 32, seed: int = 0) -> NTMWeights:
        """Untrained weights, uniform within ``1 / sqrt(dim)`` as a fresh linear layer's are."""
        draws, bound = torch.Generator().manual_seed(seed), dim**-0.5
        shapes = ((hidden, dim), (hidden,), (hidden, dim), (hidden,))
        return cls(*(bound * (2 * torch.rand(shape, generator=draws) - 1) for shape in shapes))

    def to(self, dtype: torch.dtype) -> NTMWeights:
        """A copy in another type."""
        return NTMWeights(*(value.detach().to(dtype, copy=True) for value in vars(self).values()))

    def attention(self, memory: Tensor, new: Tensor) -> Tensor:
        """How much each row of a memory takes of each new row, ``(m, n)``; rows sum to one."""
        query = F.linear(memory, self.q_weight, self.q_bias)
        key = F.linear(new, self.k_weight, self.k_bias)
        return (query @ key.T / math.sqrt(len(self.q_bias))).softmax(1)


def ntm_write(memory: Tensor, new: Tensor, weights: NTMWeights, alpha: float) -> Tensor:
    """Move every row of a memory towards what it attends to among new rows.

    Since attention sums to one, each row keeps ``1 - alpha`` of itself. One new row moves all
    rows alike, so a memory that is written one token at a time collapses to one moving average.

    Args:
        memory: ``(m, D)``.
        new: ``(n, D)``, at least one row.
        weights: The two learned layers, in the type of ``memory``.
        alpha: Share of the new rows.

    Returns:
        ``(m, D)``.
    """
    share = alpha * weights.attention(memory, new)
    return (1 - share.sum(1, keepdim=True)) * memory + share @ new


def attention_feature(x: Tensor, slots: int, weights: NTMWeights, alpha: float) -> Tensor:
    """Take the first frames for a memory and write the others into it; the abstract memory.

    Args:
        x: ``(T, P, D)``.
        slots: Frames of the memory, and frames of one write; the last may have fewer.
        weights: See :func:`ntm_write`.
        alpha: See :func:`ntm_write`.

    Returns:
        ``(min(T, slots), P, D)``.
    """
    if len(x) <= slots:
        return x
    memory = x[:slots].flatten(0, 1)
    for chunk in x[slots:].split(slots):
        memory = ntm_write(memory, chunk.flatten(0, 1), weights, alpha)
    return memory.unflatten(0, (slots, x.shape[1]))
