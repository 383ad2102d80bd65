"""`Journal`: what makes a memory durable. Each frame is logged at once, now and then all is sealed.

A restart takes up what was sealed and replays what was logged since.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from vismem.encoders.base import Encoder
from vismem.errors import StoreError
from vismem.observation import events
from vismem.settings import DAMAGE
from vismem.store import Event, MemoryStore, SegmentFile, pack, unpack
from vismem.stream_set import StreamSet

__all__ = ["Journal", "opened", "write_copy"]

COMMIT_RECORDS = 1000  # frames in the log before they are sealed; a restart replays at most these
COMMIT_BYTES = (2**22, 2**25)  # of log: as much as the budget, within these bounds


class Journal:
    """A memory's way to its store. Use it from one thread at a time.

    Args:
        store: Just made or opened.
        encoder: That the memory is made with.

    Attributes:
        store: See there.
        stale: Whether something is gone from the memory and not yet from the disk.
    """

    def __init__(self, store: MemoryStore, encoder: Encoder):
        self.store, self._encoder = store, encoder
        self.stale = False
        self._logged = store.nbytes["tail"]  # bytes since the last commit

    def due(self, budget: int) -> bool:
        """Whether it is time to seal a memory of so many bytes."""
        least, most = COMMIT_BYTES
        full = self._logged >= min(max(budget, least), most)
        return self.stale or full or self.store.records >= COMMIT_RECORDS

    def log(self, stream: str, time: float, raw: float, tensors: Mapping[str, Tensor]) -> None:
        """Keep a frame; when this returns, it is safe.

        Args:
            stream: Its name.
            time: Second in the memory.
            raw: The same by the source's clock.
            tensors: What `vismem.observation.observation` gave.

        Raises:
            StoreError: If the disk is full or fails; nothing is changed.
        """
        record = pack(tensors, {"stream": stream, "time": time, "raw": raw})
        self.store.append(record)
        self._logged += len(record)

    def replay(self, streams: StreamSet) -> None:
        """Let the streams remember what was logged since the last commit.

        Raises:
            ValueError: If a record is not of such a memory; other errors of `DAMAGE` likewise.
        """
        for _, payload in self.store.replay():
            tensors, meta = unpack(payload)
            streams.take(meta["stream"]).clock.accept(meta["raw"], meta["time"])
            streams.remember(meta["stream"], meta["time"], tensors)

    def seal(self, streams: StreamSet, config: Mapping[str, Any]) -> tuple[str, ...]:
        """Make this the memory on disk, at once or not at all.

        Args:
            streams: What is held.
            config: Settings. They go with it each time: a change of them may have failed when the
                disk had it already.

        Returns:
            What did not work and can wait, one line each.

        Raises:
            StoreError: If the disk is full or fails; the last commit and the log still hold.
        """

        def seen(segment: SegmentFile) -> Iterator[Event]:
            stream = streams.stream_of(segment.entry.name)
            return events(segment.columns, self._encoder.label_names, stream)

        segments, state, meta = streams.contents()
        report = self.store.commit(segments, state, meta=meta, config=config, events=seen)
        self._logged = 0
        self.stale = False
        return report.problems


@contextmanager
def opened(
    path: str | os.PathLike[str], *, read_only: bool = False, salvage: bool = False
) -> Iterator[MemoryStore]:
    """Open a store for the block that takes it up; it stays open if nothing goes wrong there.

    Args:
        path: Its directory.
        read_only: See `MemoryStore.open`.
        salvage: See there.

    Raises:
        StoreError: If it cannot be opened, or the block meets what no memory wrote.
    """
    store = MemoryStore.open(path, read_only=read_only, salvage=salvage)
    try:
        yield store
    except DAMAGE as error:
        store.close()
        raise StoreError(
            f"{path}: the memory's settings or state are damaged ({error}); "
            f"run: vismem inspect --verify {path}"
        ) from error
    except BaseException:
        store.close()
        raise


def write_copy(
    path: str | os.PathLike[str],
    contents: tuple[Mapping[str, Any], Mapping[str, Tensor], Mapping[str, Any]],
    *,
    encoder: Mapping[str, str],
    config: Mapping[str, Any],
) -> None:
    """Seal a memory in a directory of its own, or leave nothing there.

    Args:
        path: The directory.
        contents: Of `StreamSet.contents`.
        encoder: Identity of the encoder.
        config: Settings.

    Raises:
        StoreError: If there is something at ``path`` already, or it cannot be written.
    """
    segments, state, meta = contents
    store = MemoryStore.create(path, encoder=encoder, config=config)
    try:
        store.commit(segments, state, meta=meta)
    except BaseException:
        store.close()
        shutil.rmtree(path, ignore_errors=True)
        raise
    store.close()
