"""What a memory of N tokens may keep of a stream, and how it is asked: the rows of the comparison.

All hold rows of one kind, `Held`, are asked in one way (`look`: the eight nearest rows of a place)
and count their rows; none ever holds more than its budget.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Literal, Protocol

import torch
from moving_room.rows import REACH, Held, look, merge, newest
from torch import Tensor, nn

from vismem.memory.published.infinitevggt import PublishedInfiniteVGGT
from vismem.memory.published.point3r import merge_pointers
from vismem.memory.published.spann3r import PublishedSpann3R, PublishedSpann3RConfig
from vismem.memory.static_dynamic.memory import StaticDynamicConfig, StaticDynamicMemory, View

VOXEL = 0.08
GROWTH = 2 ** (1 / 24)  # small steps, lest cells become larger than they must
FADE = 5.0  # by how much a row's score falls in a second, where the newest is to weigh most
FARTHER, GATE = 0.6, 0.03  # a static row may be farther than a dynamic one; metres of indecision
UNSURE = 1e-3  # of a probability
MIDDLE = torch.tensor([0.0, 0.0, 1.25])  # of the room, metres


class Policy(Protocol):
    """What is measured."""

    def write(
        self, features: Tensor, positions: Tensor, time: float, motion: Tensor, view: View | None
    ) -> None:
        """Take what is seen: ``(N, D)``, ``(N, 3)`` metres, seconds, ``(N,)``, and the depth."""
        ...

    def answer(self, positions: Tensor, time: float, motion: Tensor) -> Tensor:
        """What is at some places ``(M, 3)`` that move with a probability ``(M,)``: ``(M, D)``."""
        ...

    def __len__(self) -> int:
        """Rows that are held."""
        ...


class Store(ABC):
    """Rows of one kind, of which a rule keeps some.

    Args:
        budget: Rows.
        width: ``D``.
        same_class: Whether a place that moves is answered by rows that moved, and one that does not
            by rows that did not, as far as the probabilities tell.
        fade: By how much the score of a row falls in a second.
    """

    reach = REACH

    def __init__(
        self, budget: int, width: int, *, same_class: bool = False, fade: float = 0.0
    ) -> None:
        self.budget, self.same_class, self.fade = budget, same_class, fade
        nothing = torch.zeros(0)
        self.held = Held(torch.zeros(0, width), torch.zeros(0, 3), nothing, nothing, nothing)

    def __len__(self) -> int:
        return len(self.held)

    def write(
        self,
        features: Tensor,
        positions: Tensor,
        time: float,
        motion: Tensor,
        view: View | None = None,
    ) -> None:
        """See `Policy.write`."""
        self.held = self.keep(self.held, Held.seen(features, positions, time, motion))
        assert len(self) <= self.budget, f"{type(self).__name__} holds {len(self)}"

    @abstractmethod
    def keep(self, held: Held, new: Held) -> Held:
        """Decide what is held from now on."""

    def ask(self, positions: Tensor, time: float, motion: Tensor) -> tuple[Tensor, Tensor]:
        """Answers ``(M, D)`` and the distances ``(M,)`` of the rows that they rest on most."""
        held = self.held
        if not len(held):
            width = held.features.shape[1]
            return torch.zeros(len(positions), width), torch.full((len(positions),), torch.inf)
        bias = -self.fade * (time - held.times)
        if self.same_class:
            alike = motion[:, None] * held.motion + (1 - motion[:, None]) * (1 - held.motion)
            bias = bias + alike.clamp(min=UNSURE).log()
        answer, away, self.attention = look(held, positions, self.reach, bias)
        return answer, away

    def answer(self, positions: Tensor, time: float, motion: Tensor) -> Tensor:
        """See `Policy.answer`."""
        return self.ask(positions, time, motion)[0]


class Fifo(Store):
    """The newest: first in, first out."""

    def keep(self, held: Held, new: Held) -> Held:
        """See `Store.keep`."""
        every = Held.join([held, new])
        return every[max(0, len(every) - self.budget) :]


class ThisFrame(Store):
    """What is seen right now, and nothing of before: no memory."""

    def keep(self, held: Held, new: Held) -> Held:
        """See `Store.keep`."""
        return new[: self.budget]


class Reservoir(Store):
    """A sample of all rows that ever were, each with the same chance (Vitter, 1985)."""

    def __init__(self, budget: int, width: int, **how: float) -> None:
        super().__init__(budget, width, **how)
        self.random = torch.Generator().manual_seed(0)
        self.draws = torch.zeros(0)

    def keep(self, held: Held, new: Held) -> Held:
        """See `Store.keep`."""
        draws = torch.cat([self.draws, torch.rand(len(new), generator=self.random)])
        lowest = draws.argsort()[: self.budget].sort().values
        self.draws = draws[lowest]
        return Held.join([held, new])[lowest]


class LeastRecent(Store):
    """One row for each cube of a fixed side; those seen longest ago go."""

    side = 2 * VOXEL

    def keep(self, held: Held, new: Held) -> Held:
        """See `Store.keep`."""
        return newest(merge(Held.join([held, new]), self.side), self.budget)


class Coarsening(Store):
    """One row for each cube, of a side that grows until they fit."""

    def __init__(self, budget: int, width: int, **how: float) -> None:
        super().__init__(budget, width, **how)
        self.side = VOXEL

    def keep(self, held: Held, new: Held) -> Held:
        """See `Store.keep`."""
        rows = merge(Held.join([held, new]), self.side, by_class=self.same_class)
        while len(rows) > self.budget:
            self.side *= GROWTH
            rows = merge(rows, self.side, by_class=self.same_class)
        self.reach = max(REACH, self.side / 2)
        return rows


class Spann3RRule(Store):
    """Rows by the attention that they got for their age, as Spann3R keeps them.

    Only the newest frame is protected: the ten frames of the published code would be all that so
    small a memory holds.
    """

    def __init__(self, budget: int, width: int, **how: float) -> None:
        super().__init__(budget, width, **how)
        self.rule = _ByAttention(
            nn.Identity(), nn.Identity(), nn.Identity(), PublishedSpann3RConfig(1, budget, 0.0, 1)
        )

    def keep(self, held: Held, new: Held) -> Held:
        """See `Store.keep`."""
        table = new.table()[None]
        self.rule.write(table, table)
        if self.rule.keys.shape[1] > self.budget:
            self.rule.keep(self.rule.order())
        return Held.of(self.rule.keys[0])

    def ask(self, positions: Tensor, time: float, motion: Tensor) -> tuple[Tensor, Tensor]:
        """See `Store.ask`; notes what was attended to."""
        found = super().ask(positions, time, motion)
        self.rule.attention = self.rule.attention + self.attention
        return found


class _ByAttention(PublishedSpann3R):
    def order(self) -> Tensor:
        worth = (self.attention / self.age).masked_fill(self.age < 1, torch.inf)
        return worth.topk(self.config.long_tokens, 1).indices.sort(1).values


class Point3RRule(Store):
    """Pointers whose content a near one replaces, as Point3R's; those hit longest ago go."""

    def keep(self, held: Held, new: Held) -> Held:
        """See `Store.keep`."""
        old, fresh = held.table(), new.table()
        _, rows = merge_pointers(held.positions, old, new.positions, fresh)
        return newest(Held.of(rows), self.budget)


