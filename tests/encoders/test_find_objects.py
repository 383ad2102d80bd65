"""From a frame with depth and pose to things with places."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from ray_scene import COLORS as PAINT
from ray_scene import Thing, World, looking_at

from vismem.encoders.base import Labels
from vismem.encoders.color import COLORS
from vismem.encoders.objects import LOOK_DIM, find_objects, look_of
from vismem.sightings import SHAPES, Sightings

NAMES = {"box": "block", "ball": "ball", "can": "can"}
THINGS = (
    Thing("box", "red", (0.0, 0.0, 0.03), (0.06,) * 3),
    Thing("ball", "green", (-0.2, 0.1, 0.035), (0.07,) * 3),
    Thing("can", "yellow", (0.2, 0.1, 0.04), (0.06, 0.06, 0.08)),
    Thing("box", "blue", (-0.18, -0.14, 0.05), (0.1, 0.08, 0.1), 0.5),
)
VIEWS = {
    "front": looking_at((0.05, -0.8, 0.6), (0, 0, 0)),
    "above": looking_at((0.0, -0.02, 1.0), (0, 0, 0)),
    "side": looking_at((-0.75, 0.3, 0.5), (0, 0, 0)),
}
LARGE = {"size": (320, 240), "focal": 300.0}


def sightings(world: World, view: str = "front", **how) -> Sightings:
    found = find_objects(world.render(VIEWS[view], **(LARGE | how)))
    assert found is not None
    found.check(LOOK_DIM, 3, 24)
    return found


def nearest(found: Sightings, thing: Thing) -> tuple[int, float]:
    apart = (found.position - torch.tensor(thing.at)).norm(dim=1)
    return int(apart.argmin()), float(apart.min())


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("noise", [0.0, 0.002])
def test_things_on_a_floor_are_found_with_place_size_colour_and_shape(
    view: str, noise: float
) -> None:
    found = sightings(World(THINGS), view, noise=noise)
    assert len(found) == len(THINGS)
    for thing in THINGS:
        row, apart = nearest(found, thing)
        assert apart < 0.01, (thing, apart)
        assert COLORS[int(found.color[row].argmax())] == thing.color
        assert SHAPES[int(found.shape[row].argmax())] == NAMES[thing.shape]
        if not thing.turn and thing.shape == "box":
            # A box that is turned to the world is larger along its axes.
            assert found.extent[row].tolist() == pytest.approx(thing.size, abs=0.02)
        assert not found.cut[row] and 0.001 < found.sigma[row] < 0.02


def test_what_touches_is_two_things_by_colour_and_one_without() -> None:
    red = Thing("box", "red", (0, 0, 0.03), (0.06,) * 3)
    other = Thing("box", "blue", (0.06, 0, 0.03), (0.06,) * 3)
    found = sightings(World((red, other)))
    assert len(found) == 2 and nearest(found, red)[1] < 0.01 and nearest(found, other)[1] < 0.01
    assert len(sightings(World((red, replace(other, color="red"))))) == 1


def test_a_thing_on_a_thing_is_two() -> None:
    low = Thing("box", "red", (0, 0, 0.03), (0.08, 0.08, 0.06))
    high = Thing("box", "yellow", (0, 0, 0.08), (0.04,) * 3)
    found = sightings(World((low, high)))
    assert len(found) == 2 and nearest(found, high)[1] < 0.02


@pytest.mark.parametrize(("size", "count"), [(0.004, 0), (0.03, 1), (0.3, 1), (0.75, 0)], ids=str)
def test_what_is_too_small_or_too_large_is_no_thing(size: float, count: int) -> None:
    world = World((Thing("box", "red", (0, 0, size / 2), (size,) * 3),))
    eye = looking_at((0.1, -0.4 - 1.5 * size, 0.4 + 1.5 * size), (0, 0, size / 2))
    found = find_objects(world.render(eye, size=(320, 240), focal=300))
    assert len(found) == count


def test_what_the_edge_cuts_says_so() -> None:
    thing = Thing("box", "red", (0.5, 0, 0.03), (0.08,) * 3)
    whole = sightings(World((replace(thing, at=(0, 0, 0.03)),)))
    found = sightings(World((thing,)))
    assert found.cut.tolist() == [True] and whole.cut.tolist() == [False]
    assert found.sigma[0] > 2 * whole.sigma[0]
    assert found.box[0, 2] == 1.0


def test_what_something_nearer_covers_is_less_sure() -> None:
    back = Thing("box", "red", (0, 0.1, 0.05), (0.1,) * 3)
    front = Thing("box", "blue", (0.03, -0.1, 0.06), (0.08, 0.04, 0.12))
    alone, both = sightings(World((back,))), sightings(World((back, front)))
    row, apart = nearest(both, back)
    assert both.sigma[row] > 1.5 * alone.sigma[0] and apart < 2 * both.sigma[row]


def test_the_same_place_from_everywhere() -> None:
    found = [sightings(World(THINGS), view) for view in VIEWS]
    for thing in THINGS:
        places = torch.stack([s.position[nearest(s, thing)[0]] for s in found])
        assert (places - places.mean(0)).norm(dim=1).max() < 0.008


def test_nothing_is_seen_on_a_bare_floor_or_without_depth() -> None:
    assert len(sightings(World())) == 0
    frame = World(THINGS).render(VIEWS["front"], **LARGE)
    empty = find_objects(replace(frame, depth=np.zeros_like(frame.depth)))
    assert len(empty) == 0 and not empty.near.any()
    empty.check(LOOK_DIM, 3, 24)
    for name in ("depth", "intrinsics", "pose"):
        assert find_objects(replace(frame, **{name: None})) is None
    broken = {"pose": np.full((4, 4), np.nan), "intrinsics": np.zeros((3, 3))}
    for name, value in broken.items():
        assert find_objects(replace(frame, **{name: value})) is None


def test_half_of_the_depth_is_missing() -> None:
    frame = World(THINGS).render(VIEWS["front"], noise=0.001, **LARGE)
    patches = np.random.default_rng(0).random((30, 40)) < 0.2
    depth = np.where(np.kron(patches, np.ones((8, 8), bool)), 0, frame.depth)
    found = find_objects(replace(frame, depth=depth.astype(np.float32)))
    for thing in THINGS:
        assert nearest(found, thing)[1] < 0.03


def test_the_coarse_depth_is_the_least_of_each_cell() -> None:
    frame = World(THINGS).render(VIEWS["front"], **LARGE)
    found = sightings(World(THINGS))
    assert found.near.shape == (60, 80)
    cells = frame.depth.reshape(60, 4, 80, 4)
    assert np.allclose(found.near.numpy() / 1000, cells.min((1, 3)), atol=6e-4)
    point = torch.tensor([*THINGS[0].at, 1.0], dtype=torch.float64)
    local = torch.linalg.inv(found.pose) @ point
    seen = found.intrinsics @ local[:3]
    x, y = (seen[:2] / seen[2]).tolist()
    row, _ = nearest(found, THINGS[0])
    x0, y0, x1, y1 = found.box[row].tolist()
    assert x0 < x < x1 and y0 < y < y1


def test_a_large_picture_gives_the_same_places() -> None:
    small = sightings(World(THINGS))
    large = sightings(World(THINGS), size=(960, 720), focal=900.0)
    assert len(large) == len(small)
    for thing in THINGS:
        assert nearest(large, thing)[1] < 0.01


def test_the_same_frame_twice_is_the_same() -> None:
    one, other = (sightings(World(THINGS), noise=0.002).tensors() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    kept = Sightings.of({**one, "more": torch.zeros(1)}).tensors()
    assert all(torch.equal(kept[name], one[name]) for name in one)
    with pytest.raises(ValueError, match="without near"):
        Sightings.of({k: v for k, v in one.items() if k != "near"})


def test_looks_are_alike_in_any_light_and_differ_by_colour() -> None:
    looks = {}
    for name, paint in PAINT.items():
        for light in (1.0, 0.6):
            pixels = np.full((50, 3), np.array(paint) * light, np.uint8)
            looks[name, light] = look_of(pixels)
            assert np.linalg.norm(looks[name, light]) == pytest.approx(1, abs=1e-5)
    for name in PAINT:
        if name not in ("white", "gray"):
            assert looks[name, 1.0] @ looks[name, 0.6] > 0.95
        for other in PAINT:
            # Yellow and orange are neighbours, and so are white and gray.
            if other != name and {name, other} not in ({"yellow", "orange"}, {"white", "gray"}):
                assert looks[name, 1.0] @ looks[other, 1.0] < 0.85, (name, other)


def test_labels_whose_middle_is_on_a_thing_are_its_labels() -> None:
    frame = World(THINGS).render(VIEWS["front"], **LARGE)
    plain = find_objects(frame)
    row, _ = nearest(plain, THINGS[1])
    box = plain.box[row]
    labels = Labels(
        ids=torch.tensor([504, 7, 9]),
        scores=torch.tensor([0.6, 0.9, 0.2]),
        boxes=torch.stack([box, torch.tensor([0.0, 0.0, 0.1, 0.1]), box]),
        colors=torch.zeros(3, 11),
        counts=torch.ones(3, dtype=torch.int64),
    )
    found = find_objects(frame, labels)
    assert found.label[row].tolist() == [504, 9, -1]
    assert found.label_score[row].tolist() == pytest.approx([0.6, 0.2, 0])
    others = torch.arange(len(found)) != row
    assert (found.label[others] == -1).all()


@pytest.mark.parametrize("eye", [(0, -0.7, 0.06), (0.7, 0, 0.1)])
def test_a_face_that_is_all_one_sees_has_a_thing_behind_it(eye: tuple[float, ...]) -> None:
    box = Thing("box", "red", (0.0, 0.0, 0.05), (0.1,) * 3)
    found = find_objects(World((box,)).render(looking_at(eye, box.at), **LARGE))
    assert found is not None and len(found) == 1
    assert found.position[0].tolist() == pytest.approx(box.at, abs=0.01)
