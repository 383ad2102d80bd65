"""From the words of a question to the labels that an embedded encoder can see.

Nouns are looked up in a table made from WordNet 3.0 (``scripts/make_lexicon.py``): "dog" is every
breed that ImageNet knows, "vehicle" everything below it, "baby" a person. A colour before a noun
asks for a region of that colour.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files

import numpy as np

from vismem.encoders.color import COLORS

__all__ = ["Lexicon", "Noun"]

CLASSES = 1000  # of ImageNet
PERSON = CLASSES  # label of a detected person
FIRST_COLOR = CLASSES + 1  # label of a region of COLORS[0]

_COLOR_WORDS = {name: number for number, name in enumerate(COLORS)}
_COLOR_WORDS |= {"grey": COLORS.index("gray"), "violet": COLORS.index("purple")}

# Words of questions and of grammar; those that are also nouns ("can", "watch", "saw") are meant as
# verbs far more often in a question about a video.
_GRAMMAR = frozenset(
    """a an the this that these those some any anything anyone something someone somebody anybody
    one ones thing things stuff is are was were be been being am do does did done have has had
    having can could will would shall should may might must i you he she it we they me him her
    us them my your his its our their who whom whose which what when where why how there here at
    in on of off to from by with without for about into onto over under near behind beside
    between through across around along up down out inside outside front back top bottom left
    right side middle next after before during while until since then now ever never again
    always first last time times moment many much more most few all both each every no not and
    or but if as than so too very just only also see saw seen sees seeing show shows shown
    showing shown appear appears appeared appearing happen happens happened find found look
    looks looked looking watch watched watching view visible present come comes came go goes
    went gone get gets got make makes made take takes took put puts video clip picture image
    frame frames scene footage film stream recording memory second seconds minute minutes hour
    hours did't don't kind type sort color colour colored coloured way long please tell give
    list count number there's it's that's standing sitting walking running holding wearing
    carrying moving""".split()
)
_GROUPS = frozenset("people crowd folk couple team audience staff crew".split())
_SINGULARS = [("ies", "y"), ("ves", "f"), ("ches", "ch"), ("shes", "sh"), ("xes", "x")]
_SINGULARS += [("sses", "ss"), ("zes", "z"), ("men", "man"), ("es", "e"), ("s", ""), ("ses", "s")]


@dataclass(frozen=True, slots=True)
class Noun:
    """A thing that a question names.

    Args:
        text: The words, colour included.
        labels: Label numbers and how far each counts.
        color: Number of the colour asked for, or ``None``.
        several: Whether the noun is a plural.
    """

    text: str
    labels: dict[int, float]
    color: int | None = None
    several: bool = False


class Lexicon:
    """The nouns that the embedded encoder understands."""

    @cached_property
    def _table(self) -> dict:
        return json.loads((files("vismem.data") / "lexicon.json").read_text())

    @cached_property
    def _class_words(self) -> frozenset[str]:
        return frozenset(word.lower() for words in self._table["classes"] for word in words)

    @cached_property
    def _people(self) -> frozenset[str]:
        return frozenset(self._table["people"])

    @property
    def names(self) -> list[str]:
        """Name of every label: classes, person, colours."""
        classes = [words[0] for words in self._table["classes"]]
        return [*classes, "person", *COLORS]

    def lookup(self, phrase: str) -> tuple[dict[int, float], bool]:
        """Labels of a noun and how far each counts, none if unknown; whether it is a plural."""
        head, _, last = phrase.rpartition(" ")
        forms = [phrase]
        if last in self._table["plurals"]:
            forms.append(f"{head} {self._table['plurals'][last]}".strip())
        for ending, singular in _SINGULARS:
            if last.endswith(ending) and len(last) > len(ending) + 1:
                forms.append(f"{head} {last.removesuffix(ending)}{singular}".strip())
        for form in forms:
            labels: dict[int, float] = {}
            for weight, runs in self._table["words"].get(form, ()):
                for first, final in runs:
                    for number in range(first, final + 1):
                        labels[number] = max(weight, labels.get(number, 0.0))
            if form in self._people:
                labels[PERSON] = 1.0
            if labels:
                return labels, form != phrase or phrase in _GROUPS
        return {}, False

    def read(self, text: str) -> tuple[list[Noun], list[str]]:
        """Find the nouns of a sentence.

        Args:
            text: A question or a phrase.

        Returns:
            The nouns that have labels, in order, and the words that mean something unknown.

        Example:
            >>> [noun.text for noun in Lexicon().read("when does the blue coffee mug appear?")[0]]
            ['blue coffee mug']
        """
        words = re.findall(r"[a-z]+(?:['-][a-z]+)*", text.lower())
        nouns: list[Noun] = []
        unknown: list[str] = []
        color: str | None = None
        place = 0

        def end_of_color() -> None:
            nonlocal color
            if color is not None:
                number = _COLOR_WORDS[color]
                nouns.append(Noun(color, {FIRST_COLOR + number: 1.0}))
                color = None

        while place < len(words):
            word = words[place]
            following = words[place + 1 : place + 2]
            starts_noun = bool(following) and following[0] not in _GRAMMAR
            # An orange is a fruit, unless a noun follows; every other colour is a colour.
            if word in _COLOR_WORDS and (word not in self._class_words or starts_noun):
                end_of_color()
                color = word
                place += 1
                continue
            if word in _GRAMMAR:
                place += 1
                continue
            for size in range(min(4, len(words) - place), 0, -1):
                phrase = " ".join(words[place : place + size])
                labels, several = self.lookup(phrase)
                if labels:
                    shown = phrase if color is None else f"{color} {phrase}"
                    tone = None if color is None else _COLOR_WORDS[color]
                    nouns.append(Noun(shown, labels, tone, several))
                    color = None
                    place += size
                    break
            else:
                if not re.search(r"(ing|ed|ly)$", word):
                    unknown.append(word)
                place += 1
        end_of_color()
        return nouns, unknown


def label_arrays(labels: dict[int, float]) -> tuple[np.ndarray, np.ndarray]:
    """A noun's labels as sorted numbers and weights, ``(K,)`` int64 and float32."""
    ids = np.array(sorted(labels), np.int64)
    return ids, np.array([labels[i] for i in ids.tolist()], np.float32)
