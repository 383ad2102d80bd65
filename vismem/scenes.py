"""What a bank of visual tokens remembers of a scene beside its tokens: a note of a few kilobytes.

A bank keeps notes without reading them. Here they are written, made one of two when the bank merges
two scenes, and read back as moments, so that whatever answers from moments answers from scenes.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from vismem.memory.moments import EpisodicConfig, EpisodicSnapshot, Segment
from vismem.memory.slots import JoinNotes, Slot

__all__ = [
    "grid_of",
    "join_notes",
    "largest_note",
    "scene_label",
    "scene_moments",
    "thumbnail_of",
    "write_note",
]

_HEAD = struct.Struct("<HH")  # labels, and whether there is a pose
LEAST_FRAMES = 3  # a label seen in one frame of a scene is doubted as if it were missed in two more
AS_GOOD = 0.5  # of the best score: the representative's own sight of a label is preferred


@lru_cache(maxsize=8)
def _label_type(colors: int) -> np.dtype:
    return np.dtype(
        [
            ("label", "<i2"),
            ("label_max", "<f4"),
            ("label_sum", "<f4"),
            ("label_time", "<f8"),
            ("label_box", "<f2", 4),
            ("label_color", "<f2", colors),
            ("label_count", "<i2"),
        ]
    )


def largest_note(config: EpisodicConfig) -> int:
    """Bytes of the largest note."""
    labels = config.max_labels * _label_type(config.colors).itemsize
    return _HEAD.size + 64 + labels + config.max_thumbnail


def write_note(tensors: Mapping[str, Tensor], time: float, config: EpisodicConfig) -> bytes:
    """Make the note of one frame.

    Args:
        tensors: What `vismem.observation.observation` gave, or a log gives back.
        time: When the frame was seen, in seconds.
        config: Sizes; the best ``max_labels`` labels are kept.
    """
    table = np.zeros(0, _label_type(config.colors))
    if "label.id" in tensors:
        score = tensors["label.score"].float().numpy()
        best = np.argsort(-score, kind="stable")[: config.max_labels]
        table = np.zeros(len(best), _label_type(config.colors))
        table["label"] = tensors["label.id"].numpy()[best]
        table["label_max"] = table["label_sum"] = score[best]
        table["label_time"] = time
        table["label_box"] = tensors["label.box"].numpy()[best]
        table["label_color"] = tensors["label.color"].numpy()[best]
        table["label_count"] = tensors["label.count"].numpy()[best]
    pose = tensors["pose"].numpy().tobytes() if "pose" in tensors else b""
    return _bytes(table, pose, tensors["thumbnail"].numpy().tobytes())


def _bytes(table: np.ndarray, pose: bytes, thumbnail: bytes) -> bytes:
    return _HEAD.pack(len(table), bool(pose)) + pose + table.tobytes() + thumbnail


def _read(note: bytes, colors: int) -> tuple[np.ndarray, bytes, bytes]:
    """The labels, the pose and the thumbnail of a note."""
    count, posed = _HEAD.unpack_from(note)
    kind = _label_type(colors)
    start = _HEAD.size + 64 * posed
    end = start + count * kind.itemsize
    return np.frombuffer(note[start:end], kind), note[_HEAD.size : start], note[end:]


def join_notes(config: EpisodicConfig) -> JoinNotes:
    """Give the function that makes one note of two scenes.

    The representative lends picture and pose. Scores of a label add up, so that their mean over all
    frames of the scene stays true; where it was seen best is told of the representative if it saw
    the label about as well.

    Args:
        config: Sizes.
    """

    def join(note: bytes, weight: int, other: bytes, other_weight: int) -> bytes:
        table, pose, thumbnail = _read(note, config.colors)
        both = np.concatenate([table, _read(other, config.colors)[0]])
        sight = both["label_max"].copy()
        sight[len(table) :] *= AS_GOOD
        order = np.argsort(-sight, kind="stable")
        labels, first, inverse = np.unique(
            both["label"][order], return_index=True, return_inverse=True
        )
        joined = both[order[first]].copy()
        sums = np.zeros(len(labels))
        np.add.at(sums, inverse, both["label_sum"][order])
        joined["label_sum"] = sums
        best = np.argsort(-joined["label_sum"], kind="stable")[: config.max_labels]
        return _bytes(joined[best], pose, thumbnail)

    return join


def thumbnail_of(slot: Slot, config: EpisodicConfig) -> bytes:
    """The encoded picture of a scene; empty if none was written."""
    return _read(slot.note, config.colors)[2] if slot.note else b""


def scene_label(
    slot: Slot, config: EpisodicConfig, names: Sequence[str], things: int, least: float
) -> str:
    """The thing that was seen surest in a scene; empty if nothing was.

    Args:
        slot: The scene.
        config: Sizes.
        names: Name of every label.
        things: Labels below this number name things.
        least: Score, as of `vismem.heads.answer.term_scores`, below which nothing is named.
    """
    if not slot.note:
        return ""
    table = _read(slot.note, config.colors)[0]
    table = table[table["label"] < things]
    sure = np.sqrt(table["label_max"] * table["label_sum"] / max(slot.weight, LEAST_FRAMES))
    best = int(sure.argmax()) if len(sure) else -1
    return names[int(table["label"][best])] if best >= 0 and sure[best] >= least else ""


def scene_moments(slots: Sequence[Slot], config: EpisodicConfig) -> EpisodicSnapshot:
    """Read scenes as moments: each is the run that its representative belongs to.

    Args:
        slots: In time order.
        config: Sizes of a moment; tokens and positions are left out.
    """
    slots = [slot for slot in slots if slot.note]
    if not slots:
        return EpisodicSnapshot([], config)
    arrays = {
        name: np.zeros((len(slots), *shape), torch.empty(0, dtype=dtype).numpy().dtype)
        for name, (dtype, shape) in config.columns().items()
        if name not in ("tokens", "positions")
    }
    arrays["label"][:] = -1
    arrays["pose"][:] = np.nan
    thumbnails = []
    for row, slot in enumerate(slots):
        table, pose, thumbnail = _read(slot.note, config.colors)
        for name in table.dtype.names or ():
            arrays[name][row, : len(table)] = table[name]
        if pose:
            arrays["pose"][row] = np.frombuffer(pose, np.float32).reshape(4, 4)
        thumbnails.append(thumbnail)
    for name, values in (
        ("start", [slot.start for slot in slots]),
        ("end", [slot.end for slot in slots]),
        ("peak", [slot.time for slot in slots]),
        ("frames", [max(slot.weight, LEAST_FRAMES) for slot in slots]),
        ("source", [slot.source for slot in slots]),
    ):
        arrays[name][:] = values
    columns = {name: torch.from_numpy(array) for name, array in arrays.items()}
    columns["embedding"] = torch.stack([slot.embedding for slot in slots])
    return EpisodicSnapshot([Segment("scenes", columns, tuple(thumbnails))], config)


def grid_of(positions: Tensor) -> tuple[int, int]:
    """Rows and columns of the cells that an encoder gave the centres of.

    Args:
        positions: ``(N, 2)`` ``x y``, row by row.
    """
    count, rows = len(positions), len(positions[:, 1].unique())
    return (rows, count // rows) if count % rows == 0 else (1, count)