class InfiniteVGGTRule(Store):
    """The first frame, and of the rest the rows least like the others, as InfiniteVGGT keeps them.

    Like is the cosine of feature and position together, the room's middle being the origin.
    """

    def __init__(self, budget: int, width: int, **how: float) -> None:
        super().__init__(budget, width, **how)
        self.cache = PublishedInfiniteVGGT()

    def keep(self, held: Held, new: Held) -> Held:
        """See `Store.keep`."""
        keys = torch.cat([new.features, new.positions - MIDDLE], 1)
        self.cache.write(keys[None, None], new.table()[None, None], self.budget)
        return Held.of(self.cache.values[0, 0])


class Dual:
    """A store for what stands still beside a ring for what moves, joined as ours are.

    Args:
        static: Of what stands still.
        ring: Of what moves.
    """

    def __init__(self, static: Store, ring: Store) -> None:
        self.static, self.ring = static, ring

    def __len__(self) -> int:
        return len(self.static) + len(self.ring)

    def write(
        self,
        features: Tensor,
        positions: Tensor,
        time: float,
        motion: Tensor,
        view: View | None = None,
    ) -> None:
        """See `Policy.write`."""
        moves = motion > 0.5
        for store, part in ((self.static, ~moves), (self.ring, moves)):
            store.write(features[part], positions[part], time, motion[part])

    def still(self, positions: Tensor, time: float, motion: Tensor) -> tuple[Tensor, Tensor]:
        """What stands at some places, and how far it is; see `Store.ask`."""
        return self.static.ask(positions, time, motion)

    def answer(self, positions: Tensor, time: float, motion: Tensor) -> Tensor:
        """See `Policy.answer`."""
        stood, near = self.still(positions, time, motion)
        moved, nearer = self.ring.ask(positions, time, motion)
        if not len(self.ring):
            return stood
        odds = torch.logit(motion, UNSURE) + (FARTHER * near - nearer) / GATE
        share = odds.sigmoid()[:, None]
        return share * moved + (1 - share) * stood


