"""What a map that is being made has come to, in one file: a crash costs seconds, not the map."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vismem.errors import StoreError, UsageError
from vismem.frame import Frame
from vismem.heads.reconstruct import MovingMap
from vismem.store.disk import disk_error, sync_directory, write_file
from vismem.store.record import pieces, unpack

__all__ = ["MapProgress", "SavedMap", "digest_of"]

SHARE = 0.05  # of the time, that saving may take
SECONDS = 5.0  # between two savings at least


@dataclass
class MapProgress:
    """How far a stream was mapped.

    Args:
        frames: That the stream has handed out.
        last: What `digest_of` says of the last of them.
        told: How often each status or note was reported of a frame.
        given_up: Blocks that did not fit into the budget.
    """

    frames: int = 0
    last: str = ""
    told: Counter[str] = field(default_factory=Counter)
    given_up: int = 0


class SavedMap:
    """The file of a map that is being made; its name only ever stands for the whole of it.

    Args:
        path: The file.
        settings: What the map is made with, by the names of the options; others are refused.

    Example:
        >>> import tempfile
        >>> saved = SavedMap(Path(tempfile.mkdtemp()) / "map.safetensors", {"--voxel": 0.04})
        >>> saved.save(MovingMap("16MB"), MapProgress(frames=3))
        >>> saved.load(MovingMap("16MB")).frames
        3
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]):
        self.path = path
        self.settings = dict(settings)
        self._due = time.monotonic() + SECONDS

    def save_if_due(self, scene: MovingMap, progress: MapProgress) -> None:
        """Save, unless that would take more than a twentieth of the time.

        Raises:
            StoreError: As of `save`.
        """
        began = time.monotonic()
        if began >= self._due:
            self.save(scene, progress)
            ended = time.monotonic()
            self._due = ended + max(SECONDS, (ended - began) / SHARE)

    def save(self, scene: MovingMap, progress: MapProgress) -> None:
        """Write the map and how far it has come, in place of what the file held.

        Raises:
            StoreError: If it cannot be written whole; what was saved before stays.
        """
        state = scene.state_dict()
        facts = {"settings": self.settings, "progress": vars(progress)}
        meta = {"facts": facts, "sha256": _digest(facts, state)}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_file(self.path, pieces(state, meta))
            sync_directory(self.path.parent)
        except OSError as error:
            raise disk_error(error, self.path, "run it again with --resume") from error

    def load(self, scene: MovingMap) -> MapProgress:
        """Let a map go on where the file says.

        Args:
            scene: A new map of the same settings.

        Raises:
            StoreError: If the file cannot be read, or is damaged.
            UsageError: If it was made with other settings.
        """
        start_anew = f"remove {self.path} to start anew, or give another --out"
        try:
            state, meta = unpack(self.path.read_bytes())
            facts = meta["facts"]
            if meta["sha256"] != _digest(facts, state):
                raise ValueError("its checksum is wrong")
            begun, progress = facts["settings"], MapProgress(**facts["progress"])
        except OSError as error:
            raise StoreError(f"{self.path} cannot be read ({error.strerror})") from error
        except (StoreError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{self.path} is damaged ({error}); {start_anew}") from error
        for name in self.settings | begun:
            if begun.get(name) != self.settings.get(name):
                raise UsageError(
                    f"this map was begun with {name} {begun.get(name)}, not "
                    f"{self.settings.get(name)}; resume with that, or give another --out"
                )
        try:
            scene.load_state_dict(state)
        except (ValueError, KeyError) as error:
            raise StoreError(
                f"{self.path} is of another version of vismem ({error}); {start_anew}"
            ) from error
        progress.told = Counter(progress.told)
        return progress


def digest_of(frame: Frame) -> str:
    """Digest of all that a map takes from a frame, to know the frame again."""
    digest = hashlib.sha256(np.float64(frame.timestamp).tobytes())
    for part in (frame.image, frame.depth, frame.intrinsics, frame.pose):
        digest.update(b"none" if part is None else np.ascontiguousarray(part).data)
    return digest.hexdigest()


def _digest(facts: Mapping[str, Any], state: Mapping[str, Tensor]) -> str:
    """Digest of all that is saved: what lies on a disk for long may change there."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(state):
        column = state[name].contiguous().numpy()
        digest.update(f"{name} {column.dtype} {column.shape}".encode())
        digest.update(column.data)
    return digest.hexdigest()
