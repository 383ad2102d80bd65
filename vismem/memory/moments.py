"""Moments: what they hold, how they are kept in immutable segments, merged and read.

Merging of neighbours in time is after He et al., "MA-LMM", 2024 (https://arxiv.org/abs/2404.05726).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vismem.kernels.topk_search import topk_search
from vismem.memory.base import Recall

__all__ = [
    "EpisodicConfig",
    "EpisodicSnapshot",
    "Segment",
    "join_segments",
    "merge_labels",
    "merge_neighbours",
    "unit",
]


@dataclass(frozen=True)
class EpisodicConfig:
    """Sizes of a moment and the rule that ends it.

    Args:
        token_dim: Width ``D`` of the tokens.
        embedding_dim: Width ``E`` of the embedding.
        max_tokens: Tokens kept of a moment, ``K``.
        max_labels: Labels kept of a moment, ``L``.
        colors: Colour names that a label's region is described in, ``C``.
        max_thumbnail: Largest thumbnail in bytes.
        min_seconds: A moment is never ended before it is this long.
        max_seconds: A moment is always ended when it is this long.
        max_gap: A pause of the stream that ends a moment, in seconds.
        surprise: How many standard deviations above the mean a frame's distance from its moment
            must be to begin a new one.
        min_distance: Cosine distance below which nothing is a surprise.
        history: Frames over which mean and deviation of the distance are taken.
    """

    token_dim: int
    embedding_dim: int
    max_tokens: int = 16
    max_labels: int = 64
    colors: int = 11
    max_thumbnail: int = 6000
    min_seconds: float = 1.0
    max_seconds: float = 5.0
    max_gap: float = 5.0
    surprise: float = 2.0
    min_distance: float = 0.10
    history: int = 64

    def columns(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Type and shape of one row of every column of a segment."""
        labels, tokens = self.max_labels, self.max_tokens
        return {
            "start": (torch.float64, ()),
            "end": (torch.float64, ()),
            "peak": (torch.float64, ()),  # when the kept tokens and thumbnail were seen
            "frames": (torch.int64, ()),
            "source": (torch.int64, ()),  # running number of the first write
            "embedding": (torch.float16, (self.embedding_dim,)),
            "pose": (torch.float32, (4, 4)),  # NaN where none was given
            "token_count": (torch.int64, ()),
            "tokens": (torch.float16, (tokens, self.token_dim)),
            "positions": (torch.float16, (tokens, 2)),
            "label": (torch.int64, (labels,)),  # -1 where there are fewer
            "label_max": (torch.float32, (labels,)),
            "label_sum": (torch.float32, (labels,)),
            "label_time": (torch.float64, (labels,)),
            "label_box": (torch.float16, (labels, 4)),
            "label_color": (torch.float16, (labels, self.colors)),
            "label_count": (torch.int64, (labels,)),
        }

    @property
    def row_bytes(self) -> int:
        """Bytes of one moment without its thumbnail."""
        return sum(d.itemsize * math.prod(shape) for d, shape in self.columns().values())


@dataclass(frozen=True, eq=False)
class Segment:
    """Closed moments in time order; never changed once made.

    Args:
        name: Unique within its memory.
        columns: One tensor a column, first dimension the moments; see `EpisodicConfig.columns`.
        thumbnails: One encoded picture a moment, possibly empty.
    """

    name: str
    columns: Mapping[str, Tensor]
    thumbnails: Sequence[bytes]

    def __len__(self) -> int:
        return len(self.columns["start"])

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all rows and thumbnails."""
        rows = sum(column.nbytes for column in self.columns.values())
        pictures = getattr(self.thumbnails, "nbytes", None)  # mapped pictures are not read for it
        return rows + (sum(map(len, self.thumbnails)) if pictures is None else pictures)

    @cached_property
    def merge_costs(self) -> np.ndarray:
        """What merging each moment with the next would blur, ``(len - 1,)``."""
        return _merge_costs({name: self.columns[name].numpy() for name in _COST_COLUMNS})


_COST_COLUMNS = ("embedding", "start", "end")


def _merge_costs(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Cosine distance of neighbours, and a tenth for every hour in which nothing was seen."""
    embedding = columns["embedding"].astype(np.float32)
    distance = 1.0 - (embedding[:-1] * embedding[1:]).sum(-1)
    gap = columns["start"][1:] - columns["end"][:-1]
    return distance + 0.1 * np.clip(gap / 3600.0, 0.0, 10.0)


