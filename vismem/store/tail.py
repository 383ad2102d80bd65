r"""The tail: what was acknowledged since the last commit, one checked frame a record.

A file is a header, ``b"VISMTAIL"`` and the format as u32, then frames::

    length u32 | crc32 u32 | payload        all little-endian; the crc covers length and payload

A crash can only tear the end, so a reader takes frames up to the first that does not fit.
"""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

from ..errors import StoreError, UsageError
from .disk import disk_error, write_file

__all__ = ["MAX_RECORD", "Durability", "TailLog"]

Durability = Literal["process", "power"]

#: Largest payload in bytes; a longer length in a file is garbage.
MAX_RECORD = 1 << 28

_MAGIC = b"VISMTAIL"
_FORMAT = 1
_HEADER = struct.Struct("<8sI")
_FRAME = struct.Struct("<II")
_SYNC_EVERY = {"process": 10, "power": 1}

# macOS has no fdatasync.
_fdatasync = getattr(os, "fdatasync", os.fsync)


class TailLog:
    """An append-only log that loses nothing it has acknowledged.

    Args:
        path: A file that :meth:`create` made.
        first: Number that the first record of this file has.
        durability: ``"process"`` survives the death of the process (``kill -9``) at once and power
            loss up to the last ten records; ``"power"`` survives power loss at once, and waits
            for the medium at every record.
        read_only: Look, and change nothing. What is appended later is not seen.

    Attributes:
        cut: Bytes behind the last whole frame; a writer has removed them, a reader ignores them.
        damaged: Whether those bytes are more than one unfinished frame, which is all that the death
            of a process leaves: then the medium lost what was acknowledged.

    Raises:
        StoreError: If the file is missing or has no readable header.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "tail_000000.log"
        >>> TailLog.create(path)
        >>> log = TailLog(path)
        >>> log.append(b"one"), log.append(b"two")
        (0, 1)
        >>> log.close()
        >>> list(TailLog(path).replay())
        [(0, b'one'), (1, b'two')]
    """

    def __init__(
        self,
        path: Path,
        *,
        first: int = 0,
        durability: Durability = "process",
        read_only: bool = False,
    ) -> None:
        if durability not in get_args(Durability):
            raise UsageError(f"durability is 'process' or 'power', not {durability!r}")
        self.path = path
        self.first = first
        self._sync_every = _SYNC_EVERY[durability]
        self._unsynced = 0
        self._torn = False
        flags = os.O_RDONLY if read_only else os.O_RDWR | os.O_APPEND
        try:
            # The descriptor stays open: a reader keeps the log although a commit unlinks it.
            self._file = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise StoreError(f"{path.name} cannot be opened: {error.strerror}") from error
        try:
            self._scan(read_only)
        except OSError as error:
            os.close(self._file)
            raise StoreError(f"{path.name} cannot be read: {error.strerror}") from error
        except StoreError:
            os.close(self._file)
            raise

    @staticmethod
    def create(path: Path) -> None:
        """Write an empty log, durable but for its name (see ``disk.sync_directory``).

        Raises:
            OSError: If the disk is full or fails.
        """
        write_file(path, [_HEADER.pack(_MAGIC, _FORMAT)])

    def _scan(self, read_only: bool) -> None:
        header = os.pread(self._file, _HEADER.size, 0)
        if len(header) < _HEADER.size or not header.startswith(_MAGIC):
            raise StoreError(f"{self.path.name} is damaged: it does not begin as a tail log does")
        (version,) = struct.unpack_from("<I", header, len(_MAGIC))
        if version != _FORMAT:
            raise StoreError(
                f"{self.path.name} was written by a newer vismem "
                f"(tail format {version}, this one reads {_FORMAT}): upgrade"
            )
        size = os.fstat(self._file).st_size
        self._end, self._count = _HEADER.size, 0
        for end, _ in self._frames(size):
            self._end = end
            self._count += 1
        self.cut = size - self._end
        head = os.pread(self._file, _FRAME.size, self._end)
        unfinished = len(head) < _FRAME.size or (
            self.cut - _FRAME.size < _FRAME.unpack(head)[0] <= MAX_RECORD
        )
        self.damaged = self.cut > 0 and not unfinished
        if self.cut and not read_only:
            os.ftruncate(self._file, self._end)
            _fdatasync(self._file)

    def _frames(self, end: int) -> Iterator[tuple[int, bytes]]:
        """Yield the end and the payload of each whole frame before ``end``."""
        at = _HEADER.size
        while end - at >= _FRAME.size:
            head = os.pread(self._file, _FRAME.size, at)
            if len(head) < _FRAME.size:
                return
            length, crc = _FRAME.unpack(head)
            at += _FRAME.size
            # No length is believed that the file cannot hold. Zeros, as some disks leave them, are
            # no frame either, for the crc of a length of zero is not zero.
            if length > min(MAX_RECORD, end - at):
                return
            payload = os.pread(self._file, length, at)
            if _checksum(payload) != crc:
                return
            at += length
            yield at, payload

    def append(self, payload: bytes) -> int:
        """Add a record; when this returns, the record is safe in the sense of ``durability``.

        Returns:
            The number of the record; they count up by one.

        Raises:
            UsageError: If the payload is over :data:`MAX_RECORD`.
            StoreError: If the disk is full or fails. The log is as it was before the call, and
                takes records again as soon as the disk does.
        """
        if len(payload) > MAX_RECORD:
            raise UsageError(f"a record has at most {MAX_RECORD} bytes, not {len(payload)}")
        try:
            if self._torn:
                os.ftruncate(self._file, self._end)
            # Set first: an exception anywhere below, Ctrl-C included, leaves bytes to take back.
            self._torn = True
            frame = memoryview(_FRAME.pack(len(payload), _checksum(payload)) + payload)
            size = len(frame)
            while frame:
                frame = frame[os.write(self._file, frame) :]
            if self._unsynced + 1 >= self._sync_every:
                _fdatasync(self._file)
                self._unsynced = -1
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._end)
            raise disk_error(error, self.path, "call write again") from error
        self._unsynced += 1
        self._end += size
        self._count += 1
        self._torn = False
        return self.first + self._count - 1

    def replay(self) -> Iterator[tuple[int, bytes]]:
        """Yield the number and the payload of every record, oldest first.

        Raises:
            StoreError: If the disk fails, or the file was damaged since it was opened.
        """
        number, end = self.first, self.first + self._count
        try:
            for _, payload in self._frames(self._end):
                yield number, payload
                number += 1
        except OSError as error:
            raise StoreError(f"{self.path.name} cannot be read: {error.strerror}") from error
        if number < end:
            raise StoreError(f"{self.path.name} was damaged while it was open: open it again")

    def __len__(self) -> int:
        return self._count

    @property
    def nbytes(self) -> int:
        """Bytes of the header and all whole frames."""
        return self._end

    def close(self) -> None:
        """Force everything to the medium and let go of the file."""
        if self._file >= 0:
            file, self._file = self._file, -1
            with contextlib.suppress(OSError):  # every record was acknowledged before
                _fdatasync(file)
            os.close(file)


def _checksum(payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(struct.pack("<I", len(payload))))
