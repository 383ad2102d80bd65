"""The banks of this library as policies of `retention.py`: the defaults, and as published."""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial

import torch
from baselines import Entry, Policy, search
from einops import rearrange
from scenes import SIDE
from torch import Tensor

from vismem.memory.bank import SlotMemory
from vismem.memory.base import Recall
from vismem.memory.flash import FlashConfig, FlashMemory
from vismem.memory.published.flash import PublishedFlash, PublishedFlashConfig
from vismem.memory.published.pyramid import PublishedPyramid, PublishedPyramidConfig
from vismem.memory.published.star import PublishedStar, PublishedStarConfig
from vismem.memory.pyramid import PyramidConfig, PyramidMemory
from vismem.memory.star import StarConfig, StarMemory

GRID = (SIDE, SIDE)
HALF = 2  # bytes of a number; what the published models store


def recalled(recall: Recall) -> list[Entry]:
    """What a bank gives, frame by frame."""
    return [Entry(time, tokens) for time, _, tokens in recall.frames()]


def best_first(recall: Recall) -> list[Entry]:
    """What a bank gives, by its scores."""
    _, counts = torch.unique_consecutive(recall.sources, return_counts=True)
    scores = recall.scores[counts.cumsum(0) - counts]
    found = recalled(recall)
    return [found[n] for n in scores.argsort(descending=True, stable=True).tolist()]


class Bank:
    """One of ours, with all that it holds inside its budget.

    Args:
        memory: The bank.
    """

    beside = 0

    def __init__(self, memory: SlotMemory):
        self.memory = memory

    def write(self, tokens: Tensor, time: float, embedding: Tensor) -> None:
        """See `Policy.write`."""
        self.memory.write(tokens, time, grid=GRID, embedding=embedding)

    def entries(self) -> Sequence[Entry]:
        """See `Policy.entries`; a slot that has a synopsis as well is held twice."""
        slots = self.memory.snapshot().slots()
        both = [slot.coarse() for slot in slots if slot.synopsis is not None]
        return [Entry(slot.time, slot.tokens) for slot in (*slots, *both)]

    def find(self, tokens: Tensor, embeddings: Tensor, limit: int) -> list[list[Entry]]:
        """See `Policy.find`."""
        snapshot = self.memory.snapshot()
        return [best_first(snapshot.read(query, tokens=limit)) for query in embeddings]

    @property
    def slots(self) -> int:
        """See `Policy.slots`; the newest frames have slots of their own, which hold no past."""
        slots = self.memory.snapshot().slots()
        return sum(slot.level != "recent" for slot in slots)

    @property
    def nbytes(self) -> int:
        """See `Policy.nbytes`."""
        return self.memory.nbytes


class Published(ABC):
    """What the published banks share: what they give is all tokens, whatever is asked."""

    def find(self, tokens: Tensor, embeddings: Tensor, limit: int) -> list[list[Entry]]:
        """See `Policy.find`."""
        return search(self.entries(), tokens, limit)

    @abstractmethod
    def entries(self) -> Sequence[Entry]:
        """See `Policy.entries`."""