class WindowedDual(Dual):
    """A dual that keeps the newest of what stands still as it was seen, before cubes take it in.

    Args:
        budget: Rows: a fifth for what moves, three tenths for the window.
        width: ``D``.
    """

    def __init__(self, budget: int, width: int) -> None:
        ring, self.window = budget // 5, budget * 3 // 10
        super().__init__(
            Coarsening(budget - ring - self.window, width), Fifo(ring, width, fade=FADE)
        )
        self.recent = Fifo(self.window, width)

    def __len__(self) -> int:
        return super().__len__() + len(self.recent)

    def write(
        self,
        features: Tensor,
        positions: Tensor,
        time: float,
        motion: Tensor,
        view: View | None = None,
    ) -> None:
        """See `Policy.write`; each row is in one of the three."""
        moves = motion > 0.5
        self.ring.write(features[moves], positions[moves], time, motion[moves])
        still = Held.seen(features[~moves], positions[~moves], time, motion[~moves])
        every = Held.join([self.recent.held, still])
        leaving = max(0, len(every) - self.window)
        self.recent.held = every[leaving:]
        if leaving:
            self.static.held = self.static.keep(self.static.held, every[:leaving])

    def still(self, positions: Tensor, time: float, motion: Tensor) -> tuple[Tensor, Tensor]:
        """See `Dual.still`."""
        old, far = self.static.ask(positions, time, motion)
        new, near = self.recent.ask(positions, time, motion)
        share = ((FARTHER * far - near) / GATE).nan_to_num().sigmoid()[:, None]
        return share * new + (1 - share) * old, torch.minimum(far, near)


def naive_dual(budget: int, width: int) -> Dual:
    """Cubes of a fixed side that are evicted, and a fifth of the rows for a ring."""
    ring = budget // 5
    return Dual(LeastRecent(budget - ring, width), Fifo(ring, width))


def coarsening_dual(budget: int, width: int) -> Dual:
    """Cubes that grow, and a fifth of the rows for a ring: the split without ours' tracks."""
    ring = budget // 5
    return Dual(Coarsening(budget - ring, width), Fifo(ring, width, fade=FADE))


class Ours:
    """`StaticDynamicMemory`, with the bytes of so many static rows for all that it keeps.

    Args:
        budget: Rows.
        width: ``D``.
        gate: How the two layers are joined.
        told: Whether the mask of what is asked is told when asking.
    """

    def __init__(
        self, budget: int, width: int, gate: Literal["soft", "hard"] = "soft", told: bool = True
    ) -> None:
        config = StaticDynamicConfig(token_dim=width, axes=3)
        self.memory = StaticDynamicMemory(budget * config.row_bytes, config)
        self.budget, self.gate, self.told = budget, gate, told

    def __len__(self) -> int:
        return len(self.memory.kv(0.0).keys)

    def write(
        self, features: Tensor, positions: Tensor, time: float, motion: Tensor, view: View | None
    ) -> None:
        """See `Policy.write`."""
        self.memory.write(features, time, positions=positions, motion=motion, view=view)
        assert len(self) <= self.budget, f"{len(self)} rows"

    def answer(self, positions: Tensor, time: float, motion: Tensor) -> Tensor:
        """See `Policy.answer`."""
        said = motion if self.told else None
        return self.memory.fuse(positions=positions, time=time, motion=said, gate=self.gate)


class OneLayer(Ours):
    """The static layer of `StaticDynamicMemory` for all: nothing is ever said to move."""

    def write(
        self, features: Tensor, positions: Tensor, time: float, motion: Tensor, view: View | None
    ) -> None:
        """See `Policy.write`."""
        super().write(features, positions, time, torch.zeros_like(motion), view)

    def answer(self, positions: Tensor, time: float, motion: Tensor) -> Tensor:
        """See `Policy.answer`."""
        return super().answer(positions, time, torch.zeros_like(motion))


OURS: dict[str, Callable[[int, int], Policy]] = {
    "ours": Ours,
    "ours, hard gate": partial(Ours, gate="hard"),
    "ours, not told what moves": partial(Ours, told=False),
}
BASELINES: dict[str, Callable[[int, int], Policy]] = {
    "this frame alone": ThisFrame,
    "first in, first out": Fifo,
    "FIFO, newest weigh most": partial(Fifo, fade=FADE),
    "FIFO, query mask": partial(Fifo, same_class=True),
    "cubes, least recent go": LeastRecent,
    "cubes that grow": Coarsening,
    "cubes that grow, query mask": partial(Coarsening, same_class=True),
    "reservoir": Reservoir,
    "Spann3R's rule": Spann3RRule,
    "Point3R's rule": Point3RRule,
    "InfiniteVGGT's rule": InfiniteVGGTRule,
    "naive dual": naive_dual,
    "dual of cubes that grow": coarsening_dual,
    "dual with a window": WindowedDual,
    "ours in one layer": OneLayer,
}
