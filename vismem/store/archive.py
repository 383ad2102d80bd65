"""A memory as one file, to be carried elsewhere: packed while it is written, believed by nobody.

The file is a plain tar, its first member the manifest. So whoever unpacks it knows before the rest
comes which files there must be, and takes no others: no path, link, device or compressed byte in an
archive can do anything. What can be rebuilt (events, vector index) is left out, and so is what a
video language model remembers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from ..errors import StoreError
from .disk import disk_error, sync_directory, write_file
from .manifest import MANIFEST, Manifest, manifest_bytes, read_manifest
from .tail import TailLog
from .verify import verify

__all__ = ["pack_memory", "unpack_memory"]

FOLDER = "memory.mem/"  # that all members lie in
LONGEST_MANIFEST = 2**24
_BLOCK = tarfile.BLOCKSIZE
_PIECE = 2**20


class Readable(Protocol):
    """What bytes can be read from: a file, an upload, a socket's file."""

    def read(self, size: int, /) -> bytes:
        """At most so many of the next bytes; none at the end."""
        ...


# --------------------------------------------------------------------------- packing


def pack_memory(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """Pack a stored memory, as it is now, into a tar; another process may be writing it.

    Args:
        path: Directory of the memory.

    Returns:
        The archive in pieces of at most a megabyte. Nothing is held in RAM or written anywhere.

    Raises:
        StoreError: If there is no memory, or a file is missing or cannot be packed.

    Example:
        >>> import io, torch
        >>> from vismem.store import MemoryStore, SegmentData
        >>> folder = Path(tempfile.mkdtemp())
        >>> MemoryStore.create(folder / "a.mem", encoder={"model": "tiny"}, config={}).close()
        >>> archive = io.BytesIO(b"".join(pack_memory(folder / "a.mem")))
        >>> unpack_memory(archive, folder / "b.mem", encoder={"model": "tiny"}, max_bytes=10**6)
        >>> sorted(file.name for file in (folder / "b.mem").iterdir())
        ['manifest.json', 'tail_000000.log']
    """
    directory = Path(path)
    while True:
        manifest = read_manifest(directory)
        with contextlib.ExitStack() as opened:
            try:
                members = _members(directory, manifest, opened)
            except (OSError, StoreError) as error:
                # A commit in the meantime has taken files away; then pack what holds now.
                if read_manifest(directory) != manifest:
                    continue
                raise StoreError(f"{directory} cannot be packed: {error}") from error
            return _stream(members, opened.pop_all())


def _members(
    directory: Path, manifest: Manifest, opened: contextlib.ExitStack
) -> list[tuple[bytes, int, BinaryIO | bytes]]:
    """Header, size and content of every member; open files stay whole though a commit unlinks."""
    config = {key: value for key, value in manifest.config.items() if key != "model"}
    text = manifest_bytes(dataclasses.replace(manifest, config=config))
    members: list[tuple[bytes, int, BinaryIO | bytes]] = [
        (_header(MANIFEST, len(text)), len(text), text)
    ]
    for name in sorted(manifest.files()):
        file = opened.enter_context(open(directory / name, "rb"))
        size = os.fstat(file.fileno()).st_size
        if name == manifest.tail:  # it may be growing
            log = TailLog(directory / name, read_only=True)
            size = log.nbytes
            log.close()
        members.append((_header(name, size), size, file))
    return members


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(FOLDER + name)
    member.size, member.mode = size, 0o644
    try:
        return member.tobuf(tarfile.USTAR_FORMAT)
    except ValueError as error:
        raise StoreError(f"{name} is too large for an archive ({error})") from error


def _stream(
    members: list[tuple[bytes, int, BinaryIO | bytes]], opened: contextlib.ExitStack
) -> Iterator[bytes]:
    with opened:
        for header, size, content in members:
            yield header
            if isinstance(content, bytes):
                yield content
            else:
                yield from _pieces(content, size)
            yield bytes(-size % _BLOCK)
        yield bytes(2 * _BLOCK)


def _pieces(file: Readable, size: int) -> Iterator[bytes]:
    """Exactly so many bytes of a file.

    Raises:
        StoreError: If it ends before.
    """
    while size:
        piece = file.read(min(size, _PIECE))
        if not piece:
            raise StoreError("the archive is cut off: send it again")
        size -= len(piece)
        yield piece


# --------------------------------------------------------------------------- unpacking


def unpack_memory(
    file: Readable,
    path: str | os.PathLike[str],
    *,
    encoder: Mapping[str, str],
    max_bytes: int,
    max_files: int = 10_000,
    check: Callable[[Mapping[str, Any]], None] | None = None,
) -> None:
    """Unpack a memory that came from somewhere, if there is nothing wrong with it.

    It is unpacked beside ``path`` (into ``.<name>.*.unpacking``, which only a process that is
    killed leaves behind), every digest is checked, and then it takes its place. What is refused
    leaves nothing. It reads no more than it needs, and holds a megabyte in RAM.

    Args:
        file: Gives the archive, as of :func:`pack_memory`.
        path: Directory to be made; nothing may be there.
        encoder: Identity of the model that will be used with it.
        max_bytes: Largest archive.
        max_files: Most files.
        check: Refuses settings of the memory (``MemoryStore.config``) by a `StoreError`; they come
            from whoever made the archive.

    Raises:
        StoreError: If it is no such archive, too large, cut off, damaged, of another encoder or
            format, if something is at ``path``, or if it cannot be written.
    """
    path = Path(path)
    if os.path.lexists(path):
        raise StoreError(f"there is something at {path} already: choose another path")
    try:
        staging = Path(
            tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".unpacking", dir=path.parent)
        )
    except OSError as error:
        raise disk_error(error, path, "unpack it again") from error
    try:
        _unpack(_Limited(file, max_bytes), staging, dict(encoder), max_files, check)
        report = verify(staging)
        if not report.ok:
            raise StoreError(f"the archive is damaged: {report.problems[0]}")
        if report.cut:
            raise StoreError(f"the archive is damaged: its log ends with {report.cut} bad bytes")
        sync_directory(staging)
        os.rename(staging, path)
        sync_directory(path.absolute().parent)
    except OSError as error:
        raise disk_error(error, path, "unpack it again") from error
    except StoreError as error:  # whoever sent it need not know where it was unpacked
        message = str(error).replace(f"{staging}/", "").replace(str(staging), "the archive")
        raise StoreError(message) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


