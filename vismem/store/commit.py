"""Writing a commit: every file is on the medium before a manifest names it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .disk import sync_directory, write_file
from .manifest import (
    Manifest,
    SegmentEntry,
    StateEntry,
    state_file,
    tail_file,
    write_manifest,
)
from .record import pieces
from .segment import SegmentData, write_segment
from .tail import Durability, TailLog

__all__ = ["write_commit", "write_first"]


def write_commit(
    directory: Path,
    before: Manifest,
    *,
    segments: Mapping[str, SegmentData],
    state: Mapping[str, Tensor],
    meta: Mapping[str, Any] | None,
    config: Mapping[str, Any] | None,
    first: int,
) -> Manifest:
    """Write new segments, the state and an empty tail.

    Args:
        directory: The memory.
        before: The last commit; its segments are not written again.
        segments: All segments, in order; only new names are looked up.
        state: Tensors of the mutable state.
        meta: Facts to note, or ``None`` for those of the last commit.
        config: How the memory is set up from now on, or ``None`` for as before.
        first: Number that the next record will have.

    Returns:
        The manifest to switch to.

    Raises:
        OSError: If the disk is full or fails; what was written is named by no manifest.
        UsageError: If something cannot be stored.
    """
    known = {entry.name: entry for entry in before.segments}
    entries: list[SegmentEntry] = []
    for name in segments:
        entries.append(known.get(name) or write_segment(directory, name, segments[name]))
    generation = before.generation + 1
    path = directory / state_file(generation)
    sha256, size = write_file(path, pieces(state, {}))
    TailLog.create(directory / tail_file(generation))
    sync_directory(directory)
    return Manifest(
        encoder=before.encoder,
        config=before.config if config is None else dict(config),
        meta=before.meta if meta is None else dict(meta),
        durability=before.durability,
        tail=tail_file(generation),
        first=first,
        state=StateEntry(path.name, sha256, size),
        segments=tuple(entries),
    )


def write_first(
    directory: Path,
    *,
    encoder: Mapping[str, str],
    config: Mapping[str, Any],
    durability: Durability,
) -> None:
    """Make a directory an empty memory; the manifest comes last, and with it the memory.

    Raises:
        OSError: If the disk is full or fails.
        UsageError: If encoder or config are not JSON.
    """
    TailLog.create(directory / tail_file(0))
    sync_directory(directory)
    manifest = Manifest(
        encoder=dict(encoder),
        config=dict(config),
        meta={},
        durability=durability,
        tail=tail_file(0),
        first=0,
        state=None,
        segments=(),
    )
    write_manifest(directory, manifest)
    sync_directory(directory.absolute().parent)
