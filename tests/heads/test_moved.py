"""What is said of movements: which, when and where, and what is said not to be known."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

import pytest
import torch
from labelled_scenes import film, seen
from moving_regions import CONFIG, NOWHERE, ROOM, box_at, frame, region
from seen_things import FAR, A, B, memory_of
from seen_things import seen as thing
from tiny_encoder import TinyEncoder

from vismem.encoders.color import COLORS
from vismem.heads.answer import Answer
from vismem.heads.moved import asks_moved, with_movements
from vismem.heads.moved_question import read_moved
from vismem.heads.near import _apart, _outside
from vismem.memory.episodic import EpisodicSnapshot
from vismem.memory.movements import MovementMemory, MovementSnapshot

CAT, DOG, PERSON = 0, 1, 2
RED = COLORS.index("red")
LEFT, MIDDLE, RIGHT = 0.2, 0.5, 0.8
tiny = TinyEncoder()


def moving(*paths: Mapping) -> MovementSnapshot:
    """Movements from one place to another, by what `path` says of each."""
    memory = MovementMemory(100 * ROOM, CONFIG)
    frames: dict[float, list] = {}
    for number, path in enumerate(paths):
        for time, seen_then in path(number):
            frames.setdefault(time, []).append(seen_then)
    for time in sorted(frames):
        memory.write(time=time, **frame(*frames[time]))
    return memory.snapshot()


def path(
    start: float,
    end: float,
    begun: float = MIDDLE,
    ended: float | None = None,
    *,
    label: int = -1,
    sure: float = 0.9,
    score: float = 0.9,
    world: tuple = (NOWHERE, NOWHERE),
    y: float = 0.5,
):
    """One movement, ten times a second."""
    count = round(10 * (end - start))

    def regions(number: int):
        for n in range(count + 1):
            share = n / max(count, 1)
            x = begun + share * ((begun if ended is None else ended) - begun)
            place = [a + share * (b - a) for a, b in zip(*world, strict=True)]
            labels = {label: sure} if label >= 0 else None
            box = (x - 0.05, y - 0.1, x + 0.05, y + 0.1)
            yield (
                round(start + n / 10, 3),
                region(number, box=box, position=place, score=score, labels=labels),
            )

    return regions


def ask(
    question: str,
    movements: MovementSnapshot | Mapping | None,
    *,
    objects=None,
    moments: EpisodicSnapshot | Mapping | None = None,
    newest: float = 60.0,
) -> Answer:
    assert asks_moved(question)
    if moments is None:
        moments = film()
    snapshots = moments if isinstance(moments, Mapping) else {"camera": moments}
    if isinstance(movements, MovementSnapshot):
        movements = {name: movements for name in snapshots}
    found = Answer(question, "Not seen.", (), True, {"span": [0.0, newest]})
    told = with_movements(found, movements, objects and objects.snapshot(), snapshots, tiny)
    assert told.movements is not None and (told.question, told.memory) == (question, found.memory)
    assert told.abstained == (not told.moments) == (not told.movements)
    json.dumps(told.to_dict())
    return told


def labels(answer: Answer) -> list[str]:
    return [one.label for one in answer.movements or ()]


def starts(answer: Answer) -> list[float]:
    return [one.start for one in answer.movements or ()]


DAY = (
    path(10, 14, LEFT, RIGHT, label=DOG),
    path(20, 22, MIDDLE, label=CAT, sure=0.4, score=0.6),
    path(21, 25, RIGHT, label=PERSON, score=0.8),
)


# --------------------------------------------------------------------------- questions


@pytest.mark.parametrize(
    "question",
    [
        "what moved?",
        "What  moved",
        "did anything move between 0:10 and 0:20?",
        "what moved near the table?",
        "when did something move on the left?",
        "how many things moved?",
        "has the red block moved?",
        "is anything moving?",
        "what's moving right now?",
        "what was the last thing that moved?",
        "did the dog move?",
        "who moved?",
        "was there any movement near the door",
        "was there motion in the last 20 seconds?",
        "Can you tell me what moved?",
        "do you know what moved?",
        "when did the car stop moving?",
        "did you see anything moving?",
        "the last time when anything moved",
        "hasn't anything moved?",
        "what moved after the dog came?",
        "show me everything that moved",
    ],
)
def test_questions_of_what_moved(question: str) -> None:
    assert asks_moved(question)


@pytest.mark.parametrize(
    "question",
    [
        "when did the dog appear",
        "what happened",
        "what was removed?",
        "was there a movie on?",
        "who removed the cup",
        "what emotion was it",
        "when did the moving van arrive",
        "when did the moving car appear?",
        "was it in slow motion?",
        "what happened when the dog moved?",
        "move the cup to the left",
        "can you move left",
        "how do I move the robot?",
        "where did the block move to?",
        "did the camera move?",
        "has the camera been moving",
        "did you move",
        "what did not move?",
        "which things never moved",
        "a dog",
        "",
    ],
)
def test_other_questions(question: str) -> None:
    assert not asks_moved(question)


@pytest.mark.parametrize(
    ("question", "subject", "near", "sides"),
    [
        ("what moved?", "", (), ()),
        ("how many things moved in the room?", "", (), ()),
        ("did anything move between 0:10 and 0:20", "", (), ()),
        ("what moved at 0:10 near the table?", "", ("table",), ()),
        ("what moved near the table in the last 20 seconds", "", ("table",), ()),
        ("did the big dog and the cat move", "big dog cat", (), ()),
        ("did the red thing move", "red thing", (), ()),
        ("who moved by the window?", "person", ("window",), ()),
        ("what moved in the top left corner", "", (), ("top", "left")),
        ("what moved on the right-hand side of the picture?", "", (), ("right",)),
        ("when did something move in the middle", "", (), ("centre",)),
        ("what moved on the left near the cup", "", ("cup",), ("left",)),
        ("what moved to the left of the table", "", ("table",), ()),
        ("what moved from the table to the shelf", "", ("table", "shelf"), ()),
        ("what moved on the top shelf", "", ("top shelf",), ()),
        ("has the dog moved next to the cat", "dog", ("cat",), ()),
        ("what did you see moving", "", (), ()),
    ],
)
def test_what_a_question_asks_for(question: str, subject: str, near: tuple, sides: tuple) -> None:
    asked = read_moved(question)
    assert (asked.subject, asked.near, asked.sides) == (subject, near, sides)
    assert asked.streams == () and not asked.now and not asked.left_out


def test_what_is_asked_of_the_present_and_what_is_not_understood() -> None:
    assert read_moved("is anything moving?").now and read_moved("what is moving").now
    assert not read_moved("was anything moving?").now
    assert not read_moved("is anything moving at 0:10?").now
    assert read_moved("what moved when the dog came?").left_out == "when the dog came"


# --------------------------------------------------------------------------- what moved


def test_all_that_moved_is_told_in_order_of_time() -> None:
    answer = ask("what moved?", moving(*DAY))
    assert answer.text == (
        "Moved: dog 0:10-0:14 (0.90), from left to right; something 0:20-0:22 (0.60), centre; "
        "person 0:21-0:25 (0.80), right."
    )
    assert starts(answer) == [10, 20, 21]
    assert [moment.label for moment in answer.moments] == ["dog", "person", "something"]
    best = answer.moments[0]
    assert (best.start, best.end, best.stream, best.time) == (10, 14, "camera", 10)
    assert best.box == pytest.approx((0.15, 0.4, 0.25, 0.6))
    (first, _, _) = answer.to_dict()["movements"]
    assert first["label"] == "dog" and first["from"]["position"] is None
    assert first["from"]["box"] == [0.15, 0.4, 0.25, 0.6]
    assert first["to"]["box"] == [0.75, 0.4, 0.85, 0.6]


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("did anything move between 0:10 and 0:20?", [10, 20]),
        ("what moved before 0:12", [10]),
        ("what moved at 0:24?", [21]),
        ("what moved after 0:30", []),
        ("did something move in the last 36 seconds", [21]),
        ("what moved in the last 41 seconds", [20, 21]),
        ("what moved on the left?", [10]),
        ("what moved in the middle", [10, 20]),
        ("when did something move on the right between 0:20 and 0:30", [21]),
        ("what moved at the top", []),
        ("what was the last thing that moved?", [21]),
        ("what moved first?", [10]),
        ("did the dog move?", [10]),
        ("did the cat move?", [20]),
        ("who moved?", [21]),
        ("when did the dogs and the person move", [10, 21]),
        ("did the dog move after 0:20", []),
        ("did the dog move on the right?", [10]),
        ("did the unicorn move?", []),
        ("did the red dog move?", []),
    ],
)
def test_what_is_asked_for_and_nothing_else(question: str, expected: list[float]) -> None:
    answer = ask(question, moving(path(5, 7, y=0.9, score=0.4), *DAY))
    assert starts(answer) == expected


def test_the_text_names_the_thing_that_is_asked_for() -> None:
    day = moving(*DAY)
    told = ask("did the dog move?", day).text
    assert told == "Dog moved: 0:10-0:14 (0.90), from left to right."
    assert ask("what was the last thing that moved?", day).text.startswith("Moved last: person")
    told = ask("did the unicorn move?", day).text
    assert told == (
        "Not seen to move: unicorn; 3 other movements: dog 0:10-0:14, something 0:20-0:22, "
        "person 0:21-0:25."
    )


def test_a_claim_is_as_sure_as_the_less_sure_of_movement_and_name() -> None:
    (cat,) = ask("did the cat move?", moving(*DAY)).movements or ()
    assert cat.score == pytest.approx(0.583, abs=0.01) and cat.label == "cat"
    assert ask("did the cat move?", moving(path(0, 2, label=CAT, sure=0.3))).abstained


def test_how_many() -> None:
    day = moving(*DAY)
    assert ask("how many things moved?", day).text.startswith("3 movements, at most 2 at once: dog")
    assert ask("how many moved on the left?", day).text.startswith("1 movement on the left, at mo")
    told = ask("how many things moved?", moving(path(0, 2), path(2, 4))).text
    assert told.startswith("2 movements, at most 2 at once")  # both are seen at 0:02
    twice = moving(path(0, 2, label=DOG), path(9, 12, label=DOG))
    told = ask("how often did the dog move?", twice).text
    assert told.startswith("Dog moved: 2 times, at most 1 at once: 0:00-0:02")


def test_what_moves_now() -> None:
    day = moving(*DAY)
    assert starts(ask("is anything moving?", day, newest=25.5)) == [21]
    assert ask("is anything moving?", day, newest=25.5).text.startswith("Moving now: person")
    told = ask("is the dog moving?", day, newest=13.0)
    assert told.text.startswith("Dog is moving: 0:10")
    assert ask("is anything moving?", day, newest=60).text == "Nothing is moving now."
    assert not ask("is anything moving?", day, newest=26.9).abstained  # two seconds ago is now
    assert ask("is anything moving?", day, newest=27.1).abstained


def test_what_is_no_thing_names_no_movement() -> None:
    """Labels beyond an encoder's things are what things are like, and sort of."""
    red = path(10, 12, label=len(tiny.label_names) - 1)
    assert labels(ask("what moved?", moving(red))) == ["something"]


