"""``vismem map`` as a user meets it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from child import in_child
from PIL import Image
from ray_scene import Thing, World, looking_at

from vismem.cli import main
from vismem.cli.map import _stop_between_frames
from vismem.heads import saved_map
from vismem.heads.reconstruct import MovingMap
from vismem.streams.rgbd import write_rgbd

EYE = looking_at((0, -1.6, 1.3), (0, 0, 0.2))
WALL = Thing("box", "green", (0.0, 1.2, 0.6), (2.4, 0.2, 1.2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("rgbd")

    def frames():
        for n in range(18):
            ball = Thing("ball", "yellow", (0.06 * n - 0.9, -0.2, 0.35), (0.3, 0.3, 0.3))
            yield World((WALL, ball) if n >= 8 else (WALL,)).render(EYE, n / 10)

    write_rgbd(place, frames())
    return str(place)


def test_a_folder_becomes_a_map(folder, tmp_path, capsys):
    out = tmp_path / "map"
    assert main(["map", folder, "--out", str(out), "--budget", "64MB"]) == 0
    told = capsys.readouterr().err
    assert "18 frames" in told and "1 things that moved" in told
    assert {path.name for path in out.iterdir()} == {
        "static.ply",
        "transient.ply",
        "tracks.json",
        "map.png",
        "map.safetensors",
    }
    (track,) = json.loads((out / "tracks.json").read_text())["tracks"]
    first, last = np.array(track["waypoints"])[[2, -1]]
    assert (last[1] - first[1]) / (last[0] - first[0]) == pytest.approx(0.6, abs=0.1)
    with Image.open(out / "map.png") as picture:
        assert max(picture.size) >= 960


def test_the_call_is_checked(folder, tmp_path, capsys):
    out = ["--out", str(tmp_path)]
    for words, told in (
        (["--voxel", "0"], "--voxel"),
        (["--farthest", "-1"], "--farthest"),
        (["--budget", "1kB"], "--budget"),
    ):
        assert main(["map", folder, *out, *words]) == 2
        assert told in capsys.readouterr().err


def test_a_source_without_depth_is_named_and_leaves_nothing(tmp_path, capsys, every_frame):
    for n in range(3):
        Image.fromarray(np.full((48, 64, 3), 40 * n, np.uint8)).save(tmp_path / f"{n}.png")
    assert main(["map", str(tmp_path), "--out", str(tmp_path / "out")]) == 3
    assert "no depth (3)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_budget_that_is_too_small_is_told(folder, tmp_path, capsys):
    words = ["--budget", "800kB", "--seconds", "0.5", "--trust-poses"]
    assert main(["map", folder, "--out", str(tmp_path), *words]) == 0
    told = capsys.readouterr().err
    assert "5 frames" in told and "did not fit into 800kB" in told


def test_help_is_told_without_what_is_heavy():
    code = (
        "import sys\nfrom vismem.cli import main\n"
        "try: main(['map', '--help'])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'numba', 'cv2', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def files(out):
    return {path.name: path.read_bytes() for path in Path(out).iterdir()}


@pytest.fixture(scope="module")
def uninterrupted(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("map") / "out"
    assert main(["map", folder, "--out", str(out)]) == 0
    return files(out)


@pytest.fixture
def every_frame(monkeypatch):
    """The map is saved after every frame."""
    monkeypatch.setattr(saved_map, "SECONDS", 0.0)
    monkeypatch.setattr(saved_map, "SHARE", np.inf)


def kill_at(owner, name, nth):
    """Let the ``nth`` call of a function kill the process, as a power button would."""
    real, calls = getattr(owner, name), 0

    def call(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    setattr(owner, name, call)


def test_a_killed_map_goes_on_as_if_nothing_had_been(folder, tmp_path, uninterrupted, every_frame):
    """Killed before a frame, within one, while saving, and while the results are written."""
    out = tmp_path / "out"
    command = ["map", folder, "--out", str(out), "--resume"]
    places = [
        (MovingMap, "write", 5),
        (MovingMap, "_follow", 2),  # the voxels have the frame, the ways do not
        (os, "fsync", 5),
        (os, "replace", 3),
        (MovingMap, "export", 1),
    ]
    frames = []
    for place in places:

        def work(pipe, place=place):
            kill_at(*place)
            main(command)

        pid, pipe = in_child(work)
        os.close(pipe)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        settings = {"--voxel": 0.04, "--farthest": 6.0, "--budget": 256_000_000}
        settings |= {"--trust-poses": False, "--fps": None}
        saved = saved_map.SavedMap(out / "map.safetensors", settings)
        frames.append(saved.load(MovingMap("256MB")).frames)
    assert frames == [4, 5, 7, 9, 18]
    assert not (out / "static.ply").exists()
    assert main(command) == 0
    assert files(out) == uninterrupted


def test_ctrl_c_ends_after_the_frame_and_says_how_to_go_on(
    folder, tmp_path, uninterrupted, monkeypatch, capsys
):
    out, real, calls = tmp_path / "out", MovingMap._follow, []

    def interrupted(self, time):
        calls.append(time)
        if len(calls) in (4, 9):
            os.kill(os.getpid(), signal.SIGINT if len(calls) == 4 else signal.SIGTERM)
        real(self, time)

    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setattr(MovingMap, "_follow", interrupted)
    command = ["map", folder, "--out", str(out)]
    for words, count in (([], 4), (["--resume"], 9)):
        assert main([*command, *words]) == 0
        told = capsys.readouterr().err
        assert f"{count} frames" in told and "stopped, run it again with --resume" in told
        assert len(calls) == count and (out / "static.ply").exists()
    assert main([*command, "--resume"]) == 0
    assert "18 frames" in capsys.readouterr().err
    assert files(out) == uninterrupted
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def test_the_second_ctrl_c_interrupts_at_once():
    with pytest.raises(KeyboardInterrupt), _stop_between_frames() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wait(5)
        os.kill(os.getpid(), signal.SIGINT)
        stop.clear()
        stop.wait(5)


def test_a_map_that_exists_is_not_written_over(folder, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["map", folder, "--out", str(out), "--seconds", "0.5"]
    assert main(command) == 0
    before = files(out)
    capsys.readouterr()
    assert main(command) == 2
    assert "add --resume to go on with that map" in capsys.readouterr().err
    assert main([*command, "--resume", "--voxel", "0.05"]) == 2
    assert "begun with --voxel 0.04, not 0.05" in capsys.readouterr().err
    assert main([*command, "--resume", "--fps", "5"]) == 2
    assert "begun with --fps None, not 5.0" in capsys.readouterr().err
    assert files(out) == before
    assert main([*command, "--resume"]) == 0  # there is nothing new in these seconds
    assert "5 frames" in capsys.readouterr().err
    assert files(out) == before


def test_another_source_is_refused_and_a_longer_one_goes_on(
    folder, tmp_path, uninterrupted, capsys
):
    short, other = tmp_path / "short", tmp_path / "other"
    for place, keep in ((short, 6), (other, 18)):
        shutil.copytree(folder, place)
        lines = (place / "rgb.txt").read_text().splitlines(keepends=True)
        (place / "rgb.txt").write_text("".join(lines[:keep]))
    poses = (other / "groundtruth.txt").read_text()
    (other / "groundtruth.txt").write_text(poses.replace("1.300000000", "1.310000000"))
    out = tmp_path / "out"
    command = ["--out", str(out), "--resume"]
    assert main(["map", str(short), *command]) == 0
    before = files(out)
    capsys.readouterr()
    assert main(["map", str(other), *command]) == 2
    assert "frame 6 differs; resume with that source" in capsys.readouterr().err
    (short / "rgb.txt").write_text("".join(lines[:4]))
    assert main(["map", str(short), *command]) == 2
    assert "it ends after 4 of 6 frames; resume with that source" in capsys.readouterr().err
    assert files(out) == before
    assert main(["map", folder, *command]) == 0
    assert files(out) == uninterrupted


def test_a_damaged_map_is_told_and_left_alone(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["map", folder, "--out", str(out), "--seconds", "0.3"]) == 0
    place = out / "map.safetensors"
    place.write_bytes(place.read_bytes()[:-5])
    before = files(out)
    assert main(["map", folder, "--out", str(out), "--resume"]) == 4
    assert "is damaged" in capsys.readouterr().err and files(out) == before
