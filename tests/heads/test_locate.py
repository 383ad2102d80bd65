"""Where things are said to be, and what is said not to be known."""

from __future__ import annotations

import math

import pytest
from seen_things import A, B, blind, memory_of, seen
from tiny_encoder import TinyEncoder

from vismem.encoders.color import COLORS
from vismem.heads.answer import Answer, Moment
from vismem.heads.locate import Sought, asks_where, locate, sought, with_places

RED, BLUE = COLORS.index("red"), COLORS.index("blue")
BLOCK = Sought("red block", RED, 0)
tiny = TinyEncoder()


def ask(question: str, memory=None, *, newest: float | None = None, moments=()) -> Answer:
    snapshot = memory.snapshot() if memory else None
    span = [0.0, newest if newest is not None else (snapshot.time if snapshot else 1.0)]
    text = "Cat: 0:00-0:01 (0.90), left." if moments else "Not seen: cat."
    found = Answer(question, text, tuple(moments), not moments, {"span": span})
    return with_places(found, snapshot, tiny)


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("where is it", True),
        ("Where's the dog?", True),
        ('"where did you see it"', True),
        ("when was it where", False),
        ("wherever", False),
        ("the place where it is", False),
    ],
)
def test_questions_for_a_place(question: str, expected: bool) -> None:
    assert asks_where(question) == expected


@pytest.mark.parametrize(
    ("question", "expected", "unknown"),
    [
        ("where was the red block?", [("red block", RED, 0)], []),
        ("where are the blue spheres", [("blue spheres", BLUE, 1)], []),
        ("where is the small grey can", [("grey can", COLORS.index("gray"), 2)], []),
        ("where can the cube be", [("cube", None, 0)], []),
        ("where is the red one?", [("red one", RED, None)], []),
        ("where is the red block next to the blue ball", [("red block", RED, 0)], []),
        (
            "where are the red block and the blue ball",
            [("red block", RED, 0), ("blue ball", BLUE, 1)],
            [],
        ),
        ("where is the cat", [("cat", None, None)], []),
        ("where is the red unicorn", [], ["unicorn"]),
        ("where was the red block at 0:10", [("red block", RED, 0)], []),
    ],
)
def test_what_a_question_asks_for(question: str, expected: list, unknown: list) -> None:
    things, rest = sought(question, tiny)
    assert [(t.text, t.color, t.shape) for t in things] == expected
    assert rest == unknown


def test_a_place_with_its_doubt_times_and_views() -> None:
    (one,) = locate(BLOCK, memory_of(*[seen((RED, A))] * 4).snapshot())
    assert one.position == pytest.approx(A) and one.sigma == pytest.approx(0.003)
    assert (one.first, one.last, one.views, one.state, one.rivals) == (0, 3, 4, "there", 0)
    assert one.score > 0.9 and set(one.to_dict()) == {
        "label", "position", "sigma", "state", "first", "last", "views", "score", "rivals",
    }  # fmt: skip


@pytest.mark.parametrize(
    "thing", [Sought("x", BLUE, 0), Sought("x", RED, 1), Sought("x", BLUE, 1), Sought("x")]
)
def test_neither_colour_nor_shape_alone_is_enough(thing: Sought) -> None:
    assert locate(thing, memory_of(*[seen((RED, A))] * 4).snapshot()) == ()


def test_what_was_seen_twice_is_not_told() -> None:
    assert locate(BLOCK, memory_of(*[seen((RED, A))] * 2).snapshot()) == ()


@pytest.mark.parametrize(
    ("frame", "state"),
    [
        (blind(seen(), 0), "unknown"),
        (blind(seen(), 900), "occluded"),
        (seen(eye=(2.0, 0.0, -1.0)), "not looked at since"),
        (seen(), "perhaps gone"),
    ],
)
def test_the_state_is_what_the_newest_frame_says(frame: dict, state: str) -> None:
    (one,) = locate(BLOCK, memory_of(*[seen((RED, A))] * 3, frame).snapshot())
    assert one.state == state


