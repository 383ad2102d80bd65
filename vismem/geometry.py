"""The pinhole camera: from pixels with depth to points of the world, and back.

Camera axes are OpenCV's: x right, y down, z forward. A pose is camera-to-world, ``(4, 4)``, metres.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = [
    "check_intrinsics",
    "depth_sigma",
    "is_pose",
    "pixel_rays",
    "project",
    "quaternion_of",
    "rigid",
    "transform",
    "unproject",
]

FARTHEST = 30.0  # metres; what a depth camera gives beyond is no measurement
WORLD = 1e7  # metres, more than the earth's radius
CENTRE_MARGIN = 0.5  # of the picture's side that the principal point may lie outside of it


def check_intrinsics(matrix: np.ndarray, width: int, height: int) -> np.ndarray:
    """Take the matrix of a pinhole camera, or say what is wrong with it.

    Args:
        matrix: ``(3, 3)`` in pixels.
        width: Of the picture that it is for.
        height: Likewise.

    Returns:
        The matrix as float64.

    Raises:
        ValueError: If it is no such matrix: not finite, a focal length of 0 or below, another last
            row, or a principal point far outside the picture.

    Example:
        >>> check_intrinsics(np.diag([0.0, 1.0, 1.0]), 640, 480)
        Traceback (most recent call last):
        ...
        ValueError: focal lengths must be above 0 pixels, not 0 and 1
    """
    matrix = np.asarray(matrix, np.float64)
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all():
        raise ValueError(f"intrinsics are a finite (3, 3) matrix, not {matrix.tolist()}")
    fx, fy = matrix[0, 0], matrix[1, 1]
    if not (fx > 0 and fy > 0):
        raise ValueError(f"focal lengths must be above 0 pixels, not {fx:g} and {fy:g}")
    if matrix[1, 0] or not np.allclose(matrix[2], (0, 0, 1)):
        raise ValueError(f"the matrix of a pinhole camera is upper triangular, not {matrix}")
    for centre, side in ((matrix[0, 2], width), (matrix[1, 2], height)):
        if not -CENTRE_MARGIN * side <= centre <= (1 + CENTRE_MARGIN) * side:
            raise ValueError(
                f"the principal point {matrix[0, 2]:g}, {matrix[1, 2]:g} is far outside of a "
                f"picture of {width}x{height}; these are the intrinsics of another camera"
            )
    return matrix


def is_pose(matrix: np.ndarray | None) -> bool:
    """Whether this is a rigid camera-to-world transform, ``(4, 4)``, to float32's precision.

    Example:
        >>> is_pose(np.eye(4)), is_pose(np.zeros((4, 4))), is_pose(None)
        (True, False, False)
    """
    if matrix is None:
        return False
    matrix = np.asarray(matrix, np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        return False
    if np.abs(matrix[:3, 3]).max() > WORLD:
        return False
    turn = matrix[:3, :3]
    rigid = np.allclose(turn @ turn.T, np.eye(3), atol=1e-3) and np.linalg.det(turn) > 0
    return bool(rigid and np.allclose(matrix[3], (0, 0, 0, 1), atol=1e-6))


def rigid(position: Sequence[float], quaternion: Sequence[float]) -> np.ndarray:
    """A rigid transform of a position and a rotation.

    Args:
        position: ``x y z``.
        quaternion: ``x y z w``, of any length above zero.

    Returns:
        ``(4, 4)`` float64.

    Raises:
        ValueError: If the quaternion is zero, or a number is not finite.

    Example:
        >>> rigid([1, 2, 3], [0, 0, 0, 2])[:3, 3].tolist()
        [1.0, 2.0, 3.0]
    """
    turn, matrix = np.asarray(quaternion, np.float64), np.eye(4)
    norm = float(np.linalg.norm(turn))
    matrix[:3, 3] = position
    if not (norm > 0 and np.isfinite(norm) and np.isfinite(matrix).all()):
        raise ValueError("the pose holds no rotation, or numbers that are not finite")
    x, y, z, w = turn / norm
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    matrix[:3, :3] += 2 * (w * cross + cross @ cross)
    return matrix


def quaternion_of(matrix: np.ndarray) -> list[float]:
    """The rotation of a rigid transform as ``x y z w``, of unit length, ``w`` not below zero.

    It is the eigenvector that Bar-Itzhack's matrix is largest for.

    Source: Bar-Itzhack, "New Method for Extracting the Quaternion from a Rotation Matrix", Journal
    of Guidance 23(6), 2000.

    Example:
        >>> [round(part, 6) + 0 for part in quaternion_of(rigid([0, 0, 0], [0, 0, 3, 4]))]
        [0.0, 0.0, 0.6, 0.8]
    """
    (a, b, c), (d, e, f), (g, h, i) = np.asarray(matrix, np.float64)[:3, :3]
    form = np.array(
        [
            [a - e - i, 0, 0, 0],
            [d + b, e - a - i, 0, 0],
            [g + c, h + f, i - a - e, 0],
            [h - f, c - g, d - b, a + e + i],
        ]
    )
    quaternion = np.linalg.eigh(form / 3)[1][:, -1]  # of the lower triangle
    return (quaternion if quaternion[3] >= 0 else -quaternion).tolist()


def pixel_rays(width: int, height: int, intrinsics: np.ndarray) -> np.ndarray:
    """Where the centre of each pixel looks, at a depth of 1: ``(H, W, 3)`` float64 ``x y 1``."""
    u, v = np.meshgrid(np.arange(width), np.arange(height))
    y = (v - intrinsics[1, 2]) / intrinsics[1, 1]
    x = (u - intrinsics[0, 2] - intrinsics[0, 1] * y) / intrinsics[0, 0]
    return np.stack([x, y, np.ones_like(x)], -1)


def unproject(
    depth: np.ndarray, intrinsics: np.ndarray, pose: np.ndarray | None = None
) -> np.ndarray:
    """Lift a depth picture.

    Args:
        depth: ``(H, W)`` metres along the optical axis; 0, NaN and beyond `FARTHEST` is unknown.
        intrinsics: ``(3, 3)`` pixels; checked.
        pose: Camera-to-world; without one the points are in the camera's axes.

    Returns:
        ``(H, W, 3)`` float64, NaN where the depth is unknown.

    Raises:
        ValueError: If the intrinsics are none, or the pose is no rigid transform.

    Example:
        >>> unproject(np.full((1, 3), 2.0), np.array([[2.0, 0, 1], [0, 2, 0], [0, 0, 1]]))[0, 2]
        array([1., 0., 2.])
    """
    height, width = depth.shape
    intrinsics = check_intrinsics(intrinsics, width, height)
    known = np.isfinite(depth) & (depth > 0) & (depth <= FARTHEST)
    metres = np.where(known, depth, np.nan).astype(np.float64)
    points = pixel_rays(width, height, intrinsics) * metres[..., None]
    return points if pose is None else transform(points, pose)


def transform(points: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Bring points ``(..., 3)`` from the camera's axes into the world's.

    Raises:
        ValueError: If the pose is no rigid transform.
    """
    if not is_pose(pose):
        raise ValueError("a pose is a rigid (4, 4) camera-to-world transform")
    pose = np.asarray(pose, np.float64)
    return points @ pose[:3, :3].T + pose[:3, 3]