class Pyramid(Published):
    """VideoChat-Online's bank, its levels in the published shares of 24, 24 and 144 frames."""

    beside = 0

    def __init__(self, tokens: int, width: int, seed: int):
        levels = tuple(side * side for side in (SIDE, SIDE // 2, 1))
        shares = (1, 1, 6)
        unit = max(2, tokens // sum(s * n for s, n in zip(shares, levels, strict=True)))
        capacities = tuple(unit * share for share in shares)
        self.slots = sum(capacities)
        config = PublishedPyramidConfig(width, capacities, levels)
        self.memory = PublishedPyramid(config)

    def write(self, tokens: Tensor, time: float, embedding: Tensor) -> None:
        """See `Policy.write`."""
        self.memory.write(tokens.float(), time)

    def entries(self) -> Sequence[Entry]:
        """See `Policy.entries`."""
        return recalled(self.memory.read())

    @property
    def nbytes(self) -> int:
        """See `Policy.nbytes`."""
        return self.memory.read().tokens.numel() * HALF


class Flash(Published):
    """Flash-VStream's bank of 2025; two synopses of a quarter of the tokens for each detail."""

    def __init__(self, tokens: int, width: int, seed: int):
        few = SIDE * SIDE // 4
        details = tokens // (SIDE * SIDE + 2 * few)
        self.slots = 2 * details
        config = PublishedFlashConfig(width, 2 * details, details, seed=seed)
        self.memory = PublishedFlash(config, budget=2**50)  # it keeps every frame

    def write(self, tokens: Tensor, time: float, embedding: Tensor) -> None:
        """See `Policy.write`; the published rows come in blocks of 2 by 2."""
        rows = rearrange(tokens.float(), "(h a w b) d -> (h w a b) d", a=2, b=2, h=SIDE // 2)
        self.memory.write(rows, time, grid=GRID)

    def entries(self) -> Sequence[Entry]:
        """See `Policy.entries`."""
        held = self.memory.snapshot()
        detail = [
            rearrange(rows, "(h w a b) d -> (h a w b) d", a=2, b=2, h=SIDE // 2)
            for rows in held.detail
        ]
        pairs = zip(held.times.tolist(), [*detail, *held.synopsis], strict=True)
        return [Entry(time, tokens) for time, tokens in pairs]

    @property
    def nbytes(self) -> int:
        """See `Policy.nbytes`."""
        return self.memory.snapshot().rows().numel() * HALF

    @property
    def beside(self) -> int:
        """See `Policy.beside`: all frames at both resolutions."""
        few = SIDE * SIDE * 5 // 4
        return len(self.memory) * few * self.memory.config.token_dim * HALF


class Star(Published):
    """Flash-VStream's bank of 2024: as many long slots of a quarter of the tokens as abstract ones.

    It knows no times. Published are 64 tokens of key and recent frames, 16 of a long slot and 1 of
    an abstract one; here 16, 4 and 1.
    """

    def __init__(self, tokens: int, width: int, seed: int):
        few = SIDE * SIDE // 4
        keys, recent = 3, 1
        count = max(1, (tokens - (keys + recent) * SIDE * SIDE) // (few + 1))
        self.slots = count
        config = PublishedStarConfig(
            width, SIDE, SIDE, long_slots=count, long_side=SIDE // 2, abstract_slots=count,
            key_frames=keys, recent=recent,
        )  # fmt: skip
        self.memory = PublishedStar(
            config,
            permutations=torch.Generator().manual_seed(seed),
            coins=random.Random(seed),
        )

    def write(self, tokens: Tensor, time: float, embedding: Tensor) -> None:
        """See `Policy.write`."""
        self.memory.write(tokens.float(), time)

    def entries(self) -> Sequence[Entry]:
        """See `Policy.entries`."""
        star = self.memory.snapshot().star
        return [Entry(math.nan, tokens) for part in star[:3] for tokens in part]

    @property
    def nbytes(self) -> int:
        """See `Policy.nbytes`."""
        return self.memory.read().tokens.numel() * HALF

    @property
    def beside(self) -> int:
        """See `Policy.beside`: the published code keeps all frames."""
        return self.memory.frames_seen * SIDE * SIDE * self.memory.config.dim * HALF


Make = Callable[[int, int, int, int], Policy]  # tokens, width, width of embeddings, seed


def flash(tokens: int, width: int, embedding: int, seed: int, **rule: float) -> Policy:
    """`FlashMemory` in the bytes of so many tokens."""
    config = FlashConfig(width, SIDE * SIDE, embedding, **rule)
    return Bank(FlashMemory(config, tokens * width * HALF))


def star(tokens: int, width: int, embedding: int, seed: int) -> Policy:
    """`StarMemory` in the bytes of so many tokens."""
    config = StarConfig(width, SIDE * SIDE, embedding)
    return Bank(StarMemory(config, tokens * width * HALF))


def pyramid(tokens: int, width: int, embedding: int, seed: int) -> Policy:
    """`PyramidMemory` in the bytes of so many tokens."""
    config = PyramidConfig(width, SIDE * SIDE, embedding_dim=embedding)
    return Bank(PyramidMemory(config, tokens * width * HALF))


OURS: dict[str, Make] = {"flash": flash, "star": star, "pyramid": pyramid}
# What the rule for the mass of a scene is worth.
VARIANTS: dict[str, Make] = {
    "flash, plain Ward": partial(flash, mass_limit=math.inf),
    "flash, equal mass": partial(flash, mass_limit=1.0),
}
PUBLISHED: dict[str, Make] = {
    "published star": lambda tokens, width, _, seed: Star(tokens, width, seed),
    "published flash": lambda tokens, width, _, seed: Flash(tokens, width, seed),
    "published pyramid": lambda tokens, width, _, seed: Pyramid(tokens, width, seed),
}
