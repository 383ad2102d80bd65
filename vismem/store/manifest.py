"""The manifest: the one file that says which other files are the memory."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from ..errors import StoreError, UsageError
from .disk import sync_directory, write_file
from .tail import Durability

__all__ = [
    "FORMAT",
    "MANIFEST",
    "Manifest",
    "SegmentEntry",
    "StateEntry",
    "manifest_bytes",
    "read_manifest",
    "segment_files",
    "state_file",
    "tail_file",
    "write_manifest",
]

#: The layout that this vismem writes, and the only one that it reads.
FORMAT = 1

#: Name of the file.
MANIFEST = "manifest.json"

# A manifest can only name files of these forms, so a forged one can have nothing else read,
# moved or unlinked: no separators, no leading dot, no file of another kind.
SEGMENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
TAIL_FILE = re.compile(r"tail_(\d{6,12})\.log")
STATE_FILE = re.compile(r"state_\d{6,12}\.safetensors")
OWN_FILE = re.compile(r"(seg_.+\.(safetensors|blob)|tail_\d+\.log|state_\d+\.safetensors)(\.tmp)?")


@dataclass(frozen=True, slots=True)
class SegmentEntry:
    """One sealed segment.

    Args:
        name: Its name in the memory.
        file: File of its columns.
        blob: File of its thumbnails.
        rows: Moments in it.
        sha256: Digest of ``file``.
        blob_sha256: Digest of ``blob``.
        bytes: Size of ``file``.
        blob_bytes: Size of ``blob``.
        start: Earliest time in it, seconds.
        end: Latest time in it, seconds.
    """

    name: str
    file: str
    blob: str
    rows: int
    sha256: str
    blob_sha256: str
    bytes: int
    blob_bytes: int
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class StateEntry:
    """The mutable state of the memory as it was at the commit: file, digest, size in bytes."""

    file: str
    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """What belongs to a memory.

    Args:
        encoder: Identity of the model whose embeddings these are.
        config: How the memory was set up; JSON.
        meta: What the writer noted at the commit; JSON.
        durability: What an acknowledged record survives.
        tail: File of the records since the commit.
        first: Number of the first record in ``tail``; that many were committed before.
        state: The mutable state, or ``None`` before the first commit.
        segments: The sealed segments, in the order of the memory.
    """

    encoder: dict[str, str]
    config: dict[str, Any]
    meta: dict[str, Any]
    durability: Durability
    tail: str
    first: int
    state: StateEntry | None
    segments: tuple[SegmentEntry, ...]

    @property
    def generation(self) -> int:
        """Running number of the commit, taken from the name of the tail."""
        match = TAIL_FILE.fullmatch(self.tail)
        assert match, "a manifest is checked when it is read and when it is made"
        return int(match[1])

    def files(self) -> set[str]:
        """Names of all files that belong to the memory, those that can be rebuilt left out."""
        names = {self.tail}
        if self.state:
            names.add(self.state.file)
        for entry in self.segments:
            names |= {entry.file, entry.blob}
        return names


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Switch the directory to another manifest, at once and for good.

    Args:
        directory: Where every file that it names is already durable.
        manifest: What the memory is from now on.

    Raises:
        OSError: If the disk is full or fails; which manifest holds then is what
            :func:`read_manifest` says.
        UsageError: If encoder, config or meta are not JSON.
    """
    write_file(directory / MANIFEST, [manifest_bytes(manifest)])
    sync_directory(directory)


def manifest_bytes(manifest: Manifest) -> bytes:
    """Content of the file.

    Raises:
        UsageError: If encoder, config or meta are not JSON.
    """
    try:
        text = json.dumps(
            {"format": FORMAT, **dataclasses.asdict(manifest)}, allow_nan=False, indent=1
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"encoder, config and meta must be plain JSON: {error}") from error
    return text.encode()


