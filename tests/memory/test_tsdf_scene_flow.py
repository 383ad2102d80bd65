"""How parts move between two pictures, told by texture and depth together."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from ray_scene import Thing, World, camera, looking_at

from vismem.geometry import rigid
from vismem.memory.tsdf.convex import Parts
from vismem.memory.tsdf.fuse import View
from vismem.memory.tsdf.motion import MotionDetector
from vismem.memory.tsdf.scene_flow import (
    Glance,
    Glances,
    _of_camera,
    _of_parts,
    part_motion,
    slid_and_stood,
)

SIZE, FOCAL = (320, 240), 280.0
MATRIX = camera(*SIZE, FOCAL)
EYE = looking_at((0.1, -1.8, 1.2), (0, 0, 0.2))
BOX = Thing("box", "red", (-0.3, 0.1, 0.15), (0.4, 0.3, 0.3), 0.1)
OTHER = Thing("box", "blue", (0.35, 0.2, 0.2), (0.25, 0.3, 0.4), -0.3)
NOWHERE = np.zeros((SIZE[1] // 2, SIZE[0] // 2), bool)


def frame_of(*things: Thing, pattern: float = 25.0, at: float = 0.0, noise: float = 0.003):
    world = World(things, pattern=pattern)
    return world.render(EYE, at, size=SIZE, focal=FOCAL, noise=noise, seed=int(100 * at))


def view_of(*things: Thing, told: np.ndarray = EYE, gain: float = 1.0, **other) -> View:
    frame = frame_of(*things, **other)
    draws = np.random.default_rng(round(1e4 * things[0].at[0]) % 1000 + round(100 * gain))
    image = gain * frame.image + draws.normal(0, 2, frame.image.shape)
    return View.of(frame.depth, MATRIX, told, np.clip(image, 0, 255).astype(np.uint8))


def moved_by(*way: float) -> Thing:
    return BOX.moved(*(np.array(BOX.at) + way))


def looked_at(after: View, before: View) -> tuple[Glance, Glance, Parts, int, int]:
    """Both, the parts of the later, and which of them the boxes are."""
    parts = Parts.of(np.ascontiguousarray(after.depth[::2, ::2]), after.camera / 2)
    names = []
    for thing, rest in ((BOX, OTHER), (OTHER, BOX)):
        own = frame_of(thing, rest, noise=0).depth != frame_of(rest, noise=0).depth
        count = np.bincount(parts.number[own[::2, ::2]])
        names.append(int(count[1:].argmax()) + 1)
    assert names[0] != names[1]
    return Glance.of(0.5, after), Glance.of(0.1, before), parts, *names


def motion(after: View, before: View):
    now, then, parts, one, other = looked_at(after, before)
    way, covariance, number = part_motion(now, then, parts.camera, parts.number, NOWHERE)
    assert (number[[one, other]] > 100).all()
    return way @ EYE[:3, :3].T, covariance, one, other


def decided(after: View, before: View, **other_settings) -> tuple[list[bool], list[bool]]:
    """Whether the box and the other slid, and whether they stood."""
    now, then, parts, one, other = looked_at(after, before)
    given = {"least": 0.02, "deviations": 5.0} | other_settings
    slid, stood = slid_and_stood(now, then, parts, NOWHERE, **given)
    assert not (slid & stood).any() and not slid[0] and not stood[0]
    return slid[[one, other]].tolist(), stood[[one, other]].tolist()


@pytest.mark.parametrize("way", [(0.04, 0.004, 0), (-0.03, -0.003, 0), (0, -0.04, 0), (0, 0, 0.03)])
def test_a_box_is_followed_along_its_faces_and_across_them(way) -> None:
    found, covariance, one, other = motion(view_of(moved_by(*way), OTHER), view_of(BOX, OTHER))
    assert np.abs(found[one] - way).max() < 0.3 * np.linalg.norm(way)
    assert np.linalg.norm(found[other]) < 0.005
    assert np.linalg.eigvalsh(covariance[[one, other]]).max() < 0.01**2
    assert decided(view_of(moved_by(*way), OTHER), view_of(BOX, OTHER)) == (
        [True, False],
        [False, True],
    )


def test_how_far_and_how_surely_are_asked_for() -> None:
    both = view_of(moved_by(0.04, 0.004, 0), OTHER), view_of(BOX, OTHER)
    assert decided(*both, least=0.06)[0] == [False, False]
    assert decided(*both, deviations=1000.0)[0] == [False, False]


def test_the_error_of_a_pose_moves_nothing() -> None:
    wrong = EYE @ rigid([0.012, -0.008, 0.01], [0.004, -0.005, 0.003, 1])  # 1.8 cm and 0.8 degrees
    after = view_of(moved_by(0.04, 0.004, 0), OTHER, told=wrong)
    assert decided(after, view_of(BOX, OTHER)) == ([True, False], [False, True])
    same = view_of(BOX, OTHER, told=wrong)
    assert decided(same, view_of(BOX, OTHER)) == ([False, False], [True, True])


def test_turn_shift_and_gain_are_what_they_are_by_projection() -> None:
    """The linear rule against points that are really turned and shifted, and projected again."""
    draws = np.random.default_rng(0)
    height, width, focal = 40, 60, 50.0
    pinhole = np.array([focal, focal, 29.5, 19.5])
    depth = draws.uniform(1, 3, (height, width)).astype(np.float32)
    value = draws.uniform(50, 200, (height, width, 4)).astype(np.float32)
    value[..., 3] = depth
    across, down = draws.normal(0, [3, 3, 3, 0.05], (2, height, width, 4)).astype(np.float32)
    v, u = np.mgrid[:height, :width]
    points = np.stack([(u - 29.5) / focal * depth, (v - 19.5) / focal * depth, depth], -1)
    turn, shift, gain = np.array([2e-4, -1e-4, 3e-4]), np.array([5e-4, -2e-4, 4e-4]), 1e-3
    for part, rotated in ((False, turn), (True, np.zeros(3))):
        after = points + np.cross(rotated, points) + shift
        du, dv = (focal * (after / after[..., 2:] - points / points[..., 2:]))[..., :2].T
        change = across * du.T[..., None] + down * dv.T[..., None]
        change[..., :3] += gain * value[..., :3]
        change[..., 3] -= (after - points)[..., 2]
        weight = np.ones_like(change)
        weight[..., 3] = 1e6
        given = value, across, down, pinhole, change, weight
        if part:
            both = np.ones((height, width), np.int32)
            matrix, right, squares = _of_parts(*given, both, 2, np.zeros(7))
            found = np.linalg.solve(matrix[1], right[1])
            assert squares[1] > 0 and not matrix[0].any()
        else:
            found = np.linalg.solve(
                *_of_camera(*given, np.zeros((height, width), bool), np.zeros(7))
            )
            assert np.abs(found[:3] - turn).max() < 2e-6
        assert np.abs(found[-4:-1] - shift).max() < 2e-6 and abs(found[-1] - gain) < 1e-5


def test_brighter_light_moves_nothing() -> None:
    after = view_of(BOX, OTHER, gain=1.08)
    assert decided(after, view_of(BOX, OTHER)) == ([False, False], [True, True])


def test_of_what_has_no_texture_nothing_is_claimed_along_its_faces() -> None:
    """A ball that turns or a plain front that slides looks the same: it neither slid nor stood."""
    plain = [
        view_of(Thing("box", "gray", (x, 3.0, 1.0), (9, 0.1, 6.0)), pattern=0.0) for x in (0, 0.04)
    ]
    parts = Parts.of(np.ascontiguousarray(plain[1].depth[::2, ::2]), plain[1].camera / 2)
    wall = parts.number[10, 80]
    slid, stood = slid_and_stood(
        Glance.of(0.5, plain[1]),
        Glance.of(0.1, plain[0]),
        parts,
        NOWHERE,
        least=0.02,
        deviations=5.0,
    )
    assert wall and not slid[wall] and not stood[wall]


def test_what_moves_is_left_out_of_the_cameras_error() -> None:
    """A thing that fills most of the picture would pass for the room."""
    near = replace(BOX, at=(0.05, -0.6, 0.5), size=(1.1, 0.4, 1.0))
    after, before = (view_of(near.moved(0.05 + x, -0.6, 0.5), OTHER) for x in (0.04, 0.0))
    parts = Parts.of(np.ascontiguousarray(after.depth[::2, ::2]), after.camera / 2)
    own = frame_of(near).depth != frame_of().depth
    big = np.bincount(parts.number[own[::2, ::2]])[1:].argmax() + 1
    now, then = Glance.of(0.5, after), Glance.of(0.1, before)
    assert (parts.number == big).mean() > 0.4
    way, _, _ = part_motion(now, then, parts.camera, parts.number, parts.number == big)
    assert abs((way @ EYE[:3, :3].T)[big][0] - 0.04) < 0.012


def test_one_thing_that_moves_does_not_pass_for_the_camera() -> None:
    """Before any mask knows of it, and though it fills a good part of the picture."""
    near = replace(BOX, at=(-0.2, -0.4, 0.3), size=(0.6, 0.4, 0.6))
    after, before = (view_of(near.moved(-0.2 + x, -0.4, 0.3), OTHER) for x in (0.05, 0.0))
    parts = Parts.of(np.ascontiguousarray(after.depth[::2, ::2]), after.camera / 2)
    own = frame_of(near, OTHER).depth != frame_of(near).depth
    other = np.bincount(parts.number[own[::2, ::2]])[1:].argmax() + 1
    big = (frame_of(near).depth != frame_of().depth).mean()
    now, then = Glance.of(0.5, after), Glance.of(0.1, before)
    way, _, _ = part_motion(now, then, parts.camera, parts.number, NOWHERE)
    assert 0.15 < big < 0.4 and np.linalg.norm(way[other]) < 0.006


def test_of_what_no_shift_explains_little_is_believed() -> None:
    """A thing that stands and shows another picture: some shift fits best, but badly."""
    before, after = view_of(BOX, OTHER), view_of(BOX, OTHER)
    own = frame_of(BOX, OTHER, noise=0).depth != frame_of(OTHER, noise=0).depth
    sure = []
    for seed in range(8):
        small = np.random.default_rng(seed).normal(110, 40, (12, 16, 3)).astype(np.float32)
        pattern = np.clip(cv2.resize(small, SIZE, interpolation=cv2.INTER_CUBIC), 0, 255)
        shown = np.where(own[..., None], pattern, after.color).astype(np.uint8)
        now, then, parts, one, _ = looked_at(replace(after, color=shown), before)
        way, covariance, _ = part_motion(now, then, parts.camera, parts.number, NOWHERE)
        sure.append(np.sqrt(way[one] @ np.linalg.inv(covariance[one]) @ way[one]))
    assert np.median(sure) < 6 and max(sure) < 20  # by noise alone it would be a hundred


def test_what_was_not_there_or_hardly_seen_is_compared_with_nothing() -> None:
    after, before = view_of(BOX, OTHER), view_of(OTHER)
    now, then, parts, one, other = looked_at(after, before)
    _, _, number = part_motion(now, then, parts.camera, parts.number, NOWHERE)
    # The floor that was there is nearer than 7 cm to the box where they meet, and only there.
    assert number[one] < 0.2 * parts.area[one] and number[other] > 0.5 * parts.area[other]
    moved, still = view_of(moved_by(0.04, 0.004, 0), OTHER), view_of(BOX, OTHER)
    now, then, parts, one, other = looked_at(moved, still)
    y, x = (int(np.median(where)) for where in np.nonzero(parts.number == one))
    few = np.zeros_like(then.depth)
    few[y - 3 : y + 3, x - 3 : x + 3] = then.depth[y - 3 : y + 3, x - 3 : x + 3]
    hidden = replace(
        then, depth=np.where(parts.whole(np.arange(len(parts.area)) == one), few, then.depth)
    )
    way, _, number = part_motion(now, hidden, parts.camera, parts.number, NOWHERE)
    slid, stood = slid_and_stood(now, hidden, parts, NOWHERE, least=0.001, deviations=0.01)
    assert 0 < number[one] <= 25 and np.linalg.norm(way[one]) > 0.001
    assert not slid[one] and not stood[one]


def test_glances_are_few_and_as_old_as_they_should_be() -> None:
    kept, view = Glances(), view_of(BOX)
    ages = []
    for n in range(60):
        now = Glance.of(n / 30, view)
        then = kept.before(now)
        ages.append(None if then is None else now.time - then.time)
        kept.add(now)
        assert len(kept.state_dict()) <= 4 * 4
    assert set(ages[:12]) == {None} and min(ages[12:]) > 0.399 and max(ages[12:]) < 0.61
    assert kept.before(Glance.of(3.5, view)) is None  # seconds later all looks different
    other = View.of(view.depth[:120], MATRIX, EYE, view.color[:120])
    assert kept.before(Glance.of(2.4, other)) is None
    assert kept.before(Glance.of(2.4, view)) is not None


def play(scenes, colored: bool, start: int = 0, detector: MotionDetector | None = None):
    """Masks of a list of things at 10 Hz."""
    detector = MotionDetector("32MB") if detector is None else detector
    masks = []
    for n, things in enumerate(scenes, start):
        frame = frame_of(*things, at=n / 10)
        image = frame.image if colored else None
        masks.append(detector.step(frame.depth, MATRIX, EYE, n / 10, image)[0])
    return masks, detector


def along(n: int) -> tuple[Thing, Thing]:
    """A long box that comes along its own front, 12 cm a second."""
    return Thing("box", "red", (-1.2 + 0.012 * n, -0.1, 0.15), (2.0, 0.3, 0.3)), OTHER


def pixels_of(things) -> np.ndarray:
    own = frame_of(*things, noise=0).depth
    return np.abs(own - frame_of(OTHER, noise=0).depth) > 1e-3


def test_what_slides_along_its_own_face_is_found_by_its_texture() -> None:
    shares = {}
    for colored in (True, False):
        masks, _ = play([along(0)] * 10 + [along(n) for n in range(14)], colored)
        shares[colored] = [
            mask[pixels_of(along(max(0, n - 10)))].mean() for n, mask in enumerate(masks)
        ]
        assert max(shares[colored][:10]) == 0
    assert min(shares[True][15:]) > 0.8 and max(shares[False]) < 0.35


def test_what_was_put_elsewhere_and_stands_moves_no_longer() -> None:
    """For as long as it takes to see that it stands; by depth alone it is on its way."""
    there = moved_by(0, -0.05, 0)
    seen = {}
    for colored in (True, False):
        _, detector = play([(BOX, OTHER)] * 8, colored)
        masks, _ = play([(there, OTHER)] * 12, colored, start=30, detector=detector)
        own = pixels_of((there, OTHER))
        seen[colored] = [mask[own].mean() > 0.5 for mask in masks]
    assert seen[True][0] and not any(seen[True][6:]) and sum(seen[False]) > sum(seen[True])


def test_what_is_too_large_for_a_thing_stands_as_well() -> None:
    """A screen of 1.5 square metres that was pushed back by 8 cm while nobody looked."""
    screen = Thing("box", "green", (0.0, 1.0, 0.5), (1.5, 0.1, 1.0))
    pushed = screen.moved(0.0, 1.08, 0.5)
    own = frame_of(pushed, noise=0).depth != frame_of(noise=0).depth
    seen = {}
    for colored in (True, False):
        _, detector = play([(screen,)] * 8, colored)
        masks, _ = play([(pushed,)] * 12, colored, start=30, detector=detector)
        seen[colored] = [mask[own].mean() > 0.3 for mask in masks]
    assert seen[True][0] and not any(seen[True][6:]) and all(seen[False][:7])


def test_a_frame_whose_pose_is_lost_is_compared_with_nothing() -> None:
    _, detector = play([(BOX, OTHER)] * 6, True)
    held = {name: value.clone() for name, value in detector.state_dict().items()}
    frame = frame_of(BOX, OTHER, at=0.6)
    detector.step(frame.depth, MATRIX, EYE @ rigid([1.0, 1, 0], [0.5, 0, 0, 1]), 0.6, frame.image)
    assert detector.look.status == "lost"
    after = detector.state_dict()
    names = {name for name in held if name.startswith("glances.")}
    assert names and names == {name for name in after if name.startswith("glances.")}
    assert all((held[name] == after[name]).all() for name in names)


@pytest.mark.parametrize("size", [(4, 3), (7, 5), (64, 2), (161, 121)])
def test_pictures_of_any_size_with_nothing_in_them_now_and_then(size: tuple[int, int]) -> None:
    width, height = size
    draws, detector = np.random.default_rng(0), MotionDetector("8MB")
    matrix = np.array([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1.0]])
    for n in range(14):
        depth = draws.normal(2, 0.005, (height, width)).astype(np.float32)
        if n in (7, 8):
            depth[:] = (0.0, np.nan)[n - 7]
        image = draws.integers(0, 255, (height, width, 3), np.uint8) if n % 5 else None
        mask, soft = detector.step(depth, matrix, np.eye(4), n / 10, image)
        assert mask.shape == soft.shape == (height, width)
        assert not mask.any() and np.isfinite(soft).all() and detector.look.status == "fused"


def test_a_state_without_a_part_of_a_glance_is_refused_and_changes_nothing() -> None:
    _, detector = play([(BOX, OTHER)] * 6, True)
    state = detector.state_dict()
    for name in ("glances.0.color", "glances.1.pose"):
        _, other = play([(BOX,)] * 3, True)
        held = {key: value.clone() for key, value in other.state_dict().items()}
        with pytest.raises(ValueError, match=r"glances"):
            other.load_state_dict({key: value for key, value in state.items() if key != name})
        after = other.state_dict()
        assert held.keys() == after.keys()
        assert all((held[key] == after[key]).all() for key in held)
