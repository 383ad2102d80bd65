"""`StaticDynamicMemory`: what stays and what moves, each kept in its own way, in one budget.

After the idea of Mem4D (Cai et al., 2025, https://arxiv.org/abs/2508.07908), whose internals are
not public: one memory cannot be both steady for what stands and quick for what moves. Here what
stands is summed up in cells that grow rather than forget; what moves goes at full rate through a
ring, with its track and velocity. What came to rest goes over to the static layer, and what is
seen through leaves it. Where what stands looks different with the view, as to a network it does,
the static layer keeps its newest looks beside the means, in a window of a size that it measures.

Three modes, by the axes of the positions:

* 3, metres in the world. Motion is what the caller says, smoothed over time; else what the camera's
  `View` tells: a token that hides what was seen behind it just now stands in free space. That finds
  less than half of what moves; a detector on whole depth pictures finds far more. Without either,
  everything is static.
* 2, fractions of the picture of a fixed camera. A token moves where its patch does not look the way
  that it has looked before: every look that was there for `rest_seconds` in sum is background, so
  that a lamp may flicker and a parked car is taken in. `StaticDynamicConfig.noise` has to be set.
  A patch may have several looks: give each about three rows of room, or cells grow.
* 0, without positions. The same over looks alone: what was not there before is transient until it
  has been there for `rest_seconds`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vismem.memory.base import Budget, Memory, WriteReport, check_write
from vismem.memory.static_dynamic.config import StaticDynamicConfig
from vismem.memory.static_dynamic.motion_cue import (
    SURE,
    View,
    cue_of,
    filtered,
    hides_what_was_seen,
    said_odds,
)
from vismem.memory.static_dynamic.ring import Ring
from vismem.memory.static_dynamic.snapshot import KV, StaticDynamicSnapshot
from vismem.memory.static_dynamic.static_store import Found, StaticStore
from vismem.memory.static_dynamic.window import Window
from vismem.memory.tracks import NO_TRACK, TrackConfig, Tracks

__all__ = ["KV", "StaticDynamicConfig", "StaticDynamicMemory", "StaticDynamicSnapshot", "View"]

_ASIDE = 8  # parts of the budget of which tracks may take one, and the filter's memory another
_LONGEST = 0.5  # seconds that one write may count as having passed


class StaticDynamicMemory(Memory):
    """A static and a dynamic layer within a hard budget of bytes; see the module.

    Args:
        budget: Bytes, or text such as ``"1MB"``.
        config: Sizes and rules.

    Attributes:
        motion: How likely each token of the last write moves, ``(N,)`` float32, smoothed over time.

    Example:
        >>> memory = StaticDynamicMemory("100KB", StaticDynamicConfig(token_dim=2))
        >>> for n in range(10):
        ...     wall, ball = [0.0, 0.0, 3.0], [0.1 * n, 0.0, 1.0]
        ...     report = memory.write(torch.eye(2), 0.1 * n, positions=torch.tensor([wall, ball]),
        ...                           motion=torch.tensor([0.0, 1.0]))
        >>> memory.read(layer="static").weights.tolist(), len(memory.read(layer="dynamic").tokens)
        ([10], 10)
        >>> memory.fuse(positions=torch.tensor([[1.5, 0.0, 1.0]]), time=1.5).round(decimals=2)
        tensor([[0., 1.]])
    """

    def __init__(self, budget: Budget | int | str, config: StaticDynamicConfig):
        self.budget, self.config = Budget.parse(budget), config
        self._ring_row = sum(
            c.nbytes for c in Ring.columns(1, config.token_dim, config.axes).values()
        )
        self.reset()

    def reset(self) -> None:
        """Forget everything; the next write may be at any time."""
        config = self.config
        self._static, self._ring = StaticStore(config), Ring(config.token_dim, config.axes)
        self._window = Window(config)
        rules = TrackConfig(
            axes=max(1, config.axes),
            apart=config.reach,
            match=1.5 * config.reach,
            rest_speed=config.voxel / 4,
            rest_seconds=config.rest_seconds,
        )
        room = self.budget.bytes // _ASIDE // sum(c.nbytes for c in rules.columns(1).values())
        tracks = min(config.max_tracks, room) if config.axes else 0
        self._tracks = Tracks(TrackConfig(**vars(rules) | {"max_tracks": tracks}))
        self._before = torch.zeros(0, config.axes), torch.zeros(0)  # places, log odds of motion
        self._writes, self._last = 0, -math.inf
        self.motion = torch.zeros(0)

    @property
    def nbytes(self) -> int:
        """Bytes of the layers, of the tracks and of what the motion filter remembers."""
        before = sum(part.nbytes for part in self._before)
        parts = (self._static, self._window, self._ring, self._tracks)
        return sum(part.nbytes for part in parts) + before

    @property
    def tracks(self) -> Tracks:
        """What moves, as things with velocities; to be read only."""
        return self._tracks

    # ------------------------------------------------------------------ writing

    def write(  # type: ignore[override]  # names what it takes instead of any context
        self,
        tokens: Tensor,
        time: float,
        *,
        positions: Tensor | None = None,
        motion: Tensor | None = None,
        confidence: Tensor | None = None,
        view: View | None = None,
    ) -> WriteReport:
        """Add one frame.

        Args:
            tokens: ``(N, D)``; their order does not matter.
            time: Seconds, never earlier than the write before.
            positions: ``(N, axes)`` where each token is; leave a token out whose place is unknown.
            motion: ``(N,)`` in 0 to 1, how likely each moves, as a detector says.
            confidence: ``(N,)`` above 0, the weight of each in a mean; 1 by default.
            view: What the camera saw; in the world alone. Takes away what it sees through.

        Returns:
            Bytes held; ``merged`` counts tokens that joined what was there, ``dropped`` what left
            the ring, was seen through, or found no room.

        Raises:
            ValueError: If anything does not fit or is not finite; the memory is then unchanged.
        """
        config = self.config
        check_write(tokens, time, config.token_dim, config.max_tokens,
                    self._last if self._writes else None)  # fmt: skip
        places = config.checked(tokens, positions, motion, confidence, view)
        feature = tokens.detach().float()
        order = _canonical(feature, places)
        feature, places = feature[order], places[order]
        said = None if motion is None else motion.detach().float()[order]
        weight = (
            torch.ones(len(order)) if confidence is None else confidence.detach().float()[order]
        )
        passed = time - self._last if self._writes else 0.0
        source, time = self._writes, float(time)

        carved = 0
        if view is not None:
            stand = torch.cat([self._static.held["position"], self._window.held["position"]])
            through, rows = self._static.seen_through(stand, view), len(self._static)
            carved = self._static.carve(through[:rows]) + self._window.carve(through[rows:])
        found = None if config.axes == 3 else self._static.find(feature, places)
        cue = said_odds(said) if said is not None else self._cue(found, places, time, view)
        odds = filtered(self._odds_before(places), cue, passed)
        odds, track, resting = self._follow(places, odds, time)
        dynamic = odds >= 0
        velocity = self._velocity(track, places)

        table = config.columns(len(feature)) | {
            "feature": feature,
            "position": places,
            "mass": weight,
            "count": (~dynamic).to(torch.int32),
            "source": torch.full((len(feature),), source, dtype=torch.int32),
            "time": torch.full((len(feature),), time, dtype=torch.float64),
        }
        held_before = len(self._static) + len(self._window)
        if found is None:
            self._settle(torch.isin(self._ring.held["track"], resting))
        else:
            self._learn(table, found, dynamic, min(passed, _LONGEST))
        moving = odds[dynamic].argsort(stable=True)  # where there is room for some, the surest stay
        self._ring.add(feature[dynamic][moving], places[dynamic][moving],
                       velocity[dynamic][moving], time, source, track[dynamic][moving])  # fmt: skip
        self._before = (places, odds) if config.axes else self._before
        rows, dropped = self._room()
        if found is None:
            self._look({name: column[~dynamic] for name, column in table.items()}, rows, passed)
        held_now = len(self._static) + len(self._window)
        merged = int((~dynamic).sum()) - max(0, held_now - held_before)
        dropped += self._static.shrink(rows - len(self._window))
        self._writes, self._last = self._writes + 1, time
        self.motion = torch.empty_like(odds).index_copy(0, order, torch.sigmoid(odds))
        return WriteReport(self.nbytes, merged=max(0, merged), dropped=dropped + carved)

    def _cue(self, found: Found | None, places: Tensor, time: float, view: View | None) -> Tensor:
        """Log odds of motion from this write alone, ``(N,)``."""
        if found is not None:
            return cue_of(found.explained)
        if view is None:
            return torch.full((len(places),), -SURE)
        held = self._static.held
        hides = hides_what_was_seen(places, held["position"], held["mass"], held["time"], time,
                                    view, self._static.voxel)  # fmt: skip
        return cue_of((~hides).float())

    def _odds_before(self, places: Tensor) -> Tensor:
        """What the filter knew of each place, ``(N,)``; 0 where it knew nothing."""
        held, odds = self._before
        if not len(odds):
            return torch.zeros(len(places))
        if self.config.axes == 3:
            near = torch.cdist(places, held).min(1)
            return torch.where(near.values <= 2 * self.config.voxel, odds[near.indices], 0.0)
        cells, of, count = self._static.keys(held).unique(return_inverse=True, return_counts=True)
        mean = torch.zeros(len(cells)).index_add(0, of, odds) / count
        keys = self._static.keys(places)
        at = torch.searchsorted(cells, keys).clamp_max(len(cells) - 1)
        return torch.where(cells[at] == keys, mean[at], 0.0)

    def _follow(self, places: Tensor, odds: Tensor, time: float) -> tuple[Tensor, Tensor, Tensor]:
        """Log odds and track of each token, and the tracks that have come to rest."""
        track = torch.full((len(odds),), NO_TRACK)
        if not self.config.axes:
            return odds, track, track[:0]
        track[odds >= 0] = self._tracks.step(places[odds >= 0], time)
        rest = self._tracks.ids[self._tracks.rest >= self.config.rest_seconds]
        if self.config.axes == 2:  # who stands and waves keeps to a place, and still moves
            return odds, track, rest[:0]
        return odds.masked_fill(torch.isin(track, rest), -SURE), track, rest

    def _velocity(self, track: Tensor, places: Tensor) -> Tensor:
        velocity = torch.zeros_like(places)
        known = track != NO_TRACK
        row = torch.searchsorted(self._tracks.ids, track[known])
        velocity[known] = self._tracks.velocity[row].float()
        return velocity

    def _learn(
        self, table: dict[str, Tensor], found: Found, dynamic: Tensor, passed: float
    ) -> None:
        """Take up the looks of a write, and what has been there for long enough as background."""
        row, static = found.row, self._static
        known = row >= 0
        held = {name: static.held[name][row.clamp_min(0)] if len(static) else table[name]
                for name in ("count", "spread")}  # fmt: skip
        # What moves past a look that others made does not change it.
        strange = dynamic & known & (held["count"] > 0)
        table["mass"] = table["mass"].masked_fill(strange, 0.0)
        spread = held["spread"] * torch.where(known, found.residual, 1.0).square()
        table["spread"] = torch.where(known, spread.clamp_max(16.0), 1.0)
        at_once = found.residual.isinf() & ~dynamic
        table["evidence"] = at_once * self.config.rest_seconds
        seen = static.add(table, row)
        proven = static.prove(seen.unique(), passed)
        if len(proven) and len(self._ring):
            of = static.find(self._ring.held["feature"], self._ring.held["position"]).row
            self._settle(torch.isin(of, proven))

    def _look(self, looks: dict[str, Tensor], rows: int, passed: float) -> None:
        """Take up what stands in the world: by way of the window, as far as there is one."""
        leaving = self._window.renew(looks, self._window.room(rows, len(looks["mass"])))
        row, _ = self._static.nearest(leaving["position"])
        self._window.compare(leaving, row, self._static.held, passed)
        self._static.add(leaving, row)

    def _settle(self, rows: Tensor) -> None:
        """Bring tokens of the ring, ``(n,)`` bool, over to the static layer."""
        if not bool(rows.any()):
            return
        rested = self._ring.take(rows)
        count = len(rested["time"])
        table = self.config.columns(count)
        table |= {name: rested[name] for name in ("feature", "position", "source", "time")}
        table["count"] = torch.ones(count, dtype=torch.int32)
        row = self._static.find(table["feature"], table["position"]).row
        # Where its look is known, that is what it has told already.
        table["mass"] = (row < 0).float() if self.config.axes != 3 else torch.ones(count)
        self._static.add(table, row)

    def _room(self) -> tuple[int, int]:
        """How many rows there are for what stands, which has all that what moves leaves it.

        What moves is cut to its share; how much of it went comes second.
        """
        total = self.budget.bytes
        if sum(part.nbytes for part in self._before) > total // _ASIDE:
            self._before = torch.zeros(0, self.config.axes), torch.zeros(0)
        left = total - self._tracks.nbytes - sum(part.nbytes for part in self._before)
        share = min(left, int(total * self.config.dynamic_share))
        dropped = self._ring.shrink(share // self._ring_row)
        return (left - self._ring.nbytes) // self.config.row_bytes, dropped

    # ------------------------------------------------------------------ reading

    def snapshot(self) -> StaticDynamicSnapshot:
        """Give an immutable view; columns, once made, never change."""
        return StaticDynamicSnapshot(
            self.config,
            self._static.voxel,
            self._static.held,
            self._window.held,
            self._ring.held,
            self._last,
        )

    def fuse(
        self,
        query: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        time: float | None = None,
        motion: Tensor | None = None,
        gate: Literal["soft", "hard"] = "soft",
        k: int = 8,
    ) -> Tensor:
        """Tell what memory says that each query point looks like; see `StaticDynamicSnapshot`."""
        return self.snapshot().fuse(
            query, positions=positions, time=time, motion=motion, gate=gate, k=k
        )

    def kv(self, time: float) -> KV:
        """Give both layers for an attention of one's own; see `StaticDynamicSnapshot`."""
        return self.snapshot().kv(time)

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Tensor]:
        """Give all state as tensors; loading it continues bit for bit."""
        state = {
            "config": self.config.fingerprint(),
            "writes": torch.tensor([self._writes, self._static.grown]),
            "looks": self._window.sums.clone(),
            "last": torch.tensor(self._last, dtype=torch.float64),
            "before.place": self._before[0].clone(),
            "before.odds": self._before[1].clone(),
        }
        parts = {"static": self._static.held, "window": self._window.held,
                 "ring": self._ring.held, "tracks": self._tracks.state_dict()}  # fmt: skip
        return state | {
            f"{part}.{name}": column.clone()
            for part, held in parts.items()
            for name, column in held.items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the state of another instance of the same configuration and budget.

        Raises:
            ValueError: If the state is of another configuration, incomplete or over the budget.
        """
        config = self.config
        other = StaticDynamicMemory(self.budget, config)
        try:
            if not torch.equal(state["config"], config.fingerprint()):
                raise ValueError("the state is of another configuration")
            other._writes, other._static.grown = state["writes"].tolist()
            other._last = float(state["last"])
            other._before = state["before.place"].clone(), state["before.odds"].clone()
            other._window.sums = state["looks"].clone()
            static, window, ring = other._static, other._window, other._ring
            static.held = {name: state[f"static.{name}"].clone() for name in static.held}
            window.held = {name: state[f"window.{name}"].clone() for name in window.held}
            ring.held = {name: state[f"ring.{name}"].clone() for name in ring.held}
            named = other._tracks.state_dict()
            other._tracks.load_state_dict({name: state[f"tracks.{name}"] for name in named})
        except KeyError as error:
            raise ValueError(f"the state holds no {error}; it is incomplete") from error
        rows = {"static": config.columns(len(other._static)),
                "window": config.columns(len(other._window)),
                "ring": Ring.columns(len(other._ring), config.token_dim, config.axes)}  # fmt: skip
        for part, expected in rows.items():
            for name, column in expected.items():
                held = state[f"{part}.{name}"]
                if held.shape != column.shape or held.dtype != column.dtype:
                    raise ValueError(f"the state's {part}.{name} are {held.dtype} {held.shape}")
        if other.nbytes > self.budget.bytes:
            raise ValueError(f"the state's {other.nbytes} bytes are over the budget")
        vars(self).update(vars(other))


def _canonical(feature: Tensor, places: Tensor) -> Tensor:
    """An order of tokens that does not depend on the order they came in, ``(N,)``."""
    keys = torch.cat([places, feature[:, : max(1, 4 - places.shape[1])]], 1).numpy()
    return torch.from_numpy(np.lexsort(keys.T[::-1]))
