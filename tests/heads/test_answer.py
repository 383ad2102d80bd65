"""Answers from planted labels: the encoder is the tiny one, no network takes part."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from labelled_scenes import CONFIG, LEFT, RIGHT, film, seen

from vismem.encoders.base import Encoder
from vismem.encoders.color import COLORS
from vismem.heads.answer import Answer, Moment, answer, asked_span, clock, find, place_in_picture
from vismem.memory.episodic import EpisodicConfig, EpisodicMemory, EpisodicSnapshot
from vismem.memory.moments import Segment

CAT, DOG, PERSON, RED = 0, 1, 2, 3 + COLORS.index("red")


def spans(reply: Answer) -> list[tuple[float, float]]:
    return [(moment.start, moment.end) for moment in reply.moments]


@pytest.fixture
def day() -> EpisodicSnapshot:
    return film(
        (0, 4, [seen(DOG, 0.6, box=RIGHT)]),
        (10, 14, [seen(CAT, 0.9)]),
        (20, 24, [seen(DOG, 0.9, count=3), seen(PERSON, 0.7, count=2)]),
        (30, 34, []),
        (40, 44, [seen(DOG, 0.7), seen(RED, 0.9)]),
        (60, 64, [seen(CAT, 0.2)]),
    )


# --------------------------------------------------------------------------- finding


def test_the_best_moment_comes_first(day: EpisodicSnapshot, tiny: Encoder) -> None:
    reply = answer("a dog", {"camera": day}, tiny)
    assert spans(reply) == [(20.0, 24.0), (40.0, 44.0), (0.0, 4.0)]
    # The label's score is the same in all frames: its calibrated logistic is the answer's.
    expected = [1 / (1 + math.exp(-(4 * math.log(s) + 4))) for s in (0.9, 0.7, 0.6)]
    assert [m.score for m in reply.moments] == pytest.approx(expected, abs=1e-3)
    assert {m.label for m in reply.moments} == {"dog"} and not reply.abstained
    assert reply.moments[2].box == RIGHT and reply.moments[2].thumbnail == b"\x00"
    assert reply.text.startswith("Dog: 0:20-0:24 (0.97), left; 0:40-0:44")
    assert reply.text.endswith("0:00-0:04 (0.88), right.")


def test_one_lucky_frame_is_doubted(tiny: Encoder) -> None:
    lucky = film((0, 4, [seen(CAT, 0.0)]), (10, 14, [seen(DOG, 0.6)]))
    memory = EpisodicMemory(CONFIG, "1MB")
    for n in range(9):
        labels = {
            "id": torch.tensor([DOG]),
            "score": torch.tensor([0.95 if n == 4 else 0.05]),
            "count": torch.tensor([1]),
            "color": torch.zeros(1, 11),
            "box": torch.zeros(1, 4),
        }
        memory.write(torch.ones(1, 4), n / 2, embedding=torch.eye(6)[5], labels=labels)
    steady = answer("a dog", {"camera": lucky}, tiny, threshold=0.0).moments[0].score
    once = answer("a dog", {"camera": memory.snapshot()}, tiny, threshold=0.0).moments[0]
    assert once.score < steady - 0.2
    assert once.time == 2.0  # when it was seen best


def test_neighbours_are_told_as_one_if_they_look_alike(tiny: Encoder) -> None:
    together = film((0, 12, [seen(DOG)]))
    assert len(together) > 2
    assert spans(answer("a dog", {"camera": together}, tiny)) == [(0.0, 12.0)]
    apart = film((0, 4, [seen(DOG)]), (4.5, 8, [seen(DOG)]))
    assert sorted(spans(answer("a dog", {"camera": apart}, tiny))) == [(0.0, 4.0), (4.5, 8.0)]


def test_a_pause_separates(tiny: Encoder) -> None:
    memory = EpisodicMemory(EpisodicConfig(4, 6, max_gap=1.0, max_labels=4), "1MB")
    labels = {
        "id": torch.tensor([DOG]),
        "score": torch.tensor([0.9]),
        "count": torch.tensor([1]),
        "color": torch.zeros(1, 11),
        "box": torch.zeros(1, 4),
    }
    for at in (0.0, 1.0, 3.5, 4.5, 7.5):  # pauses of 2.5 s, which is bridged, and of 3 s
        memory.write(torch.ones(1, 4), at, embedding=torch.eye(6)[0], labels=labels)
    reply = answer("a dog", {"camera": memory.snapshot()}, tiny)
    assert sorted(spans(reply)) == [(0.0, 4.5), (7.5, 7.5)]


def test_what_is_not_good_enough_is_not_claimed(day: EpisodicSnapshot, tiny: Encoder) -> None:
    faint = film((0, 4, [seen(CAT, 0.3)]))
    reply = answer("a cat", {"camera": faint}, tiny)
    assert reply.abstained and reply.moments == () and reply.text == "Not seen: cat."
    assert not answer("a cat", {"camera": faint}, tiny, threshold=0.2).abstained
    nobody = answer("a person", {"camera": film((0, 4, [seen(DOG)]))}, tiny)
    assert nobody.abstained and nobody.moments == ()


def test_an_empty_memory_abstains(tiny: Encoder) -> None:
    for snapshots in ({}, {"camera": film()}):
        reply = answer("a dog", snapshots, tiny)
        assert reply.abstained and reply.moments == () and reply.text == "Not seen: dog."


def test_a_colour_is_looked_for_in_the_region_of_the_thing(tiny: Encoder) -> None:
    snapshot = film(
        (0, 4, [seen(DOG, 0.9, color="blue"), seen(RED)]),
        (10, 14, [seen(DOG, 0.8, color="red")]),
        (20, 24, [seen(CAT, 0.9, color="red")]),
    )
    reply = answer("the red dog", {"camera": snapshot}, tiny)
    assert spans(reply) == [(10.0, 14.0)] and reply.text.startswith("Red dog: ")
    assert answer("a green dog", {"camera": snapshot}, tiny).abstained


def test_where_several_are_asked_for_more_are_better(tiny: Encoder) -> None:
    snapshot = film((0, 4, [seen(DOG, 0.9, count=1)]), (10, 14, [seen(DOG, 0.88, count=4)]))
    assert spans(answer("a dog", {"camera": snapshot}, tiny))[0] == (0.0, 4.0)
    reply = answer("dogs", {"camera": snapshot}, tiny)
    assert spans(reply)[0] == (10.0, 14.0) and [m.count for m in reply.moments] == [4, 1]
    one = answer("a dog", {"camera": snapshot}, tiny).moments[0].score
    assert reply.moments[1].score == pytest.approx(0.8 * one)


def test_all_things_asked_for_must_be_there(day: EpisodicSnapshot, tiny: Encoder) -> None:
    assert spans(answer("a dog and a person", {"camera": day}, tiny)) == [(20.0, 24.0)]
    assert answer("a cat and a dog", {"camera": day}, tiny).abstained


def test_without_a_label_the_embedding_is_compared(day: EpisodicSnapshot, tiny: Encoder) -> None:
    reply = answer("zigzag", {"camera": day}, tiny)  # the tiny encoder's only vector: scene 0
    assert spans(reply) == [(0.0, 4.0)]
    moment = reply.moments[0]
    assert moment.label == "zigzag" and moment.box is None and moment.score == 1.0
    assert reply.text == '"zigzag": 0:00-0:04 (1.00).'


def test_only_moments_that_are_picked_are_compared(day: EpisodicSnapshot, tiny: Encoder) -> None:
    picked = {"camera": lambda snapshot, vector: torch.tensor([1, 2])}
    assert answer("zigzag", {"camera": day}, tiny, nearest=picked).abstained
    picked = {"camera": lambda snapshot, vector: torch.tensor([0, 2])}
    assert spans(answer("zigzag", {"camera": day}, tiny, nearest=picked)) == [(0.0, 4.0)]
    # Labels need no picking.
    assert len(answer("a dog", {"camera": day}, tiny, nearest=picked).moments) == 3


def test_find_limits_to_a_span(day: EpisodicSnapshot, tiny: Encoder) -> None:
    found = find(day, tiny.query("a dog"), tiny, span=(24.0, 40.0), stream="door")
    assert sorted((m.start, m.stream) for m in found) == [(20.0, "door"), (40.0, "door")]


def test_the_pose_is_part_of_the_evidence(tiny: Encoder) -> None:
    snapshot = film((0, 4, [seen(CAT)]), (10, 14, [seen(DOG)]), pose=True)
    reply = answer("a dog", {"camera": snapshot}, tiny)
    assert reply.moments[0].pose == (2 * torch.eye(4)).tolist()
    assert answer("a dog", {"camera": film((0, 4, [seen(DOG)]))}, tiny).moments[0].pose is None


# --------------------------------------------------------------------------- spans of time


@pytest.mark.parametrize(
    ("question", "span"),
    [
        ("a dog", (-math.inf, math.inf)),
        ("a dog between 10 and 20", (10, 20)),
        ("a dog between 0:10 and 1:20?", (10, 80)),
        ("from 10 s to 2 min", (10, 120)),
        ("between 1 and 2 minutes", (60, 120)),
        ("between 90 seconds and 2 hours", (90, 7200)),
        ("between 1:00:00 and 1:30:00", (3600, 5400)),
        ("between 1:00 and 2:30 min", (60, 150)),
        ("in the last 15 seconds", (85, math.inf)),
        ("in the last 1.5 min", (10, math.inf)),
        ("at 0:42", (41, 43)),
        ("around 42 s", (41, 43)),
        ("at second 42", (41, 43)),
        ("at minute 2", (119, 121)),
        ("after 1 hour", (3600, math.inf)),
        ("before 1:05", (-math.inf, 65)),
        ("the last dog", (-math.inf, math.inf)),
        ("dogs before the door", (-math.inf, math.inf)),
        ("between the two doors", (-math.inf, math.inf)),
    ],
)
def test_the_span_of_a_question(question: str, span: tuple[float, float]) -> None:
    assert asked_span(question, newest=100.0) == span
    assert asked_span(question.upper(), newest=100.0) == span


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("was there a dog between 0:15 and 0:30?", [(20.0, 24.0)]),
        ("a dog between 0:24 and 0:40", [(20.0, 24.0), (40.0, 44.0)]),  # touching is enough
        ("a dog at 0:02", [(0.0, 4.0)]),
        ("a dog after 25 seconds", [(40.0, 44.0)]),
        ("a dog before 5 seconds", [(0.0, 4.0)]),
        ("a dog in the last 30 seconds", [(40.0, 44.0)]),  # of the 64
        ("a dog in the last 10 seconds", []),
    ],
)
def test_a_span_limits_the_answer(
    question: str, expected: list, day: EpisodicSnapshot, tiny: Encoder
) -> None:
    reply = answer(question, {"camera": day}, tiny)
    assert sorted(spans(reply)) == expected and reply.abstained == (not expected)


# --------------------------------------------------------------------------- sentences


def test_how_many(day: EpisodicSnapshot, tiny: Encoder) -> None:
    reply = answer("how many dogs were there?", {"camera": day}, tiny)
    assert reply.text == "Dogs: at most 3 at once, at 0:20."


def test_how_many_times(day: EpisodicSnapshot, tiny: Encoder) -> None:
    reply = answer("how many times did a dog appear?", {"camera": day}, tiny)
    assert reply.text.startswith("Dog: 3 times: 0:00-0:04 (")
    assert reply.text.index("0:00-") < reply.text.index("0:20-") < reply.text.index("0:40-")
    once = answer("how many times was a person seen?", {"camera": day}, tiny)
    assert once.text.startswith("Person: 1 time: 0:20")


def test_more_moments_than_are_shown_are_counted_all_the_same(tiny: Encoder) -> None:
    """The first, the last and the most of them are among the least sure."""
    scenes = [(10.0 * n, 10.0 * n + 2, [seen(DOG, 0.9 - 0.01 * abs(n - 8))]) for n in range(17)]
    scenes[0] = (0.0, 2.0, [seen(DOG, 0.7, count=5)])
    snapshot = {"camera": film(*scenes)}
    times = answer("how many times did a dog appear?", snapshot, tiny)
    assert times.text.startswith("Dog: 17 times: ") and times.text.endswith("; and 7 more.")
    assert len(times.moments) == 10
    first = answer("when was the first dog?", snapshot, tiny)
    assert first.text.startswith("Dog, first: 0:00-0:02")
    assert (0.0, 2.0) in spans(first) and len(first.moments) == 11
    last = answer("when did a dog last appear?", snapshot, tiny)
    assert last.text.startswith("Dog, last: 2:40-2:42") and (160.0, 162.0) in spans(last)
    most = answer("how many dogs?", snapshot, tiny)
    assert most.text == "Dogs: at most 5 at once, at 0:00." and (0.0, 2.0) in spans(most)
    assert answer("a dog", snapshot, tiny).text.endswith("; and 14 more.")
    for reply in (times, first, last, most):
        scores = [m.score for m in reply.moments]
        assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(
    ("question", "begin"),
    [
        ("when did the dog first appear?", "Dog, first: 0:00-0:04"),
        ("what was the earliest dog?", "Dog, first: 0:00-0:04"),
        ("when was the dog last seen?", "Dog, last: 0:40-0:44"),
        ("the latest dog", "Dog, last: 0:40-0:44"),
    ],
)
def test_first_and_last(question: str, begin: str, day: EpisodicSnapshot, tiny: Encoder) -> None:
    reply = answer(question, {"camera": day}, tiny)
    assert reply.text.startswith(begin) and ";" not in reply.text


@pytest.mark.parametrize(
    ("box", "place"),
    [
        ((0.0, 0.4, 0.2, 0.6), "left"),
        ((0.8, 0.4, 1.0, 0.6), "right"),
        ((0.4, 0.4, 0.6, 0.6), "centre"),
        ((0.4, 0.0, 0.6, 0.2), "top centre"),
        ((0.0, 0.8, 0.2, 1.0), "bottom left"),
        ((0.0, 0.0, 1.0, 1.0), "centre"),
        (None, ""),
    ],
)
def test_where(box: tuple[float, ...] | None, place: str) -> None:
    assert place_in_picture(box) == place


def test_where_is_part_of_the_sentence(day: EpisodicSnapshot, tiny: Encoder) -> None:
    assert ", right" in answer("where was the first dog?", {"camera": day}, tiny).text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (59.999, "0:59"),
        (60, "1:00"),
        (3599, "59:59"),
        (3600, "1:00:00"),
        (86_399, "23:59:59"),
        (90_061, "25:01:01"),
        (-75, "-1:15"),
    ],
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_a_summary_names_the_surest_thing_of_each_moment(
    day: EpisodicSnapshot, tiny: Encoder
) -> None:
    reply = answer("what happened?", {"camera": day}, tiny)
    assert not reply.abstained
    told = [(m.start, m.label) for m in reply.moments]
    # A colour is the least that can be said, and what is not sure is not named.
    assert told == [
        (0.0, "dog"),
        (10.0, "cat"),
        (20.0, "dog"),
        (30.0, "something unclear"),
        (40.0, "dog"),
        (60.0, "something unclear"),
    ]
    assert reply.text.startswith("Seen: 0:00-0:04 dog; 0:10-0:14 cat; ")


def test_a_summary_of_a_span(day: EpisodicSnapshot, tiny: Encoder) -> None:
    reply = answer("what happened between 0:08 and 0:22?", {"camera": day}, tiny)
    assert reply.text == "Seen: 0:10-0:14 cat; 0:20-0:24 dog."
    nothing = answer("what happened between 5:00 and 6:00?", {"camera": day}, tiny)
    assert nothing.abstained and nothing.text == "Nothing was seen then." and not nothing.moments


def test_a_summary_tells_equal_neighbours_once(tiny: Encoder) -> None:
    snapshot = film((0, 12, [seen(DOG)]), (13, 15, [seen(DOG)]), (30, 32, [seen(DOG)]))
    reply = answer("describe the video", {"camera": snapshot}, tiny)
    assert reply.text == "Seen: 0:00-0:15 dog; 0:30-0:32 dog."


def test_a_long_summary_says_how_much_is_left_out(tiny: Encoder) -> None:
    snapshot = film(*((10.0 * n, 10.0 * n + 2, [seen(n % 2)]) for n in range(15)))
    reply = answer("what happened?", {"camera": snapshot}, tiny)
    assert reply.text.endswith("; and 3 more.") and len(reply.moments) == 15


def test_an_unknown_thing_is_named(day: EpisodicSnapshot, tiny: Encoder) -> None:
    # The tiny encoder's vector is scene 0's, so that is left out.
    reply = answer("a unicorn after 5 seconds", {"camera": day}, tiny)
    assert reply.abstained and reply.moments == ()
    assert reply.text == 'Not seen: this encoder has no label for "unicorn".'


def test_two_streams(tiny: Encoder) -> None:
    door = film((0, 4, [seen(DOG, 0.6)]))
    yard = film((2, 6, [seen(DOG, 0.9)]), (20, 24, [seen(CAT)]))
    reply = answer("a dog", {"door": door, "yard": yard}, tiny)
    assert [m.stream for m in reply.moments] == ["yard", "door"]
    assert "0:02-0:06 (0.97), left, on yard; 0:00-0:04 (0.88), left, on door." in reply.text
    # "The last 10 seconds" count from the newest of all.
    assert answer("a dog in the last 10 seconds", {"door": door, "yard": yard}, tiny).abstained
    told = answer("what happened?", {"door": door, "yard": yard}, tiny).moments
    assert [(m.stream, m.label) for m in told] == [
        ("door", "dog"),
        ("yard", "dog"),
        ("yard", "cat"),
    ]


@pytest.mark.parametrize("question", ["", "  \n"])
def test_an_empty_question_is_refused(question: str, tiny: Encoder) -> None:
    with pytest.raises(ValueError, match="ask something"):
        answer(question, {}, tiny)


# --------------------------------------------------------------------------- what is printed


@pytest.mark.parametrize("question", ["a dog", "a person", "zigzag", "what happened?", "a unicorn"])
def test_the_answer_as_plain_values(question: str, day: EpisodicSnapshot, tiny: Encoder) -> None:
    facts = {"bytes": 5, "budget": 9, "frames": 3, "span": [0.0, 64.0]}
    reply = answer(question, {"camera": day}, tiny, memory=facts)
    plain = reply.to_dict()
    assert list(plain) == ["question", "answer", "abstained", "moments", "memory"]
    assert plain["question"] == question and plain["answer"] == reply.text
    assert plain["memory"] == facts and plain["abstained"] is reply.abstained
    for moment in plain["moments"]:
        assert list(moment)[:6] == ["start", "end", "score", "label", "box", "pose"]
        assert list(moment)[6:] == ["stream", "time", "count"]
        assert moment["box"] is None or len(moment["box"]) == 4
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain


def test_plain_values_are_rounded() -> None:
    moment = Moment(1.00049, 2.0, 0.123456, "dog", (0.123456, 0.0, 1.0, 1.0), time=1.23456)
    plain = Answer("a dog", "Dog.", (moment,), False).to_dict()["moments"][0]
    assert plain["start"] == 1.0 and plain["time"] == 1.235 and plain["score"] == 0.1235
    assert plain["box"] == [0.1235, 0.0, 1.0, 1.0] and "thumbnail" not in plain


def numbers_of(moments: Sequence[Moment]) -> set[str]:
    told = {str(len(moments))}
    for m in moments:
        told |= {clock(m.start), clock(m.end), clock(m.time), f"{m.score:.2f}", str(m.count)}
    return told


@pytest.mark.parametrize(
    "question",
    [
        "a dog",
        "how many dogs?",
        "how many times did a dog appear?",
        "the first dog",
        "the last cat",
        "where is the person?",
        "a dog and a person",
        "what happened?",
        "zigzag",
        "a unicorn after 5 seconds",
    ],
)
def test_every_number_in_the_sentence_is_in_the_evidence(
    question: str, day: EpisodicSnapshot, tiny: Encoder
) -> None:
    reply = answer(question, {"camera": day}, tiny)
    numbers = re.findall(r"\d+(?:[:.]\d+)*", reply.text)
    assert numbers or reply.abstained
    assert set(numbers) <= numbers_of(reply.moments)


def test_times_of_a_camera_are_told_as_dates_and_those_of_a_recording_from_its_start():
    assert re.fullmatch(r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d", clock(1_763_700_000.0))
    assert clock(3_723.9) == "1:02:03"


# --------------------------------------------------------------------------- scenes of a bank


def scenes_of(snapshot: EpisodicSnapshot, **columns: Sequence) -> EpisodicSnapshot:
    """The same with other columns, in one segment."""
    pictures = tuple(snapshot.thumbnail(number) for number in range(len(snapshot)))
    held = {name: snapshot.column(name) for name in CONFIG.columns()}
    for name, values in columns.items():
        held[name] = torch.tensor(values, dtype=held[name].dtype)
    return EpisodicSnapshot([Segment("scenes", held, pictures)], CONFIG)


def test_of_two_claims_for_one_time_the_surer_is_told(tiny: Encoder) -> None:
    weak, sure = film((10, 14, [seen(CAT, 0.6)])), film((12, 15, [seen(CAT, 0.9)]))
    merged = scenes_of(weak, start=[2.0])
    for moments, scenes in ((merged, sure), (sure, weak)):
        reply = answer("how many times a cat?", {"a": moments}, tiny, scenes={"a": scenes})
        assert spans(reply) == [(12.0, 15.0)] and "1 time:" in reply.text
        assert reply.moments[0].score == answer("a cat", {"a": sure}, tiny).moments[0].score


def test_claims_for_times_apart_or_of_other_streams_are_both_told(tiny: Encoder) -> None:
    first, then = film((10, 14, [seen(CAT, 0.6)])), film((14.5, 16, [seen(CAT, 0.9)]))
    reply = answer("a cat", {"a": first}, tiny, scenes={"a": then})
    assert spans(reply) == [(14.5, 16.0), (10.0, 14.0)]
    reply = answer("a cat", {"a": first, "b": film()}, tiny, scenes={"b": first})
    assert [moment.stream for moment in reply.moments] == ["a", "b"]
    touching = film((14, 16, [seen(CAT, 0.9)]))
    merged = scenes_of(first, start=[2.0])
    assert spans(answer("a cat", {"a": merged}, tiny, scenes={"a": touching})) == [(14.0, 16.0)]


def test_scenes_are_heard_only_of_times_whose_moments_were_merged_or_given_up(
    tiny: Encoder,
) -> None:
    nothing, cat = film((10, 14, [seen(DOG, 0.9)])), film((10, 14, [seen(CAT, 0.9)]))
    assert answer("a cat", {"a": nothing}, tiny, scenes={"a": cat}).abstained
    for start, told in ((9.0, 0), (8.9, 1)):  # moments of 5 s and of more
        merged = scenes_of(nothing, start=[start])
        reply = answer("a cat", {"a": merged}, tiny, scenes={"a": cat})
        assert len(reply.moments) == told
    elsewhere = scenes_of(cat, label_time=[[95.5] * 4])
    assert spans(answer("a cat", {"a": nothing}, tiny, scenes={"a": elsewhere})) == [(95.5, 95.5)]
    assert spans(answer("a cat", {"b": nothing}, tiny, scenes={"a": cat})) == [(10.0, 14.0)]


def test_evidence_of_another_visit_is_told_at_its_instant(tiny: Encoder) -> None:
    """Its picture and pose are of the visit that lent them, the box is that of the evidence."""
    plain = film((10, 14, [seen(CAT, 0.9, count=2)]), pose=True)
    (own,) = answer("a cat", {"a": film()}, tiny, scenes={"a": plain}).moments
    assert (own.start, own.end) == (10.0, 14.0) and own.thumbnail and own.pose is not None
    other = scenes_of(plain, label_time=[[95.5] * 4])
    (told,) = answer("a cat", {"a": film()}, tiny, scenes={"a": other}).moments
    assert told == replace(own, start=95.5, end=95.5, time=95.5, pose=None, thumbnail=b"")
    assert told.box == LEFT and told.count == 2


def test_no_instant_outside_of_the_span_that_is_asked_for(tiny: Encoder) -> None:
    other = scenes_of(film((10, 14, [seen(CAT, 0.9)])), label_time=[[95.5] * 4])
    for question, told in (("a cat", 1), ("a cat between 8 and 20", 0), ("a cat after 12", 1)):
        reply = answer(question, {"a": film()}, tiny, scenes={"a": other})
        assert len(reply.moments) == told and reply.abstained == (not told)


def test_the_newest_may_be_a_scene(tiny: Encoder) -> None:
    """Where the budget has no room for a moment, the last seconds are still the last."""
    both = film((10, 14, [seen(CAT, 0.9)]), (80, 84, [seen(DOG, 0.9)]))
    assert answer("a cat in the last 15 seconds", {"a": film()}, tiny, scenes={"a": both}).abstained
    reply = answer("a dog in the last 15 seconds", {"a": film()}, tiny, scenes={"a": both})
    assert spans(reply) == [(80.0, 84.0)]


def test_scenes_told_as_one_begin_with_the_first_of_them(tiny: Encoder) -> None:
    """They come by the time of their representatives, not by their starts."""
    pair = film((10, 12, [seen(CAT, 0.7)]), (13, 14, [seen(CAT, 0.9)]))
    alike = scenes_of(pair, start=[10.0, 4.0], embedding=torch.eye(6)[[0, 0]].tolist())
    (told,) = answer("a cat", {"a": film()}, tiny, scenes={"a": alike}).moments
    assert (told.start, told.end) == (4.0, 14.0) and told.thumbnail == bytes([1])


def test_an_absent_thing_is_not_claimed_because_of_scenes(day: EpisodicSnapshot, tiny: Encoder):
    assert answer("people", {"a": film()}, tiny, scenes={"a": film((0, 9, [seen(CAT)]))}).abstained
    assert answer(
        "a cat", {"a": film()}, tiny, scenes={"a": film((0, 9, [seen(CAT, 0.2)]))}
    ).abstained
    with_scenes = answer("a dog", {"a": day}, tiny, scenes={"a": day})
    assert spans(with_scenes) == spans(answer("a dog", {"a": day}, tiny))