def project(
    points: np.ndarray, intrinsics: np.ndarray, pose: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Find where points are seen.

    Args:
        points: ``(..., 3)`` in the world's axes, or the camera's if there is no pose.
        intrinsics: ``(3, 3)`` pixels.
        pose: Camera-to-world.

    Returns:
        Pixels ``(..., 2)`` ``u v``, NaN behind the camera, and depths ``(...)`` in metres.

    Example:
        >>> camera = np.array([[2.0, 0, 1], [0, 2, 0], [0, 0, 1]])
        >>> project(np.array([1.0, 0, 2]), camera)
        (array([2., 0.]), array(2.))
    """
    points = np.asarray(points, np.float64)
    if pose is not None:
        if not is_pose(pose):
            raise ValueError("a pose is a rigid (4, 4) camera-to-world transform")
        pose = np.asarray(pose, np.float64)
        points = (points - pose[:3, 3]) @ pose[:3, :3]
    depth = points[..., 2]
    ahead = np.where(depth > 0, depth, np.nan)
    seen = (points / ahead[..., None]) @ np.asarray(intrinsics, np.float64).T
    return seen[..., :2], np.asarray(depth)


def depth_sigma(depth: np.ndarray | float) -> np.ndarray:
    """One standard deviation of a structured-light camera's depth, in metres.

    Args:
        depth: Metres.

    Source: Nguyen, Izadi and Lovell, "Modeling Kinect Sensor Noise for Improved 3D Reconstruction
    and Tracking", 3DIMPVT 2012: 1.2 mm and 1.9 mm for the square of each metre beyond 0.4 m.

    Example:
        >>> round(float(depth_sigma(1.4)), 4)
        0.0031
    """
    depth = np.asarray(depth, np.float64)
    return 0.0012 + 0.0019 * (depth - 0.4) ** 2
