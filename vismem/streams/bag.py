"""Frames of a ROS 1 or ROS 2 bag, with pose, depth and intrinsics; needs no ROS."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rosbags.highlevel import AnyReader
from rosbags.typesys import Stores, get_typestore

from vismem.errors import SourceError
from vismem.frame import Frame
from vismem.streams.base import Stream
from vismem.streams.messages import pose_of, seconds_of
from vismem.streams.pairing import Paired, Pairing
from vismem.streams.poses import PoseTrack, TransformTree
from vismem.streams.source import BAG_SUFFIXES

__all__ = ["BagStream"]

_RAW, _COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
_INFO = "sensor_msgs/msg/CameraInfo"
_TRANSFORMS = ("tf2_msgs/msg/TFMessage", "tf/msg/tfMessage")
_POSES = {
    "geometry_msgs/msg/PoseStamped",
    "geometry_msgs/msg/PoseWithCovarianceStamped",
    "nav_msgs/msg/Odometry",
}


class BagStream(Stream):
    """Frames of one image topic of a ROS bag.

    Timestamps are those of the headers, in Unix seconds, or the time of recording where a header
    holds none. Each frame gets the pose at its time, interpolated between poses at most 0.5 s
    apart or held for at most 0.05 s (see `vismem.streams.poses`); the depth picture that is nearest
    in time, at most 0.05 s away and of equal size; and the first matrix for its size of the
    camera's CameraInfo, the one whose topic has most in common with the image's.

    A pose topic gives the pose of its child frame, ``base_link`` say: set ``mount`` unless that is
    the camera. Without a pose topic, poses come from ``/tf`` and ``/tf_static``.

    Args:
        path: Folder of a ROS 2 bag, or a ``.mcap``, ``.db3`` or ROS 1 ``.bag`` file.
        fps: Frames wanted per second, or ``None`` for every frame.
        name: Name of the stream; the bag's name if not given.
        topic: Image topic; the first one without "depth" in its name if not given.
        pose_topic: PoseStamped, PoseWithCovarianceStamped or Odometry topic; if not given, the
            bag's only one, and none where there are several.
        mount: ``(4, 4)`` from the camera to what the pose topic tells the pose of.
        world: Frame of reference of poses that come from ``/tf``.

    Raises:
        SourceError: If the bag cannot be read, has no such topic, or no picture can be decoded.
        UsageError: If ``fps`` is not above zero.
    """

    def __init__(
        self,
        path: Path,
        *,
        fps: float | None = None,
        name: str | None = None,
        topic: str | None = None,
        pose_topic: str | None = None,
        mount: np.ndarray | None = None,
        world: str = "map",
    ) -> None:
        super().__init__(name or path.resolve().stem)
        self._fps, self._mount, self._world = fps, mount, world
        parts = [path]
        if path.is_dir() and not (path / "metadata.yaml").exists():
            parts = sorted(file for file in path.iterdir() if file.suffix in BAG_SUFFIXES)
        try:
            self._reader = AnyReader(parts, default_typestore=get_typestore(Stores.LATEST))
            self._reader.open()
        except Exception as error:  # A damaged bag fails in any of a dozen libraries below.
            raise SourceError(
                f"cannot read {path} as a ROS bag ({' '.join(str(error).split())}); if its "
                "recording broke off, run: ros2 bag reindex (ROS 1: rosbag reindex)"
            ) from error
        try:
            self._choose(path, topic, pose_topic)
            self.duration = self._reader.duration / 1e9
            self._start()
        except BaseException:
            self.close()
            if self._reader.stack:
                self._reader.close()
            raise

    def _choose(self, path: Path, topic: str | None, pose_topic: str | None) -> None:
        """Settle which topics are read."""
        kinds = {name: info.msgtype for name, info in self._reader.topics.items()}
        images = [name for name, kind in kinds.items() if kind in (_RAW, _COMPRESSED)]
        if not images:
            have = ", ".join(kinds) or "no topic at all"
            raise SourceError(f"{path} has no image topic; it has {have}")
        if topic is not None and topic not in images:
            raise SourceError(f"{path} has no image topic {topic}; choose from {', '.join(images)}")
        colour = [name for name in images if "depth" not in name.lower()]
        self._topic = topic or (colour or images)[0]

        poses = [name for name, kind in kinds.items() if kind in _POSES]
        if pose_topic is not None and pose_topic not in poses:
            have = f"choose from {', '.join(poses)}" if poses else "it has none"
            raise SourceError(f"{path} has no pose topic {pose_topic}; {have}")
        if pose_topic is None and len(poses) > 1:
            self.stats.note("several pose topics, none used; set pose_topic", ", ".join(poses))
        self._pose_topic = pose_topic or (poses[0] if len(poses) == 1 else None)
        self._tf_topics = [name for name, kind in kinds.items() if kind in _TRANSFORMS]
        self._poses = self._choose_poses()

        depths = [
            name
            for name, kind in kinds.items()
            if kind == _RAW and "depth" in name.lower() and name != self._topic
        ]
        # Depth that was brought into the picture's view, where there is a choice.
        depths.sort(key=lambda name: not any(word in name for word in ("align", "regist")))
        self._depth_topic = depths[0] if depths else None
        infos = [name for name, kind in kinds.items() if kind == _INFO]
        self._info_topic = max(infos, key=lambda name: _common(name, self._topic), default=None)

    def _choose_poses(self) -> PoseTrack | TransformTree | None:
        if self._pose_topic:
            return PoseTrack(mount=self._mount)
        return TransformTree(self._world) if self._tf_topics else None

    def _messages(
        self, topics: Iterable[str | None]
    ) -> Generator[tuple[str, float, Any], None, None]:
        """Topic, time of recording in seconds and message, until the end or the first damage."""
        reader = self._reader
        connections = [link for link in reader.connections if link.topic in topics]
        try:
            for link, recorded, data in reader.messages(connections):
                yield link.topic, recorded / 1e9, reader.deserialize(data, link.msgtype)
        except Exception as error:  # Damage shows in any of a dozen libraries below.
            self.stats.note("bag ends early", " ".join(str(error).split()) or type(error).__name__)

    def _read(self) -> Generator[Frame, None, None]:
        pairing = Pairing(
            rates={"frames": self._fps},
            poses=self._poses,
            depth=self._depth_topic is not None,
            intrinsics=self._info_topic is not None,
        )
        topics = {self._topic, self._pose_topic, self._depth_topic, self._info_topic}
        messages = self._messages(topics | set(self._tf_topics))
        try:
            for topic, recorded, message in messages:
                try:
                    self._take(pairing, topic, recorded, message)
                except ValueError as error:
                    self.stats.note("message left out", f"{topic}: {error}")
                yield from self._frames_of(pairing, pairing.ready())
            yield from self._frames_of(pairing, pairing.rest())
        finally:
            messages.close()
            self._reader.close()

    def _take(self, pairing: Pairing, topic: str, recorded: float, message: Any) -> None:
        """Hand a message on by its topic."""
        if topic in self._tf_topics:
            if isinstance(self._poses, TransformTree):
                self._poses.take(message, static=topic.endswith("static"))
            return
        if topic == self._info_topic:
            pairing.add_info(message)
            return
        time = seconds_of(message.header.stamp) or recorded
        if topic == self._pose_topic:
            assert isinstance(self._poses, PoseTrack)
            self._poses.add(time, pose_of(message))
        elif topic == self._depth_topic:
            pairing.add_depth(message, time)
        else:
            pairing.add_image(message, time)

    def _frames_of(self, pairing: Pairing, done: Iterable[Paired]) -> Generator[Frame, None, None]:
        """Decode what is complete."""
        self.stats.skipped, self.stats.late = pairing.skipped, pairing.late
        for paired in done:
            try:
                yield paired.frame(self.name, self.stats.note)
            except (ValueError, cv2.error) as error:
                self.stats.dropped += 1
                self.stats.note("picture cannot be decoded", str(error))


def _common(one: str, other: str) -> int:
    """How many leading parts two topic names share."""
    count = 0
    for left, right in zip(one.split("/"), other.split("/"), strict=False):
        if left != right:
            break
        count += 1
    return count
