"""Whether a movement came near to a thing that a memory knows, in the world or in the picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vismem.encoders.base import Encoder
from vismem.heads.answer import JOIN_GAP, Moment, find
from vismem.heads.locate import Sought, called, locate, sought
from vismem.memory.episodic import EpisodicSnapshot
from vismem.memory.movements import Movement
from vismem.memory.objects import ObjectSnapshot

__all__ = ["Beside", "beside"]

NEAR_METRES = 0.5  # from the box around a thing
NEAR_SHARE = 0.1  # of the picture's width or height, between two boxes


@dataclass(frozen=True)
class Beside:
    """A thing that movements may have been near to.

    Args:
        text: Words for it.
        things: What they ask for, read with the labels of an encoder.
        known: Whether the thing is held at all.
        objects: The things of the world.
        moments: By name of stream, when and where in the picture it was seen.
        threshold: Least score that is claimed.
    """

    text: str
    things: Sequence[Sought]
    known: bool
    objects: ObjectSnapshot | None
    moments: Mapping[str, Sequence[Moment]]
    threshold: float

    def holds(self, stream: str, one: Movement) -> bool:
        """Whether a movement came by; a thing is not near itself."""
        for thing in self.things:
            if thing.term is not None and thing.color is None:
                if called(thing.term, one.labels) >= self.threshold:
                    return False
        in_world = self._in_world(one)
        return self._in_picture(stream, one) if in_world is None else in_world

    def _in_world(self, one: Movement) -> bool | None:
        """By metres; ``None`` where the place of one of the two is not known."""
        way = [point.position for point in one.way if point.position is not None]
        if self.objects is None or not way:
            return None
        span = (one.start, one.end)
        sides = {held.id: held.extent for held in self.objects.objects()}
        found = [
            locate(thing, self.objects, span=span, threshold=self.threshold)
            for thing in self.things
        ]
        if not found or not all(found):
            return None
        return all(
            any(
                _outside(at, place.position, sides[place.id]) <= NEAR_METRES
                for place in places
                for at in way
            )
            for places in found
        )

    def _in_picture(self, stream: str, one: Movement) -> bool:
        """By the boxes of the moment that is nearest in time.

        A camera that knows where things are may itself move: then only of the same time.
        """
        moments = self.moments.get(stream, ())
        if any(point.position for point in one.way):
            moments = [m for m in moments if _pause(m, one) <= JOIN_GAP]
        if not moments:
            return False
        box = min(moments, key=lambda moment: _pause(moment, one)).box
        return box is not None and any(_apart(point.box, box) <= NEAR_SHARE for point in one.way)


def beside(
    text: str,
    objects: ObjectSnapshot | None,
    snapshots: Mapping[str, EpisodicSnapshot],
    encoder: Encoder,
    threshold: float,
) -> Beside:
    """Look for a thing in the world and in the moments.

    Args:
        text: Words for it, such as ``"table"``.
        objects: The things of the world, if any are known.
        snapshots: By name of stream, the moments.
        encoder: That reads the words and wrote the labels.
        threshold: Least score that is claimed.
    """
    things, unknown = sought(text, encoder)
    moments: dict[str, list[Moment]] = {}
    query = encoder.query(text)
    if query.terms and not unknown:
        for name, snapshot in snapshots.items():
            seen = find(snapshot, query, encoder, stream=name, threshold=threshold)
            moments[name] = [moment for moment in seen if moment.box is not None]
    known = any(moments.values())
    if objects is not None and things and not unknown:
        known |= all(locate(thing, objects, threshold=threshold) for thing in things)
    return Beside(text, things, known, objects, moments, threshold)


def _outside(point: Sequence[float], middle: Sequence[float], sides: Sequence[float]) -> float:
    """Metres from a point to a box along the world's axes; 0 within it."""
    return math.hypot(
        *(max(0.0, abs(p - m) - s / 2) for p, m, s in zip(point, middle, sides, strict=True))
    )


def _apart(one: Sequence[float], other: Sequence[float]) -> float:
    """The larger of the gaps between two boxes across and down; 0 where they overlap."""
    across = max(one[0] - other[2], other[0] - one[2])
    down = max(one[1] - other[3], other[1] - one[3])
    return max(0.0, across, down)


def _pause(moment: Moment, one: Movement) -> float:
    """Seconds between a moment and a movement; 0 where they overlap."""
    return max(0.0, moment.start - one.end, one.start - moment.end)
