"""What is kept of a frame: the tensors that go into the log, and from there into the memory.

The log and the memory get the same numbers in the same types, so that replaying a log gives back
the same memory bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from vismem.encoders.base import Encoding
from vismem.encoders.objects import find_objects
from vismem.frame import Frame
from vismem.heads.moving import Moving
from vismem.memory.open_moment import bytes_tensor
from vismem.store import Event

__all__ = ["LEAST_EVENT", "arguments", "events", "observation", "thumbnail"]

LEAST_EVENT = 0.05  # label score below which nothing is listed as an event
THUMBNAIL_WIDTH = 192


def observation(
    frame: Frame, encoding: Encoding, max_thumbnail: int, moving: Moving | None = None
) -> dict[str, Tensor]:
    """Put together what is kept of an encoded frame.

    Args:
        frame: Gives the pose, if it is finite, the thumbnail, and the things that it shows where
            there are depth and intrinsics as well.
        encoding: Gives tokens, embedding and labels.
        max_thumbnail: Bytes that the thumbnail may have.
        moving: What moves in it, if that could be told.

    Returns:
        Tensors by name, in the types of the log.
    """
    tensors = {
        "tokens": encoding.tokens,
        "positions": encoding.positions.half(),
        "embedding": encoding.embedding.half(),
        "thumbnail": bytes_tensor(thumbnail(frame.image, max_thumbnail)),
    }
    if frame.pose is not None and np.isfinite(frame.pose).all():
        tensors["pose"] = torch.from_numpy(np.asarray(frame.pose, np.float32))
    if (things := find_objects(frame, encoding.labels)) is not None:
        tensors |= {f"object.{name}": value for name, value in things.tensors().items()}
    if moving is not None:
        seen = moving.tensors(encoding.labels)
        tensors |= {f"move.{name}": value for name, value in seen.items()}
    if encoding.labels is not None:
        labels = encoding.labels
        tensors |= {
            "label.id": labels.ids.to(torch.int16),
            "label.score": labels.scores.half(),
            "label.box": labels.boxes.half(),
            "label.color": labels.colors.half(),
            "label.count": labels.counts.to(torch.int16),
        }
    return tensors


def arguments(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Give what `EpisodicMemory.write` takes beside the time.

    Args:
        tensors: What `observation` gave, or a log gives back.
    """
    labels = {k.removeprefix("label."): v for k, v in tensors.items() if k.startswith("label.")}
    return {
        "tokens": tensors["tokens"],
        "embedding": tensors["embedding"],
        "positions": tensors["positions"],
        "pose": tensors.get("pose"),
        "thumbnail": tensors["thumbnail"].numpy().tobytes(),
        "labels": labels or None,
    }


def events(columns: Mapping[str, Tensor], names: Sequence[str], stream: str) -> Iterator[Event]:
    """List the labels of a segment's moments for the event index.

    Args:
        columns: Of a segment, see `EpisodicConfig.columns`.
        names: Name of every label.
        stream: Whose segment it is.
    """
    # Of a memory that came from somebody else, a number may be no label's.
    known = (columns["label"] >= 0) & (columns["label"] < len(names))
    rows, places = torch.nonzero(known & (columns["label_max"] >= LEAST_EVENT), as_tuple=True)
    for row, place in zip(rows.tolist(), places.tolist(), strict=True):
        x0, y0, x1, y1 = columns["label_box"][row, place].tolist()
        yield Event(
            start=float(columns["start"][row]),
            end=float(columns["end"][row]),
            time=float(columns["label_time"][row, place]),
            label=names[int(columns["label"][row, place])],
            score=float(columns["label_max"][row, place]),
            x0=x0,
            y0=y0,
            x1=x1,
            y1=y1,
            stream=stream,
        )


def thumbnail(image: np.ndarray, most: int) -> bytes:
    """Encode a small JPEG of a picture.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        most: Bytes that it may have.

    Returns:
        The JPEG, or nothing if even the coarsest is too large.
    """
    scale = min(1.0, THUMBNAIL_WIDTH / max(image.shape[:2]))
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    small = cv2.cvtColor(cv2.resize(image, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2BGR)
    for quality in (75, 50, 25, 10):
        data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
        if len(data) <= most:
            return data
    return b""
