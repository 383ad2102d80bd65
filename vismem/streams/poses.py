"""Where a camera was when its picture was taken: tracks of poses, and a tree of transforms.

A pose is taken at the time of the picture and never "the latest": it is interpolated between its
neighbours, held for a moment at the ends, and otherwise not known. Each source forgets by itself
when its time jumps back, so that the order in which topics arrive does not matter.
"""

from __future__ import annotations

import bisect
from typing import Any, Protocol

import cv2
import numpy as np

from vismem.clock import REORDER
from vismem.streams.messages import seconds_of, transform_of

__all__ = ["PoseTrack", "Poses", "TransformTree", "interpolate"]


class Poses(Protocol):
    """What can tell the pose of a frame of reference at a time."""

    def passed(self, time: float, frame: str = "") -> bool:
        """Whether what comes yet cannot change the pose at a time in seconds."""

    def at(self, time: float, frame: str = "") -> np.ndarray | None:
        """The pose, ``(4, 4)`` frame-to-world, or None where it is not known."""

    def clear(self) -> None:
        """Forget all."""


def interpolate(one: np.ndarray, other: np.ndarray, share: float) -> np.ndarray:
    """Go from a rigid transform to another along a straight line, turning evenly.

    Args:
        one: ``(4, 4)``, for a share of 0.
        other: ``(4, 4)``, for a share of 1.
        share: From 0 to 1.

    Example:
        >>> there = np.eye(4); there[:3, 3] = 2, 0, 0
        >>> interpolate(np.eye(4), there, 0.25)[:3, 3]
        array([0.5, 0. , 0. ])
    """
    turn, _ = cv2.Rodrigues(one[:3, :3].T @ other[:3, :3])
    between = np.eye(4)
    between[:3, :3] = one[:3, :3] @ cv2.Rodrigues(turn * share)[0]
    between[:3, 3] = (1 - share) * one[:3, 3] + share * other[:3, 3]
    return between


class PoseTrack:
    """The newest poses of one thing, by time.

    Args:
        gap: Seconds between two poses that are still interpolated.
        hold: Seconds that a pose is held before the first, after the last and beside a gap.
        mount: ``(4, 4)`` from the camera to the thing that the poses are of.
        most: Poses that are kept.

    Example:
        >>> track = PoseTrack()
        >>> for x in (0.0, 1.0):
        ...     pose = np.eye(4); pose[0, 3] = x
        ...     track.add(10 + x / 10, pose)
        >>> track.at(10.05)[:3, 3], track.at(10.3)
        (array([0.5, 0. , 0. ]), None)
    """

    def __init__(
        self,
        *,
        gap: float = 0.5,
        hold: float = 0.05,
        mount: np.ndarray | None = None,
        most: int = 2000,
    ):
        self.gap, self.hold, self.mount, self.most = gap, hold, mount, most
        self._times: list[float] = []
        self._poses: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self._times)

    def add(self, time: float, pose: np.ndarray) -> None:
        """Take a pose; of two of one time the later counts. Time that jumps back begins anew."""
        if self._times and time < self._times[-1] - REORDER:
            self.clear()
        place = bisect.bisect_left(self._times, time)
        if place < len(self._times) and self._times[place] == time:
            self._poses[place] = pose
            return
        self._times.insert(place, time)
        self._poses.insert(place, pose)
        if len(self._times) > self.most:
            del self._times[0], self._poses[0]

    def passed(self, time: float, frame: str = "") -> bool:
        """Whether a pose of that time or later is there."""
        return bool(self._times) and self._times[-1] >= time

    def at(self, time: float, frame: str = "") -> np.ndarray | None:
        """The pose at a time in seconds, ``(4, 4)``, or None."""
        pose = self._between(time)
        return pose if pose is None or self.mount is None else pose @ self.mount

    def _between(self, time: float) -> np.ndarray | None:
        after = bisect.bisect_left(self._times, time)
        if after < len(self._times) and self._times[after] == time:
            return self._poses[after]
        if 0 < after < len(self._times):
            start, end = self._times[after - 1 : after + 1]
            if end - start <= self.gap:
                share = (time - start) / (end - start)
                return interpolate(self._poses[after - 1], self._poses[after], share)
        ends = [place for place in (after - 1, after) if 0 <= place < len(self._times)]
        if not ends:
            return None
        nearest = min(ends, key=lambda place: abs(self._times[place] - time))
        return self._poses[nearest] if abs(self._times[nearest] - time) <= self.hold else None

    def clear(self) -> None:
        """Forget all poses."""
        self._times.clear()
        self._poses.clear()


