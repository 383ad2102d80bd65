"""Clusters that form as observations come: the two that are cheapest to merge become one.

Nothing is drawn at random. Each cluster knows which other it would be merged with first and at what
cost; an observation or a merge compares one mean with the others, and what that outdates is
computed anew when it matters. A cluster has a mean of one or a few cells (the gist), by which it is
compared, its weight, and as far as bytes allow a finer mean (the synopsis) and one of its
observations whole (the representative, the nearest to the mean that came by), so that no history is
needed to find a sharp picture of it.

The cost is Ward's, with a mass that saturates. By plain Ward (mass equal to weight) a static hour
is so heavy that its noise is worth more slots than a short event, and the event is merged away;
with every mass 1, outliers of a noisy scene take all the slots.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from vismem.kernels.ward import merge_costs
from vismem.memory.observations import Observation, observations_from, observations_state
from vismem.memory.slots import JoinNotes, Slot, pool_grid

__all__ = ["WardClusters"]

COARSE = ("synopsis", "gist")  # levels of slots whose representative has given up its tokens


class WardClusters:
    """The clusters; see the module.

    Args:
        grid: Rows and columns of a synopsis, ``P`` cells.
        gist: Rows and columns of a gist, ``G`` cells; where it is the grid of a synopsis, it is
            both.
        token_dim: Width ``D``.
        mass_limit: What the mass of a cluster tends to as its weight grows: 1 weighs all alike,
            infinity is plain Ward.
        max_gap: Seconds between observations of one run.
        join_notes: Makes one note of two; that of the representative by default.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        gist: tuple[int, int],
        token_dim: int,
        *,
        mass_limit: float,
        max_gap: float,
        join_notes: JoinNotes | None = None,
    ):
        self.grid, self.gist, self.token_dim = grid, gist, token_dim
        self.mass_limit, self.max_gap, self.join_notes = mass_limit, max_gap, join_notes
        self.row_bytes = sum(column[0].nbytes for column in self._empty(1).values())
        self.reset()

    def reset(self) -> None:
        """Hold nothing, and no room for anything."""
        self.kept: list[Observation] = []  # the representatives, in the order of the rows
        self.synopses: list[Tensor] = []  # (P, D) float16, or (0, D) where it was given up
        self.kept_bytes = self.detail_bytes = self.synopsis_bytes = 0
        self._columns = self._empty(0)
        self._shared = False  # a snapshot reads the columns: they are copied before a change

    def _empty(self, room: int) -> dict[str, Tensor]:
        return {
            "gist": torch.zeros(room, math.prod(self.gist), self.token_dim, dtype=torch.float16),
            "weight": torch.zeros(room, dtype=torch.int64),
            "span": torch.zeros(room, 2, dtype=torch.float64),  # first and last time
            # What it would be merged with first, and the cost: exact, or where `known` is not set
            # a bound that the cost is not below.
            "nearest": torch.zeros(room, dtype=torch.int64),
            "cost": torch.full((room,), torch.inf),
            "known": torch.zeros(room, dtype=torch.bool),
            "sharp": torch.zeros(room, dtype=torch.bool),  # whether its representative has tokens
            "finer": torch.zeros(room, dtype=torch.bool),  # whether it has a synopsis
        }

    def __len__(self) -> int:
        return len(self.kept)

    @property
    def room(self) -> int:
        """How many clusters the columns can hold."""
        return len(self._columns["weight"])

    @property
    def nbytes(self) -> int:
        """Bytes of the columns, empty rows included, of synopses and representatives."""
        return self.room * self.row_bytes + self.synopsis_bytes + self.kept_bytes

    @property
    def first(self) -> Tensor:
        """When the first observation of each cluster was seen, ``(K,)``."""
        return self._columns["span"][: len(self), 0]

    # ------------------------------------------------------------------ changing

    def resize(self, room: int) -> None:
        """Reallocate the columns, for at least as many clusters as there are."""
        held, count = self._columns, len(self)
        self._columns, self._shared = self._empty(room), False
        for name, column in self._columns.items():
            column[:count] = held[name][:count]

    def _own(self) -> None:
        """Leave the columns to the snapshot that reads them, and go on with a copy."""
        if self._shared:
            self._columns = {name: column.clone() for name, column in self._columns.items()}
            self._shared = False

    def add(self, observation: Observation, slot: Slot | None = None) -> None:
        """Begin a cluster; there must be room.

        Args:
            observation: Its representative.
            slot: What it stands for already, if it is more than the observation.
        """
        self._own()
        row, columns = len(self), self._columns
        tokens, grid, weight, span = (
            observation.tokens,
            observation.grid,
            1,
            (observation.time,) * 2,
        )
        sharp, finer = True, self.grid != self.gist
        if slot is not None:
            weight, span = slot.weight, (slot.first, slot.last)
            if slot.synopsis is not None:
                tokens, grid = slot.synopsis, slot.synopsis_grid
                finer = finer and grid != self.gist
            elif slot.level in COARSE:  # its tokens are a mean, its representative has none
                sharp, finer = False, finer and slot.level != "gist"
                observation = replace(observation, tokens=tokens[:0].clone())
        columns["gist"][row] = pool_grid(tokens, grid, self.gist)
        columns["weight"][row] = weight
        columns["span"][row] = torch.tensor(span, dtype=torch.float64)
        columns["sharp"][row], columns["finer"][row] = sharp, finer
        self.kept.append(observation)
        self.synopses.append(pool_grid(tokens, grid, self.grid) if finer else tokens[:0].clone())
        self._count(row, 1)
        self._compare(row)

    def redundancy(self) -> float:
        """What the cheapest merge would cost, in shares of the squared norm of the gist."""
        if len(self) < 2:
            return math.inf
        self._own()
        row = self._cheapest(torch.arange(len(self)))
        norm2 = self._columns["gist"][row].float().square().sum().clamp(min=1e-12)
        return float(self._columns["cost"][row] / norm2)

    def merge(self) -> None:
        """Make one cluster of the two that are cheapest to merge; there must be two."""
        self._own()
        columns = self._columns
        row = self._cheapest(torch.arange(len(self)))
        pair = row, int(columns["nearest"][row])
        one, other = min(pair), max(pair)
        weights = columns["weight"][[one, other]]
        share = (weights / weights.sum()).float()
        for row in (one, other):
            self._count(row, -1)
        columns["gist"][one] = _mean(columns["gist"][one], columns["gist"][other], share)
        span = columns["span"]
        span[one, 0] = torch.minimum(span[one, 0], span[other, 0])
        span[one, 1] = torch.maximum(span[one, 1], span[other, 1])
        columns["weight"][one] = weights.sum()
        finer = self.synopses[one], self.synopses[other]
        # Where one was given up, the other speaks for both.
        lost = [not len(synopsis) for synopsis in finer]
        self.synopses[one] = finer[lost[0]] if any(lost) else _mean(*finer, share)
        a, b = self.kept[one], self.kept[other]
        self.kept[one] = self._represent(one, a, b, weights.tolist())
        for row in (one, other):
            self._count(row, 1)
        columns["sharp"][one] |= columns["sharp"][other]
        columns["finer"][one] |= columns["finer"][other]
        outdated = (columns["nearest"] == one) | (columns["nearest"] == other)
        columns["known"][: len(self)] &= ~outdated[: len(self)]
        self._remove(other)
        self._compare(one)

    def _represent(
        self, row: int, a: Observation, b: Observation, weights: list[int]
    ) -> Observation:
        """The representative of a cluster that was made of two."""
        own, others = weights
        distance = [self._distance(row, observation) for observation in (a, b)]
        if distance[1] < distance[0] or (distance[0] == distance[1] and others > own):
            a, b, own, others = b, a, others, own
        start, end = a.start, a.end
        if max(a.start, b.start) - min(a.end, b.end) <= self.max_gap:
            start, end = min(a.start, b.start), max(a.end, b.end)
        mean = F.normalize(a.embedding.float() * own + b.embedding.float() * others, dim=0)
        note = a.note
        if self.join_notes is not None and a.note and b.note:
            note = self.join_notes(a.note, own, b.note, others)
        return replace(a, start=start, end=end, embedding=mean.half(), note=note)

    def _distance(self, row: int, observation: Observation) -> float:
        """How far an observation is from the mean of a cluster; infinity without its tokens."""
        if not len(observation.tokens):
            return math.inf
        finer = len(self.synopses[row]) > 0
        mean = self.synopses[row] if finer else self._columns["gist"][row]
        grid = self.grid if finer else self.gist
        own = pool_grid(observation.tokens, observation.grid, grid).float()
        return float((own - mean.float()).square().sum())

    def blur(self, lightest: bool = False) -> None:
        """Give up the tokens of one representative.

        Args:
            lightest: Of the lightest cluster; by default of the two that would be merged first,
                the lighter one's. The newest cluster's turn is last.
        """
        row = self._first_to_blur("sharp", lightest)
        self._count(row, -1)
        empty = torch.empty(0, self.token_dim, dtype=torch.float16)
        self.kept[row] = replace(self.kept[row], tokens=empty)
        self._count(row, 1)

    def condense(self, lightest: bool = False) -> None:
        """Give up one synopsis for its gist, in the order of `blur`."""
        row = self._first_to_blur("finer", lightest)
        self._count(row, -1)
        self.synopses[row] = torch.empty(0, self.token_dim, dtype=torch.float16)
        self._count(row, 1)

    def _first_to_blur(self, name: str, lightest: bool) -> int:
        """The row whose finer form is missed least, among those that have one; it has none then."""
        self._own()
        newest, weight, has = len(self) - 1, self._columns["weight"], self._columns[name]
        rows = torch.nonzero(has[:newest])[:, 0]
        row = newest
        if len(rows) and lightest:
            row = int(rows[weight[rows].argmin()])
        elif len(rows):
            row = self._cheapest(rows)
            other = int(self._columns["nearest"][row])
            if other < newest and has[other] and weight[other] < weight[row]:
                row = other
        has[row] = False
        return row

    def forget(self, start: float, end: float) -> int:
        """Give up every cluster that may hold something of a span of time."""
        span = self._columns["span"][: len(self)]
        touched = torch.nonzero((span[:, 0] <= end) & (span[:, 1] >= start))[:, 0].tolist()
        if touched:
            self._own()
        for row in reversed(touched):
            self._columns["known"][self._columns["nearest"] == row] = False
            self._remove(row)
        return len(touched)

    # ------------------------------------------------------------------ costs

    def _costs(self, row: int) -> Tensor:
        """What merging a cluster with each of the others would cost, ``(K,)``."""
        count = len(self)
        weight = self._columns["weight"][:count].float()
        mass = weight
        if math.isfinite(self.mass_limit):
            mass = self.mass_limit * weight / (weight + self.mass_limit - 1)
        keys = self._columns["gist"][:count].flatten(1)
        costs = merge_costs(keys, mass, keys[row], mass[row])
        costs[row] = torch.inf
        return costs

    def _compare(self, row: int) -> None:
        """Take note of a mean that is new: for itself, and for those that it is nearest to.

        Where `known` is not set, the cost is a bound: nothing but this row can be below it.
        """
        count = len(self)
        costs = self._costs(row)
        nearest, cost, known = (self._columns[name] for name in ("nearest", "cost", "known"))
        closer = costs <= cost[:count]
        closer[row] = False
        nearest[:count].masked_fill_(closer, row)
        cost[:count] = torch.where(closer, costs, cost[:count])
        known[:count] |= closer
        nearest[row] = costs.argmin()
        cost[row] = costs.min()
        known[row] = True

    def _cheapest(self, rows: Tensor) -> int:
        """Of some rows, the one that is cheapest to merge with its nearest; both are then known."""
        cost, known = self._columns["cost"], self._columns["known"]
        while not known[row := int(rows[cost[rows].argmin()])]:
            costs = self._costs(row)
            self._columns["nearest"][row], cost[row] = costs.argmin(), costs.min()
            known[row] = True
        return row

    def _remove(self, row: int) -> None:
        """Take a cluster away; the last one moves into its place, and its row is wiped."""
        last = len(self) - 1
        self._count(row, -1)
        for name, empty in self._empty(1).items():
            column = self._columns[name]
            column[row] = column[last]
            column[last] = empty[0]
        nearest = self._columns["nearest"]
        nearest[nearest == last] = row
        self.kept[row], self.synopses[row] = self.kept[last], self.synopses[last]
        self.kept.pop()
        self.synopses.pop()

    def _count(self, row: int, sign: int) -> None:
        """Add what a row holds beside the columns to the bytes, or take it away."""
        self.kept_bytes += sign * self.kept[row].nbytes
        self.detail_bytes += sign * self.kept[row].tokens.nbytes
        self.synopsis_bytes += sign * self.synopses[row].nbytes

    # ------------------------------------------------------------------ reading

    def view(self) -> Callable[[], list[Slot]]:
        """What gives all clusters as slots, as they are now, whenever it is called."""
        self._shared = True
        kept, synopses, columns = tuple(self.kept), tuple(self.synopses), self._columns

        def slots() -> list[Slot]:
            rows = zip(
                kept,
                synopses,
                columns["gist"],
                columns["weight"].tolist(),
                columns["span"].tolist(),
                strict=False,  # there may be empty rows behind those held
            )
            return [self._slot(*row) for row in rows]

        return slots

    def _slot(
        self, kept: Observation, synopsis: Tensor, gist: Tensor, weight: int, span: list[float]
    ) -> Slot:
        finer = len(synopsis) > 0
        slot = kept.slot(
            "detail",
            first=span[0],
            last=span[1],
            weight=weight,
            synopsis=synopsis if finer else gist,
            synopsis_grid=self.grid if finer else self.gist,
        )
        if len(slot.tokens):
            return slot
        return slot.coarse() if finer or self.grid == self.gist else slot.coarse("gist")

    # ------------------------------------------------------------------ state

    @property
    def _rule(self) -> Tensor:
        """What the cached costs depend on."""
        return torch.tensor([self.mass_limit, *self.gist, *self.grid], dtype=torch.float64)

    def state(self) -> dict[str, Tensor]:
        """Everything, as tensors."""
        count = len(self)
        state = {name: column[:count].clone() for name, column in self._columns.items()}
        finer = [synopsis for synopsis in self.synopses if len(synopsis)]
        empty = torch.empty(0, math.prod(self.grid), self.token_dim, dtype=torch.float16)
        state["synopsis"] = torch.stack(finer) if finer else empty
        state["has_synopsis"] = torch.tensor([len(s) > 0 for s in self.synopses], dtype=torch.bool)
        state["room"] = torch.tensor(self.room)
        state["rule"] = self._rule
        return state | {f"kept.{k}": v for k, v in observations_state(self.kept).items()}

    def restore(self, state: Mapping[str, Tensor], embedding_dim: int) -> None:
        """Inverse of `state`.

        Raises:
            KeyError: If something is missing.
            ValueError: If it is of another configuration.
        """
        own = {k.removeprefix("kept."): v for k, v in state.items() if k.startswith("kept.")}
        kept = observations_from(own, self.token_dim, embedding_dim)
        room, count = int(state["room"]), len(kept)
        if not torch.equal(state["rule"], self._rule):
            raise ValueError("the clusters are of another mass_limit, gist or synopsis")
        columns = self._empty(room)
        for name, column in columns.items():
            given = state[name]
            if given.dtype != column.dtype or given.shape != (count, *column.shape[1:]):
                raise ValueError(f"{name} is of another configuration")
            column[:count] = given
        finer = iter(state["synopsis"].clone())
        empty = torch.empty(0, self.token_dim, dtype=torch.float16)
        held = state["has_synopsis"].tolist()
        synopses = [next(finer).clone() if has else empty for has in held]
        self.reset()
        self.kept, self.synopses, self._columns = kept, synopses, columns
        for row in range(count):
            self._count(row, 1)


def _mean(one: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """Of two means in float16, by their shares of the weight."""
    return (one.float() * share[0] + other.float() * share[1]).half()
