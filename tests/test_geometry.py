"""The pinhole camera, there and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray_scene import camera, looking_at

from vismem.geometry import check_intrinsics, depth_sigma, is_pose, project, transform, unproject

POSE = looking_at((0.3, -0.8, 0.6), (0.1, 0.0, 0.1))


@given(st.floats(0.2, 5), st.floats(50, 900), st.floats(-1, 1), st.integers(0, 1000))
def test_what_is_lifted_is_seen_where_it_was(
    depth: float, focal: float, skew: float, seed: int
) -> None:
    matrix = camera(32, 24, focal)
    matrix[0, 1] = skew
    points = unproject(np.full((24, 32), depth), matrix, POSE)
    pixels, depths = project(points, matrix, POSE)
    v, u = np.mgrid[:24, :32]
    assert np.allclose(pixels, np.stack([u, v], -1), atol=1e-6)
    assert np.allclose(depths, depth)


def test_a_point_of_the_world_is_where_it_should_be() -> None:
    """By hand: a camera 2 m above the origin that looks straight down."""
    pose = np.array([[1.0, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, 2], [0, 0, 0, 1]])
    matrix = camera(21, 11, 10.0)
    depth = np.full((11, 21), 2.0)
    points = unproject(depth, matrix, pose)
    assert points[5, 10] == pytest.approx([0, 0, 0])
    assert points[5, 15] == pytest.approx([1, 0, 0])  # five pixels of a tenth, at two metres
    assert points[0, 10] == pytest.approx([0, 1, 0])  # up in the picture is north


def test_what_is_unknown_stays_so() -> None:
    depth = np.array([[0.0, np.nan, np.inf], [-1.0, 31.0, 1.0]])
    points = unproject(depth, camera(3, 2))
    assert np.isfinite(points).all(-1).tolist() == [[False, False, False], [False, False, True]]
    pixels, _ = project(np.array([[0, 0, -1.0]]), camera())
    assert np.isnan(pixels).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({(0, 0): np.nan}, "finite"),
        ({(0, 0): 0.0}, "focal"),
        ({(1, 1): -5.0}, "focal"),
        ({(0, 2): 400.0}, "principal point"),
        ({(1, 2): -400.0}, "principal point"),
        ({(2, 2): 2.0}, "upper triangular"),
        ({(1, 0): 3.0}, "upper triangular"),
    ],
)
def test_wrong_intrinsics_are_refused(change: dict, message: str) -> None:
    matrix = camera()
    for place, value in change.items():
        matrix[place] = value
    with pytest.raises(ValueError, match=message):
        check_intrinsics(matrix, 160, 120)
    with pytest.raises(ValueError, match=message):
        unproject(np.ones((120, 160)), matrix)
    with pytest.raises(ValueError, match="finite"):
        check_intrinsics(np.eye(4), 160, 120)


@pytest.mark.parametrize(
    "broken",
    [
        lambda p: p * 2,
        lambda p: p * np.array([[1], [1], [-1], [1]]),  # a mirror
        lambda p: np.where(np.eye(4) > 0, np.nan, p),
        lambda p: p[:3],
        lambda p: p + 1e8 * np.eye(4)[:, [1, 2, 0, 3]] * 0 + np.array([[0, 0, 0, 1e8]] * 4),
        lambda p: np.zeros((4, 4)),
    ],
)
def test_what_is_no_pose(broken) -> None:
    assert is_pose(POSE) and is_pose(POSE.astype(np.float32))
    assert not is_pose(broken(POSE))
    for use in (transform, lambda p, q: project(p, camera(), q)):
        with pytest.raises(ValueError, match="rigid"):
            use(np.zeros((1, 3)), broken(POSE))


def test_far_depth_is_less_sure() -> None:
    assert depth_sigma(0.4) == pytest.approx(0.0012)
    assert depth_sigma(3.4) == pytest.approx(0.0012 + 0.0019 * 9)
