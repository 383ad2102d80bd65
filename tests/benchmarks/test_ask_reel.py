"""The score of a reel is the rule that its questions were written for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from vismem import Frame
from vismem.encoders.base import Encoder
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


# --------------------------------------------------------------------------- a reel in a loop


class Film:
    """Six pictures in three seconds, of which the first is shown again; a cat in the second."""

    def __init__(self, duration: float | None):
        self.duration = duration

    def __enter__(self) -> Film:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def __iter__(self) -> Iterator[Frame]:
        for number in range(6):
            image = np.full((8, 8, 3), 40 * (number % 5), np.uint8)
            image[0, 0] = (number == 1), 1, 0
            yield Frame(image, number / 2)


@pytest.fixture
def shown(reel: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Puts a film of some duration in the place of every video."""
    asked = [{"ask": "a cat", "spans": [[0.5, 0.6]]}, {"ask": "a dog", "spans": []}]
    text = json.dumps({"video": "clip.mp4", "questions": asked})
    (tmp_path / "questions.json").write_text(text)

    def show(duration: float | None) -> Path:
        monkeypatch.setattr(reel, "open_stream", lambda video, fps: Film(duration))
        return tmp_path

    return show


# Files give the time of the last frame, recordings a time behind it, folders may give none.
@pytest.mark.parametrize(("duration", "turn"), [(2.5, 3.0), (4.0, 4.0), (None, 3.0), (0.0, 3.0)])
def test_a_loop_tells_true_times(
    reel: ModuleType, shown: Callable, duration: float | None, turn: float
) -> None:
    path = shown(duration) / "clip.mp4"
    played = [(start, frame.timestamp) for start, frame in reel.frames(path, 2.0, 3 * turn)]
    one = [number / 2 for number in range(6)]
    assert played == [(n * turn, n * turn + at) for n in range(3) for at in one]
    assert [frame.timestamp for _, frame in reel.frames(path, 2.0, 0.0)] == one
    assert len(list(reel.frames(path, 2.0, 2 * turn + 0.1))) == 18


def test_the_spans_of_a_loop_come_again(
    reel: ModuleType, shown: Callable, tiny: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {}
    real = reel.baselines
    monkeypatch.setattr(reel, "baselines", lambda q, m: told.update(spans=q) or real(q, m))
    result = reel.run(shown(2.5), 2.0, 0.3, loop=9.0, policy="flash", encoder=tiny)
    assert told["spans"] == [[(0.5, 0.6), (3.5, 3.6), (6.5, 6.6)], []]
    cat, dog = result["questions"]
    assert dog["right"] and dog["moment"] is None
    assert result["memory"]["frames"] == 18 and result["memory"]["scenes"] > 0
    once = reel.run(shown(2.5), 2.0, 0.3, encoder=tiny)
    assert told["spans"] == [[(0.5, 0.6)], []] and once["memory"]["frames"] == 6


def test_a_question_is_right_in_any_turn(
    reel: ModuleType, shown: Callable, tiny: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for at, right in ((0.55, True), (3.55, True), (6.55, True), (9.55, False), (2.55, False)):
        seen = SimpleNamespace(start=at, end=at, score=0.9)
        reply = SimpleNamespace(abstained=False, moments=(seen,), text="")
        monkeypatch.setattr(reel.VisualMemory, "ask", lambda *_, reply=reply, **__: reply)
        result = reel.run(shown(2.5), 2.0, 0.5, loop=9.0, encoder=tiny)
        assert [row["right"] for row in result["questions"]] == [right, False]


def test_no_room_for_any_moment(reel: ModuleType, shown: Callable, tiny: Encoder) -> None:
    result = reel.run(shown(2.5), 2.0, 0.5, budget="100", encoder=tiny)
    assert [row["right"] for row in result["questions"]] == [False, True]
    assert list(result["baselines"].values()) == [1, 0, 0.0]


def test_equal_pictures_are_encoded_once(
    reel: ModuleType, shown: Callable, tiny: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded, real = [], tiny.encode
    monkeypatch.setattr(tiny, "encode", lambda images: encoded.extend(images) or real(images))
    careful = reel.Remembering(tiny)
    assert careful.token_dim == tiny.token_dim and careful.identity == tiny.identity
    looped = reel.run(shown(2.5), 2.0, 0.5, loop=9.0, encoder=careful)
    assert len(encoded) == 5 and looped["memory"]["frames"] == 18
    assert reel.run(shown(2.5), 2.0, 0.5, loop=9.0, encoder=careful) == looped and len(encoded) == 5
    assert reel.run(shown(2.5), 2.0, 0.5, loop=9.0, encoder=tiny) == looped
    pictures = [np.full((2, 2, 3), value, np.uint8) for value in (7, 9, 7)]
    given = careful.encode(pictures)
    assert given[0] is given[2] and bool((given[0].tokens != given[1].tokens).any())
