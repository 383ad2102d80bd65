"""Files of detections on a disk that becomes full, and into a pipe."""

from __future__ import annotations

import json
import os
import subprocess
import threading

import av
import numpy as np
import pytest

from vismem.detections import Detections
from vismem.errors import StoreError
from vismem.frame import Frame
from vismem.heads.detections_out import open_detections

NOISE = np.random.default_rng(0)


def frame(number: int, size: int = 64) -> tuple[Frame, Detections]:
    """A picture that does not compress, and three boxes."""
    image = NOISE.integers(0, 256, (size, size, 3), dtype=np.uint8)
    boxes = np.full((3, 4), number, np.float32)
    found = Detections(boxes, np.full(3, 0.5), np.ones(3), np.arange(3), number / 10)
    return Frame(image, number / 10, index=number), found


@pytest.fixture
def small(tmp_path):
    """A disk of 64 kB."""
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mount)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)  # fails if a file of it is left open


def fill(format: str, out) -> int:
    """Write until the disk is full; how many frames went well."""
    done = 0
    with pytest.raises(StoreError, match=f"{out.name} cannot be written"):
        with open_detections(format, out) as write:
            for number in range(5000):
                write(*frame(number))
                done += 1
    return done


def test_lines_are_whole_on_a_full_disk(small):
    done = fill("jsonl", small / "found.jsonl")
    text = (small / "found.jsonl").read_text()
    found = [Detections.from_json(line) for line in text.splitlines()]
    assert text.endswith("\n") and len(found) == done > 100
    assert [round(10 * one.time) for one in found] == list(range(done))


def test_results_are_a_list_on_a_full_disk(small):
    done = fill("coco", small / "found.json")
    results = json.loads((small / "found.json").read_text())
    assert [one["image_id"] for one in results] == [n // 3 for n in range(3 * done)] and done > 50


def test_results_are_a_list_at_every_moment(tmp_path):
    out = tmp_path / "found.json"
    with open_detections("coco", out) as write:
        for number in range(5):
            write(*frame(number))
            assert len(json.loads(out.read_text())) == 3 * (number + 1)
    assert len(json.loads(out.read_text())) == 15
    with open_detections("coco", out):
        pass
    assert json.loads(out.read_text()) == []


def test_a_disk_without_any_room_is_said(small):
    (small / "ballast").write_bytes(bytes(64 * 1024))
    for format in ("jsonl", "coco"):
        assert fill(format, small / "found") == 0
        assert (small / "found").read_bytes() == b""


@pytest.mark.parametrize("name", ["boxes.mp4", "boxes.mkv"])
def test_a_video_plays_up_to_where_the_disk_was_full(small, name):
    done = fill("video", small / name)
    with av.open(str(small / name)) as video:
        shown = 0
        try:
            for _ in video.decode(video=0):
                shown += 1
        except av.error.InvalidDataError:
            pass  # the last frame may be cut
    assert done > 10 and shown > 0


@pytest.mark.parametrize("format", ["jsonl", "coco"])
def test_a_pipe_gets_the_same_as_a_file(tmp_path, format):
    pipe, file = tmp_path / "pipe", tmp_path / "file"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    for out in (pipe, file):
        with open_detections(format, out) as write:
            for number in range(4):
                write(*frame(number))
    reader.join()
    assert read == [file.read_text()]