def test_the_picture_is_of_the_moment_in_which_it_was_surest() -> None:
    scenes = film((0, 5, []), (9, 15, []), (20, 25, []))
    answer = ask("what moved?", moving(path(6, 7), path(10, 12), path(20, 22)), moments=scenes)
    assert [moment.thumbnail for moment in answer.moments] == [b"", b"\x01", b"\x02"]


def test_nothing_moved_is_told_with_its_limits() -> None:
    day, still = moving(*DAY), moving()
    assert ask("what moved?", still).text == "Nothing moved."
    assert ask("what moved after 0:30?", day).text == "Nothing moved then."
    assert ask("what moved at the bottom?", day).text.startswith(
        "Nothing moved on the bottom; 3 movements elsewhere: dog 0:10-0:14"
    )


@pytest.mark.parametrize("movements", [None, {}, {"camera": None}])
def test_not_having_watched_is_not_nothing(movements: Mapping | None) -> None:
    answer = ask("what moved?", movements)
    assert answer.text == (
        "Whether something moved is not known: this memory did not watch, or no camera stood "
        "still for long enough."
    )
    assert ask("did the dog move?", movements).text.startswith("Whether dog moved is not known")


def test_flickers_and_what_is_not_sure_are_not_told() -> None:
    assert ask("what moved?", moving(path(3, 3), path(5, 8, score=0.45))).abstained