class TransformTree:
    """The transforms of ``/tf`` and ``/tf_static``, looked up at the time of a picture.

    Args:
        world: Frame of reference that poses are told in, ``"map"``.
        gap: As of `PoseTrack`, for each transform.
        hold: Likewise.

    Example:
        >>> tree = TransformTree("map")
        >>> there = np.eye(4); there[:3, 3] = 1, 2, 0
        >>> tree.add("map", "base_link", 5.0, there)
        >>> tree.add("base_link", "camera", 0.0, np.eye(4), static=True)
        >>> tree.at(5.0, "camera")[:3, 3], tree.at(5.0, "/camera") is None, tree.at(6.0, "camera")
        (array([1., 2., 0.]), False, None)
    """

    def __init__(self, world: str = "map", *, gap: float = 0.5, hold: float = 0.05):
        self.world, self.gap, self.hold = world.lstrip("/"), gap, hold
        self._moving: dict[str, tuple[str, PoseTrack]] = {}  # by child: parent and its poses
        self._static: dict[str, tuple[str, np.ndarray]] = {}

    def add(
        self, parent: str, child: str, time: float, transform: np.ndarray, *, static: bool = False
    ) -> None:
        """Take a transform from the child's frame to the parent's, ``(4, 4)``."""
        parent, child = parent.lstrip("/"), child.lstrip("/")
        if static:
            self._static[child] = parent, transform
            return
        if child not in self._moving or self._moving[child][0] != parent:
            self._moving[child] = parent, PoseTrack(gap=self.gap, hold=self.hold)
        self._moving[child][1].add(time, transform)

    def take(self, message: Any, *, static: bool = False) -> None:
        """Take a ``tf2_msgs/TFMessage``.

        Raises:
            ValueError: If a transform in it is none; those before it are taken.
        """
        for step in message.transforms:
            parent, child, time = step.header.frame_id, step.child_frame_id, step.header.stamp
            self.add(parent, child, seconds_of(time), transform_of(step), static=static)

    def _parent(self, frame: str) -> str | None:
        moving = self._moving.get(frame)
        return moving[0] if moving else self._static.get(frame, (None,))[0]

    def _path(self, frame: str) -> tuple[list[str], list[str]] | None:
        """Frames on the way up from a frame and from the world to where they meet; or None."""

        def way_up(start: str) -> list[str]:
            way: list[str] = []
            at: str | None = start
            while at is not None and at not in way:  # who publishes a circle is not followed
                way.append(at)
                at = self._parent(at)
            return way

        down, up = way_up(frame), way_up(self.world)
        meet = next((at for at in down if at in up), None)
        return None if meet is None else (down[: down.index(meet)], up[: up.index(meet)])

    def passed(self, time: float, frame: str = "") -> bool:
        """Whether all transforms between the frame and the world are there, as late or later."""
        path = self._path(frame.lstrip("/"))
        tracks = (
            [self._moving[at][1] for at in (*path[0], *path[1]) if at in self._moving]
            if path
            else []
        )
        return path is not None and all(track.passed(time) for track in tracks)

    def at(self, time: float, frame: str = "") -> np.ndarray | None:
        """The frame's pose in the world, ``(4, 4)``; None where the way there is not known."""
        path = self._path(frame.lstrip("/"))
        if path is None:
            return None
        ways = []
        for part in path:
            whole = np.eye(4)
            for child in part:
                step = self._step(child, time)
                if step is None:
                    return None
                whole = step @ whole
            ways.append(whole)
        return np.linalg.solve(ways[1], ways[0]) if path[1] else ways[0]

    def _step(self, child: str, time: float) -> np.ndarray | None:
        moving = self._moving.get(child)
        return moving[1].at(time) if moving else self._static[child][1]

    def clear(self) -> None:
        """Forget what moves; what is mounted stays."""
        self._moving.clear()
