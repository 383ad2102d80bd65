"""ROS messages as arrays: pictures, depth, poses, transforms and intrinsics; needs no ROS.

The messages may be those of rclpy, of rosbags or anything with the same fields, of ROS 1 or 2.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from vismem.frame import as_rgb
from vismem.geometry import rigid
from vismem.streams.folder import read_picture

__all__ = ["depth_of", "intrinsics_of", "picture_of", "pose_of", "seconds_of", "transform_of"]

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
    return _rigid(pose.position, pose.orientation)


def transform_of(message: Any) -> np.ndarray:
    """Read a ``geometry_msgs/TransformStamped``.

    Returns:
        Transform from the child frame to the message's frame, ``(4, 4)`` float64, metres.

    Raises:
        ValueError: As `pose_of`.
    """
    return _rigid(message.transform.translation, message.transform.rotation)


def _rigid(position: Any, rotation: Any) -> np.ndarray:
    turn = rotation.x, rotation.y, rotation.z, rotation.w
    return rigid((position.x, position.y, position.z), turn)


def intrinsics_of(message: Any) -> np.ndarray | None:
    """Read the matrix of a ``sensor_msgs/CameraInfo``, ``(3, 3)`` pixels; None if not calibrated.

    Raises:
        ValueError: If it is no matrix of nine numbers.
    """
    matrix = message.k if hasattr(message, "k") else message.K  # ROS 2 or ROS 1.
    intrinsics = np.array(matrix, np.float64).reshape(3, 3)
    return intrinsics if intrinsics[0, 0] > 0 else None  # Zeros: not calibrated.


def seconds_of(stamp: Any) -> float:
    """Read a ``builtin_interfaces/Time`` as seconds."""
    return float(stamp.sec + stamp.nanosec / 1e9)