def test_movements_told_as_one_are_counted() -> None:
    memory = MovementMemory(100 * ROOM, CONFIG)
    for start in (0.0, 4.0, 30.0):
        for n in range(5):
            memory.write(time=start + n / 10, **region(int(start)))
    memory.set_budget(2 * ROOM)
    answer = ask("how many things moved before 0:20?", memory.snapshot())
    assert answer.text == (
        "2 movements, at most 1 at once: something 0:00-0:04 (0.90), centre, 2 movements."
    )


def test_much_that_moved_is_told_in_short() -> None:
    many = [path(10 * n, 10 * n + 1, score=0.6 + n / 50) for n in range(14)]
    answer = ask("what moved?", moving(*many))
    assert answer.text.count(";") == 6 and answer.text.endswith("; and 8 more.")
    assert "1:20-1:21" in answer.text and "0:00-0:01" not in answer.text  # the surest six
    assert len(answer.moments) == 10 and len(answer.movements or ()) == 14


def test_much_that_moved_beside_what_is_asked_for_is_told_in_short() -> None:
    many = [path(10 * n, 10 * n + 1, score=0.6 + n / 50) for n in range(5)]
    told = ask("did the unicorn move?", moving(*many)).text
    assert told == (
        "Not seen to move: unicorn; 5 other movements: something 0:20-0:21, "
        "something 0:30-0:31, something 0:40-0:41 and 2 more."
    )


