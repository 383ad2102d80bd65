"""Detections drawn into pictures, and a video of them."""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from vismem.closeable import Closeable
from vismem.detections import Detections
from vismem.errors import StoreError
from vismem.frame import Frame

__all__ = ["BoxVideo", "color_of", "draw_boxes"]

GROUP = "50"  # frames between two that need no other
Draw = Callable[[np.ndarray, Any], np.ndarray]
GOLDEN = 0.618034  # turns of the colour wheel from one id to the next: no two near ones look alike


def color_of(number: int) -> tuple[int, ...]:
    """The colour of an id, red, green and blue to 255; white of none, below 0.

    Example:
        >>> color_of(0), color_of(-1)
        ((255, 51, 51), (255, 255, 255))
    """
    hue = colorsys.hsv_to_rgb(number * GOLDEN % 1.0, 0.8, 1.0) if number >= 0 else (1.0, 1.0, 1.0)
    return tuple(round(255 * part) for part in hue)


def draw_boxes(image: np.ndarray, found: Detections) -> np.ndarray:
    """Draw every box with its id and score, in the colour of its id; white without one.

    Args:
        image: Picture, ``(H, W, 3)`` uint8 RGB; it is not changed.
        found: What was found in it.

    Returns:
        A picture of the same size.

    Example:
        >>> found = Detections(np.array([[2, 2, 20, 30]]), np.array([0.9]), np.array([1]))
        >>> draw_boxes(np.zeros((40, 40, 3), np.uint8), found).max()
        np.uint8(255)
    """
    drawn = np.ascontiguousarray(image).copy()
    thick = max(1, round(max(image.shape[:2]) / 400))
    ids = [-1] * len(found) if found.ids is None else found.ids.tolist()
    for box, score, who in zip(found.boxes.round().tolist(), found.scores, ids, strict=True):
        color = color_of(who)
        left, top, right, bottom = (int(side) for side in box)
        cv2.rectangle(drawn, (left, top), (right, bottom), color, thick)
        text = f"{who}: {score:.2f}" if who >= 0 else f"{score:.2f}"
        place = (left + 2 * thick, top + 14 * thick)
        cv2.putText(drawn, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.4 * thick, color, thick)
    return drawn


class BoxVideo(Closeable):
    """A video of frames with what was found drawn into them, at the frames' own times.

    An ``.mp4`` or ``.mov`` is written in fragments of two seconds or so: where the disk becomes
    full or the process is killed, it plays up to there.

    Args:
        path: File to write; its ending says the container, such as ``.mp4`` or ``.mkv``.
        draw: Draws what was found into a picture; boxes by default.

    Raises:
        StoreError: If it cannot be written.
    """

    def __init__(self, path: Path, draw: Draw = draw_boxes) -> None:
        self._path, self._draw = path, draw
        self._size: tuple[int, int] | None = None
        self._first, self._last = 0.0, -1
        self._failed = False
        try:
            fragments = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
            options = fragments if path.suffix.lower() in (".mp4", ".mov", ".m4v") else {}
            self._file = av.open(str(path), "w", options=options)
            # Frames that wait for later ones would shift the times of a file in fragments.
            quality = {"crf": "23", "g": GROUP, "bf": "0"}
            self._stream = self._file.add_stream("libx264", options=quality)
        except (OSError, ValueError) as error:
            raise StoreError(
                f"{path} cannot be written ({error}); choose another, such as boxes.mp4"
            ) from error
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, 1000)

    def write(self, frame: Frame, found: Any) -> None:
        """Add a frame; one of another size than the first is made to fit.

        Raises:
            StoreError: If the disk is full.
        """
        if self._size is None:
            # Colour is stored for every other pixel: sides have to be even.
            self._size = (max(2, frame.width // 2 * 2), max(2, frame.height // 2 * 2))
            self._stream.width, self._stream.height = self._size
            self._first = frame.timestamp
        drawn = self._draw(frame.image, found)
        if drawn.shape[1::-1] != self._size:
            drawn = cv2.resize(drawn, self._size, interpolation=cv2.INTER_AREA)
        picture = av.VideoFrame.from_ndarray(drawn, format="rgb24")
        self._last = max(self._last + 1, round((frame.timestamp - self._first) * 1000))
        picture.pts, picture.time_base = self._last, Fraction(1, 1000)
        self._mux(picture)

    def _mux(self, picture: av.VideoFrame | None) -> None:
        try:
            self._file.mux(self._stream.encode(picture))
        except OSError as error:
            self._failed = True
            raise StoreError(f"{self._path} cannot be written ({error.strerror})") from error

    def close(self) -> None:
        """Finish the file.

        Raises:
            StoreError: If the disk is full, unless `write` has said so already.
        """
        try:
            if self._size is not None and not self._failed:
                self._mux(None)
        finally:
            try:
                self._file.close()
            except OSError as error:
                if not self._failed:
                    why = error.strerror
                    raise StoreError(f"{self._path} cannot be written ({why})") from error
