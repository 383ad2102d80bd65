"""`Pairing`: puts a camera's pictures together with depth, pose and intrinsics of other topics.

One rule for a bag that is read and for topics that arrive: what a picture is paired with follows
from the times in the headers alone, not from the order in which topics come. A picture waits until
its depth and its pose cannot change any more, or until too many wait behind it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vismem.clock import REORDER
from vismem.frame import Frame
from vismem.streams.base import Sampler
from vismem.streams.messages import depth_of, intrinsics_of, picture_of
from vismem.streams.poses import Poses

__all__ = ["Paired", "Pairing"]


@dataclass(frozen=True, slots=True, eq=False)
class Paired:
    """A picture and what belongs to it, not decoded yet.

    Args:
        message: The picture.
        time: Seconds, of its header.
        index: Running number; pictures that were left out are counted too.
        received: When it came, by the clock of whoever reads.
        pose: ``(4, 4)`` camera-to-world, or None.
        depth: The depth picture's message, or None.
        intrinsics: ``(3, 3)`` pixels, or None.
        wanted: By which readers.
    """

    message: Any
    time: float
    index: int
    received: float
    pose: np.ndarray | None
    depth: Any | None
    intrinsics: np.ndarray | None
    wanted: frozenset[str] = frozenset()

    def frame(self, stream: str, note: Callable[[str, str], None]) -> Frame:
        """Decode it.

        Args:
            stream: Name of the stream.
            note: Told of a depth picture that is left out, as a reason and an example.

        Raises:
            ValueError: If the picture cannot be decoded.
        """
        image = picture_of(self.message)
        depth = None
        if self.depth is not None:
            try:
                depth = depth_of(self.depth)
                if depth.shape != image.shape[:2]:
                    raise ValueError(f"depth is {depth.shape[::-1]}, not the picture's size")
            except ValueError as error:
                note("frame without depth", str(error))
                depth = None
        return Frame(image, self.time, stream, self.index, self.pose, depth, self.intrinsics)


class Pairing:
    """The pictures of one camera that wait for what belongs to them.

    Args:
        rates: Frames wanted per second by each reader, or None for every one.
        poses: Where poses come from, if they are waited for.
        depth: Whether depth is waited for.
        intrinsics: Whether a CameraInfo is waited for.
        slop: Seconds that a depth picture may be away.
        most: Pictures that may wait; the first goes as it is when one more comes.

    Attributes:
        received: Pictures that came.
        skipped: Of these, wanted by no reader.
        late: Older than one before, left out.
        jumps: How often the time jumped back by more than a picture out of order.
        without_pose: Went on without the pose that they waited for.
        without_depth: Likewise, without depth.
    """

    def __init__(
        self,
        *,
        rates: Mapping[str, float | None],
        poses: Poses | None = None,
        depth: bool = False,
        intrinsics: bool = False,
        slop: float = 0.05,
        most: int = 16,
    ):
        self._wants = {reader: Sampler(fps) for reader, fps in rates.items()}
        self.poses, self.slop, self.most = poses, slop, most
        self._needs_depth, self._needs_intrinsics = depth, intrinsics
        self._waiting: deque[Paired] = deque()
        self._ready: deque[Paired] = deque()
        self._depths: deque[tuple[float, Any]] = deque(maxlen=4 * most)
        self._matrices: dict[tuple[int, int], np.ndarray | None] = {}  # by width and height
        self._newest = -np.inf
        self.received = self.skipped = self.late = self.jumps = 0
        self.without_pose = self.without_depth = 0

    @property
    def waiting(self) -> int:
        """Pictures that wait for what belongs to them."""
        return len(self._waiting)

    def add_image(self, message: Any, time: float, received: float = 0.0) -> bool:
        """Take a picture of a time in seconds, received at a time of the reader's clock.

        Returns:
            Whether somebody wants it; it will be ready then.
        """
        index, self.received = self.received, self.received + 1
        if time < self._newest - REORDER:
            self.jumps += 1
            self.begin_anew()
        elif time < self._newest:
            self.late += 1
            return False
        self._newest = time
        wanted = frozenset(reader for reader, wants in self._wants.items() if wants(time))
        if not wanted:
            self.skipped += 1
            return False
        self._waiting.append(Paired(message, time, index, received, None, None, None, wanted))
        return True

    def set_rate(self, reader: str, fps: float | None) -> None:
        """Take another rate for a reader, from the next picture on.

        Raises:
            UsageError: If it is not a number above zero.
        """
        self._wants[reader] = Sampler(fps)

    def begin_anew(self) -> None:
        """Let go of all that waits, for time jumps back; see each source of poses for its own."""
        self._release(len(self._waiting))
        self._newest = -np.inf
        self._wants = {reader: Sampler(wants.fps) for reader, wants in self._wants.items()}

    def add_depth(self, message: Any, time: float) -> None:
        """Take a depth picture of a time in seconds."""
        if self._depths and time < self._depths[-1][0] - REORDER:
            self._depths.clear()
        self._depths.append((time, message))

    def add_info(self, message: Any) -> None:
        """Take a CameraInfo; of one size the first counts. Width 0 stands for any size.

        Raises:
            ValueError: If it holds no matrix.
        """
        size = int(message.width), int(message.height)
        if size not in self._matrices:
            self._matrices[size] = intrinsics_of(message)

    def ready(self, *, received_before: float | None = None) -> list[Paired]:
        """Take out the pictures that are complete, in the order that they came in.

        Args:
            received_before: Those that came before this time of the reader's clock go as they are.
        """
        while self._waiting:
            first = self._waiting[0]
            overdue = received_before is not None and first.received < received_before
            if not (overdue or len(self._waiting) > self.most or self._complete(first)):
                break
            self._release(1)
        done = list(self._ready)
        self._ready.clear()
        return done

    def rest(self) -> list[Paired]:
        """Take out all, as they are: nothing more will come."""
        self._release(len(self._waiting))
        return self.ready()

    def _complete(self, picture: Paired) -> bool:
        frame = picture.message.header.frame_id
        return (
            (self.poses is None or self.poses.passed(picture.time, frame))
            and (
                not self._needs_depth or bool(self._depths) and self._depths[-1][0] >= picture.time
            )
            and (not self._needs_intrinsics or bool(self._matrices))
        )

    def _release(self, count: int) -> None:
        """Pair the first pictures that wait with what is there."""
        for _ in range(count):
            first = self._waiting.popleft()
            pose = None
            if self.poses is not None:
                pose = self.poses.at(first.time, first.message.header.frame_id)
                self.without_pose += pose is None
            near = [d for d in self._depths if abs(d[0] - first.time) <= self.slop]
            depth = min(near, key=lambda d: abs(d[0] - first.time))[1] if near else None
            self.without_depth += self._needs_depth and depth is None
            matrix = self._matrix_for(first.message)
            part = first.message, first.time, first.index, first.received
            self._ready.append(Paired(*part, pose, depth, matrix, first.wanted))

    def _matrix_for(self, message: Any) -> np.ndarray | None:
        """Of the picture's size where that is told; a compressed picture does not tell its size."""
        size = getattr(message, "width", None), getattr(message, "height", None)
        for known in (size, (0, 0)):
            if known in self._matrices:
                return self._matrices[known]
        return next(iter(self._matrices.values())) if size[0] is None and self._matrices else None
