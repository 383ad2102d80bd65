"""`ObjectMemory`: things that keep their place, or are known to have left it.

A sighting is a thing held already where both take up the same volume and do not look like two
different things; a label never decides. A place that a frame saw through votes that the thing is
gone, and two votes are enough; what is hidden, out of view or without depth stays as it was. A
thing that is gone from one place and alike at one other alone has moved. What was seen once by
chance is given up first.

The rules are after `world_belief` and `inventory` of dimos (github.com/dimensionalOS/dimos).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from vismem.memory.base import Budget, Memory, WriteReport, check_write
from vismem.memory.columns import Table
from vismem.memory.remembered import ObjectConfig, ObjectSnapshot, likeness
from vismem.memory.same_thing import Pairs, find_replaced, match, new_things, only_fit
from vismem.memory.volumes import PRESENT, SEEN, THROUGH, relations
from vismem.sightings import Sightings

__all__ = ["ObjectConfig", "ObjectMemory", "ObjectSnapshot"]


class ObjectMemory(Memory):
    """Things with places in one world; see the module.

    Args:
        budget: Bytes.
        config: Sizes and rules.

    Example:
        >>> memory = ObjectMemory("100KB", ObjectConfig(look_dim=15))
        >>> len(memory), memory.nbytes
        (0, 0)
    """

    def __init__(self, budget: Budget | int | str, config: ObjectConfig):
        self.budget, self.config = Budget.parse(budget), config
        self.reset()

    def __len__(self) -> int:
        return len(self._table)

    @property
    def nbytes(self) -> int:
        """Bytes of all things held."""
        return self._table.nbytes

    @property
    def last_time(self) -> float:
        """Second of the newest write; minus infinity before the first."""
        return self._table.time

    @property
    def oldest(self) -> float:
        """Second of the oldest sighting that anything held goes back to."""
        return float(self._table.held["first"].min()) if len(self) else math.inf

    def reset(self) -> None:
        """Forget everything; the next write may be at any time."""
        self._table = Table(self.config)

    # ------------------------------------------------------------------ writing

    def check(self, tokens: Tensor, time: float, seen: Mapping[str, Tensor]) -> Sightings:
        """Take apart what `write` is given, and change nothing.

        Raises:
            ValueError: If anything is missing, does not fit, is not finite, or goes back in time.
        """
        config = self.config
        sightings = Sightings.of({**seen, "look": tokens})
        if strange := set(seen) - set(sightings.tensors()):
            raise ValueError(f"sightings have no {', '.join(sorted(strange))}")
        anything = tokens if tokens.shape[:1] != (0,) else torch.zeros(1, config.look_dim)
        check_write(anything, time, config.look_dim, config.max_things, self._table.time)
        sightings.check(config.look_dim, config.labels, config.max_things)
        if sightings.color.shape[1] != config.colors:
            raise ValueError(f"colours are {config.colors} shares, not {sightings.color.shape[1]}")
        return sightings

    def write(self, tokens: Tensor, time: float, **seen: Tensor) -> WriteReport:
        """Take what one frame shows.

        Args:
            tokens: Looks of its things, ``(N, D)``; ``(0, D)`` for a frame that shows none, which
                still tells what is gone.
            time: Seconds.
            **seen: The other fields of `Sightings`.

        Returns:
            Bytes held; ``merged`` counts things that were found to have moved, ``dropped`` those
            given up.
        """
        sightings = self.check(tokens, time, seen)
        self._table.own()
        before = len(self)
        self._table.time = time
        held = self._table.held
        told = relations(held["position"], held["extent"], held["sigma"], sightings)
        pairs = match(held, sightings, self.config)
        find_replaced(told, pairs, held, sightings, self.config)
        told[pairs.rows] = SEEN
        self._update(pairs, sightings, time)
        left = self._vote(told, time)
        found = held["id"][pairs.rows[held["views"][pairs.rows] == 2]]
        new = new_things(pairs, held, sightings, self.config)
        born = self._bear(new, sightings, time)
        self._forget_fancies()
        moved = self._reunite(left, found)
        self._table.writes += 1
        self._make_room()
        dropped = before + born - moved - len(self)
        return WriteReport(self.nbytes, born > 0, moved, dropped)

    # ------------------------------------------------------------------ learning

    def _update(self, pairs: Pairs, seen: Sightings, time: float) -> None:
        held, config, rows, of = self._table.held, self.config, pairs.rows, pairs.things
        place, sigma = seen.position[of], seen.sigma[of].double()
        info = held["info"][rows]
        apart = (place - held["position"][rows]).norm(dim=1)
        limit = config.jump + 3 * (sigma.square() + held["sigma"][rows].double().square()).sqrt()
        left = (apart > limit) & ~seen.cut[of]
        self._note_place(rows[left], time)
        held["since"][rows[left]] = time
        info = torch.where(left, 0.0, info)
        fresh = 1 / sigma.square()
        share = (fresh / (info + fresh))[:, None]
        info = torch.minimum(info + fresh, config.most_info * fresh)
        held["info"][rows] = info
        held["sigma"][rows] = (1 / info.sqrt()).clamp_min(config.least_sigma).float()
        held["position"][rows] += share * (place - held["position"][rows])
        held["extent"][rows] += share.float() * (seen.extent[of] - held["extent"][rows])
        held["views"][rows] += 1
        mean = 1 / held["views"][rows].clamp_max(config.most_views)[:, None].float()
        held["color"][rows] += mean * (seen.color[of] - held["color"][rows])
        whole = mean * (~seen.cut[of])[:, None]
        held["shape"][rows] += whole * (seen.shape[of] - held["shape"][rows])
        held["box"][rows] = seen.box[of]
        held["last"][rows] = time
        held["gone"][rows] = False
        held["votes"][rows] = 0
        self._add_labels(rows, seen.label[of], seen.label_score[of])
        self._add_looks(rows, seen.look[of], time)
        self._add_viewpoint(rows, seen.pose)

    def _note_place(self, rows: Tensor, time: float) -> None:
        """Keep where things were until now; of each the newest places."""
        held = self._table.held
        stay = torch.stack([held["since"][rows], held["last"][rows]], 1)
        entry = torch.cat([held["position"][rows], stay], 1)
        held["places"][rows] = torch.cat([entry[:, None], held["places"][rows, :-1]], 1)

    def _add_labels(self, rows: Tensor, ids: Tensor, scores: Tensor) -> None:
        held = self._table.held
        all_ids = torch.cat([held["label"][rows], ids], 1)
        best = torch.cat([held["label_score"][rows], scores], 1)
        order = best.argsort(dim=1, descending=True, stable=True)
        all_ids, best = all_ids.gather(1, order), best.gather(1, order)
        again = (all_ids[:, :, None] == all_ids[:, None, :]).tril(-1).any(2)
        best = best.masked_fill(again, 0.0)
        order = best.argsort(dim=1, descending=True, stable=True)[:, : self.config.labels]
        held["label"][rows] = all_ids.gather(1, order).masked_fill(best.gather(1, order) <= 0, -1)
        held["label_score"][rows] = best.gather(1, order)

    def _add_looks(self, rows: Tensor, looks: Tensor, time: float) -> None:
        """A look is new where none held is like it; else it counts for the one most like it."""
        held, config = self._table.held, self.config
        looks = looks.half()
        alike = (held["looks"][rows].float() @ looks.float()[..., None])[..., 0]
        count = held["look_count"][rows]
        alike = alike.masked_fill(count == 0, -1.0)
        best = alike.max(1)
        free = (count == 0).int().argmax(1)
        new = (best.values < config.new_look) & (count == 0).any(1)
        slot = torch.where(new, free, best.indices)
        held["looks"][rows[new], slot[new]] = looks[new]
        held["look_source"][rows[new], slot[new]] = self._table.writes
        held["look_count"][rows, slot] += 1
        held["look_time"][rows, slot] = time

    def _add_viewpoint(self, rows: Tensor, pose: Tensor) -> None:
        """Count cameras that stood elsewhere: 5 cm apart and 10 degrees around the thing."""
        held, config = self._table.held, self.config
        eye, place = pose[:3, 3].double(), held["position"][rows]
        before = held["eye"][rows]
        turned = torch.cosine_similarity(eye - place, before - place, dim=1)
        other = ((eye - before).norm(dim=1) >= config.step) & (turned <= config.turn)
        held["viewpoints"][rows] += other.int()
        held["eye"][rows] = torch.where(other[:, None], eye, before)

    def _vote(self, told: Tensor, time: float) -> Tensor:
        """Count what was seen through; gives the numbers of those found gone just now."""
        held, config = self._table.held, self.config
        held["told"][:] = told
        held["told_time"][:] = time
        held["votes"][told == PRESENT] = 0
        held["votes"] += (told == THROUGH).to(torch.uint8) * (held["votes"] < 255)
        flips = (held["votes"] >= config.votes) & ~held["gone"]
        held["gone"] |= flips
        return held["id"][flips]

    def _bear(self, things: Tensor, seen: Sightings, time: float) -> int:
        count = len(things)
        new = self.config.columns(count)
        for name in ("position", "sigma", "extent", "box", "color", "shape"):
            new[name] = getattr(seen, name)[things].to(new[name].dtype).clone()
        new["info"] = 1 / new["sigma"].double().square()
        for name in ("first", "since", "last", "told_time"):
            new[name][:] = time
        new["looks"][:, 0] = seen.look[things].half()
        new["look_source"][:, 0] = self._table.writes
        new["look_count"][:, 0] = 1
        new["look_time"][:, 0] = time
        new["views"] += 1
        new["viewpoints"] += 1
        new["eye"][:] = seen.pose[:3, 3]
        self._add_labels(self._table.add(new), seen.label[things], seen.label_score[things])
        return count

    # ------------------------------------------------------------------ what moved

    def _reunite(self, left: Tensor, found: Tensor) -> int:
        """Join what is gone with what was found elsewhere since, where nothing else fits either.

        Args:
            left: Numbers of things that are gone since this write.
            found: Numbers of things that were seen for the second time.
        """
        moved = 0
        for number in torch.cat([left, found]).tolist():
            held = self._table.held
            rows = (held["id"] == number).nonzero()[:, 0].tolist()
            if not rows:  # joined with another just now, or given up
                continue
            (row,) = rows
            other = only_fit(held, row, self.config)
            if other >= 0 and only_fit(held, other, self.config) == row:
                old, new = (row, other) if bool(held["gone"][row]) else (other, row)
                self._join(old, new)
                moved += 1
        return moved

    def _join(self, old: int, new: int) -> None:
        """The old number goes on at the new place, and remembers the old one."""
        held = self._table.held
        self._note_place(torch.tensor([old]), self._table.time)
        for name in ("position", "sigma", "info", "extent", "box", "since", "last", "gone",
                     "votes", "told", "told_time", "eye"):  # fmt: skip
            held[name][old] = held[name][new]
        held["views"][old] += held["views"][new]
        held["viewpoints"][old] += held["viewpoints"][new]
        pooled = (torch.tensor([old]), held["label"][None, new], held["label_score"][None, new])
        self._add_labels(*pooled)
        count = held["look_count"][new]
        alike = likeness(held["looks"][new], held["looks"][old][:, None])
        alike = alike.masked_fill(held["look_count"][old] == 0, -1.0)
        held["look_count"][old].index_add_(0, alike.argmax(1), count)
        held["look_time"][old, 0] = torch.maximum(
            held["look_time"][old, 0], held["look_time"][new].max()
        )
        self._table.keep(torch.arange(len(self)) != new)

    # ------------------------------------------------------------------ bounds

    def _forget_fancies(self) -> None:
        """What was never confirmed and is not there was nothing."""
        held = self._table.held
        nothing = held["gone"] & ~self.config.established(held)
        if bool(nothing.any()):
            self._table.keep(~nothing)

    def _make_room(self) -> int:
        """Give up the unconfirmed first, then the gone, then of the most crowded place the old."""
        over = len(self) - self.budget.bytes // self.config.row_bytes
        if over <= 0:
            return 0
        held = self._table.held
        tier = torch.where(self.config.established(held), torch.where(held["gone"], 1, 2), 0)
        cells = (held["position"] / self.config.place).floor().long()
        _, where, crowd = cells.unique(dim=0, return_inverse=True, return_counts=True)
        order = held["last"].argsort(stable=True)
        order = order[(-crowd[where])[order].argsort(stable=True)]
        order = order[tier[order].argsort(stable=True)]
        self._table.keep(order[over:].sort().values)
        return over

    def set_budget(self, budget: Budget | int | str) -> WriteReport:
        """Take another budget at once."""
        self.budget = Budget.parse(budget)
        dropped = self._make_room()
        return WriteReport(self.nbytes, dropped=dropped)

    def forget(self, start: float, end: float) -> int:
        """Give up everything that was seen, or may have been, in a span of time; how much is gone.

        A thing sums up all its sightings, so it goes as a whole.
        """
        held = self._table.held
        touched = (held["first"] <= end) & (held["last"] >= start)
        self._table.keep(~touched)
        return int(touched.sum())

    def expire(self, before: float) -> int:
        """Give up what was not seen since a time, and of the rest what is older; how many."""
        self._table.own()
        held = self._table.held
        old, touched = held["last"] < before, int((held["first"] < before).sum())
        held["first"].clamp_min_(before)
        held["since"].clamp_min_(before)
        stale = (held["places"][..., 4] < before)[..., None]
        held["places"] = torch.where(stale, torch.nan, held["places"])
        held["places"][..., 3].clamp_min_(before)
        self._table.keep(~old)
        return touched

    # ------------------------------------------------------------------ state

    def snapshot(self) -> ObjectSnapshot:
        """Give an immutable view."""
        return ObjectSnapshot(self.config, self._table.share(), self._table.time)

    def state_dict(self) -> dict[str, Tensor]:
        """Give all state as tensors; loading it continues bit for bit."""
        return self._table.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the state of another instance of the same configuration.

        Raises:
            ValueError: If it is of another configuration or incomplete.
        """
        self._table.load_state_dict(state)
