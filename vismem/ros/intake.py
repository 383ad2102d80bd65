"""`Intake`: takes messages from callbacks without ever making them wait, and feeds the memory.

Callbacks only put a message into a `Pairing`. One thread decodes what is complete and hands it to
the memory, another detects. A live camera's pictures are dropped and counted where these are
behind; in every-frame mode nothing is, as long as the sender waits for what is settled.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import cv2

from vismem.errors import VismemError
from vismem.frame import Frame
from vismem.pipeline import VisualMemory
from vismem.ros.health import Health
from vismem.streams.pairing import Paired, Pairing

__all__ = ["Intake"]

BACKLOG = {False: 32, True: 256}  # pictures that may wait, live and in every-frame mode
LEAST_PATIENCE = 2.0  # seconds in every-frame mode, where the last pictures alone need it

Detect = Callable[[Frame, Paired], None]


class Intake:
    """The way from the callbacks of one camera to its memory; starts at once.

    Args:
        memory: Where frames go.
        pairing: With the readers ``"memory"`` and, if there is ``detect``, ``"detect"``.
        health: Where things are counted.
        stream: Name of the camera in the memory.
        detect: Called with a frame and what it was made from, in a thread of its own.
        settled: Called with a picture's header when it is in the memory, and on disk if the memory
            has one, or left out; in every-frame mode alone.
        every_frame: Whether pictures wait for the memory; see the module.
        patience: Seconds that a picture waits for depth and pose.
    """

    def __init__(
        self,
        memory: VisualMemory,
        pairing: Pairing,
        health: Health,
        *,
        stream: str = "camera",
        detect: Detect | None = None,
        settled: Callable[[Any], None] | None = None,
        every_frame: bool = False,
        patience: float = 0.3,
    ):
        self.memory, self.pairing, self.health = memory, pairing, health
        self.paused = False
        self.handing = threading.Lock()  # held while a frame goes to the memory
        self._stream, self._detect, self._settled = stream, detect, settled
        self._every = every_frame
        self._patience = max(patience, LEAST_PATIENCE) if every_frame else patience
        self._changed = threading.Condition()
        self._closing = False
        self._seen: tuple[Frame, Paired] | None = None  # the next to detect in
        self._lost = dict.fromkeys(("late", "jumps", "without_pose", "without_depth"), 0)
        self._threads = [threading.Thread(target=self._hand, name="vismem-intake", daemon=True)]
        if detect:
            self._threads.append(
                threading.Thread(target=self._look, name="vismem-detect", daemon=True)
            )
        for thread in self._threads:
            thread.start()

    # ------------------------------------------------------------------ called by callbacks

    def take(self, add: Callable[[], Any]) -> None:
        """Let something be added to the pairing, and wake whoever waits for it."""
        with self._changed:
            add()
            self._changed.notify_all()

    def set_rate(self, reader: str, fps: float | None) -> None:
        """Take another rate for ``"memory"`` or ``"detect"``."""
        self.take(lambda: self.pairing.set_rate(reader, fps))

    def begin_anew(self) -> None:
        """Simulated time was set back: nothing that waits fits what comes."""
        self.health.count("jumps")
        with self._changed:
            self.pairing.begin_anew()
            if self.pairing.poses is not None:
                self.pairing.poses.clear()
            self._changed.notify_all()

    def take_image(self, message: Any, seconds: float) -> None:
        """Take a picture of a time in seconds."""
        if self.paused:
            self.health.count("paused")
            return
        with self._changed:
            if self.pairing.waiting >= BACKLOG[self._every]:
                self.health.count("dropped")
                return
            wanted = self.pairing.add_image(message, seconds, time.monotonic())
            self._changed.notify_all()
        if not wanted and self._every and self._settled:
            self._settled(message.header)

    # ------------------------------------------------------------------ threads

    def _hand(self) -> None:
        while True:
            with self._changed:
                done = self._ready()
                while not done and not self._closing:
                    # A picture alone in its topic is let go by time, which nobody tells of.
                    self._changed.wait(self._patience / 4 if self.pairing.waiting else None)
                    done = self._ready()
                if not done:
                    return
            for paired in done:
                self._hand_one(paired)

    def _ready(self) -> list[Paired]:
        if self._closing:
            done = self.pairing.rest()
        else:
            done = self.pairing.ready(received_before=time.monotonic() - self._patience)
        for name, before in self._lost.items():
            now = getattr(self.pairing, name)
            if now > before:
                self.health.count(
                    "out of order" if name == "late" else name.replace("_", " "), now - before
                )
                self._lost[name] = now
        self.health.counts["skipped"] = self.pairing.skipped
        return done

    def _hand_one(self, paired: Paired) -> None:
        try:
            frame = paired.frame(self._stream, self.health.note)
        except (ValueError, cv2.error) as error:
            self.health.note("undecodable", str(error))
        else:
            if "memory" in paired.wanted:
                self._remember(frame)
            if "detect" in paired.wanted and self._detect:
                with self._changed:
                    while self._every and self._seen and not self._closing:
                        self._changed.wait()
                    if self._seen:
                        self.health.count("not detected in")
                    self._seen = frame, paired
                    self._changed.notify_all()
        if self._every and self._settled:
            self._settled(paired.message.header)

    def _remember(self, frame: Frame) -> None:
        try:
            with self.handing:
                taken = self.memory.write(frame, block=self._every)
                if self._every:
                    self.memory.flush()
        except (VismemError, ValueError) as error:
            self.health.note("failed", str(error))
        else:
            self.health.count("remembered" if taken else "dropped")

    def _look(self) -> None:
        while True:
            with self._changed:
                while not self._seen and not self._closing:
                    self._changed.wait()
                if not self._seen:
                    return
                seen, self._seen = self._seen, None
                self._changed.notify_all()
            assert self._detect is not None
            try:
                self._detect(*seen)
            except Exception as error:  # what breaks the detector must not end the thread
                self.health.note("failed", f"{type(error).__name__}: {error}")

    def close(self) -> None:
        """Hand over what waits, as it is, and stop."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
