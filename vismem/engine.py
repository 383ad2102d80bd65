"""The writer: one thread between a source and a memory, with a bounded queue before it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from vismem.errors import VismemError
from vismem.frame import Frame

__all__ = ["Writer"]

T = TypeVar("T")


class Writer(Generic[T]):
    """Encodes and stores frames one after another, in a thread of its own.

    A frame that cannot be stored (a full disk) is kept, and whoever hands over or waits is told.
    The writer then rests, and tries that frame again at the next call. A frame that breaks the
    encoder is left out.

    Args:
        encode: Turns a frame into what is stored; its failure leaves the frame out.
        store: Stores it; a `VismemError` stops the writer until a caller who was told comes back.
        refuse: Told about a frame that was left out.
        capacity: Frames that may wait.
    """

    def __init__(
        self,
        encode: Callable[[Frame], T],
        store: Callable[[Frame, T], None],
        refuse: Callable[[Frame, Exception], None],
        capacity: int,
    ):
        self._encode, self._store, self._refuse = encode, store, refuse
        self._capacity = capacity
        self._changed = threading.Condition()
        self._waiting: deque[Frame] = deque()
        self._accepted = self._done = 0
        self._error: VismemError | None = None  # what the writer rests for
        self._told = False
        self._closing = False
        self._thread: threading.Thread | None = None

    @property
    def waiting(self) -> int:
        """Frames handed over and not yet stored."""
        return len(self._waiting)

    def put(self, frame: Frame, *, block: bool = True) -> bool:
        """Hand over a frame.

        Args:
            frame: What to write.
            block: Whether to wait for room.

        Returns:
            Whether it was taken; without ``block`` it is not while the queue is full.

        Raises:
            VismemError: What stopped the writer earlier; this frame was not taken.
        """
        with self._changed:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="vismem-writer", daemon=True)
                self._thread.start()
            self._go_on()
            while len(self._waiting) >= self._capacity and block and self._error is None:
                self._changed.wait()
            self._raise()
            if len(self._waiting) >= self._capacity:
                return False
            self._waiting.append(frame)
            self._accepted += 1
            self._changed.notify_all()
            return True

    def flush(self) -> None:
        """Wait until every frame handed over so far is written.

        Raises:
            VismemError: What stopped the writer; the frame is kept, call again.
        """
        with self._changed:
            goal = self._accepted
            self._go_on()
            while self._done < goal and self._error is None:
                self._changed.wait()
            self._raise()

    def close(self) -> int:
        """Stop after the frames that wait, or at once if they cannot be written.

        Returns:
            How many frames were left unwritten.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread:
            self._thread.join()
        return len(self._waiting)

    def _go_on(self) -> None:
        """Let the writer try again what a caller knows about; tell what none knows yet."""
        if self._told:
            self._error, self._told = None, False
            self._changed.notify_all()
        self._raise()

    def _raise(self) -> None:
        """Tell the caller what stopped the writer, if anything did."""
        if self._error is not None:
            self._told = True
            raise self._error

    def _run(self) -> None:
        ready: tuple[Frame, T] | None = None  # encoded already, if storing has to be tried again
        while True:
            with self._changed:
                while (self._error or not self._waiting) and not self._closing:
                    self._changed.wait()
                if self._error or not self._waiting:
                    return
                frame = self._waiting[0]
            try:
                if ready is None or ready[0] is not frame:
                    ready = frame, self._encode(frame)
                self._store(*ready)
            except VismemError as error:
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
                continue
            except Exception as error:
                self._refuse(frame, error)
            ready = None
            with self._changed:
                self._waiting.popleft()
                self._done += 1
                self._changed.notify_all()
