"""Eight families of episodes on the table that no single picture can answer.

A family draws what is hidden and plays a script: it changes the table, then says how many frames
are taken of it, and of what kind. `cue` frames show what must be remembered, `event` frames what
anyone may see (cups that change places); `before`, `rest`, `away` and `query` frames are covered,
and nothing in them depends on what is hidden.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scene import PITCH, Table, Thing

__all__ = ["AFTER", "FAMILIES", "HUES", "Content", "Family", "Step"]

AFTER = 2  # covered frames between the cue and the delay
HUES = ("red", "green", "blue", "yellow", "purple", "cyan")


class Step(NamedTuple):
    """So many frames of the table as it now stands."""

    label: str
    frames: int = 1


@dataclass(frozen=True)
class Content:
    """What an episode is about.

    Args:
        query: Which colour is asked for; 0 where there is nothing to choose.
        answer: Its number among the family's answers.
        hidden: What the cue shows, by the family's own names.
        public: What anyone may know.
        stale: Answers that were true before.
    """

    query: int
    answer: int
    hidden: dict
    public: dict
    stale: tuple[int, ...] = ()


class Family(ABC):
    """Episodes of one kind; a family says what is hidden and plays the script."""

    name = ""
    asks = ""
    answers = 9
    views = 4  # what the bank may hold
    place = 0.5  # metres, of a place's cell
    fovy = 45.0
    drawers = 0
    half = 0.035
    things: tuple[Thing, ...] = ()
    labels = ("before", "rest", "query")  # covered frames that come from a clip

    def table(self, size: tuple[int, int] = (64, 64)) -> Table:
        """The family's own table."""
        return Table(objects=self.things, fovy=self.fovy, size=size, drawers=self.drawers)

    @abstractmethod
    def public(self, rng: np.random.Generator) -> dict:
        """Draw what anyone may know, the query among it."""

    @abstractmethod
    def hide(self, rng: np.random.Generator, public: dict, answer: int) -> tuple[dict, tuple]:
        """Draw what is hidden such that the answer comes true; and the answers that were."""

    @abstractmethod
    def play(self, table: Table, content: Content) -> Iterator[Step]:
        """Play the script: change the table, then say how many frames of it are taken."""

    def answer_at(self, table: Table, answer: int) -> np.ndarray:
        """Where an answer is in the world, metres; NaN if it is nowhere."""
        return table.slots[answer] + (0.0, 0.0, self.half)

    def eye(self, table: Table, label: str, number: int, content: Content) -> np.ndarray:
        """Eye and target of the camera, `(2, 3)`; no content may be used in a covered frame."""
        return np.array([(0.02, -0.62, table.top + 0.72), (0.02, 0.0, table.top)])

    def draw(self, seed: Sequence[int], answer: int) -> Content:
        """Draw an episode's content: twins share a seed and differ in the answer."""
        public = self.public(np.random.default_rng([*seed, 1]))
        hidden, stale = self.hide(np.random.default_rng([*seed, 2, answer]), public, answer)
        return Content(public.get("query", 0), answer, hidden, public, stale)


class PutBack(Family):
    """T1: where was the block before it came to the middle?"""

    name, asks, answers, half = "put_back", "slot before the move", 8, 0.06
    things = (Thing("blue", half=0.06),)

    @staticmethod
    def slot(answer: int) -> int:
        """The slot of an answer; the middle is none."""
        return answer + (answer >= 4)

    def answer_at(self, table, answer):
        return table.slots[self.slot(answer)] + (0.0, 0.0, self.half)

    def public(self, rng):
        return {}

    def hide(self, rng, public, answer):
        return {"slot": self.slot(answer)}, ()

    def play(self, table, content):
        block = self.things[0].name
        yield Step("before")
        table.place(block, content.hidden["slot"])
        yield Step("cue", 3)
        x, y, z = table.slots[content.hidden["slot"]]
        table.place(block, (x / 2, y / 2, z + 0.15))
        yield Step("cue")
        table.place(block, 4)
        table.press(True)
        yield Step("event")
        table.press(False)
        yield Step("rest", AFTER)


