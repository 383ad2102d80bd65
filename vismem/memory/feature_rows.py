"""Rows: what a feature memory holds, as models and heads read them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from vismem.kernels.topk_search import topk_search
from vismem.memory.base import Recall

__all__ = ["WHOLE_PICTURE", "FeatureBatch", "FeatureSnapshot", "Projections", "Rows", "overlaps"]
__all__ += ["stack"]

Rows = dict[str, Tensor]  # columns of equal length
Read = Literal["all", "score", "recent", "random"]
WHOLE_PICTURE = torch.tensor([0.0, 0.0, 1.0, 1.0])  # the box of what was seen somewhere


class FeatureSnapshot:
    """An immutable view of a `FeatureMemory`: its rows in time order, of one frame best first.

    Args:
        columns: What the memory holds; shared, and never changed where this view looks.
        count: How many rows of them are in use.
        origin: Tells the rows of one memory, since its last reset, from all others.
        slots: Which rows, in time order; all by default.
        whole: The snapshot that this one is a part of.
    """

    def __init__(
        self,
        columns: Rows,
        count: int,
        origin: object,
        slots: Tensor | None = None,
        whole: FeatureSnapshot | None = None,
    ) -> None:
        self._columns, self._count, self.origin = columns, count, origin
        self._whole = whole  # alive as long as this one: by it the memory knows of readers
        if slots is not None:
            self.slots = slots

    def __len__(self) -> int:
        return len(self.slots)

    @property
    def size(self) -> int:
        """Slots of the memory, in use or not."""
        return len(self._columns["ids"])

    @cached_property
    def slots(self) -> Tensor:
        """Where each row lies in the memory, ``(n,)`` int64."""
        return self._columns["ids"][: self._count].argsort()

    @cached_property
    def ids(self) -> Tensor:
        """Running number of each row among all that were ever admitted, ``(n,)`` int64."""
        return self._columns["ids"][self.slots]

    @cached_property
    def tokens(self) -> Tensor:
        """The features, ``(n, C)`` float16."""
        return self._columns["tokens"][self.slots]

    @cached_property
    def times(self) -> Tensor:
        """When each was seen, ``(n,)`` float64 seconds."""
        return self._columns["times"][self.slots]

    @cached_property
    def scores(self) -> Tensor:
        """How sure the detector was, ``(n,)`` float32 from 0 to 1."""
        return self._columns["scores"][self.slots]

    @cached_property
    def boxes(self) -> Tensor:
        """``x0 y0 x1 y1`` as fractions of the picture, ``(n, 4)`` float32."""
        return self._columns["boxes"][self.slots]

    @cached_property
    def labels(self) -> Tensor:
        """What the detector took it for, ``(n,)`` int64; -1 if it did not say."""
        return self._columns["labels"][self.slots]

    @cached_property
    def sources(self) -> Tensor:
        """Running number of the write that brought each, ``(n,)`` int64."""
        return self._columns["sources"][self.slots]

    def rows(self, numbers: Tensor) -> FeatureSnapshot:
        """Some of the rows, ``(m,)`` int64 numbers or ``(n,)`` bool, in the order given."""
        whole = self._whole or self
        return FeatureSnapshot(self._columns, self._count, self.origin, self.slots[numbers], whole)

    def keys(
        self, k: int | None = None, read: Read = "all", generator: torch.Generator | None = None
    ) -> FeatureSnapshot:
        """Choose what a model attends to, in time order.

        Args:
            k: The most rows; ``None`` for no limit.
            read: Where there are more than ``k``: the best by ``"score"``, the most ``"recent"``,
                or a ``"random"`` choice, as MAMBA does. ``"all"`` has no limit.
            generator: For the random choice; a snapshot has none of its own.

        Raises:
            ValueError: If ``k`` and ``read`` contradict each other, or a generator is missing.

        Example:
            >>> columns = {"ids": torch.arange(3), "scores": torch.tensor([0.1, 0.9, 0.5])}
            >>> FeatureSnapshot(columns, 3, origin=None).keys(2, "score").scores.tolist()
            [0.8999999761581421, 0.5]
        """
        if read not in get_args(Read):
            raise ValueError(f"read is one of {', '.join(get_args(Read))}, not {read!r}")
        if k is not None and (k < 0 or read == "all"):
            raise ValueError(f"no {k} keys can be read by {read!r}; name score, recent or random")
        if k is None or k >= len(self):
            return self
        if read == "recent":
            return self.rows(torch.arange(len(self) - k, len(self)))
        if read == "score":
            best = self.scores.flip(0).argsort(descending=True, stable=True)[:k]  # newer of equals
            return self.rows((len(self) - 1 - best).sort().values)
        if generator is None:
            raise ValueError("a random choice of keys needs a generator")
        return self.rows(torch.randperm(len(self), generator=generator)[:k].sort().values)

    def read(
        self,
        query: Tensor | None = None,
        *,
        k: int = 8,
        before: float | None = None,
        **context: Any,
    ) -> Recall:
        """Give the rows that look most like a query, in time order.

        Args:
            query: ``(C,)``; without one the latest rows are given.
            k: How many rows.
            before: Only rows seen at or before this second.
            **context: Ignored, other banks take more.

        Returns:
            Rows with their cosine to the query as score and the centre of their box.

        Raises:
            ValueError: If the query's width is not that of the rows.
        """
        width = self._columns["tokens"].shape[1]
        if query is not None and tuple(query.shape) != (width,):
            raise ValueError(f"a query must be ({width},), not {tuple(query.shape)}")
        seen = self if before is None else self.rows(self.times <= before)
        scores = torch.zeros(len(seen))
        if query is None or not len(seen) or not k:
            chosen = torch.arange(max(0, len(seen) - k), len(seen))
        else:
            bank = F.normalize(seen.tokens.float(), dim=1)
            found, chosen = topk_search(bank, F.normalize(query.detach().float().cpu(), dim=0), k)
            scores[chosen] = found
            chosen = chosen.sort().values
        part = seen.rows(chosen)
        return Recall(
            tokens=part.tokens,
            times=part.times,
            weights=torch.ones(len(part), dtype=torch.int64),
            scores=scores[chosen],
            sources=part.sources,
            positions=part.boxes.reshape(-1, 2, 2).mean(1),
        )


# --------------------------------------------------------------------------- several streams


@dataclass(frozen=True, eq=False)
class FeatureBatch:
    """The rows of several streams, filled up to the longest.

    Args:
        tokens: ``(S, n, C)`` float16, zero where there is no row.
        mask: ``(S, n)`` bool, true where there is one.
        times: ``(S, n)`` float64 seconds.
        scores: ``(S, n)`` float32; 1 where there is no row.
        boxes: ``(S, n, 4)`` float32; the whole picture where there is no row.
        labels: ``(S, n)`` int64; -1 where there is no row.
        sources: ``(S, n)`` int64; -1 where there is no row.
    """

    tokens: Tensor
    mask: Tensor
    times: Tensor
    scores: Tensor
    boxes: Tensor
    labels: Tensor
    sources: Tensor


def stack(snapshots: Sequence[FeatureSnapshot]) -> FeatureBatch:
    """Put the rows of several streams side by side, one stream a row.

    Raises:
        ValueError: If there are none, or their widths differ.

    Example:
        >>> from vismem.memory.feature import FeatureConfig, FeatureMemory
        >>> one, other = (FeatureMemory(FeatureConfig(dim=2), "1MB") for _ in range(2))
        >>> _ = one.write(torch.eye(2), time=0.0)
        >>> stack([one.snapshot(), other.snapshot()]).mask.tolist()
        [[True, True], [False, False]]
    """
    if not snapshots:
        raise ValueError("a batch needs at least one stream")
    lengths = torch.tensor([len(snapshot) for snapshot in snapshots])
    longest = int(lengths.max())

    def filled(name: str, nothing: Tensor | float) -> Tensor:
        parts = [getattr(snapshot, name) for snapshot in snapshots]
        if len({part.shape[1:] for part in parts}) > 1:
            raise ValueError(f"the streams' {name} differ in width")
        out = parts[0].new_empty(len(parts), longest, *parts[0].shape[1:])
        out[:] = torch.as_tensor(nothing, dtype=out.dtype)
        for row, part in zip(out, parts, strict=True):
            row[: len(part)] = part
        return out

    return FeatureBatch(
        tokens=filled("tokens", 0.0),
        mask=torch.arange(longest) < lengths[:, None],
        times=filled("times", 0.0),
        scores=filled("scores", 1.0),
        boxes=filled("boxes", WHOLE_PICTURE),
        labels=filled("labels", -1),
        sources=filled("sources", -1),
    )


def overlaps(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of boxes ``(N, 4)`` and ``(M, 4)``, ``(N, M)``; 0 without area."""
    low = torch.maximum(boxes[:, None, :2], others[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], others[None, :, 2:])
    both = (high - low).clamp_min(0).prod(-1)
    areas = [(group[:, 2:] - group[:, :2]).prod(-1) for group in (boxes, others)]
    return both / (areas[0][:, None] + areas[1] - both).clamp_min(1e-12)