def test_every_number_told_is_in_the_evidence() -> None:
    for question in ("what moved?", "did the dog move?", "how many things moved on the right?"):
        answer = ask(question, moving(*DAY))
        told = set(re.findall(r"\d\.\d\d", answer.text))
        assert told <= {f"{moment.score:.2f}" for moment in answer.moments}


def test_a_clause_that_is_not_understood_is_said_to_be() -> None:
    answer = ask("what moved when the cat came?", moving(*DAY))
    assert answer.text.endswith('; "when the cat came" was not understood.')
    assert starts(answer) == [10, 20, 21]
    for part in ("the fastest", "yesterday", "this morning"):
        answer = ask(f"what moved {part}?", moving(*DAY))
        assert answer.text.endswith(f'; "{part}" was not understood.') and len(starts(answer)) == 3
    assert ask("what moved the most recently?", moving(*DAY)).text.endswith("right.")


def test_a_word_that_is_no_thing_is_left_out_and_one_that_is_unknown_is_not() -> None:
    answer = ask("did anything move outside?", moving(*DAY))
    assert answer.text.endswith('; "outside" was not understood.') and not answer.abstained
    assert ask("did the elephant move?", moving(*DAY)).abstained


# --------------------------------------------------------------------------- streams


def test_streams_are_told_apart_and_may_be_asked_for() -> None:
    watched = {"front": moving(*DAY[:1]), "back": moving(*DAY[1:])}
    films = {"front": film((9, 15, [])), "back": film()}
    answer = ask("what moved?", watched, moments=films)
    assert "dog 0:10-0:14 (0.90), from left to right, on front; " in answer.text
    assert [moment.stream for moment in answer.moments] == ["front", "back", "back"]
    assert answer.moments[0].thumbnail == b"\x00" and answer.moments[1].thumbnail == b""
    assert starts(ask("what moved on the back camera?", watched, moments=films)) == [20, 21]