class Reopen(Family):
    """T2: which of four equal drawers stood open?"""

    name, asks, answers, drawers = "reopen", "drawer that was open", 4, 4

    def answer_at(self, table, answer):
        return np.array(table.drawer_at(answer, False)) - (0.0, 0.13, 0.0)

    def public(self, rng):
        return {}

    def hide(self, rng, public, answer):
        return {"drawer": answer}, ()

    def play(self, table, content):
        yield Step("before")
        table.drawer(content.hidden["drawer"], True)
        yield Step("cue", 4)
        table.drawer(content.hidden["drawer"], False)
        yield Step("rest", AFTER)


class Rearrange(Family):
    """T3: two equal blocks; which of them was not moved?"""

    name, asks, answers, half = "rearrange", "block that was not moved", 2, 0.05
    things = (Thing("blue", half=0.05, name="one"), Thing("blue", half=0.05, name="two"))
    sides = (3, 5)

    def answer_at(self, table, answer):
        return table.slots[self.sides[answer]] + (0.0, 0.0, self.half)

    def public(self, rng):
        return {}

    def hide(self, rng, public, answer):
        return {"still": self.sides[answer], "free": self.sides[1 - answer]}, ()

    def play(self, table, content):
        yield Step("before")
        table.place("one", content.hidden["still"])
        table.place("two", 4)
        yield Step("cue", 3)
        x, y, z = table.slots[content.hidden["free"]]
        table.place("two", (x / 2, y, z + 0.15))
        yield Step("cue")
        table.place("two", content.hidden["free"])
        yield Step("rest", AFTER)


class FindHidden(Family):
    """T4: under which cup is the thing of that colour?"""

    name, asks = "find_hidden", "cup over a colour"
    things = tuple(Thing(hue, half=0.04, name=hue) for hue in HUES)
    half = 0.04

    def public(self, rng):
        shown = rng.permutation(len(HUES))[:3].tolist()
        return {"shown": shown, "query": shown[0]}

    def hide(self, rng, public, answer):
        others = rng.permutation([slot for slot in range(9) if slot != answer])[:2].tolist()
        return {"slots": [answer, *others]}, ()

    def cover(self, table: Table) -> None:
        for slot in range(9):
            table.cover(slot)

    def lay(self, table: Table, content: Content, slots: Sequence[int]) -> None:
        for number, slot in zip(content.public["shown"], slots, strict=True):
            table.place(HUES[number], slot)

    def show(self, table: Table) -> None:
        for slot in range(9):
            table.uncover(slot)

    def play(self, table, content):
        self.lay(table, content, content.hidden["slots"])
        self.cover(table)
        yield Step("before")
        self.show(table)
        yield Step("cue", 4)
        self.cover(table)
        yield Step("rest", AFTER)


class Update(FindHidden):
    """T5: the thing moved twice in view; where is it now?"""

    name, asks, views = "update", "latest cup over a colour", 8

    def hide(self, rng, public, answer):
        slots = rng.permutation([slot for slot in range(9) if slot != answer]).tolist()
        return {"slots": slots[:3], "moves": (slots[3], answer)}, (slots[0], slots[3])

    def play(self, table, content):
        self.lay(table, content, content.hidden["slots"])
        self.cover(table)
        yield Step("before")
        for slot in (None, *content.hidden["moves"]):
            if slot is not None:
                table.place(HUES[content.query], slot)
            self.show(table)
            yield Step("cue", 3)
            self.cover(table)
            yield Step("rest", AFTER)


