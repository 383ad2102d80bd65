"""Segments on disk: columns in a safetensors file, thumbnails end to end in a blob beside it.

A blob holds any bytes a row; what is large and read in parts, as packed keys and values are, lies
there better than in a column: it is written as it is, and begins where a page of the file does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, overload

import torch
from torch import Tensor

from ..errors import StoreError, UsageError
from .disk import file_size, write_file
from .manifest import SEGMENT_NAME, SegmentEntry, segment_files
from .record import map_tensors, pieces

__all__ = ["SegmentData", "SegmentFile", "Thumbnails", "write_segment"]

_OFFSETS = "blob_offsets"


class SegmentData(NamedTuple):
    """What a segment consists of, before it is written.

    Args:
        columns: Tensors of one first dimension ``n``, the rows.
        thumbnails: One encoded picture (or other bytes) a row, ``n`` in all; ``b""`` where there is
            none.
        start: Earliest time, seconds.
        end: Latest time, seconds.
    """

    columns: Mapping[str, Tensor]
    thumbnails: Sequence[bytes | memoryview]
    start: float
    end: float


class Thumbnails(Sequence[bytes]):
    """The thumbnails of a segment, mapped: a picture is read from disk when it is asked for.

    Args:
        path: The blob.
        offsets: Where each picture begins, and where the last one ends, ``(n + 1,)`` int64.

    Attributes:
        blob: All of them end to end, ``(bytes,)`` uint8; a private mapping.
    """

    def __init__(self, path: Path, offsets: Tensor) -> None:
        self._offsets = offsets
        size = int(offsets[-1])
        # torch maps a file without keeping it open, so a thousand segments cost no descriptors.
        self.blob = (
            torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
            if size
            else torch.empty(0, dtype=torch.uint8)
        )

    def __len__(self) -> int:
        return self._offsets.shape[0] - 1

    @property
    def nbytes(self) -> int:
        """Bytes of all pictures, known without reading them."""
        return int(self._offsets[-1])

    @overload
    def __getitem__(self, row: int) -> bytes: ...
    @overload
    def __getitem__(self, row: slice) -> list[bytes]: ...
    def __getitem__(self, row: int | slice) -> bytes | list[bytes]:
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        if row < 0:
            row += len(self)
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        start, end = self._offsets[row : row + 2].tolist()
        return self.blob[start:end].numpy().tobytes()


class SegmentFile:
    """An immutable segment of a memory, mapped from disk.

    Opening it checks header, shapes and sizes, not the digests (``verify`` does that): nothing but
    the header and the offsets is read.

    Args:
        directory: The memory.
        entry: What the manifest says about the segment.

    Attributes:
        entry: The same.
        columns: Tensors of one first dimension ``rows``; private mappings of the file.
        thumbnails: One encoded picture a row.

    Raises:
        StoreError: If a file is missing, of another size than noted, or damaged.
    """

    def __init__(self, directory: Path, entry: SegmentEntry) -> None:
        self.entry = entry
        blob = directory / entry.blob
        for path, size in ((directory / entry.file, entry.bytes), (blob, entry.blob_bytes)):
            if (found := file_size(path)) != size:
                raise StoreError(f"{path.name} is damaged: it has {found} bytes, not {size}")
        self.columns = map_tensors(directory / entry.file)
        offsets = self.columns.pop(_OFFSETS, torch.empty(0))
        for name, column in self.columns.items():
            if column.dim() == 0 or column.shape[0] != entry.rows:
                raise StoreError(f"{entry.file} is damaged: {name!r} has not {entry.rows} rows")
        if (
            offsets.dtype != torch.int64
            or offsets.shape != (entry.rows + 1,)
            or int(offsets[0]) != 0
            or int(offsets[-1]) != entry.blob_bytes
            or bool((offsets.diff() < 0).any())
        ):
            raise StoreError(f"{entry.file} is damaged: its thumbnails do not fit {entry.blob}")
        try:
            self.thumbnails = Thumbnails(blob, offsets)
        except (OSError, RuntimeError) as error:
            raise StoreError(f"{entry.blob} cannot be read: {error}") from error

    @property
    def name(self) -> str:
        """Its name in the memory."""
        return self.entry.name

    @property
    def rows(self) -> int:
        """Moments in it."""
        return self.entry.rows

    def __repr__(self) -> str:
        return f"SegmentFile({self.name!r}, rows={self.rows}, columns={sorted(self.columns)})"


def write_segment(directory: Path, name: str, data: SegmentData) -> SegmentEntry:
    """Write the two files of a segment, durable but for their names (``disk.sync_directory``).

    Args:
        directory: The memory.
        name: Letters, digits, ``_``, ``-`` and ``.``; at most 100.
        data: What to write.

    Returns:
        What the manifest must say about it.

    Raises:
        UsageError: If the name cannot be a file name, or rows, thumbnails and times do not fit.
        OSError: If the disk is full or fails.
    """
    if not SEGMENT_NAME.fullmatch(name):
        raise UsageError(f"a segment is named by letters, digits, '_', '-' and '.', not {name!r}")
    rows = len(data.thumbnails)
    if not rows or not data.columns:
        raise UsageError(f"segment {name!r} is empty: leave it out")
    for column, tensor in data.columns.items():
        if column == _OFFSETS:
            raise UsageError(f"a column cannot be called {_OFFSETS!r}: rename it")
        if tensor.dim() == 0 or tensor.shape[0] != rows:
            raise UsageError(
                f"segment {name!r} has {rows} thumbnails, "
                f"but column {column!r} is {tuple(tensor.shape)}: give one row for each"
            )
    start, end = float(data.start), float(data.end)
    if not (math.isfinite(start) and math.isfinite(end) and start <= end):
        raise UsageError(f"segment {name!r} cannot last from {start} to {end} s")
    lengths = torch.tensor([0, *map(len, data.thumbnails)], dtype=torch.int64)
    content = pieces({**data.columns, _OFFSETS: lengths.cumsum(0)}, {})
    file, blob = segment_files(name)
    sha256, size = write_file(directory / file, content)
    blob_sha256, blob_size = write_file(directory / blob, data.thumbnails)
    return SegmentEntry(name, file, blob, rows, sha256, blob_sha256, size, blob_size, start, end)
