"""`MovementMemory`: what moved, from when to when, and along which way.

One row is one movement. A finder of moving regions gives each a number that it keeps from frame to
frame; a number seen again within a gap goes on, and one that was away for longer is another
movement, so that a finder may begin to count anew.

Where room is short, what was seen once is given up first. Then of what has ended the two movements
that are next to each other in time and most alike are told as one, if they are alike enough; else
the weakest is given up, by its score times the logarithm of its frames. What still goes on is kept,
unless it is all there is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from vismem.memory.base import Budget, Memory, WriteReport, check_write
from vismem.memory.columns import Table
from vismem.memory.movement_rows import Movement, MovementConfig, MovementSnapshot, Waypoint

__all__ = ["Movement", "MovementConfig", "MovementMemory", "MovementSnapshot", "Waypoint"]


class MovementMemory(Memory):
    """Movements in one stream; see the module.

    Args:
        budget: Bytes.
        config: Sizes and rules.

    Example:
        >>> memory = MovementMemory("100KB", MovementConfig(look_dim=4))
        >>> for n in range(3):
        ...     report = memory.write(
        ...         torch.ones(1, 4), n / 10, id=torch.tensor([7]), score=torch.tensor([0.9]),
        ...         box=torch.tensor([[0.1 * n, 0.4, 0.1 * n + 0.2, 0.6]]),
        ...         position=torch.full((1, 3), torch.nan), label=torch.full((1, 3), -1),
        ...         label_score=torch.zeros(1, 3))
        >>> (movement,) = memory.snapshot().movements()
        >>> movement.start, movement.end, [round(x, 1) for x in movement.box]
        (0.0, 0.2, [0.0, 0.4, 0.4, 0.6])
    """

    def __init__(self, budget: Budget | int | str, config: MovementConfig):
        self.budget, self.config = Budget.parse(budget), config
        self.reset()

    def __len__(self) -> int:
        return len(self._table)

    @property
    def nbytes(self) -> int:
        """Bytes of all movements held."""
        return self._table.nbytes

    @property
    def last_time(self) -> float:
        """Second of the newest write; minus infinity before the first."""
        return self._table.time

    @property
    def oldest(self) -> float:
        """Second at which the oldest movement held began; infinity if none is."""
        return float(self._table.held["first"][:, 0].min()) if len(self) else math.inf

    def reset(self) -> None:
        """Forget everything; the next write may be at any time."""
        self._table = Table(self.config)

    # ------------------------------------------------------------------ writing

    def check(self, tokens: Tensor, time: float, seen: Mapping[str, Tensor]) -> None:
        """Refuse what `write` would refuse, and change nothing.

        Raises:
            ValueError: If anything is missing, does not fit, is not finite, or goes back in time.
        """
        config = self.config
        check_write(tokens, time, config.look_dim, config.max_regions, self._table.time)
        if not torch.isfinite(tokens.half()).all():
            raise ValueError("looks must be within ±65504, the range of float16")
        count = len(tokens)
        shapes = {"id": (count,), "box": (count, 4), "position": (count, 3), "score": (count,)}
        shapes |= {name: (count, config.labels) for name in ("label", "label_score")}
        if seen.keys() != shapes.keys():
            raise ValueError(f"moving regions have {', '.join(shapes)}, not {', '.join(seen)}")
        for name, shape in shapes.items():
            if tuple(seen[name].shape) != shape:
                raise ValueError(f"{name} must be {shape}, not {tuple(seen[name].shape)}")
        for name in ("id", "label"):
            if seen[name].is_floating_point():
                raise ValueError(f"{name} is a whole number")
        if count != len(seen["id"].unique()) or bool((seen["id"] < 0).any()):
            raise ValueError("numbers of regions are 0 or more, and each is given once a frame")
        low, high = seen["box"].split(2, dim=1)
        if not bool(torch.isfinite(seen["box"]).all() and (low <= high).all()):
            raise ValueError("a box is finite and its second corner not before its first")
        known = torch.isfinite(seen["position"])
        if not bool((known.all(1) | torch.isnan(seen["position"]).all(1)).all()):
            raise ValueError("a position is finite, or NaN as a whole where it is not known")
        for name in ("score", "label_score"):
            if not bool(((seen[name] >= 0) & (seen[name] <= 1)).all()):
                raise ValueError(f"{name} is from 0 to 1")
        label = seen["label"].long()  # 2**15 is no int16
        if not bool(((label >= -1) & (label < 2**15)).all()):
            raise ValueError("labels are numbers from 0 to 32767, and -1 for none")

    def write(self, tokens: Tensor, time: float, **seen: Tensor) -> WriteReport:
        """Take the moving regions of one frame; one without any is not written.

        Args:
            tokens: Their looks, ``(N, D)``.
            time: Seconds.
            **seen: ``id (N,)`` whole numbers of the finder's tracks; ``box (N, 4)`` ``x0 y0 x1 y1``
                as fractions; ``position (N, 3)`` world metres or NaN; ``score (N,)`` from 0 to 1;
                ``label (N, L)`` whole numbers, -1 for none, and ``label_score (N, L)`` from 0 to 1.
                Where nothing is recognised, that counts against all labels of the movement.

        Returns:
            Bytes held, whether a movement began; ``merged`` counts movements told together with
            another, ``dropped`` those given up.

        Raises:
            ValueError: If the input is refused; the memory is then unchanged.
        """
        self.check(tokens, time, seen)
        self._table.own()
        self._table.time = time
        held = self._table.held
        at = torch.full((len(tokens),), time, dtype=torch.float64)
        point = torch.cat([at[:, None], seen["box"].double(), seen["position"].double()], 1)
        known = seen["id"][:, None] == held["track"]
        known &= time - held["last"][:, 0] <= self.config.gap
        goes_on = known.any(1)
        rows = torch.empty(len(tokens), dtype=torch.int64)
        of, row = known.nonzero(as_tuple=True)  # one row at most of a track was seen just now
        rows[of] = row
        rows[~goes_on] = self._bear(seen["id"][~goes_on], point[~goes_on])
        self._follow(rows, point)
        self._sum_up(rows, tokens, seen["score"].float(), point)
        label = seen["label"].to(torch.int16)
        once = ~(label[:, :, None] == label[:, None, :]).tril(-1).any(2)
        scores = seen["label_score"].float() * once
        self._add_labels(rows, label, scores, scores)
        self._table.writes += 1
        merged, dropped = self._make_room()
        return WriteReport(self.nbytes, not bool(goes_on.all()), merged, dropped)

    def _bear(self, tracks: Tensor, point: Tensor) -> Tensor:
        """Begin movements; gives their rows."""
        new = self.config.columns(len(tracks))
        new["track"] = tracks.long().clone()
        new["first"] = point.clone()
        new["union"] = point[:, 1:5].float()
        new["count"] += 1
        new["stride"] += 1
        return self._table.add(new)

    def _follow(self, rows: Tensor, point: Tensor) -> None:
        """Note where things are now; a full list of waypoints loses every other one."""
        held, room = self._table.held, self.config.waypoints
        held["last"][rows] = point
        held["waited"][rows] += 1
        due = rows[held["waited"][rows] >= held["stride"][rows]]
        full = due[held["ways"][due] == room]
        half = (room + 1) // 2
        held["way"][full, :half] = held["way"][full, ::2]
        held["way"][full, half:] = torch.nan
        held["ways"][full] = half
        held["stride"][full] *= 2
        held["way"][due, held["ways"][due].long()] = held["last"][due]
        held["ways"][due] += 1
        held["waited"][due] = 0

    def _sum_up(self, rows: Tensor, looks: Tensor, score: Tensor, point: Tensor) -> None:
        held = self._table.held
        held["frames"][rows] += 1
        held["source"][rows] = self._table.writes
        share = 1 / held["frames"][rows].clamp_max(self.config.most_views)[:, None].float()
        before = held["look"][rows].float()
        held["look"][rows] = (before + share * (looks.float() - before)).half()
        surer = score > held["score"][rows]
        surer |= held["frames"][rows] == 1
        held["best"][rows[surer]] = point[surer]
        held["score"][rows] = torch.maximum(held["score"][rows], score)
        held["union"][rows] = _around(held["union"][rows], point[:, 1:5].float())
        place, anchor = point[:, 5:], held["anchor"][rows]
        came = (place - anchor).norm(dim=1)
        counts = came >= self.config.step  # not where either is unknown
        held["path"][rows] += torch.where(counts, came, 0.0)
        moved = (counts | anchor.isnan().any(1))[:, None]
        held["anchor"][rows] = torch.where(moved, place, anchor)

    def _add_labels(self, rows: Tensor, label: Tensor, total: Tensor, best: Tensor) -> None:
        """Add up scores by label; the largest sums are kept."""
        held = self._table.held
        ids = torch.cat([held["label"][rows], label], 1)
        total = torch.cat([held["label_sum"][rows], total], 1)
        best = torch.cat([held["label_max"][rows], best], 1)
        alike = ids[:, :, None] == ids[:, None, :]
        total = (alike * total[:, None]).sum(2)
        best = (alike * best[:, None]).amax(2)
        total = total.masked_fill(alike.tril(-1).any(2) | (ids < 0), 0.0)
        order = total.argsort(dim=1, descending=True, stable=True)[:, : self.config.votes]
        total = total.gather(1, order)
        none = total <= 0
        held["label"][rows] = ids.gather(1, order).masked_fill(none, -1)
        held["label_sum"][rows] = total
        held["label_max"][rows] = best.gather(1, order).masked_fill(none, 0.0)

    # ------------------------------------------------------------------ bounds

    def _make_room(self) -> tuple[int, int]:
        """Join and give up movements until they fit; how many of each."""
        most = self.budget.bytes // self.config.row_bytes
        merged = dropped = 0
        while len(self) > most:
            held = self._table.held
            ended = (self._table.time - held["last"][:, 0] > self.config.gap).nonzero()[:, 0]
            old = ended if len(ended) else torch.arange(len(self))
            strength = held["score"][old] * held["frames"][old].float().log()  # 0 if seen once
            weakest = int(strength.argmin())
            pair = self._most_alike(ended) if strength[weakest] > 0 else None
            if pair is not None:
                self._join(int(ended[pair]), int(ended[pair + 1]))
                merged += 1
            else:
                self._table.keep(torch.arange(len(self)) != old[weakest])
                dropped += 1
        return merged, dropped

    def _most_alike(self, ended: Tensor) -> int | None:
        """Which of the ended movements is most like the one after it; ``None`` if none is."""
        if len(ended) < 2:
            return None
        held = self._table.held
        looks = held["look"][ended].float()
        alike = torch.cosine_similarity(looks[:-1], looks[1:], dim=1)
        pause = held["first"][ended[1:], 0] - held["last"][ended[:-1], 0]
        length = held["last"][ended[1:], 0] - held["first"][ended[:-1], 0]
        fits = (alike >= self.config.alike) & (pause >= 0) & (pause <= self.config.near)
        fits &= length <= self.config.longest
        return int(alike.masked_fill(~fits, -2.0).argmax()) if bool(fits.any()) else None

    def _join(self, old: int, new: int) -> None:
        """The older one goes on as the newer one did."""
        self._table.own()
        held, room = self._table.held, self.config.waypoints
        weight = held["frames"][[old, new]].float()
        held["look"][old] = ((weight / weight.sum()) @ held["look"][[old, new]].float()).half()
        ways = held["ways"]
        way = torch.cat([held["way"][old, : ways[old]], held["way"][new, : ways[new]]])
        count = min(room, len(way))
        chosen = way[torch.linspace(0, len(way) - 1, count).round().long()]
        held["way"][old] = torch.nan
        held["way"][old, :count] = chosen
        held["ways"][old] = count
        if held["score"][new] > held["score"][old]:
            held["best"][old] = held["best"][new]
        held["union"][old] = _around(held["union"][old], held["union"][new])
        for name in ("score", "stride"):
            held[name][old] = torch.maximum(held[name][old], held[name][new])
        for name in ("track", "source", "last", "waited", "anchor"):
            held[name][old] = held[name][new]
        for name in ("frames", "count", "path"):
            held[name][old] += held[name][new]
        votes = (held[name][None, new] for name in ("label", "label_sum", "label_max"))
        self._add_labels(torch.tensor([old]), *votes)
        self._table.keep(torch.arange(len(self)) != new)

    def set_budget(self, budget: Budget | int | str) -> WriteReport:
        """Take another budget at once."""
        self.budget = Budget.parse(budget)
        merged, dropped = self._make_room()
        return WriteReport(self.nbytes, merged=merged, dropped=dropped)

    def forget(self, start: float, end: float) -> int:
        """Give up every movement that touches a span of time, as a whole; how many are gone."""
        held = self._table.held
        touched = (held["first"][:, 0] <= end) & (held["last"][:, 0] >= start)
        self._table.keep(~touched)
        return int(touched.sum())

    def expire(self, before: float) -> int:
        """Give up what ended before a time, and of the rest where it was until then; how many."""
        self._table.own()
        held = self._table.held
        touched = held["first"][:, 0] < before
        recent = held["way"][..., 0] >= before
        order = (~recent).int().argsort(dim=1, stable=True)
        way = held["way"].gather(1, order[..., None].expand_as(held["way"]))
        kept = recent.sum(1)
        way[torch.arange(self.config.waypoints) >= kept[:, None]] = torch.nan
        begins = torch.where((kept > 0)[:, None], way[:, 0], held["last"])
        begins[:, 0] = before
        held["way"], held["ways"] = way, kept.int()
        held["first"] = torch.where(touched[:, None], begins, held["first"])
        faded = (held["best"][:, 0] < before)[:, None]
        held["best"] = torch.where(faded, held["last"], held["best"])
        self._table.keep(held["last"][:, 0] >= before)
        return int(touched.sum())

    # ------------------------------------------------------------------ state

    def snapshot(self) -> MovementSnapshot:
        """Give an immutable view."""
        return MovementSnapshot(self.config, self._table.share(), self._table.time)

    def state_dict(self) -> dict[str, Tensor]:
        """Give all state as tensors; loading it continues bit for bit."""
        return self._table.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the state of another instance of the same configuration.

        Raises:
            ValueError: If it is of another configuration or incomplete.
        """
        self._table.load_state_dict(state)


def _around(one: Tensor, other: Tensor) -> Tensor:
    """The boxes ``(..., 4)`` around two others."""
    return torch.cat(
        [
            torch.minimum(one[..., :2], other[..., :2]),
            torch.maximum(one[..., 2:], other[..., 2:]),
        ],
        -1,
    )