class Swap(FindHidden):
    """T6: cups change places in view, twice; under which one is the thing now?"""

    name, asks, views = "swap", "cup after two swaps", 12

    def public(self, rng):
        pairs = [tuple(rng.permutation(9)[:2].tolist()) for _ in range(2)]
        return {**super().public(rng), "swaps": pairs}

    def hide(self, rng, public, answer):
        start = answer
        for a, b in reversed(public["swaps"]):
            start = {a: b, b: a}.get(start, start)
        others = rng.permutation([slot for slot in range(9) if slot != start])[:2].tolist()
        return {"slots": [start, *others]}, (start,) if start != answer else ()

    def play(self, table, content):
        at = list(content.hidden["slots"])
        self.lay(table, content, at)
        self.cover(table)
        yield Step("before")
        self.show(table)
        yield Step("cue", 4)
        self.cover(table)
        yield Step("rest", 1)
        for a, b in content.public["swaps"]:
            start, end = table.slots[a], table.slots[b]
            aside = np.cross(end - start, (0.0, 0.0, 1.0)) * 0.35
            for part in (0.25, 0.5, 0.75):
                bow = aside * math.sin(math.pi * part)
                spots = {a: start + (end - start) * part + bow, b: end + (start - end) * part - bow}
                for cup, spot in spots.items():
                    table.carry_cup(cup, spot)
                    for number, slot in zip(content.public["shown"], at, strict=True):
                        if slot == cup:
                            table.place(HUES[number], spot + (0.0, 0.0, self.half))
                yield Step("event")
            at = [{a: b, b: a}.get(slot, slot) for slot in at]
            self.lay(table, content, at)
            self.cover(table)
            yield Step("rest", 1)


class Sweep(FindHidden):
    """T7: seen a slot at a time by a narrow moving camera, asked from elsewhere."""

    name, asks, views, fovy, place = "sweep", "cup over a colour, by pose", 12, 24.0, PITCH

    def eye(self, table, label, number, content):
        if label == "query":
            return np.array([(0.50, -0.40, table.top + 0.60), (0.05, 0.0, table.top)])
        # The order of the sweep is public; in covered frames the camera wanders on its own.
        order = content.public["sweep"] if label == "cue" else np.arange(9) * 4 % 9
        target = table.slots[order[number % 9]]
        return np.array([target + (0.05, -0.13, 0.55), target])

    def public(self, rng):
        return {**super().public(rng), "sweep": rng.permutation(9).tolist()}

    def play(self, table, content):
        self.lay(table, content, content.hidden["slots"])
        self.cover(table)
        yield Step("before")
        self.show(table)
        yield Step("cue", 9)
        self.cover(table)
        yield Step("rest", AFTER)


class Absent(FindHidden):
    """T8: while the camera looks away a thing may go; where is it, or is it gone?"""

    name, asks, answers, views = "absent", "cup over a colour, or gone", 10, 8
    labels = ("before", "rest", "away", "query")
    gone = 9

    def answer_at(self, table, answer):
        return np.full(3, np.nan) if answer == self.gone else super().answer_at(table, answer)

    def eye(self, table, label, number, content):
        eye = super().eye(table, label, number, content)
        return eye + [(0, 0, 0), (0.1, -1.6, 0.2)] if label == "away" else eye

    def hide(self, rng, public, answer):
        start = answer if answer != self.gone else int(rng.integers(9))
        others = rng.permutation([slot for slot in range(9) if slot != start])[:2].tolist()
        stale = (start,) if answer == self.gone else ()
        return {"slots": [start, *others]}, stale

    def play(self, table, content):
        self.lay(table, content, content.hidden["slots"])
        self.cover(table)
        yield Step("before")
        self.show(table)
        yield Step("cue", 3)
        yield Step("away", 4)
        if content.answer == self.gone:
            table.remove(HUES[content.query])
        yield Step("cue", 3)
        self.cover(table)
        yield Step("rest", AFTER)


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        PutBack(),
        Reopen(),
        Rearrange(),
        FindHidden(),
        Update(),
        Swap(),
        Sweep(),
        Absent(),
    )  # fmt: skip
}
