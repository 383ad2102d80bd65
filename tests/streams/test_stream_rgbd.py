"""RGB-D recordings: what is written is read, and what is broken is told."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray_scene import Thing, World, camera, looking_at

from vismem import Frame, SourceError, open_stream
from vismem.geometry import is_pose, quaternion_of, rigid
from vismem.streams.rgbd import read_intrinsics, write_rgbd

WORLD = World((Thing("box", "red", (0, 0, 0.025)),))


def poses(count: int = 5) -> list[np.ndarray]:
    return [looking_at((0.02 * n, -0.8, 0.6), (0, 0, 0)) for n in range(count)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    frames = (WORLD.render(pose, 10 + 0.1 * n) for n, pose in enumerate(poses()))
    assert write_rgbd(tmp_path, frames) == 5
    return tmp_path


def read(folder: Path, **options) -> tuple[list[Frame], list[str]]:
    with open_stream(folder, **options) as stream:
        return list(stream), stream.stats.problems


def test_what_is_written_is_read(folder: Path) -> None:
    frames, problems = read(folder)
    assert problems == [] and [f.timestamp for f in frames] == pytest.approx(
        [10, 10.1, 10.2, 10.3, 10.4]
    )
    for frame, pose in zip(frames, poses(), strict=True):
        true = WORLD.render(pose)
        assert np.array_equal(frame.image, true.image)
        assert np.allclose(frame.depth, np.where(true.depth < 13, true.depth, 0), atol=1.1e-4)
        assert frame.depth.dtype == np.float32
        assert np.allclose(frame.pose, pose, atol=1e-6)
        assert np.allclose(frame.intrinsics, camera())
        assert frame.stream == folder.name


def test_fewer_frames_a_second(folder: Path) -> None:
    frames, _ = read(folder, fps=5)
    assert [round(f.timestamp, 1) for f in frames] == [10.0, 10.2, 10.4]
    assert [f.index for f in frames] == [0, 2, 4]


@given(st.lists(st.floats(-1, 1), min_size=4, max_size=4).filter(lambda q: np.linalg.norm(q) > 0.1))
def test_rotations_become_quaternions_and_come_back(numbers: list[float]) -> None:
    quaternion = np.array(numbers) / np.linalg.norm(numbers)
    matrix = rigid((1.0, 2, 3), quaternion)
    assert is_pose(matrix)
    back = np.array(quaternion_of(matrix))
    assert abs(back @ quaternion) == pytest.approx(1, abs=1e-9)


def test_a_quarter_turn_about_the_vertical() -> None:
    pose = rigid((0, 0, 0), (0, 0, 0.7, 0.7))
    assert pose[:3, :3] @ [1, 0, 0] == pytest.approx([0, 1, 0])


def test_a_pose_between_two_is_interpolated(folder: Path) -> None:
    lines = (folder / "groundtruth.txt").read_text().splitlines()
    flipped = [float(x) for x in lines[3].split()]  # the same rotation by the other quaternion
    lines[3] = " ".join(str(x) for x in [*flipped[:4], *(-q for q in flipped[4:])])
    (folder / "groundtruth.txt").write_text("\n".join(["# time tx ty tz", lines[1], lines[3]]))
    frames, problems = read(folder)
    assert frames[2].pose[:3, 3] == pytest.approx([0.04, -0.8, 0.6], abs=1e-6)
    assert np.allclose(frames[2].pose, poses()[2], atol=1e-3)
    assert frames[1].pose is not None and frames[0].pose is None and frames[4].pose is None
    assert len(problems) == 1 and "without a pose" in problems[0] and "2 times" in problems[0]


def test_no_pose_is_made_up_over_a_long_gap(folder: Path) -> None:
    lines = (folder / "groundtruth.txt").read_text().splitlines()
    (folder / "groundtruth.txt").write_text("\n".join([lines[0], lines[4]]))  # 0.4 s apart
    frames, _ = read(folder)
    assert [f.pose is not None for f in frames] == [True, False, False, False, True]


def test_a_jump_of_the_pose_is_told_and_not_interpolated(folder: Path) -> None:
    lines = [line.split() for line in (folder / "groundtruth.txt").read_text().splitlines()]
    lines[3][1] = lines[4][1] = "9.0"
    times = [10.0, 10.1, 10.15, 10.25, 10.4]  # the jump lies around the frame at 10.2
    for line, at in zip(lines, times, strict=True):
        line[0] = str(at)
    (folder / "groundtruth.txt").write_text("\n".join(map(" ".join, lines)))
    frames, problems = read(folder)
    assert frames[2].pose is None and frames[1].pose is not None and frames[3].pose is not None
    assert any("jumps" in problem and "10.25" in problem for problem in problems)


def test_depth_is_the_nearest_within_20_ms(folder: Path) -> None:
    lines = (folder / "depth.txt").read_text().splitlines()
    files = [line.split()[1] for line in lines]
    times = [10.019, 10.121, 10.19, 10.3, 10.4]
    (folder / "depth.txt").write_text(
        "\n".join(f"{t} {f}" for t, f in zip(times, files, strict=True))
    )
    frames, problems = read(folder)
    assert [f.depth is not None for f in frames] == [True, False, True, True, True]
    assert any("20 ms" in problem for problem in problems)


@pytest.mark.parametrize("name", ["rgb", "depth"])
@pytest.mark.parametrize("how", ["missing", "broken", "empty", "small"])
def test_files_that_are_missing_or_broken_are_told(folder: Path, name: str, how: str) -> None:
    file = sorted((folder / name).iterdir())[1]
    if how == "missing":
        file.unlink()
    elif how == "small":
        cv2.imwrite(str(file), np.ones((4, 4), np.uint16))
    else:
        file.write_bytes(b"nonsense" if how == "broken" else b"")
    frames, problems = read(folder)
    if (name, how) == ("rgb", "small"):  # a picture of another size, for which the rest is wrong
        assert frames[1].depth is None and frames[1].intrinsics is None
    elif name == "rgb":
        assert len(frames) == 4
    else:
        assert [f.depth is not None for f in frames] == [True, False, True, True, True]
    assert problems


def test_without_intrinsics_none_are_guessed(folder: Path) -> None:
    (folder / "intrinsics.txt").unlink()
    frames, problems = read(folder)
    assert all(f.intrinsics is None and f.depth is not None for f in frames)
    assert len(problems) == 1 and "intrinsics.txt" in problems[0]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("intrinsics.txt", "150 150 79.5 59.5"),
        ("intrinsics.txt", "# fx fy cx cy\n150, 150, 79.5, 59.5\n"),
        ("intrinsics.txt", "150 0 79.5\n0 150 59.5\n0 0 1\n"),
        ("camera.json", json.dumps({"fx": 150, "fy": 150, "cx": 79.5, "cy": 59.5})),
        ("camera.json", json.dumps({"K": [[150, 0, 79.5], [0, 150, 59.5], [0, 0, 1]]})),
    ],
)
def test_intrinsics_in_all_their_forms(folder: Path, name: str, text: str) -> None:
    (folder / "intrinsics.txt").unlink()
    (folder / name).write_text(text)
    assert np.array_equal(read_intrinsics(folder), camera())
    assert np.array_equal(read(folder)[0][0].intrinsics, camera())


@pytest.mark.parametrize("text", ["1 2 3", "a b c d", "", "0 0 79 59", "150 150 5000 59"])
def test_wrong_intrinsics_are_told_and_left_out(folder: Path, text: str) -> None:
    (folder / "intrinsics.txt").write_text(text)
    frames, problems = read(folder)
    assert len(frames) == 5 and all(f.intrinsics is None for f in frames)
    assert len(problems) == 1 and "intrinsics" in problems[0]


@pytest.mark.parametrize("line", ["10.1 1 2 3", "10.1 1 2 3 0 0 0 0", "10.1 nan 2 3 0 0 0 1", "x"])
def test_lines_that_are_no_pose_are_told(folder: Path, line: str) -> None:
    lines = (folder / "groundtruth.txt").read_text().splitlines()
    (folder / "groundtruth.txt").write_text("\n".join([*lines, line]))
    frames, problems = read(folder)
    assert all(is_pose(f.pose) for f in frames)
    assert len(problems) == 1 and "no pose" in problems[0]


def test_no_poses_at_all(folder: Path) -> None:
    (folder / "groundtruth.txt").unlink()
    frames, problems = read(folder)
    assert len(frames) == 5 and all(f.pose is None and f.depth is not None for f in frames)
    assert "groundtruth.txt cannot be read" in problems[0]


def test_a_list_without_pictures_is_no_source(folder: Path) -> None:
    (folder / "rgb.txt").write_text("# nothing\n")
    with pytest.raises(SourceError, match=r"rgb.txt lists no picture"):
        open_stream(folder)


def test_depth_beyond_what_16_bits_hold_is_unknown(tmp_path: Path) -> None:
    depth = np.array([[13.2, 13.0], [np.nan, -1.0]], np.float32)
    image = np.zeros((2, 2, 3), np.uint8)
    write_rgbd(tmp_path, [Frame(image, 0.0, depth=depth)])
    assert read(tmp_path)[0][0].depth == pytest.approx(np.array([[0, 13.0], [0, 0]]))
    with pytest.raises(ValueError, match="rigid"):
        write_rgbd(tmp_path, [Frame(image, 0.0, pose=np.zeros((4, 4)))])