def merge_labels(config: EpisodicConfig, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Make one table of many label rows: by label the best row, the sum and the mean colour.

    Args:
        config: Sizes; the ``max_labels`` best labels are kept.
        rows: ``label (n,)`` and the other label columns, ``(n, …)``.
    """
    held = rows["label"] >= 0
    rows = {name: column[held] for name, column in rows.items()}
    best_first = np.argsort(-rows["label_max"], kind="stable")
    ids, first, inverse = np.unique(
        rows["label"][best_first], return_index=True, return_inverse=True
    )
    sums = np.zeros(len(ids), np.float64)
    np.add.at(sums, inverse, rows["label_sum"][best_first])
    colors = np.zeros((len(ids), config.colors), np.float64)
    share = rows["label_color"] * rows["label_sum"][:, None].astype(np.float64)
    np.add.at(colors, inverse, share[best_first])
    colors /= np.maximum(sums, 1e-12)[:, None]
    best = best_first[first]
    kept = np.argsort(-rows["label_max"][best], kind="stable")[: config.max_labels]
    table = {}
    for name, (dtype, shape) in config.columns().items():
        if name.startswith("label"):
            table[name] = np.zeros(shape, torch.empty(0, dtype=dtype).numpy().dtype)
            pooled = {"label_sum": sums, "label_color": colors}.get(name)
            table[name][: len(kept)] = rows[name][best[kept]] if pooled is None else pooled[kept]
    table["label"][len(kept) :] = -1
    return table


def join_segments(segments: Iterable[Segment], name: str) -> Segment:
    """Put segments that follow each other into one."""
    segments = list(segments)
    names = segments[0].columns
    columns = {column: torch.cat([s.columns[column] for s in segments]) for column in names}
    return Segment(name, columns, tuple(t for s in segments for t in s.thumbnails))


def merge_neighbours(segment: Segment, count: int, config: EpisodicConfig, name: str) -> Segment:
    """Merge the ``count`` pairs of neighbours in a segment that are most alike, best first."""
    columns = {key: column.numpy().copy() for key, column in segment.columns.items()}
    thumbnails = list(segment.thumbnails)
    for _ in range(count):
        first = int(np.argmin(_merge_costs({key: columns[key] for key in _COST_COLUMNS})))
        pair = slice(first, first + 2)
        frames = columns["frames"][pair].astype(np.float64)
        # The moment seen longer lends its picture, tokens and pose to both.
        keeper = first + int(frames[1] > frames[0])
        merged = {key: column[keeper].copy() for key, column in columns.items()}
        merged["start"] = columns["start"][first]
        merged["end"] = columns["end"][pair].max()
        merged["frames"] = columns["frames"][pair].sum()
        merged["source"] = columns["source"][first]
        merged["embedding"] = unit((columns["embedding"][pair] * frames[:, None]).sum(0))
        labels = {
            key: column[pair].reshape(-1, *column.shape[2:])
            for key, column in columns.items()
            if key.startswith("label")
        }
        merged |= merge_labels(config, labels)
        thumbnails[pair] = [thumbnails[keeper]]
        for key in columns:
            columns[key][first] = merged[key]
            columns[key] = np.delete(columns[key], first + 1, axis=0)
    return Segment(name, {k: torch.from_numpy(c) for k, c in columns.items()}, tuple(thumbnails))


def unit(vector: np.ndarray) -> np.ndarray:
    """Scale to unit length; a zero vector stays zero."""
    return vector / max(float(np.linalg.norm(vector)), 1e-12)


class EpisodicSnapshot:
    """An immutable view of an `EpisodicMemory`: all its moments in time order."""

    def __init__(self, segments: Sequence[Segment], config: EpisodicConfig):
        self.segments = tuple(segment for segment in segments if len(segment))
        self.config = config
        self.offsets = np.cumsum([0, *(len(segment) for segment in self.segments)])

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def column(self, name: str) -> Tensor:
        """One column over all moments, ``(M, …)``; see `EpisodicConfig.columns`."""
        dtype, shape = self.config.columns()[name]
        parts = [segment.columns[name] for segment in self.segments]
        return torch.cat(parts) if parts else torch.empty((0, *shape), dtype=dtype)

    def rows(self, name: str, moments: Tensor) -> Tensor:
        """One column of some moments, ``(n, …)``, without touching the others.

        Args:
            name: See `EpisodicConfig.columns`.
            moments: Their numbers, ``(n,)`` int64.
        """
        dtype, shape = self.config.columns()[name]
        out = torch.empty((len(moments), *shape), dtype=dtype)
        numbers = torch.from_numpy(np.searchsorted(self.offsets, moments.numpy(), "right") - 1)
        for number in numbers.unique().tolist():
            held = numbers == number
            places = moments[held] - int(self.offsets[number])
            out[held] = self.segments[number].columns[name][places]
        return out

    def locate(self, moment: int) -> tuple[Segment, int]:
        """The segment and row of a moment, ``0 <= moment < len(snapshot)``."""
        if not 0 <= moment < len(self):
            raise IndexError(f"there are {len(self)} moments, not one of number {moment}")
        number = int(np.searchsorted(self.offsets, moment, side="right")) - 1
        return self.segments[number], moment - int(self.offsets[number])

    def thumbnail(self, moment: int) -> bytes:
        """The encoded picture of a moment; empty if none was written."""
        segment, row = self.locate(moment)
        return bytes(segment.thumbnails[row])

    def read(
        self,
        query: Tensor | None = None,
        *,
        k: int = 8,
        before: float | None = None,
        **context: Any,
    ) -> Recall:
        """Give the tokens of the moments nearest to a query, sorted by time.

        Args:
            query: ``(E,)``; without one the latest moments are given.
            k: How many moments.
            before: Only moments that began at or before this time in seconds count.
            **context: Ignored, other banks take more.

        Raises:
            ValueError: If the query's width is not the embedding's.
        """
        config = self.config
        if query is not None and tuple(query.shape) != (config.embedding_dim,):
            raise ValueError(f"a query must be ({config.embedding_dim},), not {tuple(query.shape)}")
        count = len(self)
        if before is not None:
            count = int((self.column("start") <= before).sum())
        scores = torch.zeros(len(self))
        if query is None:
            chosen = torch.arange(max(0, count - k), count)
        elif count:
            values, chosen = topk_search(self.column("embedding")[:count], query, k)
            scores[chosen] = values
            chosen = chosen.sort().values
        else:
            chosen = torch.arange(0)
        tokens, positions, repeats, times, weights, sources = [], [], [], [], [], []
        for moment in chosen.tolist():
            segment, row = self.locate(moment)
            held = int(segment.columns["token_count"][row])
            tokens.append(segment.columns["tokens"][row, :held])
            positions.append(segment.columns["positions"][row, :held])
            repeats.append(held)
            times.append(segment.columns["peak"][row])
            weights.append(segment.columns["frames"][row])
            sources.append(segment.columns["source"][row])
        counts = torch.tensor(repeats, dtype=torch.int64)

        def spread(values: list[Tensor], dtype: torch.dtype) -> Tensor:
            return torch.tensor([v.item() for v in values], dtype=dtype).repeat_interleave(counts)

        empty = torch.empty(0, config.token_dim, dtype=torch.float16)
        return Recall(
            tokens=torch.cat(tokens) if tokens else empty,
            times=spread(times, torch.float64),
            weights=spread(weights, torch.int64),
            scores=scores[chosen].repeat_interleave(counts),
            sources=spread(sources, torch.int64),
            positions=torch.cat(positions).float() if positions else torch.empty(0, 2),
        )
