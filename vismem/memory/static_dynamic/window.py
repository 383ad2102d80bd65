"""The newest looks at what stands, each as it was seen, for as long as looks change with the view.

Features of a network are not a thing's own: they change with where it is seen from, and the mean of
all views fits none. Where that is so the last look tells what is there now, and the mean what was
there when it was last seen from elsewhere. Where looks differ by noise alone, or by what a smaller
cell would tell apart, the mean is the better and the window is empty: it measures which.

The measure is the intraclass correlation (Fisher, 1925): how much of the variance of the looks at
one cell lies between writes rather than within one. Rows of means do not help against the former,
a window does not help against the latter, so that it says how to share the room.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from vismem.memory.static_dynamic.config import StaticDynamicConfig

__all__ = ["Window"]

_NEAR = 1.25  # cells of the start; a look so near to a newer one gives way to it
_MOST = 0.6  # of the room for what stands
_PER_SHARE = 8.0  # so much room for so much correlation
_WRITES = 2.0  # whose looks see all that one view shows; more are of no use
_FADE = 5.0  # seconds over which looks are compared
_ROUNDING = 1e-6  # of a look's square; what differs by less does not differ
_KNOWN = 8  # tokens from which on a mean is compared with


class Window:
    """Rows of single tokens, in the order of their times. A column, once made, is never changed.

    Args:
        config: Sizes and rules.

    Attributes:
        held: Columns of `StaticDynamicConfig.columns`.
        sums: What was measured: of squares within a write and their freedom, of squares between
            writes, what part of the former these hold, and tokens, ``(5,)`` float64.
    """

    def __init__(self, config: StaticDynamicConfig):
        self.config, self.held = config, config.columns(0)
        self.sums = torch.zeros(5, dtype=torch.float64)

    def __len__(self) -> int:
        return len(self.held["mass"])

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return len(self) * self.config.row_bytes

    @property
    def correlation(self) -> float:
        """Share of the variance of looks at a cell that is between writes; often below 0."""
        within, freedom, between, held, tokens = self.sums.tolist()
        if not freedom or not tokens:
            return 0.0
        noise = within / freedom
        change = (between - held * noise) / tokens
        return change / (max(change, 0.0) + noise) if noise or change else 0.0

    def room(self, rows: int, tokens: int) -> int:
        """How many rows are worth keeping.

        Args:
            rows: That there are for what stands, in all.
            tokens: Of one write.
        """
        share = min(_MOST, _PER_SHARE * max(0.0, self.correlation))
        return int(min(share * rows, _WRITES * tokens))

    def renew(self, tokens: Mapping[str, Tensor], room: int) -> dict[str, Tensor]:
        """Take new looks, and give those away that they replace and the oldest beyond the room.

        Args:
            tokens: Columns of one write.
            room: Rows.
        """
        gone = torch.zeros(len(self), dtype=torch.bool)
        if len(self) and len(tokens["mass"]):
            away = torch.cdist(self.held["position"], tokens["position"]).amin(1)
            gone = away < _NEAR * self.config.voxel
        both = {name: torch.cat([column, tokens[name]]) for name, column in self.held.items()}
        gone = torch.cat([gone, torch.zeros(len(tokens["mass"]), dtype=torch.bool)])
        over = int((~gone).sum()) - room
        if over > 0:
            gone[(~gone).nonzero()[:over, 0]] = True
        self.held = {name: column[~gone] for name, column in both.items()}
        return {name: column[gone] for name, column in both.items()}

    def carve(self, through: Tensor) -> int:
        """Take away the rows of a mask ``(n,)`` bool; how many."""
        self.held = {name: column[~through] for name, column in self.held.items()}
        return int(through.sum())

    def compare(
        self, tokens: Mapping[str, Tensor], row: Tensor, means: Mapping[str, Tensor], passed: float
    ) -> None:
        """Learn how looks at one cell differ within a write, and from those of other writes.

        Args:
            tokens: Columns of looks.
            row: Row of the means that each belongs to, ``(N,)``; -1 where there is none.
            means: Columns of the static layer, to which the looks are still to be added.
            passed: Seconds since the write before.
        """
        known = (row >= 0).nonzero()[:, 0]
        known = known[means["count"][row[known]] >= _KNOWN]
        key = row[known] * 2**31 + tokens["source"][known]
        cell, into, count = key.unique(return_inverse=True, return_counts=True)
        look, of = tokens["feature"][known], cell // 2**31
        mean = torch.zeros(len(cell), look.shape[1]).index_add(0, into, look) / count[:, None]
        apart = (look - mean[into]).square() + _ROUNDING * look.square()
        within = torch.zeros(len(cell)).index_add(0, into, apart.sum(1))
        between = count * (mean - means["feature"][of]).square().sum(1)
        held = 1 + count / means["count"][of]
        found = torch.stack([within, count - 1, between, held, count], 1)[count > 1].double().sum(0)
        self.sums = self.sums * math.exp(-passed / _FADE) + found
