"""`Player`: plays a source in real time, in a thread of its own."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from vismem.closeable import Closeable
from vismem.errors import VismemError
from vismem.frame import Frame
from vismem.streams import Stream

__all__ = ["Player"]

LATE = 0.25  # seconds behind from which a frame is not shown
LOST = 1.5  # seconds behind from which the clock is set anew: the machine slept, or is far too slow

# A frame, and how many seconds late it is.
See = Callable[[Frame, float], None]


class Player(Closeable):
    """Hands every frame of a source to a function when it is due.

    A recording is paced by its own times; a live source comes when it comes. Who is too slow misses
    frames, which are counted, and time goes on.

    Args:
        source: Opens the stream; called again for every further round.
        see: Gets each frame, with its time counted on over all rounds, and how late it is.
        again: Whether a recording begins again at its end.
        seconds: How long to play until `resume` must be called.

    Attributes:
        name: Of the stream.
        problem: Why the source ended, if it was no ordinary end.
        dropped: Frames that came too late to be handed over.
        ended: Whether there is nothing more to come.
    """

    def __init__(
        self, source: Callable[[], Stream], see: See, *, again: bool = False, seconds: float
    ) -> None:
        self._source, self._see, self._again, self._seconds = source, see, again, seconds
        self._stream = source()  # opened here, where the caller learns what is wrong with it
        self.name = self._stream.name
        self.problem = ""
        self.dropped = 0
        self.ended = False
        self._left = seconds  # to play
        self._paused = self._closed = False
        self._changed = threading.Condition()
        self._shown: deque[float] = deque(maxlen=24)
        self._thread = threading.Thread(target=self._run, name=f"demo {self.name}", daemon=True)
        self._thread.start()

    @property
    def paused(self) -> bool:
        """Whether it waits for `resume`."""
        return self._paused

    @property
    def fps(self) -> float:
        """Frames a second that were handed over, over the last two seconds or so."""
        now = time.monotonic()
        recent = [at for at in list(self._shown) if now - at < 2.0]
        return (len(recent) - 1) / (now - recent[0]) if len(recent) > 1 else 0.0

    def pause(self) -> None:
        """Hold the picture."""
        with self._changed:
            self._paused = True
            self._changed.notify_all()

    def resume(self) -> None:
        """Go on from here."""
        with self._changed:
            self._left = self._seconds
            self._paused = False
            self._changed.notify_all()

    def close(self) -> None:
        """Stop, wait for the thread and free the source."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._stream.close()
        self._thread.join()

    def _run(self) -> None:
        try:
            before = 0.0  # seconds of the rounds before
            while not self._closed:
                length = self._play(before)
                if not self._again or self._stream.live or self._closed:
                    break
                before += length
                self._stream = self._source()
        except VismemError as error:
            self.problem = str(error)
        except Exception as error:  # a thread that dies in silence would leave a still picture
            self.problem = f"the source cannot be read on ({type(error).__name__})"
        finally:
            self.ended = True
            self._stream.close()

    def _play(self, before: float) -> float:
        """Play one round; gives its length in seconds."""
        first: float | None = None
        began, last, step = 0.0, 0.0, 0.0
        for frame in self._stream:
            if first is None:
                first, began = frame.timestamp, time.monotonic()
            at = frame.timestamp - first
            step, last = at - last, at
            began += self._hold(began + at)
            if self._closed:
                break
            late = 0.0 if self._stream.live else max(0.0, time.monotonic() - began - at)
            if late > LOST:
                began, late = began + late, 0.0
            if late > LATE:
                self.dropped += 1
                continue
            self._see(replace(frame, timestamp=before + at), late)
            self._shown.append(time.monotonic())
        return last + step

    def _hold(self, due: float) -> float:
        """Wait until a frame is due and nothing is paused; gives the seconds of the pause."""
        with self._changed:
            if not self._stream.live:
                until = due - time.monotonic()
                self._changed.wait_for(lambda: self._closed or self._paused, max(0.0, until))
            if self._shown:
                self._left -= min(1.0, time.monotonic() - self._shown[-1])
            if self._left <= 0:
                self._paused = True
            began = time.monotonic()
            self._changed.wait_for(lambda: self._closed or not self._paused)
            return time.monotonic() - began if not self._stream.live else 0.0
