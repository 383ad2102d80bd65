"""Clusters that form as observations come: the two that are cheapest to merge become one.

Nothing is drawn at random and nothing is computed twice: the costs of all pairs are cached, an
observation adds a row, a merge replaces one. Each cluster keeps its mean (the synopsis), its
weight, and one of its observations whole (the representative, the nearest to the mean that came
by), so that no history is needed to find a sharp picture of it.

The cost is Ward's, with a mass that saturates. By plain Ward (mass equal to weight) a static hour
is so heavy that its noise is worth more slots than a short event, and the event is merged away;
with every mass 1, outliers of a noisy scene take all the slots.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vismem.kernels.ward import merge_costs
from vismem.memory.slots import JoinNotes, Slot, pool_grid

__all__ = ["Observation", "WardClusters", "observations_from", "observations_state"]

OVERHEAD = 64  # bytes: times, weight, source, run and grid of an observation


@dataclass(frozen=True, slots=True, eq=False)
class Observation:
    """One frame as a bank keeps it; never changed.

    Args:
        time: When it was seen, in seconds.
        start: First second of the uninterrupted run around it.
        end: Last second of that run.
        source: Running number of the write.
        tokens: ``(N, D)`` float16; ``(0, D)`` where only its synopsis is left.
        grid: Rows and columns of the tokens.
        embedding: ``(E,)`` float16 of unit length; the mean of all that it stands for.
        note: What stays with it.
    """

    time: float
    start: float
    end: float
    source: int
    tokens: Tensor
    grid: tuple[int, int]
    embedding: Tensor
    note: bytes

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return self.tokens.nbytes + self.embedding.nbytes + len(self.note) + OVERHEAD

    def slot(self, level: str, **more: Any) -> Slot:
        """The observation as a slot: one of its own, unless told more."""
        values: dict[str, Any] = {"first": self.time, "last": self.time, "weight": 1}
        values |= {name: getattr(self, name) for name in Observation.__slots__}
        return Slot(level=level, **(values | more))


class WardClusters:
    """The clusters; see the module.

    Args:
        grid: Rows and columns of a synopsis, ``P`` cells.
        token_dim: Width ``D``.
        mass_limit: What the mass of a cluster tends to as its weight grows: 1 weighs all alike,
            infinity is plain Ward.
        key_cells: Costs are computed on means pooled to about this many cells.
        max_gap: Seconds between observations of one run.
        join_notes: Makes one note of two; that of the representative by default.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        token_dim: int,
        *,
        mass_limit: float,
        key_cells: int,
        max_gap: float,
        join_notes: JoinNotes | None = None,
    ):
        self.grid, self.token_dim = grid, token_dim
        self.mass_limit, self.max_gap, self.join_notes = mass_limit, max_gap, join_notes
        shrink = max(1.0, math.sqrt(grid[0] * grid[1] / key_cells))
        self.key_grid = (max(1, round(grid[0] / shrink)), max(1, round(grid[1] / shrink)))
        row = (column[0] for column in self._empty(1).values())
        self._row_bytes = sum(column.nbytes for column in row) + 1  # whether it is sharp
        self.reset()

    def reset(self) -> None:
        """Hold nothing, and no room for anything."""
        self.kept: list[Observation] = []  # the representatives, in the order of the rows
        self.kept_bytes = self.detail_bytes = 0
        self._columns, self._costs = self._empty(0), torch.empty(0, 0)
        self._sharp = torch.zeros(0, dtype=torch.bool)  # which representatives have their tokens
        self._shared = False  # a snapshot reads the columns: they are copied before a change

    def _empty(self, room: int) -> dict[str, Tensor]:
        cells, key_cells = math.prod(self.grid), math.prod(self.key_grid)
        columns = {
            "synopsis": torch.zeros(room, cells, self.token_dim, dtype=torch.float16),
            "weight": torch.zeros(room, dtype=torch.int64),
            "span": torch.zeros(room, 2, dtype=torch.float64),  # first and last time
        }
        if self.key_grid != self.grid:
            columns["key"] = torch.zeros(room, key_cells, self.token_dim, dtype=torch.float16)
        return columns

    def __len__(self) -> int:
        return len(self.kept)

    @property
    def room(self) -> int:
        """How many clusters the arrays can hold."""
        return len(self._costs)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays, empty rows included, and of the representatives."""
        return self.kept_bytes + self.array_bytes(self.room)

    def array_bytes(self, room: int) -> int:
        """Bytes of the arrays with room for so many clusters."""
        return room * self._row_bytes + 4 * room * room

    @property
    def first(self) -> Tensor:
        """When the first observation of each cluster was seen, ``(K,)``."""
        return self._columns["span"][: len(self), 0]

    # ------------------------------------------------------------------ changing

    def resize(self, room: int) -> None:
        """Reallocate the arrays, for at least as many clusters as there are."""
        held, costs, count = self._columns, self._costs, len(self)
        self._columns, self._shared = self._empty(room), False
        for name, column in self._columns.items():
            column[:count] = held[name][:count]
        self._costs = torch.full((room, room), torch.inf)
        self._costs[:count, :count] = costs[:count, :count]
        self._sharp = torch.cat([self._sharp[:count], torch.zeros(room - count, dtype=torch.bool)])

    def _own(self) -> None:
        """Leave the columns to the snapshot that reads them, and go on with a copy."""
        if self._shared:
            self._columns = {name: column.clone() for name, column in self._columns.items()}
            self._shared = False

    def add(self, observation: Observation) -> None:
        """Begin a cluster; there must be room."""
        self._own()
        row = len(self)
        tokens, grid = observation.tokens, observation.grid
        for name, target in (("synopsis", self.grid), ("key", self.key_grid)):
            if name in self._columns:
                self._columns[name][row] = pool_grid(tokens, grid, target)
        self._columns["weight"][row] = 1
        self._columns["span"][row] = observation.time
        self.kept.append(observation)
        self._sharp[row] = True
        self._count(observation, 1)
        self._update_costs(row)

    def merge(self) -> None:
        """Make one cluster of the two that are cheapest to merge; there must be two."""
        self._own()
        count = len(self)
        pair = divmod(int(self._costs[:count, :count].argmin()), count)
        one, other = min(pair), max(pair)
        weights = self._columns["weight"][[one, other]]
        share = (weights / weights.sum()).float()
        for name in ("synopsis", "key"):
            if name in self._columns:
                column = self._columns[name]
                mean = column[one].float() * share[0] + column[other].float() * share[1]
                column[one] = mean.half()
        span = self._columns["span"]
        span[one, 0] = torch.minimum(span[one, 0], span[other, 0])
        span[one, 1] = torch.maximum(span[one, 1], span[other, 1])
        self._columns["weight"][one] = weights.sum()
        a, b = self.kept[one], self.kept[other]
        self._keep(one, self._represent(one, a, b, weights.tolist()))
        self._remove(other)
        self._update_costs(one)

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
        key = pool_grid(observation.tokens, observation.grid, self.key_grid).float()
        return float((key - self._keys[row].float()).square().sum())

    def blur(self, lightest: bool = False) -> None:
        """Give up the tokens of a representative, the newest cluster's last of all.

        Args:
            lightest: Of the lightest cluster; by default of the two clusters that would be merged
                first, the lighter one's.
        """
        weight = self._columns["weight"]
        rows = torch.nonzero(self._sharp[: max(len(self) - 1, 1)])[:, 0]
        if not len(rows):
            row = len(self) - 1
        elif lightest:
            row = int(rows[weight[rows].argmin()])
        else:
            row = int(rows[self._costs.index_select(0, rows).amin(1).argmin()])
            other = int(self._costs[row, : len(self)].argmin())
            if self._sharp[other] and other < len(self) - 1 and weight[other] < weight[row]:
                row = other
        empty = torch.empty(0, self.token_dim, dtype=torch.float16)
        self._keep(row, replace(self.kept[row], tokens=empty))

    def forget(self, start: float, end: float) -> int:
        """Give up every cluster that may hold something of a span of time."""
        span = self._columns["span"][: len(self)]
        touched = torch.nonzero((span[:, 0] <= end) & (span[:, 1] >= start))[:, 0].tolist()
        if touched:
            self._own()
        for row in reversed(touched):
            self._remove(row)
        return len(touched)

    @property
    def _keys(self) -> Tensor:
        return self._columns["key" if "key" in self._columns else "synopsis"]

    def _update_costs(self, row: int) -> None:
        """Compute what merging a cluster with each of the others would cost."""
        count = len(self)
        weight = self._columns["weight"][:count].float()
        mass = weight
        if math.isfinite(self.mass_limit):
            mass = self.mass_limit * weight / (weight + self.mass_limit - 1)
        keys = self._keys[:count].flatten(1)
        costs = merge_costs(keys, mass, keys[row], mass[row])
        costs[row] = torch.inf
        self._costs[row, :count] = costs
        self._costs[:count, row] = costs

    def _remove(self, row: int) -> None:
        """Take a cluster away; the last one moves into its place, and its row is wiped."""
        last = len(self) - 1
        self._count(self.kept[row], -1)
        for column in self._columns.values():
            column[row] = column[last]
            column[last] = 0
        self._costs[row] = self._costs[last]
        self._costs[:, row] = self._costs[:, last]
        self._costs[row, row] = torch.inf
        self._costs[last] = torch.inf
        self._costs[:, last] = torch.inf
        self._sharp[row] = self._sharp[last]
        self.kept[row] = self.kept[last]
        self.kept.pop()

    def _keep(self, row: int, observation: Observation) -> None:
        """Replace a representative."""
        self._count(self.kept[row], -1)
        self._count(observation, 1)
        self.kept[row] = observation
        self._sharp[row] = len(observation.tokens) > 0

    def _count(self, observation: Observation, sign: int) -> None:
        self.kept_bytes += sign * observation.nbytes
        self.detail_bytes += sign * observation.tokens.nbytes

    # ------------------------------------------------------------------ reading

    def view(self) -> Callable[[], list[Slot]]:
        """What gives all clusters as slots, as they are now, whenever it is called."""
        self._shared = True
        kept, columns, grid = tuple(self.kept), self._columns, self.grid

        def slots() -> list[Slot]:
            rows = zip(
                kept,
                columns["weight"].tolist(),
                columns["span"].tolist(),
                columns["synopsis"],
                strict=False,  # there may be empty rows behind those held
            )
            found = (
                observation.slot(
                    "detail",
                    first=first,
                    last=last,
                    weight=weight,
                    synopsis=synopsis,
                    synopsis_grid=grid,
                )
                for observation, weight, (first, last), synopsis in rows
            )
            return [slot if len(slot.tokens) else slot.coarse() for slot in found]

        return slots

    # ------------------------------------------------------------------ state

    @property
    def _rule(self) -> Tensor:
        """What the cached costs depend on."""
        return torch.tensor([self.mass_limit, *self.key_grid], dtype=torch.float64)

    def state(self) -> dict[str, Tensor]:
        """Everything, as tensors."""
        count = len(self)
        state = {name: column[:count].clone() for name, column in self._columns.items()}
        state["costs"] = self._costs[:count, :count].clone()
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
            raise ValueError("the costs are of another mass_limit or key_cells")
        columns, costs = self._empty(room), torch.full((room, room), torch.inf)
        for name, column in columns.items():
            given = state[name]
            if given.dtype != column.dtype or given.shape != (count, *column.shape[1:]):
                raise ValueError(f"{name} is of another configuration")
            column[:count] = given
        costs[:count, :count] = state["costs"]
        self.reset()
        self.kept, self._columns, self._costs = kept, columns, costs
        self._sharp = torch.zeros(room, dtype=torch.bool)
        for row, observation in enumerate(kept):
            self._sharp[row] = len(observation.tokens) > 0
            self._count(observation, 1)


def observations_state(held: Iterable[Observation]) -> dict[str, Tensor]:
    """Observations as tensors, ``n`` of them."""
    held = list(held)
    notes = b"".join(observation.note for observation in held)
    tokens = [observation.tokens for observation in held]
    return {
        "times": torch.tensor([(o.time, o.start, o.end) for o in held], dtype=torch.float64),
        "sources": torch.tensor([o.source for o in held], dtype=torch.int64),
        "grids": torch.tensor([o.grid for o in held], dtype=torch.int64),
        "counts": torch.tensor([len(t) for t in tokens], dtype=torch.int64),
        "tokens": torch.cat(tokens) if held else torch.empty(0, dtype=torch.float16),
        "embeddings": torch.stack([o.embedding for o in held]) if held else torch.empty(0).half(),
        "note_sizes": torch.tensor([len(o.note) for o in held], dtype=torch.int64),
        "notes": torch.tensor(bytearray(notes), dtype=torch.uint8),
    }


def observations_from(
    state: Mapping[str, Tensor], token_dim: int, embedding_dim: int
) -> list[Observation]:
    """Inverse of `observations_state`.

    Raises:
        KeyError: If something is missing.
        ValueError: If it is of another configuration.
    """
    times, counts = state["times"].tolist(), state["counts"].tolist()
    sources, grids = state["sources"].tolist(), state["grids"].tolist()
    sizes, notes = state["note_sizes"].tolist(), state["notes"].numpy().tobytes()
    all_tokens, embeddings = state["tokens"], state["embeddings"]
    if times and (all_tokens.shape[1:] != (token_dim,) or embeddings.shape[1:] != (embedding_dim,)):
        raise ValueError("tokens or embeddings are of another configuration")
    held, place = [], 0
    tokens = all_tokens.split(counts) if times else ()
    for n, (time, start, end) in enumerate(times):
        note = notes[place : place + sizes[n]]
        place += sizes[n]
        rows, columns = grids[n]
        held.append(
            Observation(
                time,
                start,
                end,
                sources[n],
                tokens[n].clone(),
                (rows, columns),
                embeddings[n].clone(),
                note,
            )
        )
    return held
