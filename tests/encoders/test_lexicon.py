from __future__ import annotations

import pytest

from vismem.encoders.color import COLORS
from vismem.encoders.lexicon import FIRST_COLOR, PERSON, Lexicon, label_arrays

CATS = {281, 282, 283, 284, 285}
DOGS = set(range(151, 269))


@pytest.fixture(scope="module")
def lexicon() -> Lexicon:
    return Lexicon()


def test_names_are_classes_a_person_and_colours(lexicon: Lexicon) -> None:
    names = lexicon.names
    assert len(names) == 1000 + 1 + len(COLORS)
    assert names[504] == "coffee mug" and names[285] == "Egyptian cat"
    assert names[PERSON] == "person" and tuple(names[FIRST_COLOR:]) == COLORS


@pytest.mark.parametrize(
    ("text", "nouns"),
    [
        # what is asked: the nouns with their colours, and whether they are plurals
        ("a dog", [("dog", None, False)]),
        ("dogs", [("dogs", None, True)]),
        ("When does the dog appear?", [("dog", None, False)]),
        ("how many dogs are in the video?", [("dogs", None, True)]),
        ("the blue mug", [("blue mug", "blue", False)]),
        ("a BLUE coffee mug!", [("blue coffee mug", "blue", False)]),
        ("grey cat", [("grey cat", "gray", False)]),
        ("a violet flower", [("violet flower", "purple", False)]),
        ("a cat and a dog", [("cat", None, False), ("dog", None, False)]),
        ("a man in a red jacket", [("man", None, False), ("red jacket", "red", False)]),
        ("wolves", [("wolves", None, True)]),
        ("knives", [("knives", None, True)]),
        ("foxes", [("foxes", None, True)]),
        ("churches", [("churches", None, True)]),
        ("buses", [("buses", None, True)]),
        ("vases", [("vases", None, True)]),
        ("mice", [("mice", None, True)]),
        ("people", [("people", None, True)]),
        ("a crowd", [("crowd", None, True)]),
        ("an orange", [("orange", None, False)]),
        ("oranges", [("oranges", None, True)]),
        ("an orange cat", [("orange cat", "orange", False)]),
        ("is there anything red?", [("red", None, False)]),
        ("the red one", [("red", None, False)]),
        ("what happened?", []),
        ("", []),
        ("?!", []),
    ],
)
def test_reading(text: str, nouns: list, lexicon: Lexicon) -> None:
    found, unknown = lexicon.read(text)
    tones = [None if noun.color is None else COLORS[noun.color] for noun in found]
    told = [(noun.text, tone, noun.several) for noun, tone in zip(found, tones, strict=True)]
    assert told == nouns and unknown == []


def labels_of(lexicon: Lexicon, text: str) -> set[int]:
    (noun,), _ = lexicon.read(text)
    assert all(0 < weight <= 1 for weight in noun.labels.values())
    return set(noun.labels)


@pytest.mark.parametrize("text", ["person", "man", "woman", "boy", "baby", "people", "children"])
def test_people_are_the_detectors(text: str, lexicon: Lexicon) -> None:
    assert PERSON in labels_of(lexicon, text)


def test_a_word_is_everything_below_it(lexicon: Lexicon) -> None:
    assert labels_of(lexicon, "dog") >= DOGS and labels_of(lexicon, "dogs") >= DOGS
    assert labels_of(lexicon, "cat") >= CATS and not labels_of(lexicon, "cat") & DOGS
    assert labels_of(lexicon, "animal") >= CATS | DOGS
    assert PERSON not in labels_of(lexicon, "dog")


def test_compounds_are_read_as_a_whole(lexicon: Lexicon) -> None:
    assert labels_of(lexicon, "a german shepherd") == {235}
    assert labels_of(lexicon, "the sports car") == {817} < labels_of(lexicon, "a car")
    assert labels_of(lexicon, "a coffee mug") == {504}


def test_an_orange_is_a_fruit_and_orange_before_a_noun_a_colour(lexicon: Lexicon) -> None:
    assert labels_of(lexicon, "an orange") == {950}
    assert labels_of(lexicon, "an orange cat") == labels_of(lexicon, "a cat")


def test_a_colour_alone_is_a_region(lexicon: Lexicon) -> None:
    assert labels_of(lexicon, "something red") == {FIRST_COLOR + COLORS.index("red")}
    assert labels_of(lexicon, "grey") == {FIRST_COLOR + COLORS.index("gray")}


@pytest.mark.parametrize("word", ["xylograph", "quokka", "zzz"])
def test_an_unknown_thing_is_named(word: str, lexicon: Lexicon) -> None:
    assert lexicon.read(f"is there a {word}?") == ([], [word])
    nouns, unknown = lexicon.read(f"a dog and a {word}")
    assert [noun.text for noun in nouns] == ["dog"] and unknown == [word]


def test_labels_as_arrays() -> None:
    ids, weights = label_arrays({7: 0.5, 3: 1.0})
    assert ids.tolist() == [3, 7] and weights.tolist() == [1.0, 0.5]
    assert ids.dtype == "int64" and weights.dtype == "float32"
