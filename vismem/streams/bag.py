"""Frames of a ROS 1 or ROS 2 bag, with pose, depth and intrinsics; needs no ROS."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from rosbags.highlevel import AnyReader
from rosbags.typesys import Stores, get_typestore

from vismem.errors import SourceError
from vismem.frame import Frame, as_rgb
from vismem.streams.base import Sampler, Stream
from vismem.streams.folder import read_picture
from vismem.streams.source import BAG_SUFFIXES

__all__ = ["BagStream", "depth_of", "picture_of", "pose_of"]

_RAW, _COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
_INFO = "sensor_msgs/msg/CameraInfo"
_POSES = {
    "geometry_msgs/msg/PoseStamped",
    "geometry_msgs/msg/PoseWithCovarianceStamped",
    "nav_msgs/msg/Odometry",
}
# How old a pose may be, and how long a frame waits for one that was recorded after it, seconds.
_POSE_AGE = 0.5

# Encoding (sensor_msgs/image_encodings.hpp): type of a value, values a pixel, how to make it RGB.
_ENCODINGS: dict[str, tuple[str, int, int | None]] = {
    "rgb8": ("u1", 3, None),
    "bgr8": ("u1", 3, cv2.COLOR_BGR2RGB),
    "rgba8": ("u1", 4, None),
    "bgra8": ("u1", 4, cv2.COLOR_BGRA2RGB),
    "rgb16": ("u2", 3, None),
    "bgr16": ("u2", 3, cv2.COLOR_BGR2RGB),
    "mono8": ("u1", 1, None),
    "mono16": ("u2", 1, None),
    "8uc1": ("u1", 1, None),
    "8uc3": ("u1", 3, cv2.COLOR_BGR2RGB),  # OpenCV's types come in OpenCV's order.
    "8uc4": ("u1", 4, cv2.COLOR_BGRA2RGB),
    "16uc1": ("u2", 1, None),
    "yuv422": ("u1", 2, cv2.COLOR_YUV2RGB_UYVY),
    "uyvy": ("u1", 2, cv2.COLOR_YUV2RGB_UYVY),
    "yuv422_yuy2": ("u1", 2, cv2.COLOR_YUV2RGB_YUY2),
    "yuyv": ("u1", 2, cv2.COLOR_YUV2RGB_YUY2),
    **{
        f"bayer_{pattern}{bits}": (kind, 1, getattr(cv2, f"COLOR_Bayer{pattern.upper()}2RGB"))
        for pattern in ("rggb", "bggr", "gbrg", "grbg")
        for bits, kind in ((8, "u1"), (16, "u2"))
    },
}


def _pixels(message: Any, kind: str, channels: int) -> np.ndarray:
    """Values of a ``sensor_msgs/Image``, ``(H, W, C)``, without padding, in native byte order."""
    height, width, step = int(message.height), int(message.width), int(message.step)
    dtype = np.dtype(kind).newbyteorder(">" if message.is_bigendian else "<")
    row = width * channels * dtype.itemsize
    data = np.asarray(message.data, np.uint8)
    if not row or step < row or data.size < step * height or not height:
        raise ValueError(f"{data.size} bytes are no {width}x{height} picture of step {step}")
    rows = np.ascontiguousarray(data[: step * height].reshape(height, step)[:, :row])
    return rows.view(dtype).astype(dtype.newbyteorder("=")).reshape(height, width, channels)


def picture_of(message: Any) -> np.ndarray:
    """Read a ``sensor_msgs/Image`` or ``sensor_msgs/CompressedImage``.

    Args:
        message: The message; encodings rgb, bgr, rgba, bgra, mono and bayer of 8 or 16 bits,
            8UC1/3/4, 16UC1, yuv422 (UYVY) and yuyv; compressed by JPEG, PNG or WebP.

    Returns:
        The picture, ``(H, W, 3)`` uint8 RGB.

    Raises:
        ValueError: If the encoding is another one, or the data do not make up a picture.
    """
    if not hasattr(message, "encoding"):
        return read_picture(bytes(message.data))
    encoding = message.encoding.lower()
    if encoding not in _ENCODINGS:
        raise ValueError(f"encoding {message.encoding!r} is no picture that can be shown")
    kind, channels, conversion = _ENCODINGS[encoding]
    pixels = _pixels(message, kind, channels)
    return as_rgb(pixels if conversion is None else cv2.cvtColor(pixels, conversion))


def depth_of(message: Any) -> np.ndarray:
    """Read a depth picture.

    Args:
        message: ``sensor_msgs/Image`` of encoding 32FC1 in metres, or 16UC1 or mono16 in
            millimetres (REP 118).

    Returns:
        Depth in metres, ``(H, W)`` float32; 0 where the camera saw none.

    Raises:
        ValueError: If the encoding is another one, or the data do not make up a picture.
    """
    encoding = message.encoding.lower()
    if encoding == "32fc1":
        depth = _pixels(message, "f4", 1)[:, :, 0]
        return np.where(np.isfinite(depth), depth, np.float32(0))
    if encoding in ("16uc1", "mono16"):
        return _pixels(message, "u2", 1)[:, :, 0].astype(np.float32) / np.float32(1000)
    raise ValueError(f"encoding {message.encoding!r} is no depth")


def pose_of(message: Any) -> np.ndarray:
    """Read a PoseStamped, PoseWithCovarianceStamped or Odometry message.

    Args:
        message: The message.

    Returns:
        Transform from the child frame to the message's frame, ``(4, 4)`` float64, metres.

    Raises:
        ValueError: If the quaternion is zero, or a number is not finite.
    """
    pose = message.pose
    pose = getattr(pose, "pose", pose)  # The kinds with covariance wrap it once more.
    position, rotation = pose.position, pose.orientation
    quaternion = np.array([rotation.x, rotation.y, rotation.z, rotation.w], np.float64)
    norm = float(np.linalg.norm(quaternion))
    transform = np.eye(4)
    transform[:3, 3] = position.x, position.y, position.z
    if not (norm > 0 and np.isfinite(norm) and np.isfinite(transform).all()):
        raise ValueError("the pose holds no rotation, or numbers that are not finite")
    x, y, z, w = quaternion / norm
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    transform[:3, :3] += 2 * (w * cross + cross @ cross)
    return transform


class _Waiting(NamedTuple):
    """A wanted frame that waits until its pose and depth must have come by."""

    recorded: float
    timestamp: float
    number: int
    message: Any


class BagStream(Stream):
    """Frames of one image topic of a ROS bag.

    Timestamps are those of the headers, in Unix seconds, or the time of recording where a header
    holds none. Each frame gets the newest pose that is not newer than itself and at most 0.5 s
    old, the depth picture that is nearest in time, at most half a frame away and of equal size,
    and the matrix of the camera's CameraInfo, the one whose topic has most in common with the
    image's.

    The pose is that of the pose topic's child frame, ``base_link`` say. It is handed out as
    camera-to-world as it is: record a pose topic of the camera, or apply the mounting yourself.

    Args:
        path: Folder of a ROS 2 bag, or a ``.mcap``, ``.db3`` or ROS 1 ``.bag`` file.
        fps: Frames wanted per second, or ``None`` for every frame.
        name: Name of the stream; the bag's name if not given.
        topic: Image topic; the first one without "depth" in its name if not given.
        pose_topic: PoseStamped, PoseWithCovarianceStamped or Odometry topic; if not given, the
            bag's only one, and none where there are several.

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
    ) -> None:
        super().__init__(name or path.resolve().stem)
        self._wants = Sampler(fps)
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

        depths = [
            name
            for name, kind in kinds.items()
            if kind == _RAW and "depth" in name.lower() and name != self._topic
        ]
        # Depth that was brought into the picture's view, where there is a choice.
        depths.sort(key=lambda name: not any(word in name for word in ("align", "regist")))
        self._depth_topic = depths[0] if depths else None
        self._intrinsics = self._read_intrinsics([n for n, kind in kinds.items() if kind == _INFO])
        count = self._reader.topics[self._topic].msgcount
        self._half_frame = max(self._reader.duration / 1e9 / max(count - 1, 1) / 2, 1e-3)

    def _read_intrinsics(self, topics: Sequence[str]) -> np.ndarray | None:
        """First matrix of the CameraInfo topic next to the image topic."""
        if not topics:
            return None
        closest = max(topics, key=lambda name: _common(name, self._topic))
        for _, _, message in self._messages({closest}):
            matrix = message.k if hasattr(message, "k") else message.K  # ROS 2 or ROS 1.
            intrinsics = np.array(matrix, np.float64).reshape(3, 3)
            return intrinsics if intrinsics[0, 0] > 0 else None  # Zeros: not calibrated.
        return None

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
        waiting: deque[_Waiting] = deque()
        poses: deque[tuple[float, float, Any]] = deque()  # Time, time of recording, message.
        depths: deque[tuple[float, float, Any]] = deque()
        patience = _POSE_AGE if self._pose_topic or self._depth_topic else 0.0
        newest, index = -np.inf, -1
        messages = self._messages({self._topic, self._pose_topic, self._depth_topic})
        try:
            for topic, recorded, message in messages:
                stamp = message.header.stamp
                timestamp = stamp.sec + stamp.nanosec / 1e9 or recorded
                if topic == self._pose_topic:
                    poses.append((timestamp, recorded, message))
                elif topic == self._depth_topic:
                    depths.append((timestamp, recorded, message))
                else:
                    index += 1
                    if timestamp < newest:
                        self.stats.late += 1
                    elif self._wants(timestamp):
                        waiting.append(_Waiting(recorded, timestamp, index, message))
                    else:
                        self.stats.skipped += 1
                    newest = max(newest, timestamp)
                while waiting and waiting[0].recorded + patience <= recorded:
                    yield from self._finish(waiting.popleft(), poses, depths)
                for kept in (poses, depths):
                    while kept and kept[0][1] < recorded - 4 * _POSE_AGE:
                        kept.popleft()
            for last in waiting:
                yield from self._finish(last, poses, depths)
        finally:
            messages.close()
            self._reader.close()

    def _finish(
        self,
        frame: _Waiting,
        poses: Iterable[tuple[float, float, Any]],
        depths: Iterable[tuple[float, float, Any]],
    ) -> Generator[Frame, None, None]:
        """Decode a frame and find its pose and depth."""
        try:
            image = picture_of(frame.message)
        except (ValueError, cv2.error) as error:
            self.stats.dropped += 1
            self.stats.note("picture cannot be decoded", str(error))
            return
        pose = depth = None
        earlier = [p for p in poses if frame.timestamp - _POSE_AGE <= p[0] <= frame.timestamp]
        near = [d for d in depths if abs(d[0] - frame.timestamp) <= self._half_frame]
        try:
            if earlier:
                pose = pose_of(max(earlier, key=lambda p: p[0])[2])
            if near:
                depth = depth_of(min(near, key=lambda d: abs(d[0] - frame.timestamp))[2])
                if depth.shape != image.shape[:2]:
                    raise ValueError(f"depth is {depth.shape[::-1]}, not the picture's size")
        except ValueError as error:
            self.stats.note("frame without pose or depth", str(error))
            depth = None
        yield Frame(image, frame.timestamp, self.name, frame.number, pose, depth, self._intrinsics)


def _common(one: str, other: str) -> int:
    """How many leading parts two topic names share."""
    count = 0
    for left, right in zip(one.split("/"), other.split("/"), strict=False):
        if left != right:
            break
        count += 1
    return count