def read_manifest(directory: Path) -> Manifest:
    """Read the manifest of a directory and believe none of it unchecked.

    Raises:
        StoreError: If there is none, it is damaged, names files that are not its own, or is of
            another format.
    """
    try:
        data = (directory / MANIFEST).read_bytes()
    except FileNotFoundError as error:
        raise StoreError(
            f"{directory} is not a vismem memory: it has no {MANIFEST} (if its creation was "
            f"interrupted, create it again)"
        ) from error
    except OSError as error:
        raise StoreError(f"{directory / MANIFEST} cannot be read: {error.strerror}") from error
    try:
        raw = json.loads(data)
        version = _get(raw, "format", int)
        if version == FORMAT:
            return _decode(raw)
    except (ValueError, TypeError, RecursionError) as error:
        raise StoreError(
            f"{directory / MANIFEST} is damaged ({error}): restore it from a copy"
        ) from error
    age = "a newer" if version > FORMAT else "an unknown"
    raise StoreError(
        f"{directory} was written by {age} vismem (format {version}, this one reads {FORMAT}): "
        f"upgrade"
    )


def _decode(raw: dict[str, Any]) -> Manifest:
    expected = {field.name for field in dataclasses.fields(Manifest)} | {"format"}
    if set(raw) != expected:
        raise ValueError(f"its keys are {sorted(raw)}")
    encoder = _get(raw, "encoder", dict)
    if not all(isinstance(value, str) for value in encoder.values()):
        raise ValueError("'encoder' holds something else than strings")
    durability = _get(raw, "durability", str)
    if durability not in get_args(Durability):
        raise ValueError(f"'durability' is {durability!r}")
    state = None if raw["state"] is None else _state(raw["state"])
    segments = tuple(_segment(entry) for entry in _get(raw, "segments", list))
    if len({entry.name for entry in segments}) < len(segments):
        raise ValueError("two segments have one name")
    return Manifest(
        encoder=encoder,
        config=_get(raw, "config", dict),
        meta=_get(raw, "meta", dict),
        durability="power" if durability == "power" else "process",
        tail=_match(_get(raw, "tail", str), TAIL_FILE),
        first=_count(raw, "first"),
        state=state,
        segments=segments,
    )


def _state(raw: Any) -> StateEntry:
    return StateEntry(
        file=_match(_get(raw, "file", str), STATE_FILE),
        sha256=_get(raw, "sha256", str),
        bytes=_count(raw, "bytes"),
    )


def _segment(raw: Any) -> SegmentEntry:
    name = _match(_get(raw, "name", str), SEGMENT_NAME)
    entry = SegmentEntry(
        name=name,
        file=_get(raw, "file", str),
        blob=_get(raw, "blob", str),
        rows=_count(raw, "rows"),
        sha256=_get(raw, "sha256", str),
        blob_sha256=_get(raw, "blob_sha256", str),
        bytes=_count(raw, "bytes"),
        blob_bytes=_count(raw, "blob_bytes"),
        start=_time(raw, "start"),
        end=_time(raw, "end"),
    )
    if (entry.file, entry.blob) != segment_files(name):
        raise ValueError(f"segment {name!r} names files that are not its own")
    return entry


def segment_files(name: str) -> tuple[str, str]:
    """Names of the two files of a segment: its columns and its thumbnails."""
    return f"seg_{name}.safetensors", f"seg_{name}.blob"


def tail_file(generation: int) -> str:
    """Name of the tail that a commit begins."""
    return f"tail_{generation:06d}.log"


def state_file(generation: int) -> str:
    """Name of the state that a commit writes."""
    return f"state_{generation:06d}.safetensors"


def _get(raw: Any, key: str, kind: type) -> Any:
    if not isinstance(raw, dict) or key not in raw:
        raise ValueError(f"{key!r} is missing")
    value = raw[key]
    # bool is an int to Python, not to us.
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{key!r} is not {kind.__name__}")
    return value


def _count(raw: Any, key: str) -> int:
    value: int = _get(raw, key, int)
    if not 0 <= value < 1 << 62:
        raise ValueError(f"{key!r} is {value:.3g}" if abs(value) < 1e300 else f"{key!r} is absurd")
    return value


def _time(raw: Any, key: str) -> float:
    value: float = _get(raw, key, float)
    if not math.isfinite(value):
        raise ValueError(f"{key!r} is {value}")
    return value


def _match(text: str, pattern: re.Pattern[str]) -> str:
    if not pattern.fullmatch(text):
        raise ValueError(f"{text!r} is no name that a memory uses")
    return text