def test_the_name_of_the_only_stream_is_a_thing_as_well() -> None:
    answer = ask("what moved on the cat?", {"cat": moving(*DAY)}, moments={"cat": film()})
    assert answer.text.startswith("Not seen: cat; 3 movements then")


def test_a_stream_that_was_not_watched_is_named() -> None:
    films = {"front": film(), "back": film()}
    answer = ask("what moved?", {"front": moving(*DAY[:1])}, moments=films)
    assert answer.text.endswith("from left to right; back not watched for movement.")
    blind = ask("what moved on back?", {"front": moving(*DAY)}, moments=films)
    assert blind.abstained and "not known" in blind.text


def test_the_middle_is_neither_top_nor_bottom() -> None:
    paths = path(10, 12, MIDDLE, y=0.15), path(20, 22, MIDDLE), path(30, 32, LEFT)
    assert starts(ask("what moved in the middle?", moving(*paths))) == [20]


def test_what_moved_last_is_what_ended_last() -> None:
    both = moving(path(10, 30, label=DOG), path(20, 22, label=PERSON))
    assert ask("what was the last thing that moved?", both).text.startswith("Moved last: dog")


# --------------------------------------------------------------------------- near a thing


def box_of(x: float) -> tuple[float, ...]:
    return box_at(x)


@pytest.mark.parametrize(
    ("x", "near"), [(0.5, True), (0.69, True), (0.71, False), (0.31, True), (0.29, False)]
)
def test_near_in_the_picture_is_a_tenth_of_it(x: float, near: bool) -> None:
    cat = film((0, 30, [seen(CAT, box=box_of(0.5))]))
    answer = ask("what moved near the cat?", moving(path(10, 12, x)), moments=cat)
    assert starts(answer) == ([10] if near else [])
    expected = "Moved near cat: something" if near else "Nothing moved near cat; 1 movement elsewh"
    assert answer.text.startswith(expected)


def test_near_is_anywhere_along_the_way() -> None:
    cat = film((0, 30, [seen(CAT, box=box_of(0.5))]))
    answer = ask("what moved by the cat?", moving(path(10, 14, 0.1, 0.9)), moments=cat)
    assert starts(answer) == [10]


def test_of_several_moments_the_nearest_in_time_tells_where_a_thing_is() -> None:
    cat = film((0, 5, [seen(CAT, box=box_of(0.2))]), (20, 25, [seen(CAT, box=box_of(0.8))]))
    both = [path(3, 4, 0.2), path(21, 22, 0.2), path(23, 24, 0.8)]
    assert starts(ask("what moved near the cat?", moving(*both), moments=cat)) == [3, 23]


def test_near_what_is_not_known_abstains_and_says_so() -> None:
    answer = ask("what moved near the dog?", moving(path(10, 12), path(20, 22)))
    assert answer.text == (
        "Not seen: dog; 2 movements then: something 0:10-0:12, something 0:20-0:22."
    )
    assert ask("what moved near the elephant?", moving(*DAY)).text.startswith("Not seen: elephant")
    cat = film((0, 30, [seen(CAT, box=box_of(0.5))]))
    answer = ask("what moved near the cat and the elephant?", moving(path(10, 12)), moments=cat)
    assert answer.abstained and answer.text.startswith("Not seen: ")


def test_a_thing_is_not_near_itself() -> None:
    dog = film((0, 30, [seen(DOG, box=box_of(0.5))]))
    both = moving(path(10, 12, label=DOG), path(15, 17, label=CAT))
    assert labels(ask("what moved near the dog?", both, moments=dog)) == ["cat"]
    red = film((0, 30, [seen(DOG, color="red", box=box_of(0.5))]))
    # What moved has no colour: it may be another dog than the red one.
    assert labels(ask("what moved near the red dog?", both, moments=red)) == ["dog", "cat"]


def table() -> object:
    """A red block of 6 cm at `A`."""
    return memory_of(*[thing((RED, A))] * 4)


