"""What a manifest names, opened."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ..errors import StoreError
from .disk import file_size
from .manifest import Manifest
from .record import map_tensors
from .segment import SegmentFile
from .tail import TailLog

__all__ = ["Contents", "open_contents"]


class Contents(NamedTuple):
    """The segments in order, the state of the last commit, and the records since."""

    segments: list[SegmentFile]
    state: dict[str, Tensor]
    tail: TailLog


def open_contents(
    directory: Path, manifest: Manifest, *, known: Iterable[SegmentFile], read_only: bool
) -> Contents:
    """Open every file of a memory; nothing but headers and the tail is read.

    Args:
        directory: The memory.
        manifest: What it holds.
        known: Segments that are open already; the same ones are not opened again.
        read_only: Whether the tail is left as it is.

    Raises:
        StoreError: If a file is missing or damaged; none is left open.
    """
    opened = {segment.entry: segment for segment in known}
    segments = [opened.get(entry) or SegmentFile(directory, entry) for entry in manifest.segments]
    state = {}
    if manifest.state:
        path = directory / manifest.state.file
        if (found := file_size(path)) != manifest.state.bytes:
            raise StoreError(
                f"{path.name} is damaged: it has {found} bytes, not {manifest.state.bytes}"
            )
        state = map_tensors(path)
    tail = TailLog(
        directory / manifest.tail,
        first=manifest.first,
        durability=manifest.durability,
        read_only=read_only,
    )
    return Contents(segments, state, tail)
