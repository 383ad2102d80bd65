"""The clip, its timetable and the script that makes both must tell the same story."""

from __future__ import annotations

import importlib.util
import json
import sys
from importlib import resources
from pathlib import Path
from types import ModuleType

import av
import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_gallery.py"
DATA = resources.files("vismem.data")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_gallery", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def gallery() -> dict:
    return json.loads((DATA / "gallery.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def film(gallery: dict) -> np.ndarray:
    with resources.as_file(DATA / gallery["video"]) as path, av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def test_timetable_is_the_scripts(script: ModuleType, gallery: dict) -> None:
    assert gallery == script.timetable()


def test_format(gallery: dict) -> None:
    path = DATA / gallery["video"]
    with resources.as_file(path) as file, av.open(str(file)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert (stream.width, stream.height) == (640, 360)
        assert stream.average_rate == 12
    assert len(path.read_bytes()) <= 3_000_000


def test_segments_cover_the_film(film: np.ndarray, gallery: dict) -> None:
    ends = [0] + [segment["end"] for segment in gallery["segments"]]
    assert [segment["start"] for segment in gallery["segments"]] == ends[:-1]
    assert len(film) == ends[-1] * 12


def test_questions(gallery: dict) -> None:
    questions = {question["ask"]: question["spans"] for question in gallery["questions"]}
    assert sum(not spans for spans in questions.values()) == 4
    assert sum(len(spans) > 1 for spans in questions.values()) >= 2
    bounds = [[segment["start"], segment["end"]] for segment in gallery["segments"]]
    assert all(span in bounds for spans in questions.values() for span in spans)


def test_film_shows_the_scripts_views(film: np.ndarray, script: ModuleType) -> None:
    """Middle of each scene against the photograph itself, where it is at hand."""
    data = pytest.importorskip("skimage.data")
    images = {"cat": data.chelsea(), "coffee": data.coffee(), "rocket": data.rocket()}
    images["astronaut"] = data.astronaut()
    images["photographer"] = np.repeat(data.camera()[:, :, None], 3, axis=2)
    start = checked = 0
    for scene in script.SCENES:
        if scene.clip in images:
            view = scene.view(images[scene.clip], scene.seconds / 2)
            frame = film[(start + scene.seconds // 2) * 12 + (6 if scene.seconds % 2 else 0)]
            assert np.abs(view.astype(int) - frame).mean() < 5, scene
            checked += 1
        start += scene.seconds
    assert checked == 7


def test_moves_are_smooth_and_cuts_are_cuts(film: np.ndarray, script: ModuleType) -> None:
    small = film[:, ::4, ::4].astype(np.float32)
    change = np.abs(np.diff(small, axis=0)).mean(axis=(1, 2, 3))
    start, cuts, dissolves = 0, set(), set()
    for scene in script.SCENES:
        frame = start * 12 - 1
        if start and scene.dissolve:
            dissolves.update(range(frame, frame + int(scene.dissolve * 12) + 1))
        elif start:
            cuts.add(frame)
        start += scene.seconds
    moving = [c for i, c in enumerate(change) if i not in cuts | dissolves]
    assert max(moving) < min(change[list(cuts)]) / 2