def test_frames_without_depth_say_nothing_of_now() -> None:
    memory = memory_of(*[seen((RED, A))] * 3)
    (one,) = locate(BLOCK, memory.snapshot(), now=60.0)
    assert one.state == "not looked at since"
    assert "not looked at since" in ask("where is the red block?", memory, newest=60.0).text


def test_two_alike_are_both_named() -> None:
    answer = ask("where is the red block?", memory_of(*[seen((RED, A), (RED, B))] * 3))
    assert len(answer.places) == 2 and all(p.rivals == 1 for p in answer.places)
    assert "; or x" in answer.text and not answer.abstained
    assert "several things or one" not in answer.text  # both were seen at once


def test_a_move_that_was_not_seen_is_said_to_be_open() -> None:
    away = blind(seen((RED, B)), 0)
    memory = memory_of(*[seen((RED, A))] * 3, *[away] * 4)
    answer = ask("where is the red block?", memory)
    assert [p.position for p in answer.places] == [pytest.approx(B), pytest.approx(A)]
    assert "several things or one that moved was not seen" in answer.text


def test_what_is_gone_is_not_there_but_was() -> None:
    memory = memory_of(*[seen((RED, A))] * 3, *[seen()] * 2)
    now, then = ask("where is the red block?", memory), ask("where was the red block?", memory)
    assert now.abstained and "Not known where it is now" in now.text
    assert not then.abstained and "gone since" in then.text
    for answer in (now, then):
        assert [p.state for p in answer.places] == ["gone"]
        assert answer.places[0].position == pytest.approx(A)


def test_where_it_was_at_a_time() -> None:
    memory = memory_of(*[seen((RED, A))] * 4, *[seen((RED, B))] * 4)
    at = {"at 0:01": (A, "there"), "before 3 seconds": (A, "there"), "at 0:06": (B, "there")}
    for when, (place, state) in at.items():
        (one,) = ask(f"where was the red block {when}?", memory).places
        assert (one.position, one.state) == (pytest.approx(place), state), when
    (late,) = ask("where was the red block at 0:30?", memory).places
    assert late.position == pytest.approx(B)
    early = memory_of(*[seen((RED, A))] * 4, start=50)
    assert ask("where was the red block at 0:10?", early).abstained


def test_what_was_never_seen_is_not_guessed() -> None:
    memory = memory_of(*[seen((RED, A))] * 3)
    for question in ("where is the blue block?", "where was the red ball?", "where is the unicorn"):
        answer = ask(question, memory, moments=[Moment(0, 1, 0.9, "cat")])
        assert (answer.abstained, answer.moments, answer.places) == (True, (), ())


def test_labels_of_an_encoder_find_other_things() -> None:
    frame = seen((BLUE, A), (RED, B))
    frame["label"][0, 0], frame["label_score"][0, 0] = 0, 0.9  # a cat
    memory = memory_of(*[frame] * 3)
    (one,) = ask("where is the cat?", memory).places
    assert one.position == pytest.approx(A)
    assert ask("where is the dog?", memory).abstained


def test_what_only_the_pictures_show_is_told_as_such() -> None:
    seen_in_picture = [Moment(0, 1, 0.9, "cat")]
    memory = memory_of(*[seen((RED, A))] * 3)
    answer = ask("where is the cat?", memory, moments=seen_in_picture)
    assert not answer.abstained and answer.places == ()
    assert answer.text.endswith("in the picture, its place in the world is not known.")
    flat = ask("where is the cat?", None, moments=seen_in_picture)
    assert flat.places is None and "no frame had depth and a pose" in flat.text
    assert "places" not in flat.to_dict() and ask("where is the cat?").text == "Not seen: cat."


def test_places_are_plain_values() -> None:
    plain = ask("where is the red block?", memory_of(*[seen((RED, A))] * 3)).to_dict()
    (place,) = plain["places"]
    assert place["position"] == [0.0, 0.0, 0.5] and place["state"] == "there"
    assert math.isfinite(place["sigma"])
