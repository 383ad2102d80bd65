"""What every source of frames has in common: `Stream`, its counters and the sampling rule."""

from __future__ import annotations

import math
import threading
from abc import abstractmethod
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field

from vismem.closeable import Closeable
from vismem.errors import SourceError, UsageError
from vismem.frame import Frame

__all__ = ["Sampler", "Stream", "StreamStats", "sample"]

# Containers round times (Matroska to whole milliseconds), so 0.333 s counts as one third.
TOLERANCE = 1e-3


class Sampler:
    """Decides, frame by frame, which frames a rate of ``fps`` wants.

    The rule, the same for every source: the first frame at or after each multiple of ``1 / fps``
    since the first frame. A frame after a long gap stands for all the multiples it missed.

    Args:
        fps: Frames wanted per second, or ``None`` for every frame.

    Attributes:
        late: Whether the frame just taken came more than ``1 / fps`` after the time it is for.

    Raises:
        UsageError: If ``fps`` is not a finite number above zero.

    Example:
        >>> wants = Sampler(fps=2)
        >>> [wants(time) for time in (10.0, 10.3, 10.6, 10.9, 12.1)]
        [True, False, True, False, True]
    """

    def __init__(self, fps: float | None) -> None:
        if fps is not None and not (
            isinstance(fps, (int, float)) and math.isfinite(fps) and fps > 0
        ):
            raise UsageError(f"fps must be a number above 0, such as 2 or 0.5, not {fps!r}")
        self.fps = fps
        self.late = False
        self._first: float | None = None
        self._slot = -1

    def __call__(self, timestamp: float) -> bool:
        """Whether the frame at ``timestamp`` seconds is wanted."""
        if self.fps is None:
            return True
        if self._first is None:
            self._first = timestamp
        slot = math.floor((timestamp - self._first + TOLERANCE) * self.fps)
        if slot <= self._slot:
            return False
        self.late = slot > self._slot + 1
        self._slot = slot
        return True


def sample(timestamps: Iterable[float], fps: float | None) -> list[int]:
    """Indices of the frames that :class:`Sampler` takes.

    Args:
        timestamps: Times of all frames, in seconds, rising.
        fps: Frames wanted per second, or ``None`` for every frame.

    Returns:
        Indices into ``timestamps``, rising.

    Raises:
        UsageError: If ``fps`` is not a finite number above zero.

    Example:
        >>> sample([0.0, 0.4, 0.8, 1.2, 1.6], fps=1)
        [0, 3]
    """
    wants = Sampler(fps)
    return [index for index, timestamp in enumerate(timestamps) if wants(timestamp)]


@dataclass
class StreamStats:
    """What became of the frames of a stream, so far.

    Args:
        frames: Handed out.
        skipped: Left out by sampling to ``fps``.
        dropped: Lost: a newer frame of a camera replaced it, or it cannot be decoded.
        late: Came after a newer one and were left out or, from a live stream with ``fps``, came
            more than one period after they were due.
        reconnects: How often a lost camera was opened again.

    Example:
        >>> stats = StreamStats()
        >>> stats.note("picture unreadable", "a.png"); stats.note("picture unreadable", "b.png")
        >>> stats.problems
        ['picture unreadable (2 times, first: a.png)']
    """

    frames: int = 0
    skipped: int = 0
    dropped: int = 0
    late: int = 0
    reconnects: int = 0
    _reasons: dict[str, tuple[int, str]] = field(default_factory=dict, repr=False)

    def note(self, reason: str, example: str = "") -> None:
        """Count a problem; only its first example is kept, so the list stays short."""
        count, first = self._reasons.get(reason, (0, example))
        self._reasons[reason] = (count + 1, first)

    @property
    def problems(self) -> list[str]:
        """What went wrong, one line a reason, with how often and the first example."""
        lines = []
        # A copy: a camera's reader thread may be adding to it.
        for reason, (count, example) in list(self._reasons.items()):
            first = f"first: {example}" if count > 1 else example
            extra = ", ".join(filter(None, (f"{count} times" if count > 1 else "", first)))
            lines.append(f"{reason} ({extra})" if example or count > 1 else reason)
        return lines


class Stream(Closeable):
    """Frames from one source, handed out once, in the order of time.

    Iterate over it, and close it or use it in a ``with`` block. :meth:`close` may be called from
    any thread and ends the iteration.

    Attributes:
        name: Name of the stream; every frame carries it.
        live: Whether frames come in real time, so that a slow reader misses some.
        duration: Length in seconds where the source knows it, else ``None``.
        size: ``(width, height)`` of the first frame, in pixels.
        stats: What became of the frames so far.
    """

    live = False

    def __init__(self, name: str) -> None:
        self.name = name
        self.duration: float | None = None
        self.size = (0, 0)
        self.stats = StreamStats()
        self._closed = threading.Event()
        self._turn = threading.Lock()
        self._frames = self._read()
        self._first: Frame | None = None

    @abstractmethod
    def _read(self) -> Generator[Frame, None, None]:
        """Generate the wanted frames; its ``finally`` frees what the source holds."""

    def _start(self) -> None:
        """Read the first frame, so that an unreadable source fails where it is opened."""
        self._first = next(self._frames, None)
        if self._first is None:
            reasons = "; ".join(self.stats.problems) or "it is empty"
            raise SourceError(f"no frame can be read from {self.name}: {reasons}")
        self.size = (self._first.width, self._first.height)

    def __iter__(self) -> Iterator[Frame]:
        return self

    def __next__(self) -> Frame:
        with self._turn:
            if self._closed.is_set():
                frame = None
            elif self._first is not None:
                frame, self._first = self._first, None
            else:
                frame = next(self._frames, None)
        if frame is None or self._closed.is_set():
            self._closed.set()
            self._free()
            raise StopIteration
        self.stats.frames += 1
        return frame

    def close(self) -> None:
        """End the iteration and free the source. Closing twice does no harm."""
        self._closed.set()
        self._free()

    def _free(self) -> None:
        # A generator cannot be closed while it runs; the thread that runs it comes here next.
        if self._turn.acquire(blocking=False):
            try:
                self._first = None
                self._frames.close()
            finally:
                self._turn.release()
