"""`Session`: one visitor's own memory, detector, picture and chat, freed when the visit ends."""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from vismem.closeable import Closeable
from vismem.detections import Detections
from vismem.encoders.base import Encoder
from vismem.errors import UsageError
from vismem.frame import Frame
from vismem.heads.answer import Answer, Moment
from vismem.heads.detect import Detector, Look, Propose
from vismem.heads.draw_boxes import draw_boxes
from vismem.live import thumbnail
from vismem.memory.base import Budget
from vismem.pipeline import VisualMemory
from vismem.settings import check_settings
from vismem.store import pack_memory, unpack_memory
from vismem.streams import Stream
from vismem.streams.base import Sampler

from .player import Player
from .settings import BUDGETS, DemoSettings
from .webcam import PushedStream

__all__ = ["Models", "Picture", "Session", "Turn"]

WIDEST = 960  # pixels of the live picture
QUALITY = 80  # of its JPEG
IN_TIME = 0.02  # seconds late up to which there is time for boxes
FRESH = 0.3  # seconds for which boxes are drawn on later frames, if there is no time for new ones
TURNS = 12  # questions that stay on the page
LONGEST_QUESTION = 300  # characters


@dataclass(frozen=True)
class Models:
    """The networks, which all visitors share; whoever remembers has a memory of their own.

    Args:
        encoder: Turns pictures and questions into features.
        propose: Finds people, see `Detector`.
        look: Tells them apart, see `Detector`.
    """

    encoder: Encoder
    propose: Propose
    look: Look


@dataclass(frozen=True)
class Picture:
    """The newest live picture.

    Args:
        number: Counts up; 0 before the first.
        jpeg: For all who watch.
        time: Of the stream, in seconds.
        boxes: How many people are marked.
    """

    number: int = 0
    jpeg: bytes = b""
    time: float = 0.0
    boxes: int = 0


@dataclass(frozen=True)
class Turn:
    """A question and what was answered.

    Args:
        number: Unique within the visit.
        answer: What the memory said.
        seconds: How long that took.
    """

    number: int
    answer: Answer
    seconds: float


