"""`Session`: one visitor's own memory, detector, picture and chat, freed when the visit ends."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np

from vismem.closeable import Closeable
from vismem.detections import Detections
from vismem.encoders.base import Encoder
from vismem.errors import UsageError, VismemError
from vismem.frame import Frame
from vismem.heads.answer import Answer, Moment
from vismem.heads.detect import Detector, Look, Propose
from vismem.heads.draw_boxes import draw_boxes
from vismem.pipeline import VisualMemory
from vismem.streams import Stream
from vismem.streams.base import Sampler

from .held import Held, held
from .player import Player
from .settings import DemoSettings
from .webcam import PushedStream

__all__ = ["Models", "Picture", "Session", "Turn"]

WIDEST = 960  # pixels of the live picture
QUALITY = 80  # of its JPEG
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
        forgotten: How many of its moments the visitor made the memory forget since.
    """

    number: int
    answer: Answer
    seconds: float
    forgotten: int = 0


@dataclass
class Counts:
    """What became of the frames and moments of a visit, over all changes of its memory."""

    seen: int = 0
    skipped_boxes: int = 0
    asked_to_forget: int = 0
    spans: list[tuple[float, float]] = field(default_factory=list)


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
        self.counts = Counts()
        self.turns: list[Turn] = []
        self.notice = ""
        self.player: Player | None = None
        self.webcam: PushedStream | None = None
        self.closed = False
        self.last_seen = time.monotonic()  # when its page was there
        self.viewers = 0
        self.folder = Path(tempfile.mkdtemp(prefix="vismem-demo-"))  # 0700; gone with the visit
        self._change = threading.RLock()  # held by whoever changes what is watched or remembered
        self._source: Callable[[], Stream] | None = None
        self._memory, self._detector = self._fresh()

    def _fresh(self) -> tuple[VisualMemory, Detector]:
        memory = VisualMemory(self.budget, policy=self.policy, encoder=self.models.encoder, queue=2)
        models = self.models
        detector = Detector(memory=True, propose=models.propose, look=models.look)
        self._wanted = Sampler(self.settings.memory_fps)
        self._boxes: tuple[float, Detections] | None = None
        return memory, detector

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
        with self._change:
            self._check_open()
            first: list[Stream] = [source()]  # if it cannot be opened, nothing has changed
            try:
                self._stop()
                self._renew(*self._fresh())
            except BaseException:
                first[0].close()
                raise
            self._source, self._again = source, again

            def opened() -> Stream:
                return first.pop() if first else source()

            stream = first[0]
            self.webcam = stream if isinstance(stream, PushedStream) else None
            self.player = Player(opened, self._see, again=again, seconds=self.settings.play_seconds)

    def again(self) -> None:
        """Begin a new memory, and the source from its beginning."""
        with self._change:
            if self._source is None:
                raise UsageError("pick something to watch first")
            if self.webcam is not None:
                raise UsageError("switch the webcam off and on to begin again")
            self.watch(self._source, again=self._again)

    def _renew(self, memory: VisualMemory, detector: Detector) -> None:
        """Put another memory in the place of this one."""
        old, self._memory, self._detector = self._memory, memory, detector
        self.turns, self.counts, self.picture = [], Counts(), Picture(self.picture.number)
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
        # Boxes cost as much as ten pictures: whoever is late goes without new ones.
        if late < 0.02:
            found = self._detector.step(frame)
            self._boxes = frame.timestamp, found
        else:
            self.counts.skipped_boxes += 1
        image, boxes = frame.image, 0
        if self._boxes is not None and frame.timestamp - self._boxes[0] <= FRESH:
            image, boxes = draw_boxes(image, self._boxes[1]), len(self._boxes[1])
        self.counts.seen += 1
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
            self._detector.reset()
            self.counts.asked_to_forget += gone
            self.counts.spans.append((start, end))
            self.turns = [_without(turn, start, end) for turn in self.turns]
        return gone

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
        began = time.perf_counter()
        found = self._memory.ask(question, wait=False)
        number = self.turns[-1].number + 1 if self.turns else 1
        turn = Turn(number, found, time.perf_counter() - began)
        self.turns = [*self.turns, turn][-TURNS:]
        return turn

    def held(self) -> Held:
        """What the page shows of the memory."""
        return held(self._memory)

    def thumbnail(self, key: str) -> bytes:
        """The stored picture of a moment on the page; empty if it is there no more.

        Args:
            key: ``m<stream>.<number of the moment's first write>`` on the timeline, or
                ``a<turn>.<place>`` in an answer.
        """
        kind, (first, _, second) = key[:1], key[1:].partition(".")
        if not (first.isdecimal() and second.isdecimal() and len(key) < 40):
            return b""
        if kind == "a":
            for turn in self.turns:
                if turn.number == int(first) and int(second) < len(turn.answer.moments):
                    return turn.answer.moments[int(second)].thumbnail
            return b""
        snapshots = list(self._memory.snapshots().values())
        if kind != "m" or int(first) >= len(snapshots):
            return b""
        snapshot = snapshots[int(first)]
        places = (snapshot.column("source") == int(second)).nonzero()[:, 0].tolist()
        return snapshot.thumbnail(places[0]) if places else b""

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
            try:
                self._memory.close()
            except VismemError:
                pass  # a memory that was loaded and cannot be sealed is deleted all the same
            self.turns, self.picture = [], Picture()
            shutil.rmtree(self.folder, ignore_errors=True)


def _without(turn: Turn, start: float, end: float) -> Turn:
    """A turn without the moments that touch a span, and without the words that told of them."""
    kept = tuple(m for m in turn.answer.moments if not _touches(m, start, end))
    gone = len(turn.answer.moments) - len(kept)
    if not gone:
        return turn
    text = "This answer spoke of a time that is forgotten now. Ask again."
    return replace(
        turn,
        answer=replace(turn.answer, text=text, moments=kept),
        forgotten=turn.forgotten + gone,
    )


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
