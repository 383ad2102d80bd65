"""`PushedStream`: the newest picture that somebody hands over, such as a browser's webcam."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Generator

import cv2
import numpy as np
from PIL import Image

from vismem.frame import Frame
from vismem.streams import Stream

__all__ = ["PushedStream"]

# Of a browser's picture there is one. Each costs a look at every pixel though it may take up no
# more than 14 bytes, so that one small file of many would keep a thread busy for minutes.
SCAN, MOST_SCANS = b"\xff\xda", 4


class PushedStream(Stream):
    """Frames that come from outside as JPEG; the newest one is given, others are dropped.

    Timestamps are seconds since the stream was made, by this machine's clock.

    Args:
        name: Name of the stream.
        pixels: Largest picture that is decoded, width times height.

    Example:
        >>> with PushedStream("webcam", pixels=10_000) as stream:
        ...     stream.push(cv2.imencode(".jpg", np.zeros((4, 6, 3), np.uint8))[1].tobytes())
        ...     next(stream).width
        6
    """

    live = True

    def __init__(self, name: str, *, pixels: int) -> None:
        super().__init__(name)
        self._pixels = pixels
        self._began = time.monotonic()
        self._newest: tuple[bytes, float] | None = None
        self._news = threading.Condition()

    @property
    def waiting(self) -> bool:
        """Whether a picture was handed over that nobody has taken yet."""
        return self._newest is not None

    def push(self, jpeg: bytes) -> None:
        """Hand over a picture; it takes the place of one that nobody has taken."""
        with self._news:
            self.stats.dropped += self._newest is not None
            self._newest = jpeg, time.monotonic() - self._began
            self._news.notify_all()

    def _read(self) -> Generator[Frame, None, None]:
        index = 0
        while not self._closed.is_set():
            with self._news:
                self._news.wait_for(lambda: self._newest or self._closed.is_set())
                newest, self._newest = self._newest, None
            if newest is None:
                return
            image = self._decode(newest[0])
            if image is not None:
                yield Frame(image, newest[1], self.name, index)
            index += 1

    def _decode(self, jpeg: bytes) -> np.ndarray | None:
        """The picture; nothing if it is none, or takes more work than it may."""
        try:
            with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as head:  # reads no pixel
                width, height = head.size
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            self.stats.note("no JPEG came")
            return None
        if width * height > self._pixels:
            self.stats.note("a picture is too large", f"{width}x{height}")
            return None
        if jpeg.count(SCAN) > MOST_SCANS:
            self.stats.note("a picture has too many scans")
            return None
        image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
        if image is None:
            self.stats.note("a JPEG is damaged")
            return None
        return np.ascontiguousarray(image[:, :, ::-1])

    def close(self) -> None:
        """End the iteration at once."""
        self._closed.set()
        with self._news:
            self._news.notify_all()
        super().close()
