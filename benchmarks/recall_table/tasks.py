"""Eight families of episodes on the table that no single picture can answer.

An episode is a script of steps: `cue` frames show what must be remembered, `event` frames show
what anyone may see (cups that change places), and `before`, `rest`, `away` and `query` frames are
*covered*: nothing in them depends on what is hidden. `twin` proves that, to the last bit, by
drawing the same seed with another hidden content. Because it holds, covered frames may come from
one long clip a family, drawn once: an episode takes a window of it, as long as its delay. So a
delay of 512 frames costs nothing, and no two frames of a window are the same picture: the camera
trembles and a ball rolls along the table's edge.

Answers are dealt in turn, so every answer is asked for equally often.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from scene import PITCH, Table, Thing, look_at

from vismem import Frame
from vismem.geometry import unproject

__all__ = ["DELAYS", "FAMILIES", "Data", "Episode", "Family", "Shots", "generate", "twin"]

DELAYS = (0, 8, 32, 128, 512)
TRAIN_DELAYS = (0, 8, 32)
AFTER = 2  # covered frames between the cue and the delay
BEFORE = 6  # covered frames before the cue at most; 0 to so many
SIDE, CELLS, PATCH = 32, 8, 4  # a stored picture is 32 x 32 pixels, 8 x 8 patches of 4 x 4
BLOCKS = 16  # a side, of the picture that novelty compares
HUES = ("red", "green", "blue", "yellow", "purple", "cyan")
TREMBLE = 0.0015  # metres, of the camera and of what it looks at
HIDDEN_LABELS = ("event", "before", "rest", "away", "query")  # twins must agree on these
CLIP = 1200  # covered frames of a label that are drawn once


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


class Family:
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

    def public(self, rng: np.random.Generator) -> dict:
        """Draw what anyone may know, the query among it."""
        raise NotImplementedError

    def hide(self, rng: np.random.Generator, public: dict, answer: int) -> tuple[dict, tuple]:
        """Draw what is hidden such that the answer comes true; and the answers that were."""
        raise NotImplementedError

    def play(self, table: Table, content: Content) -> Iterator[Step]:
        """Play the script: change the table, then say how many frames of it are taken."""
        raise NotImplementedError

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


# ---------------------------------------------------------------------- frames


class Shots:
    """Frames as they are kept: small pictures, where their cells lie, poses."""

    def __init__(self) -> None:
        self._rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, frame: Frame) -> int:
        """Keep a frame of 64 x 64 pixels; its number."""
        small = frame.image.reshape(SIDE, 2, SIDE, 2, 3).mean((1, 3)).round().astype(np.uint8)
        points = unproject(frame.depth, frame.intrinsics, frame.pose)
        side = frame.height // CELLS
        cells = points.reshape(CELLS, side, CELLS, side, 3).mean((1, 3)).reshape(-1, 3)
        self._rows.append((small, cells.astype(np.float32), frame.pose))
        return len(self._rows) - 1

    def stacked(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pictures `(F, 32, 32, 3)` uint8, positions `(F, 64, 3)` float32, poses `(F, 4, 4)`."""
        pictures, positions, poses = zip(*self._rows, strict=True)
        return np.stack(pictures), np.stack(positions), np.stack(poses)


@dataclass(frozen=True)
class Episode:
    """A script whose covered frames are still to be taken from a clip.

    Args:
        content: What it is about.
        steps: Label and the numbers of its own frames, or how many of the clip's.
        xyz: Where the answer is, `(3,)` metres.
        seed: Of the windows of the clips.
    """

    content: Content
    steps: tuple[tuple[str, tuple[int, ...] | int], ...]
    xyz: np.ndarray
    seed: tuple[int, ...]


