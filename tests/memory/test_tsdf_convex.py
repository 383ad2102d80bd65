"""Things of a depth picture before anything is known of them, and those that shifted a little."""

from __future__ import annotations

import numpy as np
import pytest
from ray_scene import Thing, World, camera, looking_at

from vismem.memory.tsdf.convex import Parts, shifted
from vismem.memory.tsdf.motion import MotionDetector

SIZE = (160, 120)
MATRIX = camera(*SIZE)
CAMERA = np.array([MATRIX[0, 0], MATRIX[1, 1], MATRIX[0, 2], MATRIX[1, 2]])
EYE = looking_at((0.3, -1.8, 1.2), (0, 0, 0.2))
ONE = Thing("box", "red", (-0.3, 0.1, 0.15), (0.3, 0.3, 0.3), 0.4)
OTHER = Thing("box", "blue", (0.35, 0.0, 0.2), (0.2, 0.3, 0.4), -0.3)


def depth_of(*things: Thing, noise: float = 0.003, seed: int = 0) -> np.ndarray:
    return World(things).render(EYE, size=SIZE, noise=noise, seed=seed).depth


def pixels_of(thing: Thing, *rest: Thing) -> np.ndarray:
    with_, without = depth_of(thing, *rest, noise=0), depth_of(*rest, noise=0)
    return np.abs(with_ - without) > 1e-3


@pytest.mark.parametrize("noise", [0.0, 0.003, 0.006])
def test_things_on_a_floor_are_parts_of_their_own(noise: float) -> None:
    split = Parts.of(depth_of(ONE, OTHER, noise=noise), CAMERA)
    parts, normal = split.number, split.normal
    numbers = []
    for thing, rest in ((ONE, OTHER), (OTHER, ONE)):
        own = pixels_of(thing, rest)
        found = np.bincount(parts[own])
        found[0] = 0
        numbers.append(int(found.argmax()))
        # All sides of it that are seen, but for the rim, and nothing else.
        assert found[numbers[-1]] > 0.5 * own.sum()
        assert found[numbers[-1]] > 0.97 * (parts == numbers[-1]).sum()
    assert len(set(numbers)) == 2 and parts[100, 80] not in (0, *numbers)
    up = EYE[:3, :3].T @ [0, 0, 1]
    floor = normal[90:110, 70:90].reshape(-1, 3) @ up
    assert np.median(floor) > 0.98


def test_a_thing_that_the_picture_cuts_is_not_joined_to_what_is_behind() -> None:
    cut = Thing("box", "red", (0.98, 0.0, 0.2), (0.4, 0.4, 0.4), 0.1)
    wall = Thing("box", "gray", (0.0, 1.2, 1.0), (6.0, 0.1, 2.0))
    own = pixels_of(cut, wall)
    assert own[:, -1].any() and own.sum() > 300
    parts = Parts.of(depth_of(cut, wall), CAMERA).number
    found = np.bincount(parts[own])
    found[0] = 0
    assert found.max() > 0.95 * (parts == found.argmax()).sum() > 100


@pytest.mark.parametrize("depth", [np.zeros((60, 80)), np.full((60, 80), 2.0), np.eye(60, 80)])
def test_pictures_without_things_have_none(depth: np.ndarray) -> None:
    split = Parts.of(depth.astype(np.float32), CAMERA / 2)
    parts = split.number
    assert parts.shape == depth.shape and np.isfinite(split.normal).all()
    assert not parts[depth == 0].any() and parts.max() <= 1
    assert len(split.area) == 1 + parts.max() and not split.whole(np.zeros(len(split.area))).any()


def found_by(off: np.ndarray, **other) -> np.ndarray:
    given = {"rested": np.zeros(off.shape, bool), "shift": 0.015, "largest": 1.0, "resting": 0.2}
    given |= other
    rested, largest = given.pop("rested"), given.pop("largest")
    parts = Parts.of(depth_of(ONE, OTHER), CAMERA)
    return parts.whole(shifted(parts, EYE, off, rested, **given) & parts.things(largest))


def front_of(thing: Thing, *rest: Thing) -> np.ndarray:
    """Pixels of the face that looks most towards the camera."""
    own = pixels_of(thing, *rest)
    world = Parts.of(depth_of(thing, *rest, noise=0), CAMERA).normal @ EYE[:3, :3].T
    return own & (world[..., 1] < -0.8)


@pytest.mark.parametrize("way", [-0.02, 0.02])
def test_one_face_that_shifted_tells_of_the_whole_thing(way: float) -> None:
    off = np.random.default_rng(0).normal(0, 0.004, (SIZE[1], SIZE[0]))
    assert not found_by(off).any()
    off[front_of(ONE, OTHER)] += way
    found, own = found_by(off), pixels_of(ONE, OTHER)
    assert found[own].mean() > 0.9 and found[~own].mean() < 0.02
    assert not found_by(off, shift=0.03).any() and not found_by(off, largest=0.02).any()
    lain = np.zeros(off.shape, bool)
    lain[own] = np.arange(own.sum()) % 2
    assert not found_by(off, rested=lain).any()
    off[front_of(ONE, OTHER)] = np.inf  # the map has nothing there
    assert not found_by(off).any()


def test_a_face_that_is_uneven_has_not_shifted() -> None:
    """Half before and half behind where the map has it: the map is bad there."""
    off = np.zeros((SIZE[1], SIZE[0]))
    face = front_of(ONE, OTHER)
    off[face] = np.where(np.arange(face.sum()) % 3, 0.05, -0.04)
    assert off[face].mean() > 0.015 and not found_by(off).any()


def test_what_comes_slowly_is_found() -> None:
    """A box of 30 cm at 12 cm a second, of which a camera that stands still sees the front."""
    detector, shares = MotionDetector("32MB"), []
    for n in range(60):
        moved = ONE.moved(-0.1, 0.9 - 0.012 * max(0, n - 25), 0.15)
        frame = World((moved, OTHER)).render(EYE, n / 10, size=SIZE, noise=0.003, seed=n)
        mask, _ = detector.step(frame.depth, MATRIX, EYE, n / 10)
        own = pixels_of(moved, OTHER)
        shares.append(mask[own].mean())
        assert mask[~own].mean() < 0.05, n
    assert max(shares[:25]) == 0 and np.mean(shares[40:]) > 0.8
    assert np.mean(shares[27:30]) > 0.8  # before it came a voxel's side
