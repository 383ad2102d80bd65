"""`Masks`: the tracked objects of one frame, pixel by pixel, and their run-length code."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Masks", "decode_mask", "encode_mask"]

_BITS, _SIGN, _MORE, _FIRST = 5, 0x10, 0x20, 48  # of COCO's letters: five bits each, from "0" on


@dataclass(frozen=True, slots=True, eq=False)
class Masks:
    """Where the objects are in one frame; the arrays are of one length.

    Args:
        masks: ``(N, H, W)`` bool; empty where an object is not seen.
        scores: ``(N,)`` float32 from 0 to 1: how sure it is that the object is in the picture.
        ids: ``(N,)`` int64, the same for one object in all frames.
        time: When the frame was taken, in seconds of its stream's clock.
        index: Running number of the frame in its source.

    Raises:
        ValueError: If the arrays do not fit each other.

    Example:
        >>> Masks(np.ones((1, 2, 3), bool), np.array([0.9]), np.array([1]), time=0.5).boxes()
        array([[0, 0, 3, 2]])
    """

    masks: np.ndarray
    scores: np.ndarray
    ids: np.ndarray
    time: float = 0.0
    index: int = 0

    def __post_init__(self) -> None:
        count = len(self.ids)
        if self.masks.ndim != 3 or not len(self.masks) == len(self.scores) == count:
            raise ValueError(f"{self.masks.shape} masks and {len(self.scores)} scores of {count}")
        for name, dtype in {"masks": bool, "scores": np.float32, "ids": np.int64}.items():
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def seen(self) -> np.ndarray:
        """Which objects are in the picture, ``(N,)`` bool: of an even chance or more."""
        return (self.scores >= 0.5) & self.masks.any((1, 2))

    def boxes(self) -> np.ndarray:
        """What encloses each mask, ``(N, 4)`` ``x0 y0 x1 y1`` in pixels; zeros without one."""
        boxes = np.zeros((len(self), 4), np.int64)
        for box, mask in zip(boxes, self.masks, strict=True):
            across, down = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
            if len(across):
                box[:] = across[0], down[0], across[-1] + 1, down[-1] + 1
        return boxes

    def to_json(self) -> str:
        """Give one line of JSON, the masks in COCO's run-length code.

        Example:
            >>> Masks(np.ones((1, 2, 3), bool), np.array([0.5]), np.array([1]), time=0.5).to_json()
            '{"time": 0.5, "frame": 0, "objects": [{"id": 1, "score": 0.5, "seen": true, \
"box": [0, 0, 3, 2], "mask": {"size": [2, 3], "counts": "06"}}]}'
        """
        parts = zip(
            self.ids.tolist(),
            self.scores.tolist(),
            self.seen.tolist(),
            self.boxes().tolist(),
            map(encode_mask, self.masks),
            strict=True,
        )
        names = ("id", "score", "seen", "box", "mask")
        objects = [dict(zip(names, part, strict=True)) for part in parts]
        return json.dumps({"time": self.time, "frame": self.index, "objects": objects})


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """Code a mask as COCO does: lengths of runs down its columns, in letters.

    From the third run on the difference to the run before the last is coded, in groups of five bits
    with a sign; the format of pycocotools' ``rleToString``.

    Args:
        mask: ``(H, W)`` bool.

    Returns:
        ``size``, rows and columns, and ``counts``.

    Example:
        >>> encode_mask(np.array([[0, 1], [0, 1]], bool))
        {'size': [2, 2], 'counts': '22'}
    """
    flat = np.asarray(mask, bool).ravel(order="F")
    turns = np.flatnonzero(np.diff(flat, prepend=False))
    runs = np.diff(turns, prepend=0, append=len(flat)).tolist()
    letters = []
    for number, run in enumerate(runs):
        value = run - runs[number - 2] if number > 2 else run
        more = True
        while more:
            bits = value & (1 << _BITS) - 1
            value >>= _BITS
            more = value != (-1 if bits & _SIGN else 0)
            letters.append(chr(_FIRST + bits + (_MORE if more else 0)))
    return {"size": list(mask.shape), "counts": "".join(letters)}


def decode_mask(code: dict[str, Any]) -> np.ndarray:
    """Give the mask ``(H, W)`` bool of a code; see `encode_mask`.

    Example:
        >>> decode_mask({"size": [2, 2], "counts": "22"}).tolist()
        [[False, True], [False, True]]
    """
    runs: list[int] = []
    value = shift = 0
    for letter in code["counts"]:
        bits = ord(letter) - _FIRST
        value |= (bits & (1 << _BITS) - 1) << shift
        shift += _BITS
        if not bits & _MORE:
            value -= (1 << shift) if bits & _SIGN else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    rows, columns = code["size"]
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(columns, rows).T
