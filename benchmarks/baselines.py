"""The memories that a sceptic would try first, for `retention.py`.

Each is given the same bytes as the memory that it is compared with, counts only its tokens and one
time an entry, and may keep its tokens at the resolution that serves it best. They search by the
cosine between mean tokens, which costs them no byte.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

TIME_BYTES = 8


@dataclass(frozen=True)
class Entry:
    """Something held: tokens ``(n, D)`` of a square grid, and their time, NaN where it is lost."""

    time: float
    tokens: Tensor


class Policy(Protocol):
    """What is measured: writes of one frame, and what is held and found at the end."""

    def write(self, tokens: Tensor, time: float, embedding: Tensor) -> None:
        """Take a frame: ``(16, D)`` float16 at a time in seconds, and its embedding ``(E,)``."""
        ...

    def entries(self) -> Sequence[Entry]:
        """All that is held."""
        ...

    def find(self, tokens: Tensor, embeddings: Tensor, limit: int) -> list[list[Entry]]:
        """Best first, what is nearest to each picture, within a limit of tokens an answer.

        Pictures are given by tokens ``(Q, 16, D)`` and embeddings ``(Q, E)``.
        """
        ...

    @property
    def slots(self) -> int:
        """How many entries it has room for."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes held within the budget."""
        ...

    @property
    def beside(self) -> int:
        """Bytes held beside it."""
        ...


def pool(tokens: Tensor, side: int) -> Tensor:
    """Average square grids of tokens ``(..., n, D)`` to ``(..., side * side, D)``."""
    count, width = tokens.shape[-2:]
    old = round(count**0.5)
    if old == side:
        return tokens
    lead = tokens.shape[:-2]
    grid = tokens.reshape(-1, old, old, width).permute(0, 3, 1, 2)
    return F.adaptive_avg_pool2d(grid, side).flatten(2).transpose(1, 2).reshape(*lead, -1, width)


def search(entries: Sequence[Entry], tokens: Tensor, limit: int) -> list[list[Entry]]:
    """Entries by the cosine of their mean token with each picture's, within a limit of tokens."""
    if not entries:
        return [[] for _ in tokens]
    means = torch.stack([entry.tokens.mean(0, dtype=torch.float32) for entry in entries])
    scores = F.normalize(tokens.float().mean(1), dim=1) @ F.normalize(means, dim=1).T
    sizes = torch.tensor([len(entry.tokens) for entry in entries])
    answers = []
    for order in scores.argsort(dim=1, descending=True, stable=True):
        within = int((sizes[order].cumsum(0) <= limit).sum())
        answers.append([entries[row] for row in order[:within].tolist()])
    return answers


class Baseline(ABC):
    """Frames at one resolution, as many as the budget holds.

    Args:
        budget: Bytes.
        side: Cells of a frame in each direction.
        width: ``D``.
        seed: Of its own generator.
    """

    beside = 0

    def __init__(self, budget: int, side: int, width: int, seed: int):
        self.side = side
        self.row_bytes = side * side * width * 2 + TIME_BYTES
        self.slots = budget // self.row_bytes
        self.random = np.random.default_rng(seed)
        self.seen = 0

    def write(self, tokens: Tensor, time: float, embedding: Tensor) -> None:
        """See `Policy.write`."""
        if self.slots:
            self.take(Entry(time, pool(tokens.float(), self.side).half()))
        self.seen += 1

    @abstractmethod
    def take(self, entry: Entry) -> None:
        """Decide what is held from now on."""

    @abstractmethod
    def entries(self) -> Sequence[Entry]:
        """See `Policy.entries`."""

    def find(self, tokens: Tensor, embeddings: Tensor, limit: int) -> list[list[Entry]]:
        """See `Policy.find`."""
        return search(self.entries(), tokens, limit)

    @property
    def nbytes(self) -> int:
        """See `Policy.nbytes`."""
        return len(self.entries()) * self.row_bytes


class Fifo(Baseline):
    """The newest frames: first in, first out."""

    def __init__(self, budget: int, side: int, width: int, seed: int):
        super().__init__(budget, side, width, seed)
        self.held: deque[Entry] = deque(maxlen=self.slots)

    def take(self, entry: Entry) -> None:
        """Give up the oldest."""
        self.held.append(entry)

    def entries(self) -> Sequence[Entry]:
        """See `Policy.entries`."""
        return list(self.held)


