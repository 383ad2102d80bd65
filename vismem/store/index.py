"""The vector index: FAISS over the sealed segments, for memories too large to scan."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from torch import Tensor

from ..errors import StoreError, UsageError
from .disk import file_size, write_file
from .record import DAMAGE
from .segment import SegmentFile

__all__ = ["INDEX", "MIN_SHARE", "VectorIndex"]

#: Name of the file of vectors; ``index.json`` beside it says what they are.
INDEX = "index.faiss"

#: Share of the rows that an index must cover to be worth keeping.
MIN_SHARE = 0.8

_ABOUT = "index.json"
_FORMAT = 1
_SAMPLE_PER_LIST = 64
_ROW_BITS = 32


class VectorIndex:
    """Finds the rows nearest to a vector by inner product, nearly always the true ones.

    Inverted lists over 8-bit vectors (FAISS ``IVF,SQ8``; Jégou et al., "Product quantization for
    nearest neighbor search", 2011, for the lists): about ``2 * sqrt(n)`` lists, of which a search
    visits one in sixteen. An object never changes; what is on disk can be thrown away at any time.

    Attributes:
        column: The column whose vectors are in.
        segments: Names by segment number; ``None`` for one that was forgotten.
    """

    def __init__(
        self, index: Any, column: str, segments: Sequence[str | None], rows: Sequence[int]
    ) -> None:
        self._index = index
        self._rows = tuple(rows)
        self.column = column
        self.segments = tuple(segments)

    @property
    def covered(self) -> set[str]:
        """Names of the segments that are in; the caller scans the others."""
        return {name for name in self.segments if name is not None}

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def share(self, segments: Sequence[SegmentFile]) -> float:
        """Share of the rows of these segments that are in; 0 if it holds any other segment."""
        rows = {segment.name: segment.rows for segment in segments}
        if not self.covered <= rows.keys():
            return 0.0
        return sum(rows[name] for name in self.covered) / max(1, sum(rows.values()))

    @classmethod
    def current(
        cls,
        directory: Path,
        segments: Sequence[SegmentFile],
        column: str,
        threshold: int,
        *,
        writable: bool,
    ) -> VectorIndex | None:
        """The index of a directory, built where it is missing or covers too little.

        Args:
            directory: The memory.
            segments: All of its segments.
            column: Vectors, ``(rows, E)``.
            threshold: Rows below which there is none.
            writable: Whether it may be built and removed, or must be taken as it is.

        Raises:
            OSError: If the disk is full or fails.
            UsageError: If a segment has no such column.
        """
        if sum(segment.rows for segment in segments) < max(1, threshold):
            if writable:
                cls.remove(directory)
            return None
        index = cls.load(directory, {segment.name for segment in segments})
        if index is not None and index.column != column:
            index = None
        if writable and (index is None or index.share(segments) < MIN_SHARE):
            index = cls.build(segments, column)
            index.write(directory)
        return index

    @classmethod
    def build(cls, segments: Sequence[SegmentFile], column: str) -> VectorIndex:
        """Learn the lists from a sample and put in every row; takes minutes for a million.

        Args:
            segments: At least one.
            column: Vectors, ``(rows, E)`` floating point, of unit length for cosine scores.

        Raises:
            UsageError: If a segment has no such column.
        """
        for segment in segments:
            vectors = segment.columns.get(column)
            if vectors is None or vectors.dim() != 2 or not vectors.is_floating_point():
                raise UsageError(f"{segment!r} has no column {column!r} of vectors to index")
        total = sum(segment.rows for segment in segments)
        lists = max(1, round(2 * total**0.5))
        generator = np.random.default_rng(0)
        # At least one row a segment, so that every part of the stream is in the sample.
        share = min(1.0, _SAMPLE_PER_LIST * lists / total)
        sample = np.concatenate(
            [
                _vectors(
                    segment.columns[column],
                    generator.choice(segment.rows, max(1, round(share * segment.rows)), False),
                )
                for segment in segments
            ]
        )
        lists = min(lists, len(sample))
        index = faiss.index_factory(sample.shape[1], f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
        probes = min(lists, max(16, lists // 16))
        faiss.ParameterSpace().set_index_parameter(index, "nprobe", probes)
        index.train(sample)
        for number, segment in enumerate(segments):
            ids = (number << _ROW_BITS) + np.arange(segment.rows, dtype=np.int64)
            index.add_with_ids(_vectors(segment.columns[column]), ids)
        names = [segment.name for segment in segments]
        return cls(index, column, names, [segment.rows for segment in segments])

    def search(self, vectors: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """The best rows for each vector.

        Args:
            vectors: ``(Q, E)`` floating point.
            k: How many.

        Returns:
            Scores ``(Q, k)`` float32, best first; segment numbers ``(Q, k)`` int64, which
            :attr:`segments` names; rows ``(Q, k)`` int64. Where there are fewer than ``k``, the
            score is ``-inf`` and the numbers are -1.
        """
        scores, ids = self._index.search(_vectors(vectors), k)
        found = torch.from_numpy(ids)
        missing = found < 0
        rows = found & ((1 << _ROW_BITS) - 1)
        return (
            torch.from_numpy(scores).masked_fill(missing, float("-inf")),
            (found >> _ROW_BITS).masked_fill(missing, -1),
            rows.masked_fill(missing, -1),
        )

    def _forget(self, keep: Collection[str]) -> None:
        for number, name in enumerate(self.segments):
            if name is not None and name not in keep:
                first = number << _ROW_BITS
                self._index.remove_ids(faiss.IDSelectorRange(first, first + self._rows[number]))
        self.segments = tuple(name if name in keep else None for name in self.segments)

    def write(self, directory: Path) -> None:
        """Write it beside the segments.

        Raises:
            OSError: If the disk is full or fails.
        """
        sha256, _ = write_file(directory / INDEX, [faiss.serialize_index(self._index).data])
        about = {
            "format": _FORMAT,
            "column": self.column,
            "sha256": sha256,
            "segments": self.segments,
            "rows": self._rows,
        }
        # Written last: with another digest, or none, the vectors count for nothing.
        write_file(directory / _ABOUT, [json.dumps(about).encode()])

    @classmethod
    def load(cls, directory: Path, keep: Collection[str]) -> VectorIndex | None:
        """Read the index of a directory, without the segments that are no longer in the memory.

        Args:
            directory: The memory.
            keep: Names of the segments that are in it.

        Returns:
            The index, or ``None`` if there is none or it is damaged: build it again then.
        """
        try:
            file_size(directory / INDEX)
            about = json.loads((directory / _ABOUT).read_bytes())
            data = (directory / INDEX).read_bytes()
            # FAISS believes what it reads, so only what we wrote is handed to it.
            if about["format"] != _FORMAT or hashlib.sha256(data).hexdigest() != about["sha256"]:
                return None
            index = faiss.deserialize_index(np.frombuffer(data, np.uint8))
            found = cls(index, about["column"], about["segments"], about["rows"])
            found._forget(keep)
            return found
        except (OSError, StoreError, *DAMAGE):
            return None

    @classmethod
    def forget(cls, directory: Path, keep: Collection[str]) -> None:
        """Take out of the files what is no longer in the memory; remove what cannot be read.

        Args:
            directory: The memory.
            keep: Names of the segments that are in it.
        """
        try:
            about = json.loads((directory / _ABOUT).read_bytes())
            if all(name is None or name in keep for name in about["segments"]):
                return
            index = cls.load(directory, keep)
            if index is not None and len(index):
                index.write(directory)
                return
        except FileNotFoundError:
            pass
        except (OSError, *DAMAGE):
            pass
        cls.remove(directory)

    @staticmethod
    def remove(directory: Path) -> None:
        """Remove the index from a directory."""
        for name in (_ABOUT, INDEX):
            with contextlib.suppress(FileNotFoundError):
                (directory / name).unlink()


def _vectors(column: Tensor, rows: np.ndarray | None = None) -> np.ndarray:
    if rows is not None:
        column = column[torch.from_numpy(rows)]
    return np.ascontiguousarray(column.detach().to("cpu", torch.float32).numpy())