@dataclass
class Data:
    """Episodes of one family and the frames they are made of.

    Args:
        family: Whose they are.
        episodes: In order; answers are dealt in turn.
        clips: Numbers of the covered frames of each label.
        pictures: `(F, 32, 32, 3)` uint8.
        positions: Where each cell lies, `(F, 64, 3)` float32 metres.
        poses: `(F, 4, 4)` float64.
        intrinsics: `(3, 3)` of the 64 x 64 pictures.
    """

    family: Family
    episodes: list[Episode]
    clips: dict[str, np.ndarray]
    pictures: np.ndarray
    positions: np.ndarray
    poses: np.ndarray
    intrinsics: np.ndarray
    signatures: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        frames, k = len(self.pictures), SIDE // BLOCKS
        blocks = self.pictures.reshape(frames, BLOCKS, k, BLOCKS, k, 3).mean((2, 4)) / 255
        self.signatures = blocks.reshape(frames, -1).astype(np.float32)

    def timeline(self, number: int, delay: int) -> tuple[np.ndarray, np.ndarray]:
        """Frame numbers of an episode with a delay, and which of them are cue, `(T,)` each."""
        episode = self.episodes[number]
        rng = np.random.default_rng([*episode.seed, delay])
        frames: list[int] = []
        cue: list[bool] = []
        for label, taken in (*episode.steps, ("rest", delay), ("query", 1)):
            if isinstance(taken, int):
                clip = self.clips[label]
                taken = int(rng.integers(BEFORE + 1)) if label == "before" else taken
                start = int(rng.integers(len(clip) - taken + 1))
                taken = tuple(clip[start : start + taken].tolist())
            frames += taken
            cue += [label == "cue"] * len(taken)
        return np.array(frames), np.array(cue)


def _take(
    family: Family, table: Table, content: Content, label: str, number: int, seed: Sequence[int]
) -> Frame:
    """Take one frame: where the camera trembles to and the ball rolls depends on the seed alone."""
    rng = np.random.default_rng([*seed, number])
    eye, target = family.eye(table, label, number, content) + rng.normal(0, TREMBLE, (2, 3))
    table.move_camera(look_at(eye, target))
    along = 0.3 * math.sin(0.37 * number + float(np.random.default_rng(seed).uniform(0, 6.28)))
    table.distract((along, -0.30, table.top + 0.03))
    return table.render()


def _clip(family: Family, table: Table, label: str, seed: Sequence[int], shots: Shots, n: int):
    """Draw one long covered clip of a label, with some content hidden."""
    content = family.draw(seed, seed[-1] % family.answers)
    table.reset()
    for step in family.play(table, content):
        if step.label == label:
            break  # a query frame is of the table as the script leaves it
    return np.array([shots.add(_take(family, table, content, label, i, seed)) for i in range(n)])


def generate(family: Family, count: int, seed: int, clip: int = CLIP) -> Data:
    """Draw `count` episodes; the same numbers give the same bytes.

    Args:
        family: Of `FAMILIES`.
        count: Episodes; answers are dealt in turn.
        seed: Of everything; train and test take different ones.
        clip: Covered frames of each label that are drawn once; at least the longest delay asked of
            `Data.timeline`.
    """
    shots, episodes = Shots(), []
    number = [*FAMILIES].index(family.name)
    with family.table() as table:
        clips = {
            label: _clip(family, table, label, [seed, number, 7, i], shots,
                         clip if label == "rest" else min(clip, 64))
            for i, label in enumerate(family.labels)
        }  # fmt: skip
        for i in range(count):
            key = [seed, number, i]
            content = family.draw(key, i % family.answers)
            table.reset()
            steps: list[tuple[str, tuple[int, ...] | int]] = []
            taken = dict.fromkeys(("cue", "event"), 0)
            for step in family.play(table, content):
                if step.label in clips:
                    steps.append((step.label, step.frames))
                    continue
                first = taken[step.label]
                taken[step.label] += step.frames
                own = [
                    shots.add(_take(family, table, content, step.label, n, [*key, 3]))
                    for n in range(first, first + step.frames)
                ]
                steps.append((step.label, tuple(own)))
            xyz = family.answer_at(table, content.answer)
            episodes.append(Episode(content, tuple(steps), xyz, (*key, 4)))
        intrinsics = table.intrinsics
    return Data(family, episodes, clips, *shots.stacked(), intrinsics)


def twin(family: Family, seed: int, delay: int = 3) -> tuple[int, int]:
    """Play two episodes that differ in nothing but what is hidden, every frame drawn for real.

    Returns:
        How many covered and event frames were compared, and how many of them differ in a single
        bit of picture or depth. Anything but 0 is a leak.
    """
    key = [seed, 11]
    first = int(np.random.default_rng(key).integers(family.answers))
    taken: list[list[bytes]] = []
    with family.table() as table:
        for answer in (first, (first + 1) % family.answers):
            content = family.draw(key, answer)
            table.reset()
            frames: list[bytes] = []
            number = 0
            for step in (*family.play(table, content), Step("rest", delay), Step("query")):
                for _ in range(step.frames):
                    frame = _take(family, table, content, step.label, number, key)
                    number += 1
                    if step.label in HIDDEN_LABELS:
                        frames.append(frame.image.tobytes() + frame.depth.tobytes())
            taken.append(frames)
    return len(taken[0]), sum(a != b for a, b in zip(*taken, strict=True))