@pytest.mark.parametrize(
    ("away", "near"), [(0.0, True), (0.52, True), (0.54, False), (-0.52, True), (3.0, False)]
)
def test_near_in_the_world_is_half_a_metre_from_a_box(away: float, near: bool) -> None:
    there = (A[0] + away, A[1], A[2])
    far = (A[0] + 10 * (1 if away >= 0 else -1), A[1], A[2])
    moved = moving(path(10, 12, world=(there, far)), path(20, 22, world=(far, far)))
    answer = ask("what moved near the red block?", moved, objects=table())
    assert starts(answer) == ([10] if near else [])
    if near:
        assert "from x " in answer.text and answer.text.endswith(" m.")


def test_near_is_where_the_thing_was_at_that_time() -> None:
    moved_block = memory_of(*[thing((RED, place)) for place in (A, A, A, B, B, B)])
    at = (A[0] - 0.45, A[1], A[2])  # near to A, and not to B
    moved = moving(path(1, 2, world=(at, at)), path(4, 5, world=(at, at)))
    assert starts(ask("what moved near the red block?", moved, objects=moved_block)) == [1]


def test_boxes_of_another_time_say_nothing_where_the_camera_may_move() -> None:
    cat = film((0, 5, [seen(CAT, box=box_of(0.5))]))
    world = ((0.0, 0.0, 9.0), (0.0, 0.0, 9.0))
    moved = moving(*(path(at, at + 1, world=world) for at in (3, 7, 9, 20)))
    answer = ask("what moved near the cat?", moved, moments=cat, objects=table())
    assert starts(answer) == [3, 7]  # 2 and 4 s after the cat was seen
    fixed = moving(path(3, 4), path(20, 22))
    assert starts(ask("what moved near the cat?", fixed, moments=cat)) == [3, 20]


@pytest.mark.parametrize(
    ("apart", "way"), [(0.05, "at x 0.05 y 0.00 z 1.00 m"), (0.15, "from x 0.00 y 0.00 z 1.00 to")]
)
def test_ends_within_a_tenth_of_a_metre_are_one_place(apart: float, way: str) -> None:
    moved = moving(path(3, 5, world=((0.0, 0.0, 1.0), (apart, 0.0, 1.0))))
    assert way in ask("what moved?", moved).text


def test_near_two_things_is_near_both() -> None:
    pair = film((0, 30, [seen(CAT, box=box_of(0.3)), seen(DOG, box=box_of(0.7))]))
    moved = moving(path(10, 12, 0.3), path(20, 24, 0.2, 0.8))
    answer = ask("what moved from the cat to the dog?", moved, moments=pair)
    assert starts(answer) == [20] and answer.text.startswith("Moved near cat near dog: ")


@pytest.mark.parametrize(
    ("one", "other", "gap"),
    [
        ((0.0, 0.0, 0.2, 0.2), (0.1, 0.1, 0.3, 0.3), 0.0),
        ((0.0, 0.0, 0.2, 0.2), (0.5, 0.1, 0.6, 0.2), 0.3),
        ((0.0, 0.5, 0.2, 0.6), (0.1, 0.1, 0.3, 0.3), 0.2),
        ((0.0, 0.0, 0.1, 0.1), (0.2, 0.5, 0.3, 0.6), 0.4),
    ],
)
def test_gaps_between_boxes(one: tuple, other: tuple, gap: float) -> None:
    assert _apart(one, other) == pytest.approx(gap) == _apart(other, one)


def test_distance_from_a_box() -> None:
    assert _outside((0.4, 0, 0), (0, 0, 0), (1, 1, 1)) == 0
    assert _outside((3.5, 4.5, 0), (0, 0, 0), (1, 1, 1)) == pytest.approx(5)


# --------------------------------------------------------------------------- things of the world


