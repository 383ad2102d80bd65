"""The static layer: what stays where it is, summed up in cells that grow when room runs out.

A row stands for all tokens of one cell: their weighted mean, how many there were, when. In the
world a cell is what is nearer to its mean than to any other, up to a radius: a grid would cut a
wall into slivers, and need half as many rows again for the same detail. In the picture of a fixed
camera it is a patch of the picture and a bucket of looks: one place may look this way or that.
Without positions it is a bucket of looks alone.

Nothing is thrown away while cells can grow: rows whose cells fall together become one. In the world
those are the nearest pairs first, as in agglomerative clustering (Sneath and Sokal, 1973: "nearest
neighbour" pairs joined in their means), so that no room is left over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vismem.geometry import depth_sigma, project
from vismem.memory.static_dynamic.config import StaticDynamicConfig
from vismem.memory.static_dynamic.motion_cue import View

__all__ = ["Found", "StaticStore"]

_HALF = 2**20  # cells on each side of the origin
_BLOCK = 2048  # rows without positions that are compared with each other at once
_LEAK = 0.1  # share of a second that an unproven bucket loses for each that it is not seen
_MOST_SPREAD = 4.0  # squared; a bucket that trembles is at most so much wider
_SEEN_THROUGH = 6.0  # weight that a row loses by it
_MOST_CARVED = 30.0  # weight that it keeps before, so that five views are enough
_NONE = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Found:
    """What the static layer knows of tokens.

    Args:
        row: Row that each token belongs to, ``(N,)`` int64; -1 where there is none yet.
        residual: How far it is from that row, ``(N,)`` float32, in units of the noise.
        explained: How well it is accounted for by what is proven, ``(N,)`` float32 in 0 to 1.
    """

    row: Tensor
    residual: Tensor
    explained: Tensor


class StaticStore:
    """Rows of the static layer; see the module. A column, once made, is never changed.

    Args:
        config: Sizes and rules.
    """

    def __init__(self, config: StaticDynamicConfig):
        self.config = config
        self.held = config.columns(0)
        self.grown = 0  # how often the cells grew

    def __len__(self) -> int:
        return len(self.held["mass"])

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return len(self) * self.config.row_bytes

    @property
    def voxel(self) -> float:
        """Side of a cell now; in the world its radius."""
        return self.config.voxel * self.config.growth**self.grown

    @property
    def limit(self) -> float:
        """Residual up to which a token belongs to a row; as cells grow, buckets widen."""
        return self.config.bucket * self.config.growth**self.grown

    # ------------------------------------------------------------------ finding

    def keys(self, positions: Tensor) -> Tensor:
        """Number of the cell of each position, ``(N,)`` int64."""
        key = torch.zeros(len(positions), dtype=torch.int64)
        for cell in (positions.double() / self.voxel).floor().long().T:
            key = key * (2 * _HALF) + (cell.clamp(1 - _HALF, _HALF - 2) + _HALF)
        return key

    def find(self, features: Tensor, positions: Tensor) -> Found:
        """Look tokens up by place and look; in the world a place is enough: see `nearest`.

        Args:
            features: ``(N, D)`` float32.
            positions: ``(N, axes)`` float32.
        """
        count, keys = len(features), self.keys(positions)
        if self.config.axes == 3:
            row, _ = self.nearest(positions)
            return Found(row, torch.zeros(count), (row >= 0).float())
        ordered, order = self.held["key"].sort(stable=True)
        start = torch.searchsorted(ordered, keys)
        rows = torch.searchsorted(ordered, keys, right=True) - start
        most = int(rows.max()) if count else 0
        if most == 0:
            return Found(
                torch.full((count,), -1), torch.full((count,), math.inf), torch.ones(count)
            )
        slot = torch.arange(most)
        valid = slot < rows[:, None]
        index = order[(start[:, None] + slot).clamp_max(len(self) - 1)]
        away = self._residuals(features, index).masked_fill(~valid, math.inf)
        residual, best = away.min(1)
        row = torch.where(residual <= self.limit, index.gather(1, best[:, None])[:, 0], -1)
        # Late, so that it is taken in when its time has come and not by halves before.
        trust = (self.held["evidence"] / self.config.rest_seconds).pow(4)[index] * valid
        explained = (trust * torch.sigmoid(2 * (self.limit - away))).amax(1)
        # Of a place that was never seen nothing is known, so that nothing is strange there.
        explained = explained.masked_fill(rows == 0, 1.0)
        return Found(row, residual, explained)

    def nearest(self, positions: Tensor, *, other: bool = False) -> tuple[Tensor, Tensor]:
        """Row nearest to each position, ``(N,)``, -1 where none is within a cell, and its distance.

        Args:
            positions: ``(N, 3)`` metres.
            other: That they are those of the rows themselves, and each is to find another one.
        """
        ordered, order = self.keys(self.held["position"]).sort(stable=True)
        held = self.held["position"][order]
        # Of the 27 cells around, each three that differ in the last axis have keys in a row.
        step = torch.tensor([-1, 0, 1]) * 2 * _HALF
        middle = self.keys(positions)[:, None] + (step[:, None] * 2 * _HALF + step).flatten()
        first = torch.searchsorted(ordered, middle - 1).flatten()
        sizes = torch.searchsorted(ordered, middle + 1, right=True).flatten() - first
        of = (torch.arange(len(sizes)) // 9).repeat_interleave(sizes)
        at = torch.arange(len(of)) + (first - sizes.cumsum(0) + sizes).repeat_interleave(sizes)
        away = (positions[of] - held[at]).norm(dim=1)
        if other:
            away = away.masked_fill(order[at] == of, math.inf)
        near = torch.full((len(positions),), math.inf).scatter_reduce(0, of, away, "amin")
        best = (away == near[of]) & (away <= self.voxel)
        # Of rows that are equally near the first, so that two of them choose each other.
        row = torch.full((len(positions),), _NONE).scatter_reduce(
            0, of[best], order[at[best]], "amin"
        )
        return torch.where(row == _NONE, -1, row), near

    def _residuals(self, features: Tensor, index: Tensor) -> Tensor:
        """How far tokens are from rows, ``(N, m)``, in units of the noise."""
        if self.config.axes == 0:
            alike = F.normalize(features) @ F.normalize(self.held["feature"]).T
            return (1 - alike.gather(1, index)) / (1 - self.config.cosine) * self.config.bucket
        away = (self.held["feature"][index] - features[:, None]).square().mean(2)
        wide = self.held["spread"].clamp(1, _MOST_SPREAD).sqrt()
        return away.sqrt() / self.config.noise / wide[index]

    # ------------------------------------------------------------------ learning

    def add(self, tokens: Mapping[str, Tensor], row: Tensor) -> Tensor:
        """Take tokens up.

        Args:
            tokens: Columns of `StaticDynamicConfig.columns`, one row a token. A count of 0 is a
                token that is kept elsewhere: it tells how its bucket looks and no more.
            row: Row that each belongs to, ``(N,)`` int64; -1 founds one.

        Returns:
            Row that each token went to, ``(N,)``.
        """
        held, size = self.held, len(self)
        tokens = {**tokens, "key": self.keys(tokens["position"])}
        known = row >= 0
        touched, place = row[known].unique(return_inverse=True)
        fresh = {name: column[~known] for name, column in tokens.items()}
        founded = self._alike(fresh)
        group = torch.empty(len(row), dtype=torch.int64)
        group[known] = place
        group[~known] = founded + len(touched)
        before = {name: column[touched] for name, column in held.items()}
        before["mass"] = before["mass"].clamp_max(self.config.most_weight)
        both = {name: torch.cat([before[name], tokens[name]]) for name in held}
        group_of = torch.cat([torch.arange(len(touched)), group])
        pooled = _pool(both, group_of, len(touched) + _groups(founded))
        self.held = {
            name: torch.cat([column.index_copy(0, touched, pooled[name][: len(touched)]),
                             pooled[name][len(touched) :]])
            for name, column in held.items()
        }  # fmt: skip
        return torch.cat([touched, torch.arange(size, len(self))])[group]

    def prove(self, rows: Tensor, passed: float) -> Tensor:
        """Count for how long buckets were seen; what was shown by chance is forgotten.

        Args:
            rows: Those seen now.
            passed: Seconds since the write before.

        Returns:
            Rows that are proven just now, ``(P,)``, as they are numbered after the call.
        """
        most, before = self.config.rest_seconds, self.held["evidence"]
        change = torch.full_like(before, -_LEAK * passed)
        change[rows] = passed
        proven = before >= most
        evidence = torch.where(proven, before, (before + change).clamp(0, most))
        self.held = self.held | {"evidence": evidence}
        keep = (evidence > 0) | (self.held["count"] > 0)
        now = ((evidence >= most) & ~proven)[keep].nonzero()[:, 0]
        self._keep(keep)
        return now

    def carve(self, through: Tensor) -> int:
        """Take weight from the rows of a mask ``(n,)`` bool; those of none are gone; how many."""
        less = self.held["mass"].clamp_max(_MOST_CARVED) - _SEEN_THROUGH
        mass = torch.where(through, less, self.held["mass"])
        self.held = self.held | {"mass": mass}
        before = len(self)
        self._keep(mass > 0)
        return before - len(self)

    def seen_through(self, positions: Tensor, view: View, least: float = 0.15) -> Tensor:
        """Which places a camera sees through, ``(N,)`` bool.

        Those where even the nearest of 3 x 3 pixels is well behind: a single pixel would take away
        what is seen at a grazing angle. An unknown pixel lets nothing go.

        Args:
            positions: ``(N, 3)`` metres.
            view: What the camera sees.
            least: Metres that the surface has to be behind, at least.
        """
        pixel, z = project(positions.double().numpy(), view.intrinsics, view.pose)
        height, width = view.depth.shape
        u, v = (np.where(np.isfinite(p), np.rint(p), -1).astype(np.int64) for p in pixel.T)
        inside = (u >= 1) & (v >= 1) & (u < width - 1) & (v < height - 1)
        around = np.arange(-1, 2)
        rows = v[inside][:, None, None] + around[:, None]
        nearest = np.nan_to_num(view.depth[rows, u[inside][:, None, None] + around], posinf=0.0)
        nearest = nearest.min((1, 2))
        margin = np.maximum(max(least, 1.5 * self.voxel), 3 * depth_sigma(nearest))
        through = np.zeros(len(z), bool)
        through[inside] = nearest > z[inside] + margin
        return torch.from_numpy(through)

    # ------------------------------------------------------------------ bounds

    def shrink(self, most: int) -> int:
        """Let cells grow until no more than a number of rows is left.

        What is unproven has the room that is left, and an eighth of all at most where none is; the
        least seen goes first. Where even the largest cells are too many, as their corners meet at
        the origin, the lightest rows go.

        Returns:
            How many tokens were given up with their rows.
        """
        unproven = (self.held["count"] == 0).nonzero()[:, 0]
        over = len(unproven) - max(most // 8, most - (len(self) - len(unproven)))
        if over > 0:
            least = self.held["evidence"][unproven].argsort(stable=True)[:over]
            keep = torch.ones(len(self), dtype=torch.bool)
            keep[unproven[least]] = False
            self._keep(keep)
        while len(self) > max(most, 1) and self.voxel < self.config.voxel * _HALF:
            # Of a surface four times the cells are left at half the side; half the way is safe.
            steps = math.log(len(self) / max(most, 1)) / 4 / math.log(self.config.growth)
            if self.config.axes == 3:
                group = self._pairs(len(self) - most)
                if _groups(group) < len(self):
                    self.held = _pool(self.held, group, _groups(group))
                    continue
            self.grown += max(1, int(steps))
            if self.config.axes != 3:
                rows = self.held | {"key": self.keys(self.held["position"])}
                group = self._alike(rows)
                self.held = _pool(rows, group, _groups(group))
        lost = 0
        if len(self) > most:
            keep = torch.zeros(len(self), dtype=torch.bool)
            keep[self.held["mass"].argsort(descending=True, stable=True)[:most]] = True
            lost = int(self.held["count"][~keep].sum())
            self._keep(keep)
        return lost

    def _keep(self, rows: Tensor) -> None:
        if not bool(rows.all()):
            self.held = {name: column[rows] for name, column in self.held.items()}

    def _pairs(self, most: int) -> Tensor:
        """Which rows are to be one, ``(n,)`` int64 from 0 on: pairs nearest to each other."""
        row, away = self.nearest(self.held["position"], other=True)
        own = torch.arange(len(row))
        first = ((row > own) & (row[row] == own)).nonzero()[:, 0]
        first = first[away[first].argsort(stable=True)[:most]]
        own[row[first]] = first
        return own.unique(return_inverse=True)[1]

    def _alike(self, rows: Mapping[str, Tensor]) -> Tensor:
        """Which rows are of one cell, and of one bucket there, ``(n,)`` int64 from 0 on."""
        _, cell, sizes = rows["key"].unique(return_inverse=True, return_counts=True)
        if self.config.axes == 3 or not len(cell):
            return cell
        # Within a cell the best proven comes first, and others join the first that is like them.
        order = (-rows["mass"]).argsort(stable=True)
        order = order[(-rows["evidence"][order]).argsort(stable=True)]
        order = order[cell[order].argsort(stable=True)]
        if self.config.axes == 0:
            cell[order] = torch.arange(len(cell)) // _BLOCK
            sizes = cell.bincount()
        slot = torch.arange(len(cell)) - (sizes.cumsum(0) - sizes)[cell[order]]
        table = torch.full((len(sizes), int(sizes.max())), -1)
        table[cell[order], slot] = order
        feature = rows["feature"][table.clamp_min(0)]
        if self.config.axes == 0:
            feature = F.normalize(feature, dim=2)
            most = (1 - self.config.cosine) * self.config.growth**self.grown
            near = 1 - feature @ feature.mT <= most
        else:
            square = feature.square().mean(2)
            inner = feature @ feature.mT / feature.shape[2]
            near = (
                square[:, :, None] + square[:, None] - 2 * inner
                <= (self.limit * self.config.noise) ** 2
            )
        near |= torch.eye(near.shape[1], dtype=torch.bool)
        first = (near & (table >= 0)[:, None]).int().argmax(2)
        for _ in range(max(1, math.ceil(math.log2(first.shape[1] + 1)))):
            first = first.gather(1, first)
        joined = (first + first.shape[1] * torch.arange(len(sizes))[:, None])[table >= 0]
        group = torch.empty_like(cell)
        group[table[table >= 0]] = joined.unique(return_inverse=True)[1]
        return group


def _groups(group: Tensor) -> int:
    return int(group.max()) + 1 if len(group) else 0


def _pool(rows: Mapping[str, Tensor], group: Tensor, count: int) -> dict[str, Tensor]:
    """Make one row of those of each group: means by mass, sums, the oldest source, the newest time.

    Where all of a group are unproven, they have no source; it comes with their first token.
    """
    total = torch.zeros(count).index_add(0, group, rows["mass"])
    share = rows["mass"] / total[group]

    def mean(column: Tensor) -> Tensor:
        weight = share.reshape(-1, *[1] * (column.ndim - 1))
        return torch.zeros(count, *column.shape[1:]).index_add(0, group, column * weight)

    def extreme(column: Tensor, rule: str) -> Tensor:
        start = torch.zeros(count, dtype=column.dtype)
        return start.scatter_reduce(0, group, column, rule, include_self=False)

    counts = rows["count"]
    pooled = {
        "feature": mean(rows["feature"]),
        "position": mean(rows["position"]),
        "mass": total,
        "count": torch.zeros(count, dtype=torch.int32).index_add(0, group, counts),
        "source": extreme(torch.where(counts > 0, rows["source"], _NONE), "amin"),
        "time": extreme(rows["time"], "amax"),
    }
    if "evidence" in rows:
        pooled |= {"evidence": extreme(rows["evidence"], "amax"), "spread": mean(rows["spread"])}
        pooled["key"] = extreme(rows["key"], "amin")  # one and the same in a group
    return pooled
