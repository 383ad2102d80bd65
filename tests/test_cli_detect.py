"""``vismem detect`` as a user meets it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib.resources import files

import av
import numpy as np
import pytest
import torch

import vismem.heads.detect as head
from vismem.cli import main
from vismem.detections import Detections

GALLERY = str(files("vismem.data") / "gallery.mp4")


@pytest.fixture
def scripted(monkeypatch):
    """Somebody in every frame: sure at first, then weak, in place of the real detector."""
    calls = []

    def propose(image, least):
        calls.append(image.shape)
        scores = torch.tensor([0.9 if len(calls) % 3 == 1 else 0.2])
        keep = scores >= least
        return torch.tensor([[0.25, 0.25, 0.5, 0.75]])[keep], scores[keep]

    monkeypatch.setattr(head, "people", lambda *_, **__: propose)
    monkeypatch.setattr(
        head, "person_looks", lambda: lambda image, boxes: torch.ones(len(boxes), 8)
    )
    return calls


def test_prints_a_line_a_frame_and_more_of_them_with_a_memory(scripted, capsys):
    assert main(["detect", GALLERY, "--fps", "2", "--seconds", "3"]) == 0
    alone = capsys.readouterr()
    scripted.clear()
    assert main(["detect", GALLERY, "--fps", "2", "--seconds", "3", "--memory"]) == 0
    printed = capsys.readouterr()
    single = [Detections.from_json(line) for line in alone.out.splitlines()]
    memory = [Detections.from_json(line) for line in printed.out.splitlines()]
    assert [len(found) for found in single] == [1, 0, 0, 1, 0, 0]
    assert [found.ids.tolist() for found in memory] == [[-1]] + [[0]] * 5
    assert np.allclose([found.time for found in memory], np.arange(6) / 2, atol=0.05)
    assert single[0].ids is None and single[0].labels.tolist() == [head.PERSON]
    width, height = scripted[0][1], scripted[0][0]
    assert single[0].boxes.tolist() == [[width / 4, height / 4, width / 2, height * 3 / 4]]
    assert "6 frames, 2 with somebody;" in alone.err
    assert "6 frames, 6 with somebody, 1 different;" in printed.err


def test_coco_results_are_one_list_of_json(scripted, tmp_path):
    out = tmp_path / "results.json"
    words = ["detect", GALLERY, "--fps", "2", "--format", "coco", "--out", str(out)]
    assert main([*words, "--seconds", "3", "--memory"]) == 0
    results = json.loads(out.read_text())
    assert len(results) == len({result["image_id"] for result in results}) == 6
    assert {result["category_id"] for result in results} == {1}
    assert main([*words, "--seconds", "3", "--threshold", "0.95"]) == 0
    assert json.loads(out.read_text()) == []


def test_a_video_has_the_boxes_and_the_times(scripted, tmp_path):
    out = tmp_path / "boxes.mp4"
    words = ["detect", GALLERY, "--fps", "2", "--seconds", "3", "--format", "video", "--memory"]
    assert main([*words, "--out", str(out)]) == 0
    with av.open(str(out)) as video:
        frames = list(video.decode(video=0))
    assert np.allclose([frame.time for frame in frames], np.arange(6) / 2, atol=0.05)
    height, width = frames[0].height, frames[0].width
    edge = frames[-1].to_ndarray(format="rgb24")[height // 4 + 3 : height // 2, width // 4].mean(0)
    assert edge[0] > 150 and edge[0] > edge[1] + 60  # the colour of id 0


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["missing.mp4"], 3, "missing.mp4"),
        ([GALLERY, "--format", "video"], 2, "--out"),
        ([GALLERY, "--threshold", "0"], 2, "threshold"),
        ([GALLERY, "--fps", "-1"], 2, "fps"),
        ([GALLERY, "--threads", "0"], 2, "--threads"),
        ([GALLERY, "--out", "/nowhere/x.jsonl"], 4, "/nowhere/x.jsonl cannot be written"),
        ([GALLERY, "--out", "/nowhere/x.mp4", "--format", "video"], 4, "/nowhere/x.mp4"),
    ],
)
def test_errors_are_one_line_with_their_exit_code(scripted, words, code, says, capsys):
    assert main(["detect", *words]) == code
    printed = capsys.readouterr()
    assert says in printed.err and printed.err.count("\n") == 1 and not printed.out


@pytest.mark.parametrize("format", ["jsonl", "coco", "video"])
def test_an_interrupt_keeps_what_was_written(scripted, monkeypatch, tmp_path, format, capsys):
    step = head.Detector.step

    def interrupted(self, frame):
        if len(scripted) == 4:
            raise KeyboardInterrupt
        return step(self, frame)

    monkeypatch.setattr(head.Detector, "step", interrupted)
    out = tmp_path / "found.mp4"
    assert main(["detect", GALLERY, "--memory", "--format", format, "--out", str(out)]) == 0
    assert "4 frames" in (printed := capsys.readouterr().err) and "stopped" in printed
    if format == "video":
        with av.open(str(out)) as video:
            assert len(list(video.decode(video=0))) == 4
    else:
        text = out.read_text()
        found = json.loads(text) if format == "coco" else text.splitlines()
        assert len(found) == 4


def test_a_real_process_stops_on_ctrl_c_with_whole_lines():
    command = [sys.executable, "-m", "vismem.cli", "detect", GALLERY, "--memory"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # Whoever runs the tests in the background ignores it, which children would inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    first = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    rest, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    lines = [first, *rest.splitlines()]
    assert all(isinstance(Detections.from_json(line), Detections) for line in lines)
    assert "stopped" in said
