"""Frames of a camera: a webcam, or a network camera behind an RTSP, RTMP or HTTP address."""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Generator

import cv2

from vismem.errors import SourceError, UsageError
from vismem.frame import Frame, as_rgb
from vismem.streams.base import Sampler, Stream

__all__ = ["CameraStream", "hide_credentials"]

FIRST_DELAY, LONGEST_DELAY = 0.25, 30.0


def hide_credentials(url: str) -> str:
    """Leave out of an address what may be secret: user, password and the query.

    Example:
        >>> hide_credentials("rtsp://admin:1234@10.0.0.7:554/live?token=abc")
        'rtsp://***@10.0.0.7:554/live?***'
    """
    # Up to the last @: passwords with a slash or an @ in them are met in the wild.
    url = re.sub(r"(?<=://).*@", "***@", url, flags=re.DOTALL)
    return re.sub(r"[?#].*", "?***", url, flags=re.DOTALL)


class CameraStream(Stream):
    """The newest frame of a camera, each time one is asked for.

    A thread reads the camera and keeps only the newest frame, so that a slow reader never lags
    behind; frames that a newer one replaced are counted as dropped. Timestamps are Unix seconds of
    arrival: the clock's time at the start plus what has passed since, so that they never run
    backwards when the clock is set.

    A camera that is lost is opened again, after 0.25 s, then twice as long each time up to 30 s,
    with up to half of it taken off at random so that many readers do not come back in step. The
    stream waits meanwhile and does not end.

    A video of known length behind an HTTP address is no camera: ``live`` is false, no frame is
    dropped, timestamps are those of the video, and the stream ends with it.

    Args:
        source: Number of a webcam, path of a video device, or address of a network camera. RTSP
            goes over TCP, OpenCV's own default.
        fps: Frames wanted per second, or ``None`` for every frame.
        name: Name of the stream; the camera's number or host and path if not given.
        reconnect: Whether to open a lost camera again; if not, the stream ends with it.
        open_timeout: How long opening a network camera may take, in seconds.
        read_timeout: How long a network camera may give no frame until it counts as lost, in
            seconds. :meth:`close` may wait as long for the thread, though the iteration ends at
            once.

    Raises:
        SourceError: If the camera cannot be opened or gives no first frame.
        UsageError: If ``fps`` or a timeout is not above zero.
    """

    live = True

    def __init__(
        self,
        source: int | str,
        *,
        fps: float | None = None,
        name: str | None = None,
        reconnect: bool = True,
        open_timeout: float = 10.0,
        read_timeout: float = 10.0,
    ) -> None:
        if not (open_timeout > 0 and read_timeout > 0):
            raise UsageError("open_timeout and read_timeout must be seconds above 0, such as 10")
        self._source = source
        self._remote = isinstance(source, str) and "://" in source
        self._shown = hide_credentials(str(source)) if self._remote else f"camera {source}"
        super().__init__(name or self._default_name())
        self._wants = Sampler(fps)
        self._reconnect = reconnect
        self._timeouts = (open_timeout, read_timeout)
        self._random = random.Random()
        self._clock = time.time() - time.monotonic()
        self._delay = FIRST_DELAY
        self._claimed = -1.0
        self._index = 0
        self._newest: Frame | None = None
        self._ended = False
        self._news = threading.Condition()
        capture = self._connect()
        if capture is None:
            raise SourceError(self._refusal(opened=False))
        self._newest = self._grab(capture)
        if self._newest is None:
            capture.release()
            raise SourceError(self._refusal(opened=True))
        self.size = (self._newest.width, self._newest.height)
        self._thread = threading.Thread(
            target=self._watch, args=(capture,), name=f"vismem {self.name}", daemon=True
        )
        self._thread.start()

    def _default_name(self) -> str:
        if not self._remote:
            return f"camera{self._source}" if isinstance(self._source, int) else str(self._source)
        return re.sub(r"^\w+://(\*{3}@)?|\?.*$|/$", "", self._shown)

    def _refusal(self, *, opened: bool) -> str:
        if opened:
            return f"{self._shown} opens but gives no frame; check that it is sending video"
        if self._remote:
            return (
                f"cannot open {self._shown}; check address, user and password, and that the "
                f"camera answers within {self._timeouts[0]:g} s"
            )
        return f"cannot open {self._shown}; it is not plugged in, in use, or not permitted"

    def _connect(self) -> cv2.VideoCapture | None:
        """Open the camera, or return ``None``."""
        if self._remote:
            milliseconds = [int(seconds * 1000) for seconds in self._timeouts]
            capture = cv2.VideoCapture(
                str(self._source),
                cv2.CAP_FFMPEG,
                [
                    *(cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, milliseconds[0]),
                    *(cv2.CAP_PROP_READ_TIMEOUT_MSEC, milliseconds[1]),
                ],
            )
            # Only FFmpeg over HTTP tells how many frames come; for a camera it is below zero.
            http = str(self._source).lower().startswith("http")
            self._claimed = capture.get(cv2.CAP_PROP_FRAME_COUNT) if http else -1.0
            self.live = self._claimed <= 0
        else:
            capture = cv2.VideoCapture(self._source)
        if capture.isOpened():
            return capture
        capture.release()
        return None

    def _grab(self, capture: cv2.VideoCapture) -> Frame | None:
        """Wait for the next wanted frame; ``None`` if the camera is lost."""
        while capture.grab():
            if self.live:
                timestamp = self._clock + time.monotonic()
            else:
                timestamp = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            index, self._index = self._index, self._index + 1
            if self._closed.is_set():
                return None
            if not self._wants(timestamp):
                self.stats.skipped += 1
                continue
            self.stats.late += self.live and self._wants.late
            read, image = capture.retrieve()
            if read:
                # OpenCV gives blue first.
                return Frame(as_rgb(image[:, :, ::-1]), timestamp, self.name, index)
            self.stats.dropped += 1
            self.stats.note("frame cannot be decoded")
        return None

    def _watch(self, capture: cv2.VideoCapture | None) -> None:
        """Keep the newest frame at hand until closed; the reader thread's own loop."""
        try:
            while capture is not None:
                while (frame := self._grab(capture)) is not None:
                    self._offer(frame)
                    self._delay = FIRST_DELAY
                capture.release()
                # A tenth is what such a count may be wrong by where it is worked out from a rate.
                if self._index < 0.9 * self._claimed and not self._closed.is_set():
                    self.stats.note(f"ends early: {self._index} of {self._claimed:.0f} frames")
                capture = self._connect_again() if self.live and self._reconnect else None
        finally:
            if capture is not None:
                capture.release()
            with self._news:
                self._ended = True
                self._news.notify_all()

    def _connect_again(self) -> cv2.VideoCapture | None:
        """Open a lost camera again, however long it takes; ``None`` once closed."""
        self.stats.note("camera lost")
        while not self._closed.wait(self._delay * self._random.uniform(0.5, 1.0)):
            # Only a frame makes it short again: some servers accept a reader and hang up at once.
            self._delay = min(2 * self._delay, LONGEST_DELAY)
            capture = self._connect()
            if capture is not None:
                self.stats.reconnects += 1
                return capture
        return None

    def _offer(self, frame: Frame) -> None:
        with self._news:
            if not self.live:
                self._news.wait_for(lambda: self._newest is None or self._closed.is_set())
            elif self._newest is not None:
                self.stats.dropped += 1
            self._newest = frame
            self._news.notify_all()

    def _read(self) -> Generator[Frame, None, None]:
        while not self._closed.is_set():
            with self._news:
                self._news.wait_for(
                    lambda: self._newest is not None or self._ended or self._closed.is_set()
                )
                frame, self._newest = self._newest, None
                self._news.notify_all()
            if frame is None or self._closed.is_set():
                return
            yield frame

    def close(self) -> None:
        """End the iteration at once, then wait for the reader thread and free the camera."""
        self._closed.set()
        with self._news:
            self._news.notify_all()
        super().close()
        self._thread.join()