def test_a_thing_that_is_elsewhere_moved_whether_that_was_seen_or_not() -> None:
    memory = memory_of(*[thing((RED, A))] * 3, *[thing((RED, B))] * 3)
    for movements in (moving(), None):
        answer = ask("has the red block moved?", movements, objects=memory)
        (one,) = answer.movements or ()
        assert (one.start, one.end, one.label) == (2, 3, "red block")
        assert one.begun.position == pytest.approx(A) and one.ended.position == pytest.approx(B)
        assert answer.text.startswith("Red block moved: 0:02-0:03 (")
        assert "from x 0.00 y 0.00 z 0.50 to x 0.30" in answer.text
    for when in ("after 0:10", "before 0:01"):
        assert ask(f"did the red block move {when}?", moving(), objects=memory).abstained
    assert "not watched" not in ask("has the red block moved?", None, objects=memory).text
    # Where in the picture it was on the way, and past what, was not seen.
    assert ask("did the red block move on the left?", moving(), objects=memory).abstained


def test_of_each_move_of_a_thing_only_the_end_of_the_last_is_in_the_picture() -> None:
    memory = memory_of(*[thing((RED, place)) for place in (A, A, A, B, B, B, FAR, FAR, FAR)])
    answer = ask("has the red block moved?", moving(), objects=memory)
    one, other = answer.movements or ()
    assert (one.start, one.end, other.start, other.end) == (2, 3, 5, 6)
    assert one.ended.box is None and other.ended.box == pytest.approx((0.4, 0.4, 0.6, 0.6))
    assert other.ended.position == pytest.approx(FAR)


def test_what_was_seen_too_seldom_or_is_called_too_unsurely_did_not_move() -> None:
    seldom = memory_of(thing((RED, A)), thing((RED, B)))
    assert ask("has the red block moved?", moving(), objects=seldom).abstained
    frames = [thing((RED, place)) for place in (A, A, A, B, B, B)]
    for each in frames:
        each["label"][0, 0], each["label_score"][0, 0] = CAT, 0.1
    assert ask("did the cat move?", moving(), objects=memory_of(*frames)).abstained


def test_a_move_that_was_watched_is_told_once() -> None:
    frames = [thing((RED, place)) for place in (A, A, A, B, B, B)]
    for each in frames:
        each["label"][0, 0], each["label_score"][0, 0] = CAT, 0.9
    moved = moving(path(2.5, 3.5, label=CAT), path(20, 21, label=CAT))
    answer = ask("did the cat move?", moved, objects=memory_of(*frames))
    assert starts(answer) == [2.5, 20]  # not from 2 to 3 once more
    assert starts(ask("did the cat move?", moving(), objects=memory_of(*frames))) == [2]


def test_a_thing_that_is_gone_moved_and_it_is_not_known_where_to() -> None:
    memory = memory_of(*[thing((RED, A))] * 3, *[thing()] * 2)
    answer = ask("has the red block moved?", moving(), objects=memory)
    assert answer.text.endswith("from x 0.00 y 0.00 z 0.50 m, not known where to.")
    assert (answer.movements or ())[0].ended.position is None


def test_a_thing_that_stayed_is_said_to_have() -> None:
    answer = ask("has the red block moved?", moving(*DAY[:1]), objects=table())
    assert answer.abstained and answer.text == (
        "Not seen to move: red block, seen at one place 0:00-0:03; 1 other movement: dog 0:10-0:14."
    )


def test_of_several_that_stayed_the_likeliest_is_told() -> None:
    pair = memory_of(*[thing((RED, A), (RED, FAR))] * 4)
    assert len(pair.snapshot().objects()) == 2
    answer = ask("has the red block moved?", moving(), objects=pair)
    assert answer.text == "Not seen to move: red block, seen at one place 0:00-0:03."


def test_a_colour_is_not_known_of_a_movement() -> None:
    assert ask("has the red cat moved?", moving(path(1, 3, label=CAT))).abstained


def test_nothing_is_changed_by_asking() -> None:
    day = moving(*DAY)
    before = [torch.tensor([m.start, m.end, m.score]) for m in day.movements()]
    ask("what moved near the dog?", day)
    after = [torch.tensor([m.start, m.end, m.score]) for m in day.movements()]
    assert all(map(torch.equal, before, after))
