"""Checking a memory to the last byte, and going on without what is damaged."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import StoreError
from .disk import file_size, sha256_of_file
from .events import EventIndex
from .index import INDEX, VectorIndex
from .manifest import (
    OWN_FILE,
    Manifest,
    SegmentEntry,
    StateEntry,
    read_manifest,
    tail_file,
    write_manifest,
)
from .record import map_tensors
from .segment import SegmentFile
from .tail import TailLog

__all__ = ["DAMAGED", "VerifyReport", "orphans", "salvage", "verify"]

#: Folder, inside a memory, that damaged files are moved to.
DAMAGED = "damaged"


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What a full check found.

    Args:
        problems: One line each; empty if the memory is sound.
        orphans: Files that belong to no commit; the next writer removes them.
        segments: Sealed segments checked.
        rows: Moments in them.
        records: Whole records in the tail.
        cut: Bytes of an unfinished record behind them, as a crash leaves it.
    """

    problems: tuple[str, ...]
    orphans: tuple[str, ...] = ()
    segments: int = 0
    rows: int = 0
    records: int = 0
    cut: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify(path: str | os.PathLike[str]) -> VerifyReport:
    """Read every file of a memory and check every digest, checksum, size and row count.

    Nothing is changed, nothing need be sound, and a writer may be at work.

    Args:
        path: The directory of the memory.

    Example:
        >>> verify("no/such.mem").problems[0].split(":")[0]
        'no/such.mem is not a vismem memory'
    """
    directory = Path(path)
    while True:
        try:
            manifest = read_manifest(directory)
            report = _verify(directory, manifest)
            # A commit in the meantime has taken files away; then look at what holds now.
            if report.ok or read_manifest(directory) == manifest:
                return report
        except StoreError as error:
            return VerifyReport(problems=(str(error),))


def _verify(directory: Path, manifest: Manifest) -> VerifyReport:
    problems: list[str] = []

    def note(check: Callable[[], None]) -> None:
        try:
            check()
        except StoreError as error:
            problems.append(str(error))

    for entry in manifest.segments:
        note(lambda entry=entry: _check_segment(directory, entry))  # type: ignore[misc]
    if state := manifest.state:
        note(lambda: _check_state(directory, state))
    records = cut = 0
    try:
        tail = TailLog(directory / manifest.tail, read_only=True)
        records, cut = len(tail), tail.cut
        tail.close()
        if tail.damaged:
            problems.append(f"{manifest.tail} is damaged: its last {cut} bytes are no records")
    except StoreError as error:
        problems.append(str(error))
    events = EventIndex(directory, read_only=True)
    if damage := events.damage():
        problems.append(damage)
    events.close()
    names = {entry.name for entry in manifest.segments}
    if (directory / INDEX).exists() and VectorIndex.load(directory, names) is None:
        problems.append(f"{INDEX} is damaged: it is built again when it is needed")
    return VerifyReport(
        problems=tuple(problems),
        orphans=tuple(orphans(directory, manifest)),
        segments=len(manifest.segments),
        rows=sum(entry.rows for entry in manifest.segments),
        records=records,
        cut=cut,
    )


def orphans(directory: Path, manifest: Manifest) -> list[str]:
    """Files of a memory's own kinds that its manifest does not name, as a crash leaves them."""
    named = manifest.files()
    return sorted(
        name
        for name in os.listdir(directory)
        if name not in named and (OWN_FILE.fullmatch(name) or name.endswith(".tmp"))
    )


def salvage(directory: Path, manifest: Manifest) -> tuple[Manifest, list[str]]:
    """Move what is damaged to the folder ``damaged`` and go on with the rest.

    Every file is read and its digest checked, for what one digest misses no other check finds.

    Args:
        directory: The memory; the caller holds its lock.
        manifest: What it should hold.

    Returns:
        The manifest of what is left, already on disk, and one line for each thing lost.

    Raises:
        OSError: If the disk is full or fails.
    """
    lost: list[str] = []
    kept = []
    for entry in manifest.segments:
        try:
            _check_segment(directory, entry)
            kept.append(entry)
        except StoreError as error:
            lost.append(f"segment {entry.name} with {entry.rows} moments: {error}")
            _set_aside(directory, entry.file, entry.blob)
    state, tail = manifest.state, manifest.tail
    if state:
        try:
            _check_state(directory, state)
        except StoreError as error:
            lost.append(f"the state of the last commit: {error}")
            _set_aside(directory, state.file)
            state = None
    try:
        TailLog(directory / tail, read_only=True).close()
    except StoreError as error:
        lost.append(f"the records since the last commit: {error}")
        _set_aside(directory, tail)
        tail = tail_file(manifest.generation + 1)
        TailLog.create(directory / tail)
    if lost:
        manifest = dataclasses.replace(manifest, segments=tuple(kept), state=state, tail=tail)
        write_manifest(directory, manifest)
    return manifest, lost


def _set_aside(directory: Path, *names: str) -> None:
    (directory / DAMAGED).mkdir(exist_ok=True)
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            os.replace(directory / name, directory / DAMAGED / name)


def _check_segment(directory: Path, entry: SegmentEntry) -> None:
    SegmentFile(directory, entry)
    _check_digest(directory / entry.file, entry.sha256)
    _check_digest(directory / entry.blob, entry.blob_sha256)


def _check_state(directory: Path, entry: StateEntry) -> None:
    path = directory / entry.file
    if (found := file_size(path)) != entry.bytes:
        raise StoreError(f"{path.name} is damaged: it has {found} bytes, not {entry.bytes}")
    _check_digest(path, entry.sha256)
    map_tensors(path)


def _check_digest(path: Path, sha256: str) -> None:
    try:
        found = sha256_of_file(path)
    except OSError as error:
        raise StoreError(f"{path.name} cannot be read: {error.strerror}") from error
    if found != sha256:
        raise StoreError(f"{path.name} is damaged: its sha256 is {found[:12]}, not {sha256[:12]}")
