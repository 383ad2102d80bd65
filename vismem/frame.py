"""`Frame`: the one thing that streams hand to everything else."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from vismem.geometry import check_intrinsics

__all__ = ["Frame", "as_rgb"]


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture of a stream, with what is known about when and where it was taken.

    Args:
        image: Picture, ``(H, W, 3)`` uint8 RGB.
        timestamp: When it was taken, in seconds of the stream's own clock.
        stream: Name of the stream, so that several cameras can share one pipeline.
        index: Running number of the frame in its source; skipped frames are counted too.
        pose: Camera-to-world transform, ``(4, 4)`` float64 in metres, or ``None``.
        depth: Depth along the optical axis, ``(H, W)`` float32 in metres, or ``None``.
        intrinsics: Pinhole matrix, ``(3, 3)`` float64 in pixels, or ``None``.

    Example:
        >>> frame = Frame(np.zeros((4, 6, 3), np.uint8), timestamp=1.5)
        >>> frame.width, frame.height
        (6, 4)
    """

    image: np.ndarray
    timestamp: float
    stream: str = "camera"
    index: int = 0
    pose: np.ndarray | None = None
    depth: np.ndarray | None = None
    intrinsics: np.ndarray | None = None

    @property
    def height(self) -> int:
        """Rows of the picture, in pixels."""
        return int(self.image.shape[0])

    @property
    def width(self) -> int:
        """Columns of the picture, in pixels."""
        return int(self.image.shape[1])

    def owned(self) -> Frame:
        """Check the frame, and copy what its source may change while the frame waits.

        Depth that is not of the picture's size, and intrinsics that are no camera's, are left out.

        Raises:
            ValueError: If it holds no picture or no time, or its pose is not ``(4, 4)``.
        """
        try:
            timestamp = float(self.timestamp)
        except (TypeError, ValueError):
            timestamp = math.nan
        if not math.isfinite(timestamp):
            raise ValueError(f"a frame's timestamp must be finite seconds, not {self.timestamp!r}")
        image = as_rgb(self.image)
        if np.may_share_memory(image, self.image):
            image = image.copy()
        pose = None if self.pose is None else np.array(self.pose, np.float64)
        if pose is not None and pose.shape != (4, 4):
            raise ValueError(f"a pose is (4, 4) camera-to-world, not {pose.shape}")
        depth = None if self.depth is None else np.array(self.depth)
        if depth is not None:
            fits = depth.shape == image.shape[:2] and depth.dtype.kind == "f"
            depth = depth.astype(np.float32) if fits else None  # metres
        intrinsics = self.intrinsics
        if intrinsics is not None:
            try:
                intrinsics = check_intrinsics(intrinsics, image.shape[1], image.shape[0]).copy()
            except (TypeError, ValueError):
                intrinsics = None
        return Frame(image, timestamp, self.stream, self.index, pose, depth, intrinsics)


def as_rgb(image: np.ndarray) -> np.ndarray:
    """Turn any ordinary picture array into ``(H, W, 3)`` uint8 RGB.

    Gray ``(H, W)`` or ``(H, W, 1)`` is repeated, the alpha of ``(H, W, 4)`` is dropped, 16-bit
    integers keep their upper byte, floats are taken as ``[0, 1]``. Colour order is never changed:
    the caller says what it holds by handing over RGB.

    Args:
        image: Picture, ``(H, W)``, ``(H, W, 1)``, ``(H, W, 3)`` or ``(H, W, 4)``; bool, uint8,
            uint16 or floating point.

    Returns:
        The picture as ``(H, W, 3)`` uint8, C-contiguous.

    Raises:
        ValueError: If the shape or dtype is none of these, the picture is empty, or a float
            picture holds NaN or infinity.

    Example:
        >>> as_rgb(np.full((2, 2), 65535, np.uint16))[0, 0].tolist()
        [255, 255, 255]
    """
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4) or image.size == 0:
        raise ValueError(
            f"a picture must be (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) and not empty, "
            f"not {tuple(image.shape)}"
        )
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    elif image.dtype == np.bool_:
        image = image.astype(np.uint8) * 255
    elif np.issubdtype(image.dtype, np.floating):
        if not np.isfinite(image).all():
            raise ValueError("the picture holds NaN or infinity; mask or drop such pixels first")
        image = (np.clip(image, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
    elif image.dtype != np.uint8:
        raise ValueError(f"a picture must be bool, uint8, uint16 or float, not {image.dtype}")
    if image.shape[2] == 1:
        image = np.repeat(image, 3, axis=2)
    return np.ascontiguousarray(image[:, :, :3])