class Session(Closeable):
    """One visit.

    Args:
        token: Whoever knows it may see and ask.
        settings: Of the demo.
        models: Shared with the other visits.
    """

    def __init__(self, token: str, settings: DemoSettings, models: Models) -> None:
        self.token, self.settings, self.models = token, settings, models
        self.budget, self.policy = settings.budget, "moments"
        self.picture = Picture()
        self.asked_to_forget = 0  # moments, on this page
        self.turns: list[Turn] = []
        self.player: Player | None = None
        self.webcam: PushedStream | None = None
        self.closed = False
        self.last_seen = time.monotonic()  # when its page was there
        self.viewers = 0
        self.receiving = False  # a file
        self.folder = Path(tempfile.mkdtemp(prefix="vismem-demo-"))  # 0700; gone with the visit
        self._change = threading.RLock()  # held by whoever changes what is watched or remembered
        self._source: Callable[[], Stream] | None = None
        self.number = 0  # of the memory; another one has another
        self._memory = self._new_memory()
        self._detector = self._new_detector()
        self._wanted = Sampler(settings.memory_fps)
        self._boxes: tuple[float, Detections] | None = None
        self._next_boxes = 0.0  # when there is time for them
        self._forgotten: list[tuple[float, float]] = []  # spans, on request

    def _new_memory(self) -> VisualMemory:
        return VisualMemory(self.budget, policy=self.policy, encoder=self.models.encoder, queue=2)

    def _new_detector(self) -> Detector:
        return Detector(memory=True, propose=self.models.propose, look=self.models.look)

    @property
    def memory(self) -> VisualMemory:
        """What this visit remembers."""
        return self._memory

    # ------------------------------------------------------------------ watching

    def watch(self, source: Callable[[], Stream], *, again: bool = False) -> None:
        """Begin a new memory, and watch a source from its beginning.

        Args:
            source: Opens it.
            again: Whether a recording is shown again and again.

        Raises:
            SourceError: If it cannot be opened; what was watched before goes on.
        """
        first = [source()]  # outside the lock: a camera may take its time
        try:
            with self._change:
                self._check_open()
                self._stop()
                self._renew(self._new_memory())
                self._source, self._again = source, again
                self.webcam = first[0] if isinstance(first[0], PushedStream) else None
                self.player = Player(
                    lambda: first.pop() if first else source(),
                    self._see,
                    again=again,
                    seconds=self.settings.play_seconds,
                )
        finally:
            for stream in first:  # where it was not taken
                stream.close()

    def again(self) -> None:
        """Begin a new memory, and the source from its beginning."""
        with self._change:
            if self._source is None:
                raise UsageError("pick something to watch first")
            if self.webcam is not None:
                raise UsageError("switch the webcam off and on to begin again")
            self.watch(self._source, again=self._again)

    def _renew(self, memory: VisualMemory) -> None:
        """Put another memory in the place of this one, and begin everything else anew."""
        old, self._memory = self._memory, memory
        self._detector, self._boxes = self._new_detector(), None
        self._wanted = Sampler(self.settings.memory_fps)
        self._forgotten, self.asked_to_forget = [], 0
        self.turns, self.picture = [], Picture(self.picture.number)
        self.number += 1
        old.close()

    def _stop(self) -> None:
        if self.player is not None:
            self.player.close()
        self.player = self.webcam = None

    def pause(self, paused: bool) -> None:
        """Hold the picture, or go on."""
        if self.player is not None:
            self.player.pause() if paused else self.player.resume()

    def _see(self, frame: Frame, late: float) -> None:
        """Take one frame: to the memory twice a second, to the eye each time."""
        if self._wanted(frame.timestamp):
            self._memory.write(frame, block=False)
        # Boxes cost as much as ten pictures: whoever is late goes without new ones, and half of the
        # time is for pictures alone.
        began = time.monotonic()
        if late < IN_TIME and began >= self._next_boxes:
            self._boxes = frame.timestamp, self._detector.step(frame)
            ended = time.monotonic()
            self._next_boxes = ended + (ended - began)
        image, boxes = frame.image, 0
        if self._boxes is not None and frame.timestamp - self._boxes[0] <= FRESH:
            image, boxes = draw_boxes(image, self._boxes[1]), len(self._boxes[1])
        number = self.picture.number + 1
        self.picture = Picture(number, _jpeg(image), frame.timestamp, boxes)

    # ------------------------------------------------------------------ the memory

    def change(self, *, budget: str | None = None, policy: str | None = None) -> None:
        """Give the memory another budget or another policy, at once."""
        with self._change:
            self._check_open()
            self._memory.change(budget=budget, policy=policy)
            self.budget, self.policy = budget or self.budget, policy or self.policy

    def forget(self, start: float, end: float) -> int:
        """Forget a span of time: in the memory, in the chat and among the people seen.

        Returns:
            How many moments are gone.

        Raises:
            UsageError: If the span ends before it starts.
        """
        if not start <= end:
            raise UsageError("a span goes from its start to its end, such as 0:10 to 0:20")
        with self._change:
            self._check_open()
            gone = self._memory.forget(start, end)
            self._detector = self._new_detector()  # a step that is going on writes to the old one
            self._forgotten.append((start, end))
            self.asked_to_forget += gone
            self.turns = [_without(turn, start, end) for turn in self.turns]
        return gone

    def pack(self) -> Iterator[bytes]:
        """The memory of this instant as one file, piece by piece.

        A copy of it lies in the visit's folder until the last piece is taken.

        Raises:
            StoreError: If the disk has no room for it.
            UsageError: If another one is not done; whoever takes none would fill the disk.
        """
        self._check_open()
        if any(self.folder.glob("packed-*")):
            raise UsageError("one download after the other")
        folder = Path(tempfile.mkdtemp(prefix="packed-", dir=self.folder))
        try:
            self._memory.copy(folder / "copy.mem")
            yield from pack_memory(folder / "copy.mem")
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def load(self, archive: Path) -> None:
        """Put the memory of an archive in the place of this one, and watch nothing.

        Raises:
            StoreError: If it is no memory, damaged, or of another encoder; nothing has changed.
        """
        folder = Path(tempfile.mkdtemp(prefix="loaded-", dir=self.folder))
        try:
            with archive.open("rb") as file:
                unpack_memory(
                    file,
                    folder / "loaded.mem",
                    encoder=self.models.encoder.identity,
                    max_bytes=self.settings.upload_bytes,
                    check=check_settings,
                )
            encoder = self.models.encoder
            memory = VisualMemory.open(folder / "loaded.mem", encoder=encoder, queue=2)
            try:
                if memory.budget.bytes > Budget.parse(BUDGETS[-1]).bytes:
                    memory.change(budget=BUDGETS[-1])
                with self._change:
                    self._check_open()
                    self._stop()
                    self._source = None
                    self._renew(memory)
                    for old in self.folder.glob("loaded-*"):
                        if old != folder:
                            shutil.rmtree(old, ignore_errors=True)
            except BaseException:
                memory.close()
                raise
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def ask(self, question: str) -> Turn:
        """Answer from what is remembered, while the picture goes on.

        Raises:
            UsageError: If the question is empty or too long.
        """
        question = " ".join(question.split())
        if not question:
            raise UsageError("ask something, for example: when does the cat appear?")
        if len(question) > LONGEST_QUESTION:
            raise UsageError(f"a question has at most {LONGEST_QUESTION} characters")
        self._check_open()
        began, memory, before = time.perf_counter(), self._memory, len(self._forgotten)
        found = memory.ask(question, wait=False)
        seconds = time.perf_counter() - began
        with self._change:
            if memory is not self._memory:
                raise UsageError("the memory is another one now; ask again")
            turn = Turn(self.turns[-1].number + 1 if self.turns else 1, found, seconds)
            for start, end in self._forgotten[before:]:  # while it was being answered
                turn = _without(turn, start, end)
            self.turns = [*self.turns, turn][-TURNS:]
        return turn

    def thumbnail(self, key: str) -> bytes:
        """The stored picture of a moment on the page; empty if it is there no more.

        Args:
            key: Of a moment or scene, see `vismem.live.thumbnail`, or ``a<turn>.<place>`` of one in
                an answer.
        """
        match = re.fullmatch(r"a([0-9]{1,9})\.([0-9]{1,3})", key)
        if not match:
            return thumbnail(self._memory, key) or b""
        place = int(match[2])
        for turn in self.turns:
            if turn.number == int(match[1]) and place < len(turn.answer.moments):
                return turn.answer.moments[place].thumbnail
        return b""

    # ------------------------------------------------------------------ its end

    def _check_open(self) -> None:
        if self.closed:
            raise UsageError("this visit has ended; load the page again")

    def close(self) -> None:
        """Stop the thread, free the memory and delete what was uploaded; once is enough."""
        with self._change:
            if self.closed:
                return
            self.closed = True
            self._stop()
            # A memory that was loaded may be anything: one that cannot be sealed is deleted all the
            # same, and whoever ends visits goes on.
            with contextlib.suppress(Exception):
                self._memory.close()
            self.turns, self.picture = [], Picture()
            shutil.rmtree(self.folder, ignore_errors=True)


def _without(turn: Turn, start: float, end: float) -> Turn:
    """A turn without the moments that touch a span, and without the words that told of them."""
    kept = tuple(m for m in turn.answer.moments if not _touches(m, start, end))
    if len(kept) == len(turn.answer.moments):
        return turn
    text = "This answer spoke of a time that is forgotten now. Ask again."
    return replace(turn, answer=replace(turn.answer, text=text, moments=kept))


def _touches(moment: Moment, start: float, end: float) -> bool:
    return moment.start <= end and start <= moment.end


def _jpeg(image: np.ndarray) -> bytes:
    """A picture for the page: not wider than it can show."""
    scale = min(1.0, WIDEST / max(image.shape[:2]))
    if scale < 1.0:
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    blue_first = np.ascontiguousarray(image[:, :, ::-1])
    return cv2.imencode(".jpg", blue_first, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()
