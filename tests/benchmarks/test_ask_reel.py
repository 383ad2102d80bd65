"""The score of a reel is the rule that its questions were written for."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from vismem.errors import SourceError


@pytest.fixture(scope="module")
def reel(script) -> ModuleType:
    return script("ask_reel")


@pytest.mark.parametrize(
    ("moment", "spans", "right"),
    [
        ((10.0, 14.0), [[12.0, 30.0]], True),  # exactly half of the moment
        ((10.0, 14.0), [[12.1, 30.0]], False),
        ((0.0, 60.0), [[0.0, 9.0]], False),  # a whole clip is no answer, though it holds the span
        ((4.0, 6.0), [[0.0, 1.0], [5.0, 9.0]], True),
        ((4.0, 8.0), [[3.0, 5.0], [7.0, 9.0]], False),  # halves of two spans are not one
        ((5.0, 5.0), [[0.0, 5.0]], True),  # one frame
        ((6.0, 6.0), [[0.0, 5.0]], False),
        ((20.0, 24.0), [[0.0, 5.0]], False),
        (None, [[0.0, 5.0]], False),
        (None, [], True),
        ((0.0, 5.0), [], False),
    ],
)
def test_half_of_the_moment_must_lie_in_one_span(
    reel: ModuleType, moment: tuple[float, float] | None, spans: list, right: bool
) -> None:
    assert reel.is_right(moment, spans) is right


def test_baselines_never_look(reel: ModuleType) -> None:
    questions = [[], [], [[0.0, 5.0]], [[0.0, 10.0]], [[5.0, 20.0]]]
    found = reel.baselines(questions, [(0.0, 5.0), (5.0, 10.0), (10.0, 20.0), (20.0, 25.0)])
    assert found == {
        "always abstain": 2,
        "always the whole clip": 1,  # 15 of the 25 seconds are asked for by the last
        "a random moment, expected": 5 / 4,  # 1, 2 and 2 of the 4 moments
    }


def test_reads_a_folder_and_a_file(reel: ModuleType, tmp_path: Path) -> None:
    asked = [{"ask": "a dog", "spans": []}]
    text = json.dumps({"video": "clip.mp4", "questions": asked})
    (tmp_path / "questions.json").write_text(text)
    (tmp_path / "other.json").write_text(text)
    for place in (tmp_path, tmp_path / "other.json"):
        assert reel.read_questions(place) == (tmp_path / "clip.mp4", asked)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"video": "a.mp4", "questions": []}',
        '{"video": "a.mp4", "questions": [{"ask": "a dog"}]}',
        '{"video": "a.mp4", "questions": [{"ask": " ", "spans": []}]}',
        '{"video": "a.mp4", "questions": [{"ask": 3, "spans": []}]}',
        '{"video": "a.mp4", "questions": [{"ask": "a dog", "spans": [[5, 2]]}]}',
    ],
)
def test_refuses_what_holds_no_questions(reel: ModuleType, tmp_path: Path, text: str) -> None:
    path = tmp_path / "questions.json"
    path.write_text(text)
    with pytest.raises(SourceError, match="questions.json"):
        reel.read_questions(tmp_path)


def test_missing_files_end_in_one_line(
    reel: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        reel.main([str(tmp_path)])
    printed = capsys.readouterr()
    assert exit_.value.code == 3
    assert printed.out == ""
    assert printed.err.count("\n") == 1 and "questions.json" in printed.err


def test_runs_a_reel_and_prints_it(
    reel: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gallery = json.loads(reel.GALLERY.read_text())
    (tmp_path / "clip.mp4").symlink_to(reel.GALLERY.with_name(gallery["video"]))
    asked = [{"ask": "a cat", "spans": [[0, 5], [32, 37]]}, {"ask": "an elephant", "spans": []}]
    (tmp_path / "questions.json").write_text(json.dumps({"video": "clip.mp4", "questions": asked}))
    reel.main([str(tmp_path), "--fps", "0.2", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert result["memory"]["frames"] == 10
    assert [row["right"] for row in result["questions"]] == [True, True]
    assert result["questions"][1]["moment"] is None
    assert result["baselines"]["always abstain"] == 1
    lines = reel.table(result).splitlines()
    assert [line.split()[0] for line in lines[2:4]] == ["right", "right"]
    assert lines[4] == "2/2 right"