class _Limited:
    """A file that ends in an error where it has too many bytes."""

    def __init__(self, file: Readable, most: int) -> None:
        self._file, self._most, self._left = file, most, most

    def need(self, size: int) -> None:
        """Refuse what is said to be larger before it comes."""
        if size > self._left:
            raise StoreError(f"the archive is larger than {self._most} bytes, which is the limit")

    def read(self, size: int, /) -> bytes:
        self.need(size)
        piece = self._file.read(size)
        self._left -= len(piece)
        return piece


def _unpack(
    file: _Limited,
    staging: Path,
    encoder: dict[str, str],
    max_files: int,
    check: Callable[[Mapping[str, Any]], None] | None,
) -> None:
    _member(file, staging, {MANIFEST})
    manifest = read_manifest(staging)
    if manifest.encoder != encoder:
        raise StoreError(
            f"the memory was written with encoder {manifest.encoder}, this is {encoder}: "
            f"embeddings of different models never mix"
        )
    if "model" in manifest.config:
        raise StoreError("the memory names a model to load, which no archive may: pack it again")
    if check is not None:
        check(manifest.config)
    missing = manifest.files()
    if len(missing) >= max_files:
        raise StoreError(f"the archive has more than {max_files} files, which is the limit")
    while missing:
        missing.discard(_member(file, staging, missing))


def _member(file: _Limited, staging: Path, wanted: set[str]) -> str:
    """Take the next member, which must be one of those wanted; gives its name."""
    header = b"".join(_pieces(file, _BLOCK))
    try:
        member = tarfile.TarInfo.frombuf(header, "ascii", "strict")
    except (tarfile.TarError, ValueError) as error:
        raise StoreError(f"this is no archive of a memory ({error})") from error
    name = member.name.removeprefix(FOLDER)
    if member.type != tarfile.REGTYPE or member.name != FOLDER + name or name not in wanted:
        raise StoreError(f"this is no archive of a memory: it holds {member.name[:60]!r}")
    if member.size < 0 or (name == MANIFEST and member.size > LONGEST_MANIFEST):
        raise StoreError(f"this is no archive of a memory: {name} has {member.size} bytes")
    padding = -member.size % _BLOCK
    file.need(member.size + padding)
    write_file(staging / name, _pieces(file, member.size))
    for _ in _pieces(file, padding):
        pass
    return name
