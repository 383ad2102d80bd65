"""Writing that survives a crash: whole files or none, and errors that say what to do."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from ..errors import StoreError

__all__ = ["disk_error", "file_size", "sha256_of_file", "sync_directory", "write_file"]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def write_file(path: Path, parts: Iterable[bytes | memoryview]) -> tuple[str, int]:
    """Write a file so that its name only ever stands for the whole of it.

    The bytes go to ``<name>.tmp``, are forced to the medium, and then take the name. The new name
    itself is durable after :func:`sync_directory`, which several files can share.

    Args:
        path: Where to; a file of that name is replaced.
        parts: What to write, in order.

    Returns:
        The sha256 of the content, and its size in bytes.

    Raises:
        OSError: If the disk is full or fails; the half-written file is removed.
    """
    tmp = path.with_name(path.name + ".tmp")
    digest, size = hashlib.sha256(), 0
    try:
        # O_NOFOLLOW: a link planted in the directory must not lead a write out of it.
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        with open(os.open(tmp, flags, 0o644), "wb") as file:
            for part in parts:
                file.write(part)
                digest.update(part)
                size += len(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(tmp, path)
    except BaseException:
        with contextlib.suppress(OSError):
            tmp.unlink()
        raise
    return digest.hexdigest(), size


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable: renames and removals before this survive power loss.

    Raises:
        OSError: If the disk fails.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_size(path: Path) -> int:
    """Size of an ordinary file in bytes; links are refused, for they lead out of the directory.

    Raises:
        StoreError: If it is missing or no ordinary file.
    """
    try:
        status = os.lstat(path)
    except OSError as error:
        raise StoreError(f"{path.name} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise StoreError(f"{path.name} is not an ordinary file")
    return status.st_size


def sha256_of_file(path: Path) -> str:
    """Digest of a whole file, read in pieces.

    Raises:
        OSError: If it cannot be read.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def disk_error(error: OSError, what: Path, again: str) -> StoreError:
    """Put a failed write into one line that names the fix.

    Args:
        error: What the system said.
        what: The file or directory that was being written.
        again: The call to repeat once the disk is well: ``"call write again"``.
    """
    if error.errno in _FULL:
        return StoreError(
            f"{what} cannot be written, the disk is full ({error.strerror}): "
            f"free space and {again}; nothing acknowledged was lost"
        )
    return StoreError(
        f"{what} cannot be written ({error.strerror or error}): "
        f"check the disk and {again}; nothing acknowledged was lost"
    )
