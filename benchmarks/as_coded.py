"""The updates of Flash-VStream the way its code does them, to be timed by `update_cost.py`.

A loop over clusters that picks rows by a mask, a comprehension over labels, differences of all
pairs at once (2024), a sort of whole rows and a search in all that was seen (2025), a history that
is copied to grow by a frame. In own words, after descriptions of the code; what it spends on
processes, locks and copies between devices is left out.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import torch
from torch import Tensor

from vismem.memory.published.clustering import NTMWeights, spatial_pool
from vismem.memory.published.flash import PublishedFlash


def cluster_as_coded(
    rows: Tensor,
    weights: Tensor,
    centroids: Tensor,
    coins: random.Random,
    distances: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor, list[list[int]]]:
    """Lloyd's iterations with a loop over clusters; centroids, weights and members."""
    count = len(centroids)
    for _ in range(10):
        labels = distances(rows, centroids).argmin(dim=1)
        moved, mass = torch.zeros_like(centroids), torch.zeros(count)
        for cluster in range(count):
            mask = labels == cluster
            mass[cluster] = weights[mask].sum()
            if mass[cluster] > 0:
                moved[cluster] = (rows[mask] * weights[mask][:, None]).sum(0) / mass[cluster]
            else:
                moved[cluster] = rows[coins.randint(0, len(rows) - 1)]
        if torch.norm(centroids - moved, dim=1).sum() < 1e-4:
            break
        centroids = moved
    members = [[n for n, label in enumerate(labels) if label == c] for c in range(count)]
    return centroids, mass, members


def expanded(a: Tensor, b: Tensor) -> Tensor:
    """Distances ``(N, M)`` from squares and products, as the code of 2025."""
    return ((a**2).sum(1, keepdim=True) + (b**2).sum(1) - 2 * a @ b.T).sqrt()


def broadcast(a: Tensor, b: Tensor) -> Tensor:
    """Distances ``(N, M)`` from all differences at once, as the code of 2024."""
    return ((a[:, None] - b[None]) ** 2).sum(-1).sqrt()


class FlashAsCoded:
    """The update of 2025; begins where a vectorised memory stands."""

    def __init__(self, memory: PublishedFlash):
        state = memory.state_dict()
        self.high, self.low = state["high"], state["low"]
        self.slots, self.weights = state["synopsis"], state["weights"]
        self.detail_slots = memory.config.detail_slots
        self.generator = torch.Generator().set_state(memory.generator.get_state())
        self.coins = random.Random()
        self.coins.setstate(memory.coins.getstate())

    def write(self, high: Tensor, low: Tensor) -> None:
        """Add one temporal patch."""
        self.high, self.low = torch.cat([self.high, high[None]]), torch.cat([self.low, low[None]])
        rows = torch.cat([self.slots, low[None]]).flatten(1)
        weights = torch.cat([self.weights, torch.ones(1)])
        count, distinct = len(self.slots), torch.unique(rows, dim=0)
        start = distinct[torch.randperm(len(distinct), generator=self.generator)[:count]]
        found, mass, members = cluster_as_coded(rows, weights, start, self.coins, expanded)
        times = torch.tensor([sum(rows) / len(rows) for rows in members])
        order = torch.sort(times, stable=True).indices
        self.slots = found[order].unflatten(1, self.slots.shape[1:])
        self.weights, self.timestamps = mass[order], times[order]
        heaviest = torch.sort(self.weights, descending=True, stable=True).indices
        queries = self.slots[heaviest[: self.detail_slots]].flatten(1)
        self.positions = expanded(queries, self.low.flatten(1)).argmin(dim=1)
        self.detail = self.high[self.positions]

    @property
    def nbytes(self) -> int:
        """Bytes held: the history, the slots, and the detail beside them."""
        return sum(t.nbytes for t in (self.high, self.low, self.slots, self.detail))


class StarAsCoded:
    """The update of 2024, from the first frame on; its seeds are those of `PublishedStar`."""

    def __init__(self, slots: int, ntm: NTMWeights):
        self.slots, self.ntm = slots, ntm
        self.generator, self.coins = torch.Generator().manual_seed(0), random.Random(0)
        self.history: Tensor | None = None

    def write(self, tokens: Tensor) -> None:
        """Add one frame, ``(64, D)``."""
        frame, mean = tokens[None], tokens.mean(0, keepdim=True)
        long = spatial_pool(frame, 4)
        if self.history is None:
            self.history, self.long, self.abstract, self.current = frame, long, mean, frame
            return
        self.history = torch.cat([self.history, frame])
        self.long = self._cluster(torch.cat([self.long, long]))
        self.current = torch.cat([self.history[self.keys], frame])
        self.abstract = self._attend(torch.cat([self.abstract, mean]))

    def _cluster(self, long: Tensor) -> Tensor:
        rows, weights = long.flatten(1), torch.ones(len(long))
        if len(long) > self.slots:
            start = rows[torch.randperm(len(rows), generator=self.generator)[: self.slots]]
            found, mass, _ = cluster_as_coded(rows, weights, start, self.coins, broadcast)
        else:
            found, mass = rows, weights
        order = torch.sort(mass, descending=True, stable=True).indices
        self.keys = broadcast(rows, rows[order[:3]]).argmin(dim=0)
        return found.unflatten(1, long.shape[1:])

    def _attend(self, abstract: Tensor) -> Tensor:
        memory, new = abstract[: self.slots], abstract[self.slots :]
        if not len(new):
            return memory
        query = memory @ self.ntm.q_weight.T + self.ntm.q_bias
        key = new @ self.ntm.k_weight.T + self.ntm.k_bias
        share = 0.2 * torch.softmax(query @ key.T / math.sqrt(key.shape[1]), dim=1)
        return (1 - share.sum(1, keepdim=True)) * memory + share @ new

    def rows(self) -> Tensor:
        """All tokens, ``(681, D)`` once full."""
        return torch.cat([self.abstract, self.long.flatten(0, 1), self.current.flatten(0, 1)])

    @property
    def nbytes(self) -> int:
        """Bytes held: the history, and the tokens."""
        return self.history.nbytes + self.rows().nbytes