class LastFour(Fifo):
    """The newest four frames, whatever the budget: the baseline that streaming models lose to.

    Source: "SimpleStream", the last N frames and no memory.
    """

    def __init__(self, budget: int, side: int, width: int, seed: int):
        super().__init__(min(budget, 4 * (side * side * width * 2 + TIME_BYTES)), side, width, seed)


class Uniform(Baseline):
    """Every ``stride``-th frame; where that is too many, every second of them is given up."""

    def __init__(self, budget: int, side: int, width: int, seed: int):
        super().__init__(budget, side, width, seed)
        self.stride = 1
        self.held: list[Entry] = []

    def take(self, entry: Entry) -> None:
        """Keep it if it is its turn."""
        if self.seen % self.stride:
            return
        if len(self.held) == self.slots:
            self.held = self.held[::2]
            self.stride *= 2
            if self.seen % self.stride:
                return
        if len(self.held) < self.slots:
            self.held.append(entry)

    def entries(self) -> Sequence[Entry]:
        """See `Policy.entries`."""
        return self.held


class Reservoir(Baseline):
    """A uniform sample of all frames so far, each as likely as any other (algorithm R)."""

    def __init__(self, budget: int, side: int, width: int, seed: int):
        super().__init__(budget, side, width, seed)
        self.held: list[Entry] = []

    def take(self, entry: Entry) -> None:
        """Keep it with the chance that it still has."""
        if len(self.held) < self.slots:
            self.held.append(entry)
            return
        place = int(self.random.integers(0, self.seen + 1))
        if place < self.slots:
            self.held[place] = entry

    def entries(self) -> Sequence[Entry]:
        """See `Policy.entries`."""
        return self.held


class Adjacent(Baseline):
    """One level; the two neighbours in time that are most alike become their weighted mean.

    Source: He et al., "MA-LMM: Memory-Augmented Large Multimodal Model", 2024
    (https://arxiv.org/abs/2404.05726), which merges each place of the grid on its own; here whole
    frames, so that an entry has one time.
    """

    def __init__(self, budget: int, side: int, width: int, seed: int):
        super().__init__(budget, side, width, seed)
        self.rows: list[Tensor] = []  # (n * D,) float32 working copies
        self.times: list[float] = []
        self.weights: list[int] = []
        self.alike = np.empty(0)  # cosine of each row with the next

    def take(self, entry: Entry) -> None:
        """Append it, and merge once if there is no room."""
        row = entry.tokens.float().flatten()
        if self.rows:
            self.alike = np.append(self.alike, self._cosine(self.rows[-1], row))
        self.rows.append(row)
        self.times.append(entry.time)
        self.weights.append(1)
        if len(self.rows) <= self.slots:
            return
        if self.slots == 1:  # no neighbours are left to choose between
            at = 0
        else:
            at = int(self.alike.argmax())
        a, b = self.weights[at], self.weights[at + 1]
        share = b / (a + b)
        self.rows[at : at + 2] = [torch.lerp(self.rows[at], self.rows[at + 1], share)]
        self.times[at : at + 2] = [(1 - share) * self.times[at] + share * self.times[at + 1]]
        self.weights[at : at + 2] = [a + b]
        self.alike = np.delete(self.alike, at)
        for left in (at - 1, at):
            if 0 <= left < len(self.alike):
                self.alike[left] = self._cosine(self.rows[left], self.rows[left + 1])

    @staticmethod
    def _cosine(a: Tensor, b: Tensor) -> float:
        return float(F.cosine_similarity(a, b, dim=0))

    def entries(self) -> Sequence[Entry]:
        """See `Policy.entries`."""
        cells = self.side * self.side
        return [
            Entry(time, row.view(cells, -1).half())
            for time, row in zip(self.times, self.rows, strict=True)
        ]


class AllFrames(Baseline):
    """Everything, without a bound: what the measure gives to a perfect memory."""

    def __init__(self, budget: int, side: int, width: int, seed: int):
        super().__init__(budget, side, width, seed)
        self.slots = 2**62
        self.held: list[Entry] = []

    def take(self, entry: Entry) -> None:
        """Keep it."""
        self.held.append(entry)

    def entries(self) -> Sequence[Entry]:
        """See `Policy.entries`."""
        return self.held


BASELINES: dict[str, type[Baseline]] = {
    "fifo": Fifo,
    "uniform": Uniform,
    "reservoir": Reservoir,
    "last 4": LastFour,
    "adjacent merge": Adjacent,
}
