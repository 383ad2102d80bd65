"""`MemoryStore`: a directory that a bounded memory lives in, and comes back from after a crash."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..closeable import Closeable
from ..errors import StoreError, UsageError
from .commit import write_commit, write_first
from .contents import open_contents
from .disk import disk_error
from .events import EVENTS, Event, EventIndex
from .index import INDEX, MIN_SHARE, VectorIndex
from .lock import WriterLock
from .manifest import (
    MANIFEST,
    OWN_FILE,
    Manifest,
    read_manifest,
    write_manifest,
)
from .segment import SegmentData, SegmentFile
from .tail import Durability, TailLog
from .verify import orphans, salvage

__all__ = ["CommitReport", "MemoryStore"]


@dataclass(frozen=True, slots=True)
class CommitReport:
    """What a commit did.

    Args:
        written: Segments that are new on disk.
        dropped: Segments that are gone from it.
        problems: What did not work and can wait, one line each: an index that the disk had no room
            for, an old file that could not be removed. The memory itself is safe.
    """

    written: tuple[str, ...]
    dropped: tuple[str, ...]
    problems: tuple[str, ...]


class MemoryStore(Closeable):
    """The durable home of one bounded memory; made by :meth:`create` and :meth:`open`.

    One writer appends every record before it is used, and from time to time commits what the
    memory has become; any number of readers look at the last commit and the records since. Records
    count from 0 over the whole life of the memory. After a crash at any point, every record that
    :meth:`append` has returned for is either in the committed memory or in :meth:`replay`, never in
    both. Use a store from one thread at a time.

    Attributes:
        path: The directory.
        cut: Bytes behind the last whole record that opening found and left out: after a crash, an
            unfinished record that was never acknowledged.
        lost: What the medium lost and opening had to leave behind, one line each.
        events: When and where labels were seen; may be behind the segments (``events.covered``).

    Example:
        >>> import tempfile, torch
        >>> path = Path(tempfile.mkdtemp()) / "lobby.mem"
        >>> store = MemoryStore.create(path, encoder={"model": "tiny"}, config={})
        >>> store.append(b"a frame")
        0
        >>> frame = SegmentData({"time": torch.zeros(1)}, [b"a jpeg"], start=0.0, end=0.0)
        >>> store.commit({"s0": frame}, {"seen": torch.tensor(1)}).written
        ('s0',)
        >>> store.close()
        >>> with MemoryStore.open(path, read_only=True) as store:
        ...     print(store.segments()[0].thumbnails[0], store.state(), list(store.replay()))
        b'a jpeg' {'seen': tensor(1)} []
    """

    def __init__(self, path: Path, lock: WriterLock | None, lost: Iterable[str] = ()) -> None:
        self.path = path
        self._lock = lock
        self._open = True
        self._manifest: Manifest | None = None
        self._segments: list[SegmentFile] = []
        self._tail: TailLog
        self._state: dict[str, Tensor] = {}
        self._index: VectorIndex | None = None
        self.events = EventIndex(path, read_only=lock is None)
        try:
            if lock:
                self._settle()  # what it could not remove, the next commit meets again
            else:
                self._follow()
        except BaseException:
            self.events.close()
            raise
        self.cut = self._tail.cut
        if self._tail.damaged:
            lost = (*lost, f"records at the end of {self._tail.path.name}: {self.cut} bad bytes")
        self.lost = tuple(lost)

    # -- making and opening ---------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        encoder: Mapping[str, str],
        config: Mapping[str, Any],
        durability: Durability = "process",
    ) -> MemoryStore:
        """Begin a memory.

        Args:
            path: A directory that does not exist, is empty, or was left by an interrupted create.
            encoder: Identity of the model; memories of different models never mix.
            config: How the memory is set up; JSON.
            durability: What an acknowledged record survives, see :class:`TailLog`.

        Raises:
            StoreError: If there is something at ``path``, or it cannot be written.
            UsageError: If encoder or config are not JSON, or durability is unknown.
        """
        path = Path(path)
        if durability not in ("process", "power"):
            raise UsageError(f"durability is 'process' or 'power', not {durability!r}")
        try:
            path.mkdir(parents=True, exist_ok=True)
            names = os.listdir(path)
        except FileExistsError as error:
            raise StoreError(f"{path} is a file: choose another path") from error
        except OSError as error:
            raise disk_error(error, path, "create it again") from error
        if MANIFEST in names:
            raise StoreError(f"{path} already holds a memory: open it, or choose another path")
        if strangers := [name for name in names if not _left_by_create(name)]:
            raise StoreError(f"{path} is not empty (it has {strangers[0]}): choose another path")
        lock = WriterLock(path)
        try:
            if (path / MANIFEST).exists():
                raise StoreError(f"{path} was created by somebody else just now: open it")
            write_first(path, encoder=encoder, config=config, durability=durability)
            return cls(path, lock)
        except OSError as error:
            lock.release()
            raise disk_error(error, path, "create it again") from error
        except BaseException:
            lock.release()
            raise

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        encoder: Mapping[str, str] | None = None,
        read_only: bool = False,
        salvage: bool = False,
    ) -> MemoryStore:
        """Open a memory as its last commit and the records since left it.

        Args:
            path: The directory.
            encoder: Identity of the model that will be used with it, to be checked.
            read_only: Look, and change nothing; a writer may be at work, and what it does later is
                not seen. Works on a read-only medium.
            salvage: Check every byte, move damaged files to ``damaged/`` and go on without them;
                :attr:`lost` says what that cost.

        Raises:
            StoreError: If there is no memory, it is of another encoder or format, damaged, or
                another writer has it.
            UsageError: If ``salvage`` is asked of a reader.
        """
        path = Path(path)
        if read_only and salvage:
            raise UsageError("salvage moves files: open it without read_only")
        if not path.is_dir():
            what = "is a file" if path.exists() else "does not exist"
            raise StoreError(f"{path} {what}: give the directory of a memory")
        _check_encoder(path, read_manifest(path), encoder)
        if read_only:
            return cls(path, None)
        lock = WriterLock(path)
        try:
            return cls(path, lock, _salvage(path) if salvage else ())
        except BaseException:
            lock.release()
            raise

    def _follow(self) -> None:
        """Take up the manifest as a reader: a commit may take its files away meanwhile."""
        while True:
            manifest = read_manifest(self.path)
            try:
                return self._adopt(manifest)
            except StoreError:
                if read_manifest(self.path) == manifest:
                    raise

    def _settle(self) -> list[str]:
        """Take up the manifest as its writer, and let only what it names live on.

        It decides by what is on disk alone, so it is right after a crash, after a commit, and after
        a commit that failed or was interrupted at any point.

        Returns:
            What could not be removed, one line each.
        """
        self._settled = False
        manifest = read_manifest(self.path)
        if manifest != self._manifest:
            self._adopt(manifest)
        problems = []
        for name in orphans(self.path, manifest):
            try:
                (self.path / name).unlink(missing_ok=True)
            except OSError as error:
                problems.append(f"{name} could not be removed: {error.strerror}")
        names = {entry.name for entry in manifest.segments}
        try:
            self.events.drop(self.events.covered - names)
        except StoreError as error:
            problems.append(str(error))
        try:
            VectorIndex.forget(self.path, names)
        except OSError as error:
            problems.append(f"{INDEX} could not be removed: {error.strerror}")
        self._settled = True
        return problems

    def _adopt(self, manifest: Manifest) -> None:
        try:
            contents = open_contents(
                self.path, manifest, known=self._segments, read_only=self._lock is None
            )
        except StoreError as error:
            raise StoreError(
                f"{self.path}: {error}; see `vismem inspect --verify {self.path}`, "
                f"or open it with salvage=True to go on with what is whole"
            ) from error
        if self._manifest:
            self._tail.close()
        self._manifest = manifest
        self._segments, self._state, self._tail = contents

    # -- writing --------------------------------------------------------------------------------

    def append(self, payload: bytes) -> int:
        """Add a record to the tail; when this returns, it is safe.

        Args:
            payload: Bytes, as of :func:`pack`.

        Returns:
            The number of the record.

        Raises:
            StoreError: If the disk is full or fails; the store is as before, call it again.
            UsageError: If the store is closed or read-only, or the payload too large.
        """
        self._check_writable()
        return self._tail.append(payload)

    def commit(
        self,
        segments: Mapping[str, SegmentData],
        state: Mapping[str, Tensor],
        *,
        meta: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        events: Callable[[SegmentFile], Iterable[Event]] | None = None,
    ) -> CommitReport:
        """Make this the memory, in place of the last commit and every record appended since.

        It happens at once or not at all. What the last commit held and this one does not is gone
        from every file afterwards.

        Args:
            segments: All segments of the memory, in order. Only those whose names are new are
                looked up and written, so a mapping may make them when asked; a name stands for the
                same content for ever.
            state: Everything else that the memory needs to go on from here.
            meta: Facts to note, JSON; as before if ``None``.
            config: How the memory is set up from now on, JSON; as before if ``None``.
            events: Gives the events of a segment; asked for those that are not in the index yet.

        Raises:
            StoreError: If the disk is full or fails. The last commit and all records still hold;
                append and commit again when there is room.
            UsageError: If the store is closed or read-only, or something cannot be stored.
        """
        before = self._check_writable()
        # However this ends, Ctrl-C included, the next call looks at what the disk says.
        self._settled = False
        try:
            first = self._tail.first + len(self._tail)
            manifest = write_commit(
                self.path,
                before,
                segments=segments,
                state=state,
                meta=meta,
                config=config,
                first=first,
            )
            write_manifest(self.path, manifest)
        except OSError as error:
            self._settle()
            raise disk_error(error, self.path, "commit again") from error
        problems = self._settle()
        if events is not None:
            problems += self._index_events(events)
        old = [entry.name for entry in before.segments]
        new = [entry.name for entry in manifest.segments]
        return CommitReport(
            written=tuple(name for name in new if name not in set(old)),
            dropped=tuple(name for name in old if name not in set(new)),
            problems=tuple(problems),
        )

    def _index_events(self, events: Callable[[SegmentFile], Iterable[Event]]) -> list[str]:
        try:
            covered = self.events.covered
            for segment in self._segments:
                if segment.name not in covered:
                    self.events.replace(segment.name, events(segment))
        except StoreError as error:
            return [str(error)]
        return []

    def _check_writable(self) -> Manifest:
        manifest = self._check_open()
        if self._lock is None:
            raise UsageError(f"{self.path} was opened read-only: open it for writing")
        if not self._settled:
            self._settle()
            manifest = self._check_open()
        return manifest

    # -- reading --------------------------------------------------------------------------------

    def _check_open(self) -> Manifest:
        if not self._open or self._manifest is None:
            raise UsageError(f"{self.path} is closed: open it again")
        return self._manifest

    def replay(self) -> Iterator[tuple[int, bytes]]:
        """Yield number and payload of each record since the last commit, oldest first."""
        self._check_open()
        return self._tail.replay()

    def segments(self) -> list[SegmentFile]:
        """The sealed segments of the last commit, in the order of the memory."""
        self._check_open()
        return list(self._segments)

    def state(self) -> dict[str, Tensor]:
        """The state of the last commit; empty before the first, or if salvage left it behind."""
        self._check_open()
        return dict(self._state)

    @property
    def encoder(self) -> dict[str, str]:
        """Identity of the model whose embeddings these are."""
        return dict(self._check_open().encoder)

    @property
    def config(self) -> dict[str, Any]:
        """How the memory was set up."""
        return dict(self._check_open().config)

    @property
    def durability(self) -> Durability:
        """What an acknowledged record survives."""
        return self._check_open().durability

    @property
    def meta(self) -> dict[str, Any]:
        """What was noted at the last commit."""
        return dict(self._check_open().meta)

    @property
    def records(self) -> int:
        """Records since the last commit."""
        self._check_open()
        return len(self._tail)

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes on disk by kind: segments, thumbnails, state, tail, events, index, manifest."""
        manifest = self._check_open()

        def size(*names: str) -> int:
            total = 0
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    total += (self.path / name).stat().st_size
            return total

        return {
            "segments": sum(entry.bytes for entry in manifest.segments),
            "thumbnails": sum(entry.blob_bytes for entry in manifest.segments),
            "state": manifest.state.bytes if manifest.state else 0,
            "tail": self._tail.nbytes,
            "events": size(EVENTS, EVENTS + "-wal", EVENTS + "-shm"),
            "index": size(INDEX),
            "manifest": size(MANIFEST),
        }

    def vector_index(
        self, column: str = "embedding", *, threshold: int = 200_000
    ) -> VectorIndex | None:
        """The vector index of a large memory; scan what it does not cover.

        A writer builds it where it is missing or covers under 80 % of the rows, which takes
        minutes; a reader takes what there is.

        Args:
            column: Vectors, ``(rows, E)``.
            threshold: Rows below which a scan is fast enough and there is no index.

        Raises:
            StoreError: If the disk has no room for it; scan instead.
            UsageError: If a segment has no such column.
        """
        self._check_open()
        index = self._index
        if index is None or index.column != column or index.share(self._segments) < MIN_SHARE:
            try:
                self._index = VectorIndex.current(
                    self.path, self._segments, column, threshold, writable=self._lock is not None
                )
            except OSError as error:
                raise disk_error(error, self.path / INDEX, "ask for the index again") from error
        return self._index

    # -- ending ---------------------------------------------------------------------------------

    def close(self) -> None:
        """Let go of everything; nothing needs to be saved here. Mapped tensors stay usable."""
        if self._open:
            self._open = False
            self._tail.close()
            self.events.close()
            if self._lock:
                self._lock.release()


def _salvage(path: Path) -> list[str]:
    try:
        return salvage(path, read_manifest(path))[1]
    except OSError as error:
        raise disk_error(error, path, "salvage it again") from error


def _check_encoder(path: Path, manifest: Manifest, encoder: Mapping[str, str] | None) -> None:
    if encoder is not None and dict(encoder) != manifest.encoder:
        raise StoreError(
            f"{path} was written with encoder {manifest.encoder}, not {dict(encoder)}: embeddings "
            f"of different models never mix; open it with its own, or begin another memory"
        )


def _left_by_create(name: str) -> bool:
    return name in ("LOCK", f"{MANIFEST}.tmp") or OWN_FILE.fullmatch(name) is not None
