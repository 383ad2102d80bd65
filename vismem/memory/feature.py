"""`FeatureMemory`: what a detector saw, row by row, in a fixed number of bytes.

A row is the feature of one box (or pixel) as the detector had it before any memory helped it, with
the time it was seen, its score, box and label. Enhanced rows are never written: they feed on
themselves. A detector reads first and writes afterwards, so that a frame never attends to itself.

By default the rows worth most stay: a high score, not too long ago. Of one frame at most ``quota``
rows enter, and none that looks like a better row at the same place a moment ago. The published
policies (random as in MAMBA, first in first out, a true reservoir) differ in one number alone, the
worth of a row; all of them keep a hard capacity.

Source of the bank: Sun et al., "MAMBA: Multi-level Aggregation via Memory Bank for Video Object
Detection", AAAI 2021 (https://arxiv.org/abs/2401.09923); of the metadata beside each feature:
Beery et al., "Context R-CNN", CVPR 2020 (https://arxiv.org/abs/1912.03538). MAMBA's bank as
published is `vismem.memory.published.mamba.PublishedFeatureBank`.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vismem.memory.base import Budget, Memory, WriteReport, check_write
from vismem.memory.feature_rows import (
    WHOLE_PICTURE,
    FeatureBatch,
    FeatureSnapshot,
    Projections,
    Rows,
    overlaps,
    stack,
)

__all__ = [
    "FeatureBatch",
    "FeatureConfig",
    "FeatureMemory",
    "FeatureSnapshot",
    "Projections",
    "stack",
]

Evict = Literal["score", "fifo", "random", "reservoir"]


@dataclass(frozen=True)
class FeatureConfig:
    """Sizes and the rule of retention.

    Args:
        dim: Width ``C`` of a row.
        max_tokens: The most rows of one write.
        evict: Who leaves a full memory: the rows of least ``"score"`` (aged by `half_life`), the
            oldest (``"fifo"``), old rows at ``"random"`` (MAMBA), or ``"reservoir"``, by which
            every row ever written is as likely to be held.
        quota: Rows kept of one frame, the best; of the score policy alone, as all below.
        alike: Cosine from which two rows look the same.
        overlap: Intersection over union from which two boxes are at the same place; 0 for anywhere.
        recent: How many writes back a row is compared with; 0 for its own frame only.
        half_life: Seconds after which a row is worth half its score; infinity for no ageing.
        seed: Of the memory's own random numbers.

    Raises:
        ValueError: If a number is out of its range.
    """

    dim: int
    max_tokens: int = 300
    evict: Evict = "score"
    quota: int = 8
    alike: float = 0.95
    overlap: float = 0.5
    recent: int = 8
    half_life: float = 300.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.evict not in get_args(Evict):
            raise ValueError(f"evict is one of {', '.join(get_args(Evict))}, not {self.evict!r}")
        if min(self.dim, self.max_tokens, self.quota) < 1 or self.recent < 0:
            raise ValueError("dim, max_tokens and quota are 1 or more, recent 0 or more")
        if not self.half_life > 0:
            raise ValueError(f"half_life is above 0 seconds, not {self.half_life}")

    @property
    def row_bytes(self) -> int:
        """Bytes of one row: the feature in float16 and what is known of it."""
        return sum(column.nbytes for column in self.columns(1).values())

    def columns(self, rows: int) -> Rows:
        """Empty columns for a number of rows."""
        wide = torch.empty(rows, dtype=torch.float64)
        whole = torch.empty(rows, dtype=torch.int64)
        return {
            "tokens": torch.empty(rows, self.dim, dtype=torch.float16),
            "times": wide,
            "scores": torch.empty(rows),
            "boxes": torch.empty(rows, 4),
            "labels": whole,
            "sources": torch.empty_like(whole),
            "ids": torch.empty_like(whole),  # running number of the row
            "worth": torch.empty_like(wide),  # the least leaves
        }

    def fingerprint(self) -> Tensor:
        """All fields as numbers, to tell states apart."""
        policy = get_args(Evict).index(self.evict)
        numbers = {name: value for name, value in vars(self).items() if name != "evict"}
        return torch.tensor([policy, *numbers.values()], dtype=torch.float64)


class FeatureMemory(Memory):
    """Features of one stream within a hard budget of bytes; see the module.

    Args:
        config: Sizes and the rule of retention.
        budget: Bytes, or text such as ``"8MB"``; `capacity` rows fit.

    Example:
        >>> memory = FeatureMemory(FeatureConfig(dim=4), budget="1MB")
        >>> _ = memory.write(torch.eye(4)[:2], time=0.0, scores=torch.tensor([0.9, 0.4]))
        >>> memory.skip(time=0.1).nbytes == 2 * memory.config.row_bytes  # nothing was detected
        True
        >>> memory.snapshot().keys(1, "score").tokens.tolist()
        [[1.0, 0.0, 0.0, 0.0]]
    """

    def __init__(self, config: FeatureConfig, budget: Budget | int | str):
        self.config = config
        self.budget = Budget.parse(budget)
        self.reset()

    def reset(self) -> None:
        """Forget everything; the next write may be at any time and of another stream."""
        self._held, self._count = self.config.columns(0), 0
        self._readers: weakref.WeakSet[FeatureSnapshot] = weakref.WeakSet()
        self._origin = object()  # tells rows before a reset from rows after it
        self._writes = self._ids = 0
        self._last = -math.inf
        self._generator = torch.Generator().manual_seed(self.config.seed)

    @property
    def capacity(self) -> int:
        """The most rows that the budget holds."""
        return self.budget.bytes // self.config.row_bytes

    @property
    def nbytes(self) -> int:
        """Bytes of all rows held."""
        return self._count * self.config.row_bytes

    @property
    def last(self) -> float:
        """Time of the newest write in seconds; minus infinity before the first."""
        return self._last

    def __len__(self) -> int:
        return self._count

    def snapshot(self) -> FeatureSnapshot:
        """Share the rows; they are copied if one is overwritten while the snapshot is in use."""
        snapshot = FeatureSnapshot(self._held, self._count, self._origin)
        self._readers.add(snapshot)
        return snapshot

    # ------------------------------------------------------------------ writing

    def write(  # type: ignore[override]  # names what it takes instead of any context
        self,
        tokens: Tensor,
        time: float,
        *,
        scores: Tensor | None = None,
        boxes: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> WriteReport:
        """Add the rows of one frame; a frame without any goes to `skip`.

        Args:
            tokens: ``(N, C)`` as the detector made them, not enhanced by memory.
            time: Seconds, never earlier than the write before.
            scores: ``(N,)`` from 0 to 1; 1 by default.
            boxes: ``(N, 4)`` ``x0 y0 x1 y1`` as fractions of the picture; all of it by default.
            labels: ``(N,)`` whole numbers; -1 by default.

        Returns:
            Bytes held, and in ``dropped`` how many rows, old or new, the capacity cost.

        Raises:
            ValueError: If anything does not fit or is not finite; the memory is then unchanged.
        """
        rows = self._checked(tokens, float(time), scores, boxes, labels)
        if self.config.evict == "score":
            rows = self._worth_keeping(rows)
        self._writes, self._last = self._writes + 1, float(time)
        dropped = self._admit(rows)
        return WriteReport(self.nbytes, dropped=dropped)

    def skip(self, time: float) -> WriteReport:
        """Note a frame in which nothing was found; it counts as a write.

        Raises:
            ValueError: If the time is not finite or goes backwards.
        """
        self._check(torch.zeros(1, self.config.dim), float(time))
        self._writes, self._last = self._writes + 1, float(time)
        return WriteReport(self.nbytes)

    def _check(self, tokens: Tensor, time: float) -> None:
        last = self._last if self._writes else None
        check_write(tokens, time, self.config.dim, self.config.max_tokens, last)

    def _checked(
        self,
        tokens: Tensor,
        time: float,
        scores: Tensor | None,
        boxes: Tensor | None,
        labels: Tensor | None,
    ) -> Rows:
        """What a write brings, as columns; see `write`."""
        self._check(tokens, time)
        count = len(tokens)
        halves = tokens.detach().to("cpu", torch.float16)
        if not torch.isfinite(halves).all():
            raise ValueError("tokens must be within ±65504, the range of float16")
        scores = torch.ones(count) if scores is None else scores
        boxes = WHOLE_PICTURE.expand(count, 4) if boxes is None else boxes
        labels = torch.full((count,), -1) if labels is None else labels
        given = {"scores": (scores, (count,)), "boxes": (boxes, (count, 4))}
        for name, (values, shape) in (given | {"labels": (labels, (count,))}).items():
            if tuple(values.shape) != shape:
                raise ValueError(f"{name} must be {shape}, not {tuple(values.shape)}")
        if labels.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
            raise ValueError(f"labels must be whole numbers, not {labels.dtype}")
        scores = scores.detach().to("cpu", torch.float32)
        boxes = boxes.detach().to("cpu", torch.float32)
        if not ((scores >= 0) & (scores <= 1)).all():
            raise ValueError("scores must be from 0 to 1")
        if not ((boxes >= -1) & (boxes <= 2)).all() or not (boxes[:, :2] <= boxes[:, 2:]).all():
            raise ValueError("boxes must be x0 y0 x1 y1 as fractions of the picture, x0 <= x1")
        return {
            "tokens": halves,
            "times": torch.full((count,), time, dtype=torch.float64),
            "scores": scores,
            "boxes": boxes,
            "labels": labels.detach().to("cpu", torch.int64),
            "sources": torch.full((count,), self._writes),
        }

    def _worth_keeping(self, rows: Rows) -> Rows:
        """The best rows of a frame, without those that a better one already stands for.

        Held rows that a new one betters are marked as the first to leave.
        """
        look = F.normalize(rows["tokens"].float(), dim=1)
        since = self._writes - self.config.recent
        near = torch.nonzero(self._held["sources"][: self._count] >= since)[:, 0]
        before = {name: self._held[name][near] for name in ("tokens", "scores", "boxes")}
        seen = self._same_sight(
            look, rows["boxes"], F.normalize(before["tokens"].float(), dim=1), before["boxes"]
        )
        beaten = (seen & (before["scores"] >= rows["scores"][:, None])).any(1)
        left = rows["scores"].masked_fill(beaten, -1.0)
        chosen: list[int] = []
        while len(chosen) < self.config.quota and float(left.max()) >= 0:
            best = int(left.argmax())
            chosen.append(best)
            one = look[best : best + 1], rows["boxes"][best : best + 1]
            left[self._same_sight(*one, look, rows["boxes"])[0]] = -1.0
            left[best] = -1.0  # also where it has no length or no area
        self._held["worth"][near[seen[chosen].any(0)]] = -math.inf
        return {name: column[chosen] for name, column in rows.items()}

    def _same_sight(self, look: Tensor, boxes: Tensor, others: Tensor, places: Tensor) -> Tensor:
        """Which rows ``(N,)`` look like which others ``(M,)`` at the same place, ``(N, M)``."""
        alike = look @ others.T >= self.config.alike
        return alike & (overlaps(boxes, places) >= self.config.overlap)

    def _worth(self, rows: Rows) -> Tensor:
        """What decides who stays: the only difference between the policies."""
        count, config = len(rows["scores"]), self.config
        if config.evict == "score":
            # The logarithm of a score that halves with every half-life, up to what all rows share.
            return rows["scores"].double().log2() + rows["times"] / config.half_life
        if config.evict == "fifo":
            return rows["sources"].double()
        if config.evict == "reservoir":  # the largest of independent draws: a uniform sample
            return torch.rand(count, dtype=torch.float64, generator=self._generator)
        return torch.full((count,), math.inf, dtype=torch.float64)

    def _admit(self, rows: Rows) -> int:
        """Put rows where there is room, or in the place of those worth less; how many are lost."""
        held, new = self._count, len(rows["scores"])
        rows["ids"] = torch.arange(self._ids, self._ids + new)
        rows["worth"] = self._worth(rows)
        self._ids += new
        count = min(held + new, self.capacity)
        lost = held + new - count
        places = torch.arange(held, count)
        if lost:
            if self.config.evict == "random":
                draw = torch.rand(held, dtype=torch.float64, generator=self._generator)
                self._held["worth"][:held] = draw
            worth, scores, ids = (
                torch.cat([self._held[name][:held], rows[name]]).numpy()
                for name in ("worth", "scores", "ids")
            )
            leaving = _least(worth, scores, ids, lost)
            rows = {name: column[~leaving[held:]] for name, column in rows.items()}
            places = torch.cat([torch.nonzero(leaving[:held])[:, 0], places])
        self._make_room(count, overwriting=bool((places < held).any()))
        for name, column in rows.items():
            self._held[name][places] = column
        self._count = count
        return lost

    def _make_room(self, count: int, overwriting: bool) -> None:
        """Move to columns of our own that are long enough, if these are not."""
        size = len(self._held["ids"])
        if count <= size and not (overwriting and len(self._readers)):
            return
        if count > size:
            size = min(self.capacity, max(count, 2 * size))
        moved = self.config.columns(size)
        for name, column in moved.items():
            column[: self._count] = self._held[name][: self._count]
        self._held, self._readers = moved, weakref.WeakSet()

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Tensor]:
        """Give all state as tensors; loading it continues bit for bit."""
        return {
            "config": self.config.fingerprint(),
            "counters": torch.tensor([self._writes, self._ids]),
            "last": torch.tensor(self._last, dtype=torch.float64),
            "generator": self._generator.get_state(),
        } | {name: column[: self._count].clone() for name, column in self._held.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the state of another instance of the same configuration.

        Raises:
            ValueError: If it is of another configuration, incomplete or over the budget.
        """
        try:
            if not torch.equal(state["config"], self.config.fingerprint()):
                raise ValueError("the state is of another configuration")
            (writes, ids), last = state["counters"].tolist(), float(state["last"])
            generator = torch.Generator()
            generator.set_state(state["generator"])
            held = {name: state[name].clone() for name in self._held}
        except KeyError as error:
            raise ValueError(f"the state holds no {error}; it is incomplete") from error
        count = len(held["ids"])
        for name, column in self.config.columns(count).items():
            if held[name].shape != column.shape or held[name].dtype != column.dtype:
                raise ValueError(f"the state's {name} are {held[name].dtype} {held[name].shape}")
        if count > self.capacity:
            raise ValueError(f"the state holds {count} rows, the budget {self.capacity}")
        self.reset()
        self._held, self._count, self._generator = held, count, generator
        self._writes, self._ids, self._last = writes, ids, last


def _least(worth: np.ndarray, scores: np.ndarray, ids: np.ndarray, count: int) -> Tensor:
    """Mark the rows of least worth; of equals the lower score leaves, then the older row."""
    cut = np.partition(worth, count - 1)[count - 1]
    leaving = worth < cut
    tied = np.flatnonzero(worth == cut)
    order = np.lexsort((ids[tied], scores[tied]))
    leaving[tied[order[: count - int(leaving.sum())]]] = True
    return torch.from_numpy(leaving)
