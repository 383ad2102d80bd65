"""`MovingMap` on a ray-cast table: what stands, what moves, and what cannot be used."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from ray_scene import Thing, World, looking_at

from vismem.heads.draw_map import draw_map
from vismem.heads.ply import write_ply
from vismem.heads.reconstruct import MapConfig, MovingMap

EYE = looking_at((0, -1.6, 1.3), (0, 0, 0.2))
TABLE = (
    Thing("box", "red", (-0.45, 0.3, 0.2), (0.3, 0.3, 0.4)),
    Thing("box", "green", (0.0, 1.2, 0.6), (2.4, 0.2, 1.2)),
)
BALL = Thing("ball", "yellow", (0, 0, 0.35), (0.3, 0.3, 0.3))
SPEED = 0.6  # metres a second


def ball_at(time):
    return np.array([-0.5 + SPEED * (time - 1), -0.25, 0.35])


def frames(count, start=0):
    for n in range(start, count):
        moving = (BALL.moved(*ball_at(n / 10)),) if n >= 10 else ()
        yield World((*TABLE, *moving)).render(EYE, n / 10, noise=0.003, seed=n)


@pytest.fixture(scope="module")
def played():
    scene = MovingMap("32MB")
    reports = [scene.write(frame) for frame in frames(24)]
    return scene, reports


def test_what_moves_is_followed_apart_from_what_stands(played):
    scene, reports = played
    assert {report.status for report in reports} == {"fused"}
    assert all(report.moving == 0 for report in reports[:10])
    assert all(report.moving > 100 for report in reports[13:])
    now = scene.at(2.3)
    away = np.linalg.norm(now.points - ball_at(2.3), axis=1)
    assert np.abs(away - 0.15).max() < 0.05 and np.median(np.abs(away - 0.15)) < 0.01
    standing = np.linalg.norm(now.surface.points - ball_at(2.3), axis=1)
    assert (standing > 0.12).all()
    assert (now.colors.mean(0)[:2] > 2 * now.colors.mean(0)[2]).all()  # yellow
    (way,) = [path for path in scene.paths() if len(path.waypoints) > 8]
    seen = way.waypoints
    assert np.abs(np.diff(seen[:, 0]) - 0.1).max() < 1e-6
    assert np.abs(np.diff(seen[2:, 1]).mean() / 0.1 - SPEED) < 0.08


def test_a_time_between_and_after_frames_is_told_by_velocity(played):
    scene, _ = played
    for time, slack in ((1.95, 0.03), (2.3, 0.03), (2.6, 0.08)):
        middle = scene.at(time).points.mean(0)
        assert abs(middle[0] - scene.at(2.2).points.mean(0)[0] - SPEED * (time - 2.2)) < slack
        ((_, place),) = scene.at(time).tracks.items()
        assert np.allclose(place, middle, atol=1e-4)
    assert len(scene.at(5.0).points) == 0 and not scene.at(5.0).tracks
    assert len(scene.at(0.2).points) == 0


def test_a_robot_is_told_what_is_in_its_way(played):
    scene, _ = played
    front = ball_at(2.3) + np.array([0, -0.1, 0.1])  # on the side that is seen
    places = np.array([[0, -0.3, 0.0], [0, -0.8, 0.5], [0, 0, -2], front])
    assert scene.occupancy(places).tolist()[:3] == [1, 0, -1]
    near = front + np.random.default_rng(0).uniform(-0.04, 0.04, (200, 3))
    assert (scene.occupancy(near) == 1).any()
    assert not (scene.occupancy(near, time=9.0) == 1).any()


def test_what_cannot_be_used_is_reported_and_changes_nothing(played):
    scene, _ = played
    before = {name: value.clone() for name, value in scene.state_dict().items()}
    frame = next(frames(25, 24))
    hostile = {
        "no depth": replace(frame, depth=None),
        "no pose": replace(frame, pose=None),
        "no intrinsics": replace(frame, intrinsics=None),
        "rigid": replace(frame, pose=np.full((4, 4), np.nan)),
        "focal": replace(frame, intrinsics=np.diag([0.0, 1, 1])),
        "skewed": replace(frame, intrinsics=frame.intrinsics + np.eye(3, k=1) * [1, 1, 0]),
        "size": replace(frame, depth=frame.depth[:60]),
        "nothing is seen": replace(frame, depth=np.zeros_like(frame.depth)),
        "time goes": replace(frame, timestamp=1.0),
    }
    for note, given in hostile.items():
        report = scene.write(given)
        assert report.status == "skipped" and note in report.note
    assert scene.write(replace(frame, timestamp=np.nan)).status == "skipped"
    after = scene.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_state_goes_on_bit_for_bit_whenever_it_is_taken():
    """Also after frames that disagreed with the map, while something moves."""
    given = list(frames(20))
    elsewhere = given[0].pose.copy()
    elsewhere[:3, 3] += (0, 0.9, 0.6)
    for n in (14, 15):
        given[n] = replace(given[n], pose=elsewhere)
    one, states = MovingMap("32MB"), []
    for frame in given[:18]:
        status = one.write(frame).status
        states.append((status, one.nbytes, one.state_dict()))
    assert [status for status, *_ in states].count("lost") == 2
    for frame in given[18:]:
        one.write(frame)
    after = one.state_dict()
    for n in (0, 9, 11, 13, 14, 15, 16, 17):
        other = MovingMap("32MB")
        other.load_state_dict(states[n][2])
        assert other.nbytes == states[n][1]
        for frame in given[n + 1 :]:
            other.write(frame)
        again = other.state_dict()
        assert list(after) == list(again), n
        assert all(torch.equal(after[name], again[name]) for name in after), n


def test_the_budget_holds_whatever_comes():
    scene = MovingMap("600kB", MapConfig(paths=2, waypoints=8))
    for frame in frames(24):
        report = scene.write(frame)
        assert scene.nbytes <= 600_000 and report.nbytes == scene.nbytes
    assert report.refused > 0
    with pytest.raises(ValueError):
        MovingMap("100kB")


def test_ways_stay_bounded():
    scene = MovingMap("32MB", MapConfig(waypoints=8))
    for frame in frames(26):
        scene.write(frame)
    ways = [path.waypoints for path in scene.paths()]
    assert max(map(len, ways)) <= 8
    assert max(way[-1, 0] for way in ways) == pytest.approx(2.5)


def test_a_reset_map_is_as_new():
    one, other = MovingMap("32MB"), MovingMap("32MB")
    for frame in frames(14):
        one.write(frame)
    one.reset()
    assert one.nbytes == other.nbytes and not one.paths()
    for frame in frames(3):
        assert one.write(frame) == other.write(frame)


def read_ply(path):
    head, _, body = path.read_bytes().partition(b"end_header\n")
    lines = head.decode().splitlines()
    counts = {line.split()[1]: int(line.split()[2]) for line in lines if "element" in line}
    kinds = {"float": "<f4", "uchar": "u1"}
    columns = [
        (p[2], kinds[p[1]]) for p in map(str.split, lines) if p[0] == "property" and len(p) == 3
    ]
    points = np.frombuffer(body, columns, counts["vertex"])
    quads = np.frombuffer(
        body[points.nbytes :], [("n", "u1"), ("at", "<i4", 4)], counts.get("face", 0)
    )
    assert points.nbytes + quads.nbytes == len(body)
    return points, quads


def test_exports_hold_what_the_map_holds(played, tmp_path):
    scene, _ = played
    counts = scene.export(tmp_path / "new" / "folder")
    surface, now = scene.surface(), scene.at(scene.time)
    points, quads = read_ply(tmp_path / "new" / "folder" / "static.ply")
    assert np.allclose(np.stack([points[axis] for axis in "xyz"], 1), surface.points)
    assert (np.stack([points[c] for c in ("red", "green", "blue")], 1) == surface.colors).all()
    assert (quads["n"] == 4).all() and (quads["at"] == surface.faces).all()
    points, _ = read_ply(tmp_path / "new" / "folder" / "transient.ply")
    assert np.allclose(points["x"], now.points[:, 0]) and len(points) == counts["transient"]
    told = json.loads((tmp_path / "new" / "folder" / "tracks.json").read_text())
    assert [way["id"] for way in told["tracks"]] == [path.id for path in scene.paths()]
    assert len(told["tracks"][0]["waypoints"][0]) == 4


def test_no_points_are_a_file_too(tmp_path):
    write_ply(tmp_path / "none.ply", np.empty((0, 3)), np.empty((0, 3), np.uint8))
    points, _ = read_ply(tmp_path / "none.ply")
    assert len(points) == 0


def test_the_picture_shows_what_stands_and_what_moves(played):
    scene, _ = played
    now = scene.at(2.3)
    picture = draw_map(now, scene.paths(), size=200)
    assert picture.dtype == np.uint8 and max(picture.shape[:2]) <= 202
    assert 0.2 < (picture < 255).any(-1).mean()
    still = draw_map(replace(now, points=now.points[:0], ids=now.ids[:0], tracks={}), size=200)
    assert still.shape[2] == 3
    bright = (np.ptp(picture.astype(int), axis=-1) > 150).sum()
    assert bright > 30 and (np.ptp(still.astype(int), axis=-1) > 150).sum() == 0


def test_a_full_disk_leaves_the_file_of_before(tmp_path, monkeypatch):
    """A mesh that is cut off must not stand where a whole one was."""
    where = tmp_path / "static.ply"
    points, colors = np.zeros((9, 3)), np.zeros((9, 3), np.uint8)
    write_ply(where, points, colors)
    before = where.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError):
        write_ply(where, points + 1, colors)
    assert where.read_bytes() == before and list(tmp_path.iterdir()) == [where]


def test_a_recording_for_rerun_holds_what_the_map_holds(played, tmp_path):
    pytest.importorskip("rerun", reason="the extra rerun is not installed")
    scene, _ = played
    scene.export_rerun(tmp_path / "map.rrd")
    assert (tmp_path / "map.rrd").read_bytes()[:3] == b"RRF"
    reading = pytest.importorskip("rerun.chunk", reason="this rerun-sdk reads no recordings")
    held = {}
    for chunk in reading.RrdReader(tmp_path / "map.rrd").stream().to_chunks():
        held[chunk.entity_path] = chunk.to_record_batch().to_pydict()
    surface, (way,), last = scene.surface(), scene.paths(), scene.at(scene.time)
    mesh, moving = held["/map/static"], held["/map/transient"]
    assert np.array_equal(mesh["Mesh3D:vertex_positions"][0], surface.points)
    triangles = np.array(mesh["Mesh3D:triangle_indices"][0])
    assert len(triangles) == 2 * len(surface.faces)
    corners = surface.faces[0]
    assert triangles[:2].tolist() == [corners[[0, 1, 2]].tolist(), corners[[0, 2, 3]].tolist()]
    assert np.array_equal(mesh["Mesh3D:vertex_normals"][0], surface.normals)
    painted = np.array(mesh["Mesh3D:vertex_colors"][0])  # 0xRRGGBBAA
    assert np.array_equal(painted >> 24, surface.colors[:, 0])
    assert [time.total_seconds() for time in moving["stream"]] == pytest.approx(
        np.arange(1.4, 2.4, 0.1)
    )
    assert np.array_equal(moving["Points3D:positions"][-1], last.points)
    colors = np.array(moving["Points3D:colors"][-1])  # 0xRRGGBBAA
    assert np.array_equal(colors >> 24, last.colors[:, 0])
    (strip,) = held[f"/map/tracks/{way.id}"]["LineStrips3D:strips"][0]
    assert np.allclose(strip, way.waypoints[:, 1:], atol=1e-6)
