"""One writer a directory."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from pathlib import Path

from ..errors import StoreError

__all__ = ["WriterLock"]


class WriterLock:
    """The right to write to a directory; the system takes it back when the process ends.

    Args:
        directory: Where the file ``LOCK`` lies.

    Raises:
        StoreError: If another writer holds it (its process and host are named), or the directory
            cannot be written.
    """

    def __init__(self, directory: Path) -> None:
        path = directory / "LOCK"
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StoreError(
                f"{directory} cannot be written ({error.strerror}): open it with read_only=True"
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = _holder(file)
            os.close(file)
            raise StoreError(
                f"{directory} is being written by {holder}: "
                f"close that one first, or open it with read_only=True"
            ) from error
        except OSError as error:
            os.close(file)
            raise StoreError(f"{path} cannot be locked: {error.strerror}") from error
        self._file = file
        name = json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode()
        # Only for the message to others: a full disk must not keep the memory shut.
        with contextlib.suppress(OSError):
            os.pwrite(file, name, 0)
            os.ftruncate(file, len(name))

    def release(self) -> None:
        """Let another writer in."""
        os.close(self._file)


def _holder(file: int) -> str:
    try:
        who = json.loads(os.pread(file, 4096, 0))
        return f"process {who['pid']} on {who['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"  # it has the lock and has not yet written its name
