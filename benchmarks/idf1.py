"""How well ids given over time fit who is really there: IDF1, switches and how many ids.

Source: Ristani et al., "Performance Measures and a Data Set for Multi-Target, Multi-Camera
Tracking", 2016 (https://arxiv.org/abs/1609.01775): the one pairing of ids with people that explains
most boxes is made over the whole video, and IDF1 is the F1 of the boxes it explains.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from vismem.memory.assignment import assign

OVERLAP = 0.5  # intersection over union from which a box shows a person


@dataclass
class IdScore:
    """Counts over frames; add frames of one video in order with `frame`, videos with ``+``."""

    people: int = 0
    ids: int = 0
    shared: int = 0
    switches: int = 0
    visible: int = 0
    found: int = 0
    given: int = 0
    explained: int = 0
    pairs: Counter[tuple[Hashable, int]] = field(default_factory=Counter)
    last: dict[Hashable, int] = field(default_factory=dict)
    numbers: set[int] = field(default_factory=set)

    def frame(
        self, people: Mapping[Hashable, np.ndarray | None], boxes: np.ndarray, ids: Sequence[int]
    ) -> None:
        """Count one frame.

        Args:
            people: Who is there, and the box; None where that is not known and any box will do.
            boxes: ``(N, 4)`` found.
            ids: Of each box, -1 for none.
        """
        self.visible += len(people)
        self.given += sum(who >= 0 for who in ids)
        self.numbers.update(who for who in ids if who >= 0)
        for who in people:
            self.last.setdefault(who, -1)
        if not people or not len(boxes):
            return
        names = list(people)
        near = np.array([_overlap(people[name], boxes) for name in names])
        for row, column in zip(*assign(-near), strict=True):
            if near[row, column] < OVERLAP:
                continue
            name, who = names[row], ids[column]
            self.found += 1
            if who >= 0:
                self.pairs[name, who] += 1
                self.switches += self.last[name] not in (-1, who)
                self.last[name] = who

    def close(self) -> IdScore:
        """Pair ids with people after the last frame."""
        names, numbers = list(self.last), sorted(self.numbers)
        shown = np.array([[self.pairs[n, i] for i in numbers] for n in names], float)
        self.people, self.ids = len(names), len(numbers)
        if shown.size:
            self.explained = int(shown[assign(-shown)].sum())
        whose = defaultdict(set)
        for name, who in self.pairs:
            whose[who].add(name)
        self.shared = sum(len(some) > 1 for some in whose.values())
        return self

    @property
    def idf1(self) -> float:
        """Of boxes, 0 to 1."""
        return 2 * self.explained / max(1, self.visible + self.given)

    def __add__(self, other: IdScore) -> IdScore:
        names = "people ids shared switches visible found given explained".split()
        return IdScore(*(getattr(self, name) + getattr(other, name) for name in names))

    def __str__(self) -> str:
        return (
            f"IDF1 {100 * self.idf1:.1f}, {self.people} people, {self.ids} ids, {self.shared} of "
            f"them of two people, {self.switches} switches; {self.found} of {self.visible} found, "
            f"{self.given} boxes with an id"
        )


def _overlap(box: np.ndarray | None, boxes: np.ndarray) -> np.ndarray:
    """Intersection over union with each of ``(N, 4)``; 1 with the first where it is not known."""
    if box is None:
        return (np.arange(len(boxes)) == 0).astype(float)
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    shared = (high - low).clip(0).prod(1)
    return shared / ((box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(1) - shared)