class Projections:
    """What a model makes of each row, keys and values say, made once and kept while it is held.

    It belongs to one projection of one stream, lives where the projection's output lives, and is as
    long as the memory. For inference: gradients do not flow through it.

    Example:
        >>> from vismem.memory.feature import FeatureConfig, FeatureMemory
        >>> memory, kept = FeatureMemory(FeatureConfig(dim=2), "1MB"), Projections()
        >>> _ = memory.write(torch.eye(2), time=0.0)
        >>> table = kept(memory.snapshot(), lambda rows: 3 * rows, version=0)
        >>> table[memory.snapshot().slots].tolist()
        [[3.0, 0.0], [0.0, 3.0]]
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget all of it."""
        self._origin: object = None
        self._version: Hashable = None
        self._ids = torch.empty(0, dtype=torch.int64)
        self._values = torch.empty(0)

    @property
    def nbytes(self) -> int:
        """Bytes kept beside the memory."""
        return self._ids.nbytes + self._values.nbytes

    def __call__(
        self, snapshot: FeatureSnapshot, project: Callable[[Tensor], Tensor], version: Hashable
    ) -> Tensor:
        """Give the projection of every row of a snapshot, where the row lies in the memory.

        Args:
            snapshot: Of one memory, all of it or a choice.
            project: From rows ``(m, C)`` float16 to ``(m, P)``, row by row; called for the rows
                that are not known yet.
            version: Anything that changes when the weights do; a new one makes all rows unknown.

        Returns:
            ``(size, P)``, not to be changed: that of the snapshot's rows at its ``slots``, anything
            elsewhere. Later calls may write into it.
        """
        if snapshot.origin is not self._origin or version != self._version:
            self.clear()
            self._origin, self._version = snapshot.origin, version
        slots, ids = snapshot.slots, snapshot.ids
        if (size := snapshot.size) > len(self._ids):
            self._ids = F.pad(self._ids, (0, size - len(self._ids)), value=-1)
        unknown = self._ids[slots] != ids
        if not len(slots) or unknown.any():
            with torch.no_grad():
                made = project(snapshot.rows(unknown).tokens)
            if len(self._values) < size or self._values.ndim < made.ndim:
                kept, self._values = self._values, made.new_empty(size, *made.shape[1:])
                if len(kept):
                    self._values[: len(kept)] = kept
            self._values[slots[unknown]] = made
            self._ids[slots[unknown]] = ids[unknown]
        return self._values
