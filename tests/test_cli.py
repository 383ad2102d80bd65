"""The command line, as a user meets it: real processes, exit codes, what is printed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
from PIL import Image

from vismem.cli import main

GALLERY = str(files("vismem.data") / "gallery.mp4")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def vismem(*words: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vismem.cli", *words],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=300,
        **options,
    )


@pytest.fixture(scope="module")
def memory(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "gallery.mem"
    assert main(["run", GALLERY, "--out", str(out), "--fps", "1"]) == 0
    return out


def test_help_imports_neither_torch_nor_gradio_nor_numpy():
    code = (
        "import sys, vismem.cli\n"
        "try: vismem.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'gradio', 'numpy', 'cv2', 'av') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "run" in done.stdout and "inspect" in done.stdout
    assert done.stdout.strip().endswith("[]")


def test_ask_prints_the_schema_that_the_design_names(memory, capsys):
    assert main(["ask", str(memory), "when does the cat appear?", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert set(answer) == {"question", "answer", "abstained", "moments", "memory"}
    assert set(answer["memory"]) == {"bytes", "budget", "frames", "span"}
    assert {"start", "end", "score", "label", "box", "pose"} <= set(answer["moments"][0])
    scores = [moment["score"] for moment in answer["moments"]]
    assert scores == sorted(scores, reverse=True)
    assert not answer["abstained"] and answer["moments"][0]["end"] <= 37.5
    assert answer["memory"]["bytes"] <= answer["memory"]["budget"]


def test_an_absent_thing_gives_no_moments(memory, capsys):
    assert main(["ask", str(memory), "an elephant", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["abstained"] and answer["moments"] == []


def test_inspect_verifies_and_says_what_is_damaged(memory, tmp_path, capsys):
    assert main(["inspect", str(memory), "--verify", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["verified"] and facts["memory"]["frames"] == 47
    copy = tmp_path / "copy.mem"
    subprocess.run(["cp", "-r", str(memory), str(copy)], check=True)
    blob = sorted(copy.glob("seg_*.blob"))[0]
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.write_bytes(data)
    assert main(["inspect", str(copy), "--verify"]) == 4
    assert blob.name in capsys.readouterr().err


def test_run_refuses_to_overwrite_and_resumes_where_it_stopped(tmp_path, capsys):
    out = str(tmp_path / "clip.mem")
    assert main(["run", GALLERY, "--out", out, "--fps", "1", "--seconds", "5"]) == 0
    assert main(["run", GALLERY, "--out", out]) == 2
    assert "--resume" in capsys.readouterr().err
    assert main(["run", GALLERY, "--out", out, "--fps", "1", "--resume", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["written"] == 42 and result["memory"]["frames"] == 47
    assert result["counts"]["late"] == 0


def test_forget_takes_a_scene_out(memory, tmp_path, capsys):
    copy = tmp_path / "copy.mem"
    subprocess.run(["cp", "-r", str(memory), str(copy)], check=True)
    assert main(["forget", str(copy), "10", "16"]) == 0
    main(["ask", str(copy), "a rocket"])
    assert "Not seen" in capsys.readouterr().out
    assert main(["forget", str(copy), "9", "3"]) == 2


def test_export_writes_moments_with_their_thumbnails(memory, tmp_path):
    out = tmp_path / "export" / "gallery.json"
    assert main(["export", str(memory), "--out", str(out)]) == 0
    exported = json.loads(out.read_text())
    assert sum(moment["frames"] for moment in exported["moments"]) == 47
    first = exported["moments"][0]
    assert (out.parent / first["thumbnail"]).read_bytes()[:2] == b"\xff\xd8"
    assert any("cat" in label["label"] for label in first["labels"])


def test_export_to_rerun_writes_a_recording(memory, tmp_path):
    pytest.importorskip("rerun", reason="the extra rerun is not installed")
    out = tmp_path / "gallery.rrd"
    assert main(["export", str(memory), "--out", str(out), "--format", "rerun"]) == 0
    assert out.read_bytes()[:3] == b"RRF"


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["run", "no_such.mp4"], 3, "does not exist"),
        (["run", "rtsp://127.0.0.1:1/x"], 3, "rtsp"),
        (["ask", "no_such.mem", "a cat"], 4, "does not exist"),
        (["run", GALLERY, "--budget", "lots", "--out", "unused.mem"], 2, "64MB"),
        (["run", GALLERY, "--config", "nope", "--out", "unused.mem"], 2, "lobby"),
        (["run", GALLERY, "--encoder", "/no/model", "--out", "unused.mem"], (2, 3), "embedded"),
        (["run", GALLERY, "--fps", "0", "--out", "unused.mem"], 2, "fps"),
    ],
)
def test_errors_are_one_line_with_the_right_code(words, code, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words) in (code if isinstance(code, tuple) else (code,))
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("vismem: ") and says in said
    assert not (tmp_path / "unused.mem").exists()


def test_an_empty_question_and_a_wrong_verb_are_usage_errors(memory):
    assert main(["ask", str(memory), "  "]) == 2
    with pytest.raises(SystemExit) as stopped:
        main(["rnu"])
    assert stopped.value.code == 2


def test_a_preset_sets_defaults_and_the_command_line_wins(tmp_path, capsys):
    preset = tmp_path / "mine.yaml"
    preset.write_text("fps: 1\nseconds: 3\nbudget: 2MB\n")
    out = str(tmp_path / "clip.mem")
    words = ["run", GALLERY, "--config", str(preset), "--out", out, "--budget", "3MB", "--json"]
    assert main(words) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["memory"]["budget"] == 3_000_000 and result["written"] == 3
    preset.write_text("fsp: 1\n")
    assert main(words) == 2
    assert "fsp" in capsys.readouterr().err


def test_ctrl_c_seals_the_memory_and_says_how_to_go_on(tmp_path):
    out = tmp_path / "clip.mem"
    script = (
        "import os, signal, sys, vismem.pipeline as p\n"
        "write, count = p.VisualMemory.write, 0\n"
        "def once(self, frame, **options):\n"
        "    global count\n"
        "    count += 1\n"
        "    if count == 6: os.kill(os.getpid(), signal.SIGINT)\n"
        "    return write(self, frame, **options)\n"
        "p.VisualMemory.write = once\n"
        "import vismem.cli\n"
        "sys.exit(vismem.cli.main(sys.argv[1:]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "run", GALLERY, "--out", str(out), "--fps", "1"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=300,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert done.returncode == 0, done.stderr
    assert "--resume" in done.stdout
    checked = vismem("inspect", str(out), "--verify", "--json")
    assert checked.returncode == 0
    assert 5 <= json.loads(checked.stdout)["memory"]["frames"] <= 6


def test_a_reader_asks_while_a_writer_holds_the_memory(tmp_path, capsys):
    from vismem.pipeline import VisualMemory
    from vismem.streams import open_stream

    out = tmp_path / "clip.mem"
    with VisualMemory(path=out) as writer, open_stream(GALLERY, fps=1) as stream:
        for frame in stream:
            if frame.timestamp >= 4:
                break
            writer.write(frame)
        writer.flush()
        assert main(["ask", str(out), "a cat"]) == 0
        assert "Cat: 0:00" in capsys.readouterr().out
        assert main(["forget", str(out), "0", "1"]) == 4  # one writer at a time
        assert str(os.getpid()) in capsys.readouterr().err


def test_bench_says_what_a_frame_costs(capsys):
    assert main(["bench", "--frames", "2", "--dtype", "float32"]) == 0
    said = capsys.readouterr().out
    assert "float32" in said and "decode" in said and "frames a second end to end" in said


@pytest.fixture(scope="module")
def visual(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "visual.mem"
    words = ["run", GALLERY, "--out", str(out), "--fps", "1", "--policy", "flash"]
    assert main([*words, "--budget", "400kB"]) == 0
    return out


def test_a_memory_with_a_bank_tells_of_its_scenes_and_answers(visual, capsys):
    assert main(["inspect", str(visual), "--json", "--verify"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["verified"] and facts["settings"]["policy"] == "flash"
    assert facts["gallery, flash"].split()[1] == "scenes:"
    assert facts["memory"]["bytes"] <= 400_000
    assert main(["ask", str(visual), "when does the cat appear?"]) == 0
    assert capsys.readouterr().out.startswith("Cat: 0:0")


def test_inspect_draws_a_memory_with_and_without_a_bank(visual, memory, tmp_path, capsys):
    sizes = []
    for number, stored in enumerate((visual, memory)):
        out = tmp_path / f"{number}.png"
        assert main(["inspect", str(stored), "--picture", str(out)]) == 0
        assert str(out) in capsys.readouterr().out
        with Image.open(out) as page:
            sizes.append(page.size)
    assert sizes[0][0] == sizes[1][0] and sizes[0] != sizes[1]


@pytest.mark.parametrize(("name", "code"), [("page.strange", 2), ("no/such/folder/page.png", 4)])
def test_a_picture_that_cannot_be_written_is_an_error(visual, tmp_path, capsys, name, code):
    assert main(["inspect", str(visual), "--picture", str(tmp_path / name)]) == code
    assert "page" in capsys.readouterr().err


def test_a_policy_that_is_none_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["run", GALLERY, "--out", str(tmp_path / "x.mem"), "--policy", "strange"])
    assert stopped.value.code == 2
    assert not (tmp_path / "x.mem").exists()


def test_resuming_takes_another_budget_and_policy_and_keeps_them(tmp_path, capsys):
    out = tmp_path / "a.mem"
    run = ["run", GALLERY, "--out", str(out), "--fps", "1", "--json"]

    def settings(*more: str) -> tuple[int, str]:
        assert main([*run, *more]) == 0
        told = json.loads(capsys.readouterr().out)
        assert main(["inspect", str(out), "--json"]) == 0
        stored = json.loads(capsys.readouterr().out)["settings"]
        assert told["memory"]["bytes"] <= told["memory"]["budget"] == stored["budget"]
        return stored["budget"], stored["policy"]

    assert settings("--budget", "1MB", "--seconds", "4") == (1_000_000, "moments")
    assert settings("--resume", "--seconds", "4") == (1_000_000, "moments")
    assert settings("--resume", "--budget", "90KB", "--policy", "flash", "--seconds", "4") == (
        90_000,
        "flash",
    )
    assert settings("--resume", "--seconds", "2") == (90_000, "flash")
    assert main([*run, "--resume", "--budget", "much"]) == 2
    assert "no size" in capsys.readouterr().err
