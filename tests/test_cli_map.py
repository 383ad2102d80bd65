"""``vismem map`` as a user meets it."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from ray_scene import Thing, World, looking_at

from vismem.cli import main
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


def test_a_source_without_depth_is_named(tmp_path, capsys):
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
