"""``vismem track`` as a user meets it; the weights are random, so the masks mean nothing."""

from __future__ import annotations

import json
from importlib.resources import files

import av
import numpy as np
import pytest
from tiny_masks import tiny_sam2

from vismem.cli import main
from vismem.masks import decode_mask
from vismem.models.mask_tracker import MaskTracker

GALLERY = str(files("vismem.data") / "gallery.mp4")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sam2")
    model, processor = tiny_sam2()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return ["--model", str(folder)]


SHORT = ["--fps", "2", "--seconds", "4"]
BOX = ["--box", "20,20,120,100"]


def test_prints_a_line_a_frame_with_every_object(saved, capsys):
    words = [*BOX, "--box", "0,0,50,60", "--point", "60.5,50", "--at", "1"]
    assert main(["track", GALLERY, *saved, *SHORT, *words]) == 0
    printed = capsys.readouterr()
    lines = [json.loads(line) for line in printed.out.splitlines()]
    assert np.allclose([line["time"] for line in lines], np.arange(2, 8) / 2, atol=0.05)
    assert [[thing["id"] for thing in line["objects"]] for line in lines] == [[1, 2, 3]] * 6
    with av.open(GALLERY) as video:
        size = [video.streams.video[0].height, video.streams.video[0].width]
    thing = lines[0]["objects"][0]
    assert thing["mask"]["size"] == size and decode_mask(thing["mask"]).any() == (
        thing["box"] != [0, 0, 0, 0]
    )
    assert "6 frames, 3 objects" in printed.err and "bytes kept" in printed.err


def test_the_same_whoever_reads_it(saved, tmp_path, capsys):
    out = tmp_path / "masks.jsonl"
    assert main(["track", GALLERY, *saved, *SHORT, *BOX]) == 0
    printed = capsys.readouterr().out
    assert main(["track", GALLERY, *saved, *SHORT, *BOX, "--out", str(out)]) == 0
    assert out.read_text() == printed


def test_a_video_is_annotated(saved, tmp_path):
    out = tmp_path / "masks.mp4"
    words = [*SHORT, *BOX, "--format", "video", "--out", str(out)]
    assert main(["track", GALLERY, *saved, *words]) == 0
    with av.open(str(out)) as video:
        assert len(list(video.decode(video=0))) == 8


def test_what_was_lost_is_told(saved, monkeypatch, capsys):
    step = MaskTracker.step

    def fading(self, frame, prompts=()):
        masks = step(self, frame, prompts)
        masks.masks[:] = True
        gone = frame.timestamp > 1.7, True
        masks.scores[:] = np.where(gone, 0.1, 0.9)
        return masks

    monkeypatch.setattr(MaskTracker, "step", fading)
    words = [*BOX, "--point", "5,5", "--policy", "published", "--views", "1"]
    assert main(["track", GALLERY, *saved, *SHORT, *words]) == 0
    told = capsys.readouterr().err
    assert "object 1 was last seen at 1.50 s" in told and "object 2 was never found" in told


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ([], 2, "add --box x0,y0,x1,y1 or --point x,y"),
        (["--box", "1,2,3"], 2, "--box is x0,y0,x1,y1 in pixels, not '1,2,3'"),
        (["--point", "1,b"], 2, "--point is x,y in pixels, not '1,b'"),
        (["--box", "10,10,9000,50"], 2, "9000,50 is outside of the picture"),
        (["--point", "nan,10"], 2, "outside"),
        (["--box", "50,10,20,60"], 2, "is empty"),
        ([*BOX, "--at", "-1"], 2, "--at"),
        ([*BOX, "--at", "1000"], 2, "before --at 1000"),
        ([*BOX, "--views", "0"], 2, "--views"),
        ([*BOX, "--threads", "0"], 2, "--threads"),
        ([*BOX, "--fps", "-1"], 2, "fps"),
        ([*BOX, "--format", "video"], 2, "--out"),
        ([*BOX, "--out", "/nowhere/x.jsonl"], 4, "/nowhere/x.jsonl cannot be written"),
    ],
)
def test_errors_are_one_line_with_their_exit_code(saved, words, code, says, capsys):
    assert main(["track", GALLERY, *saved, "--seconds", "2", "--fps", "2", *words]) == code
    printed = capsys.readouterr()
    assert says in printed.err and printed.err.count("\n") == 1 and not printed.out


def test_a_source_or_model_that_is_not_there(saved, monkeypatch, capsys):
    assert main(["track", "missing.mp4", *saved, *BOX]) == 3
    assert "missing.mp4" in capsys.readouterr().err
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code = main(["track", GALLERY, "--model", "nobody/no-such-model", *BOX])
    told = capsys.readouterr().err
    assert code == 3 and "hub" in told and "a folder" in told and told.count("\n") == 1


def test_an_interrupt_keeps_what_was_written(saved, monkeypatch, tmp_path, capsys):
    step, calls = MaskTracker.step, []

    def interrupted(self, frame, prompts=()):
        calls.append(frame)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return step(self, frame, prompts)

    monkeypatch.setattr(MaskTracker, "step", interrupted)
    out = tmp_path / "masks.jsonl"
    assert main(["track", GALLERY, *saved, *SHORT, *BOX, "--out", str(out)]) == 0
    assert "3 frames" in (told := capsys.readouterr().err) and "stopped" in told
    assert len(out.read_text().splitlines()) == 3
