"""Voxel blocks, fusion, registration, what moves and the surface, on ray-cast scenes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ray_scene import Thing, World, camera, looking_at

from vismem.geometry import rigid, unproject
from vismem.memory.tsdf.blocks import SIDE, BlockPool, pack, unpack
from vismem.memory.tsdf.fuse import FuseConfig, View, fuse, in_view
from vismem.memory.tsdf.motion import MotionDetector
from vismem.memory.tsdf.motion_config import MotionConfig
from vismem.memory.tsdf.surface import AIR, SOLID, UNSEEN, extract, occupancy

EYE = looking_at((0, -1.6, 1.3), (0, 0, 0.2))
TABLE = (
    Thing("box", "red", (-0.45, 0.3, 0.2), (0.3, 0.3, 0.4)),
    Thing("box", "blue", (0.5, 0.4, 0.3), (0.2, 0.4, 0.6), 0.3),
    Thing("box", "green", (0.0, 1.2, 0.6), (2.4, 0.2, 1.2)),
)
BALL = Thing("ball", "yellow", (0, 0, 0.35), (0.3, 0.3, 0.3))
MATRIX = camera()


def shot(things, pose=EYE, at=0.0, noise=0.003):
    return World(things).render(pose, at, noise=noise, seed=int(at * 1000))


def played(detector, scenes, start=0, pose=EYE, told=None):
    """Step through lists of things at 10 Hz; gives the masks."""
    masks = []
    for n, things in enumerate(scenes, start):
        frame = shot(things, pose, n / 10)
        given = pose if told is None else told(n)
        mask, soft = detector.step(frame.depth, MATRIX, given, n / 10, frame.image)
        assert mask.shape == soft.shape == frame.depth.shape
        assert ((soft > 0.5) == mask).all() and soft.min() >= 0 and soft.max() <= 1
        masks.append(mask)
    return masks


def rolling(count, speed=0.06, first=-0.5):
    return [(*TABLE, BALL.moved(first + speed * n, -0.25, 0.35)) for n in range(count)]


def ball_pixels(things):
    with_, without = shot(things, noise=0).depth, shot(TABLE, noise=0).depth
    return np.abs(with_ - without) > 1e-3


# ---------------------------------------------------------------- blocks


@settings(max_examples=50)
@given(st.lists(st.tuples(*[st.integers(-(2**20), 2**20 - 1)] * 3), max_size=20))
def test_keys_tell_blocks_apart(blocks):
    keys = np.array([pack(*block) for block in blocks], np.int64)
    assert unpack(keys).tolist() == [list(block) for block in blocks]
    assert (keys >= 0).all()


@settings(max_examples=25)
@given(st.integers(40, 300), st.lists(st.sets(st.integers(0, 200), max_size=60), max_size=6))
def test_a_pool_holds_its_budget_and_gives_up_the_oldest(size, looks):
    pool = BlockPool(size * 1000)
    shown = {}
    for time, wanted in enumerate(looks):
        keys = np.array([pack(n, -n, 3) for n in sorted(wanted)], np.int64)
        before = set(pool.key[: len(pool)].tolist())
        rows, refused, given_up = pool.take(keys, float(time))
        now = set(pool.key[: len(pool)].tolist())
        assert pool.nbytes <= size * 1000 and len(now) == len(pool) <= pool.most
        assert refused == max(0, len(keys) - pool.most)
        assert pool.key[rows].tolist() == [key for key in keys.tolist() if key in before & now] + [
            key for key in keys.tolist() if key in now - before
        ]
        gone = before - now
        assert len(gone) == given_up and not gone & set(keys.tolist())
        kept = [shown[key] for key in before & now if key not in keys.tolist()]
        assert not gone or max(shown[key] for key in gone) <= min(kept, default=np.inf)
        shown |= dict.fromkeys(keys.tolist(), time)


def test_given_up_blocks_leave_nothing_behind():
    pool = BlockPool("100kB")
    rows, _, _ = pool.take(np.array([pack(n, 0, 0) for n in range(pool.most)]), 0.0)
    for column in pool.voxels[2:]:
        column[rows] = 7
    rows, _, given_up = pool.take(np.array([pack(n, 1, 0) for n in range(pool.most)]), 1.0)
    assert given_up == pool.most and len(rows) == pool.most
    assert not any(column[rows].any() for column in pool.voxels[2:])


def test_a_budget_without_room_for_one_block_is_refused():
    with pytest.raises(ValueError, match="not one block"):
        BlockPool("1kB")


def test_blocks_in_view_hold_all_that_is_seen():
    frame, config = shot(TABLE), FuseConfig()
    keys = in_view(View.of(frame.depth, MATRIX, EYE), config)
    assert len(set(keys.tolist())) == len(keys)
    points = unproject(frame.depth, MATRIX, EYE)[frame.depth > 0]
    for share in (0.3, 0.7, 1.0):  # along each ray
        places = np.floor((EYE[:3, 3] + share * (points - EYE[:3, 3])) / (8 * config.voxel))
        wanted = {pack(*place) for place in np.unique(places.astype(int), axis=0).tolist()}
        assert wanted <= set(keys.tolist())
    assert len(in_view(View.of(np.zeros((120, 160)), MATRIX, EYE), config)) == 0


def test_a_ray_that_grazes_a_thing_carves_nothing_beside_or_behind_it():
    """A pixel at a rim may see past it: it clears only what is before all of its neighbours."""
    depth = np.full((120, 160), 2.0, np.float32)
    depth[:, 80] = 1.0  # a pole of one pixel
    depth[60, :] = 1.0  # and a bar across
    depth[:, 40] = 0.0  # what is not known is no thing
    config, pool = FuseConfig(voxel=0.01, truncation=0.03), BlockPool("64MB")
    view = View.of(depth, MATRIX, np.eye(4))
    rows, refused, _ = pool.take(in_view(view, config), 0.0)
    assert refused == 0
    corners = unpack(pool.key[rows]) * SIDE
    fuse(pool.voxels, rows, corners, view, np.zeros(depth.shape, np.uint8), 1, config)
    place = np.arange(SIDE**3)
    inside = np.stack([place // SIDE**2, place // SIDE % SIDE, place % SIDE], -1)
    points = (corners[:, None] + inside + 0.5) * config.voxel
    free = pool.voxels.free[rows] > 0
    behind = (points[..., 2] > 1.05) & (points[..., 2] < 1.8)
    before = (points[..., 2] > 0.5) & (points[..., 2] < 0.95)
    pixel = np.floor(points[..., :2] / points[..., 2:] * MATRIX[0, 0] + MATRIX[:2, 2] + 0.5)
    column, row = pixel[..., 0], pixel[..., 1]
    shown = (column >= 0) & (column < 160) & (row >= 0) & (row < 120)
    near = (np.abs(column - 80) <= 1) | (np.abs(row - 60) <= 1)
    hole = column == 40
    assert (shown & near & behind).sum() > 1000
    assert not free[shown & near & behind].any()
    assert free[shown & ~near & ~hole & behind].all()
    assert free[shown & ~hole & before].all() and not free[shown & hole].any()


# ---------------------------------------------------------------- surface


@pytest.fixture(scope="module")
def table():
    detector = MotionDetector("32MB")
    poses = [looking_at((1.2 * np.sin(a), -1.6 * np.cos(a), 1.3), (0, 0, 0.2)) for a in
             np.linspace(-0.5, 0.5, 12)]  # fmt: skip
    for n, pose in enumerate(poses):
        frame = shot(TABLE, pose, n / 10)
        detector.step(frame.depth, MATRIX, pose, n / 10, frame.image)
    return detector


def test_a_surface_lies_where_things_are(table):
    surface = extract(table.pool, table.config.fuse)
    floor = (np.abs(surface.points[:, :2]) < 0.15).all(1) & (surface.points[:, 2] < 0.1)
    assert floor.sum() > 30 and np.abs(surface.points[floor, 2]).max() < 0.01
    assert np.median(surface.normals[floor, 2]) > 0.98
    lid = (np.abs(surface.points - (-0.45, 0.3, 0.4)) < (0.08, 0.08, 0.05)).all(1)
    assert lid.sum() > 5 and np.abs(surface.points[lid, 2] - 0.4).max() < 0.012
    red = surface.colors[lid].mean(0)
    assert red[0] > 3 * red[1] and red[0] > 3 * red[2]
    assert np.allclose(np.linalg.norm(surface.normals, axis=1), 1, atol=1e-3)


def test_faces_look_outside_and_join_neighbours(table):
    surface = extract(table.pool, table.config.fuse)
    corners = surface.points[surface.faces].astype(float)
    assert len(surface.faces) > 1000
    assert np.ptp(corners, axis=1).max() < 2.1 * table.config.fuse.voxel
    across = np.cross(corners[:, 2] - corners[:, 0], corners[:, 3] - corners[:, 1])
    agrees = (across * surface.normals[surface.faces].mean(1)).sum(1) > 0
    assert agrees.mean() > 0.97


def test_space_is_solid_free_or_unseen(table):
    config = table.config.fuse
    points = np.array([[0, 0, 0], [0, 0, 0.5], [0, -1, 1.0], [0, 3, 0.5], [0, 0, -1], [9, 9, 9]])
    told = occupancy(table.pool, points, config).tolist()
    assert told == [SOLID, AIR, AIR, UNSEEN, UNSEEN, UNSEEN]


def test_a_map_is_the_same_in_other_axes():
    """The whole scene turned and shifted by whole blocks of voxels gives the same surface."""
    move = rigid([0.64, -1.28, 0.96], [0, 0, 1, 1])  # a quarter turn, two to four blocks
    counts = []
    for world in (np.eye(4), move):
        detector = MotionDetector("32MB", MotionConfig(register=False))
        for n in range(4):
            frame = shot(TABLE, at=n / 10)
            detector.step(frame.depth, MATRIX, world @ EYE, n / 10)
        surface = extract(detector.pool, detector.config.fuse)
        counts.append(surface.points.astype(float) @ world[:3, :3] - world[:3, 3] @ world[:3, :3])
    one, other = (np.sort(points @ [1.0, 1e-3, 1e-6]) for points in counts)
    assert abs(len(one) - len(other)) < 0.01 * len(one)
    assert abs(one.mean() - other.mean()) < 2e-3


# ---------------------------------------------------------------- motion


def test_nothing_moves_in_a_scene_that_stands():
    detector = MotionDetector("32MB")
    masks = played(detector, [TABLE] * 15)
    assert not any(mask.any() for mask in masks)
    assert detector.look.status == "fused" and detector.look.soft.max() < 0.3


def test_what_comes_in_is_found_and_leaves_no_ghost():
    detector = MotionDetector("32MB")
    played(detector, [TABLE] * 10)
    scenes = rolling(16)
    masks = played(detector, scenes, start=10)
    for mask, things in zip(masks[3:], scenes[3:], strict=True):
        truth = ball_pixels(things)
        assert (mask & truth).sum() > 0.85 * (mask | truth).sum()
    played(detector, [TABLE] * 3, start=26)
    points = extract(detector.pool, detector.config.fuse).points
    air = (np.abs(points - (0, -0.25, 0.35)) < (0.6, 0.14, 0.14)).all(1)
    assert not air.any()


def test_what_leaves_is_carved_away():
    detector = MotionDetector("32MB")
    there = (*TABLE, BALL.moved(0, -0.25, 0.35))
    played(detector, [there] * 25)
    held = np.array([[0.0, -0.25, 0.48]])
    assert occupancy(detector.pool, held, detector.config.fuse).tolist() == [SOLID]
    played(detector, [TABLE] * 7, start=25)  # sooner than 25 looks would be outweighed
    assert occupancy(detector.pool, held, detector.config.fuse).tolist() == [AIR]


def test_what_rests_becomes_part_of_the_room():
    detector = MotionDetector("32MB")
    played(detector, [TABLE] * 10)
    there = (*TABLE, BALL.moved(0, -0.25, 0.35))
    masks = played(detector, [there] * 45, start=10)
    assert masks[5].sum() > 100 and masks[20].sum() > 100
    assert not masks[-1].any()
    top = np.array([[0.0, -0.25, 0.48]])
    assert occupancy(detector.pool, top, detector.config.fuse).tolist() == [SOLID]


def test_rest_is_counted_in_seconds_not_in_frames():
    masks = {}
    for rate in (5, 20):
        detector = MotionDetector("32MB")
        for n in range(6 * rate):
            things = TABLE if n < 2 * rate else (*TABLE, BALL.moved(0, -0.25, 0.35))
            frame = shot(things, at=n / rate)
            mask, _ = detector.step(frame.depth, MATRIX, EYE, n / rate)
            masks[rate, n / rate] = mask.sum()
    for rate in (5, 20):
        assert masks[rate, 4.0] > 100 and masks[rate, 5.8] == 0


def test_a_hole_in_the_depth_hides_nothing_and_invents_nothing():
    detector = MotionDetector("32MB")
    for n in range(14):
        frame = shot(TABLE, at=n / 10)
        depth = frame.depth.copy()
        depth[40:70, 50:90] = (0, np.nan, np.inf, -1)[n % 4]
        mask, soft = detector.step(depth, MATRIX, EYE, n / 10)
        assert not mask.any() and np.isfinite(soft).all()
    mask, _ = detector.step(np.zeros((120, 160), np.float32), MATRIX, EYE, 1.5)
    assert not mask.any()


# ---------------------------------------------------------------- poses


def noise_of(size, degrees, seed=3):
    draws = np.random.default_rng(seed)
    table = [
        rigid(draws.normal(0, size, 3), [*np.radians(degrees / 2) * draws.normal(size=3), 1])
        for _ in range(60)
    ]
    return lambda n: EYE @ table[n]


def test_registration_takes_most_of_the_noise_out_of_poses():
    told, detector, errors = noise_of(0.006, 0.3), MotionDetector("32MB"), []
    for n in range(40):
        frame = shot(TABLE, at=n / 10)
        mask, _ = detector.step(frame.depth, MATRIX, told(n), n / 10)
        assert mask.mean() < 0.02
        errors.append([detector.look.pose, told(n)])

    def wobble(poses):  # of points a metre and a half ahead, about their own mean
        points = np.array([(pose @ [0.3, 0.2, 1.5, 1])[:3] for pose in poses])
        return np.linalg.norm(points - points.mean(0), axis=1).mean()

    ours, given = (wobble([pair[n] for pair in errors[15:]]) for n in (0, 1))
    assert ours < 0.35 * given
    middle = np.mean([ours[:3, 3] for ours, _ in errors[15:]], 0)
    assert np.linalg.norm(middle - EYE[:3, 3]) < 0.006


def test_exact_poses_are_left_alone():
    detector, moved = MotionDetector("32MB"), []
    for n, things in enumerate(rolling(30, 0.03)):
        played(detector, [things], start=n)
        moved.append(np.abs(detector.look.pose - EYE).max())
    assert max(moved) < 2e-3
    assert np.mean(np.array(moved[10:]) == 0) > 0.8  # within its doubt a pose is right as it is


def test_a_pose_that_jumps_is_not_fused_and_a_new_map_is_begun_in_the_end():
    config = MotionConfig(patience=5)
    detector = MotionDetector("32MB", config)
    played(detector, [TABLE] * 8)
    before = {name: value.clone() for name, value in detector.pool.state_dict().items()}
    wrong = rigid([0.3, 0.3, 0.4], [0.2, 0.1, 0, 1]) @ EYE
    for n in range(4):
        mask, _ = detector.step(shot(TABLE).depth, MATRIX, wrong, 1 + n / 10)
        assert detector.look.status == "lost" and not mask.any()
    after = detector.pool.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    played(detector, [TABLE], start=15)
    assert detector.look.status == "fused"  # it agrees again
    for n in range(5):
        detector.step(shot(TABLE).depth, MATRIX, wrong, 2 + n / 10)
    assert detector.look.status == "restarted" and detector.frames == 1


@pytest.mark.parametrize("pose", [np.full((4, 4), np.nan), np.zeros((4, 4)), np.eye(3)])
def test_a_bad_pose_is_refused_and_changes_nothing(pose):
    detector = MotionDetector("8MB")
    frame = shot(TABLE)
    with pytest.raises(ValueError, match="rigid"):
        detector.step(frame.depth, MATRIX, pose, 0.0)
    detector.step(frame.depth, MATRIX, EYE, 1.0)
    with pytest.raises(ValueError, match="time goes"):
        detector.step(frame.depth, MATRIX, EYE, 0.5)
    with pytest.raises(ValueError, match="focal"):
        detector.step(frame.depth, np.diag([0.0, 1, 1]), EYE, 2.0)
    assert detector.frames == 1


# ---------------------------------------------------------------- bounds and state


def test_a_scene_larger_than_the_budget_holds_it_and_says_so():
    detector = MotionDetector("200kB")
    played(detector, [TABLE] * 3)
    assert detector.look.refused > 0 and detector.nbytes <= 200_000
    far = rigid([50, 0, 0], [0, 0, 0, 1]) @ EYE
    for n in range(40):
        detector.step(shot(TABLE).depth, MATRIX, far, 1 + n / 10)
    assert detector.nbytes <= 200_000
    assert unpack(detector.pool.key[: len(detector.pool)])[:, 0].min() * 0.32 > 40


def test_a_state_goes_on_bit_for_bit():
    one, other = MotionDetector("32MB"), MotionDetector("32MB")
    scenes = [TABLE] * 8 + rolling(10)
    played(one, scenes[:14])
    other.load_state_dict(one.state_dict())
    for mask, same in zip(
        played(one, scenes[14:], 14), played(other, scenes[14:], 14), strict=True
    ):
        assert mask.any() and (mask == same).all()
    after, again = one.state_dict(), other.state_dict()
    assert after.keys() == again.keys()
    assert all(torch.equal(after[name], again[name]) for name in after)


def test_a_state_of_another_map_is_refused():
    state = MotionDetector("8MB").state_dict()
    with pytest.raises(ValueError, match="configuration"):
        MotionDetector("8MB", MotionConfig(FuseConfig(voxel=0.05))).load_state_dict(state)
    with pytest.raises(ValueError, match="incomplete"):
        MotionDetector("8MB").load_state_dict({})
    full = MotionDetector("32MB")
    played(full, [TABLE] * 2)
    with pytest.raises(ValueError, match="budget"):
        MotionDetector("100kB").load_state_dict(full.state_dict())
