"""Say where a thing is or was in the world, how sure that is, and what is not known about it.

A thing is asked for by colour, by shape, or by what an encoder's labels call it. Of things that
answer equally well all are named; a thing that nothing answers is not guessed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vismem.encoders.base import Encoder, Term
from vismem.encoders.color import COLORS
from vismem.heads.answer import THRESHOLD, Answer, asked_span, clock
from vismem.memory.objects import ObjectSnapshot
from vismem.memory.remembered import Place, RememberedObject
from vismem.memory.volumes import OCCLUDED, OUT_OF_VIEW, PRESENT, SEEN, THROUGH, UNKNOWN

__all__ = [
    "Located", "Sought", "asks_where", "called", "locate", "sought", "state_of", "with_places",
]  # fmt: skip

MARGIN = 0.15  # of score: what comes as near to the best as this is named as well
SHARE_OF_COLOR = 0.3  # of a thing's pixels: even odds that it is called by that colour
STALE = 1.0  # seconds after the newest frame with depth, from which that frame tells nothing of now

_SHAPES = {"block": 0, "blocks": 0, "cube": 0, "cubes": 0, "box": 0, "boxes": 0, "brick": 0}
_SHAPES |= {"bricks": 0, "cuboid": 0, "ball": 1, "balls": 1, "sphere": 1, "spheres": 1, "orb": 1}
_SHAPES |= {"can": 2, "cans": 2, "cylinder": 2, "cylinders": 2, "tin": 2, "tins": 2}
_ANY = frozenset("thing things object objects one ones item items stuff".split())
_COLORS = {name: n for n, name in enumerate(COLORS)}
_COLORS |= {"grey": _COLORS["gray"], "violet": _COLORS["purple"]}
_SIZES = frozenset("small little tiny big large huge".split())
_RELATIONS = (
    r"\b(next to|near|beside|besides|behind|under|below|above|left of|right of|in front of)\b"
)
_TOLD = {
    SEEN: "there",
    PRESENT: "there",
    OCCLUDED: "occluded",
    OUT_OF_VIEW: "not looked at since",
    UNKNOWN: "unknown",
    THROUGH: "perhaps gone",
}


@dataclass(frozen=True, slots=True)
class Located:
    """Where a thing is or was.

    Args:
        label: What was asked for.
        position: World metres.
        sigma: One standard deviation of it, metres.
        state: Of that place when last looked at: ``"there"``, ``"occluded"`` by something nearer,
            ``"not looked at since"``, ``"perhaps gone"``, ``"gone"``, ``"moved away"`` where the
            thing is elsewhere now, or ``"unknown"`` where there was no depth.
        first: Second of the first sighting there.
        last: Second of the last one.
        views: Sightings of the thing.
        score: How well it answers the question, from 0 to 1.
        rivals: How many other things answer it as well.
        id: Number of the thing.
    """

    label: str
    position: tuple[float, float, float]
    sigma: float
    state: str
    first: float
    last: float
    views: int
    score: float
    rivals: int = 0
    id: int = -1

    def to_dict(self) -> dict[str, Any]:
        """As plain values, as ``vismem ask --json`` prints it."""
        return {
            "label": self.label,
            "position": [round(x, 4) for x in self.position],
            "sigma": round(self.sigma, 4),
            "state": self.state,
            "first": round(self.first, 3),
            "last": round(self.last, 3),
            "views": self.views,
            "score": round(self.score, 4),
            "rivals": self.rivals,
        }


@dataclass(frozen=True, slots=True)
class Sought:
    """A thing that a question asks for.

    Args:
        text: The words.
        color: Number of a colour name, if one is asked for.
        shape: Number of one of `vismem.sightings.SHAPES`, if one is.
        term: What an encoder's labels know of it, if it is something else.
    """

    text: str
    color: int | None = None
    shape: int | None = None
    term: Term | None = None

    def score(self, thing: RememberedObject) -> float:
        """How well a thing answers, from 0 to 1: as well as in what it answers worst."""
        parts = []
        if self.color is not None:
            share = max(float(thing.color[self.color]), 1e-6)
            parts.append(1 / (1 + (SHARE_OF_COLOR / share) ** 4))
        if self.shape is not None:
            parts.append(float(thing.shape[self.shape]))
        if self.term is not None:
            parts.append(called(self.term, thing.labels))
        return min(parts, default=0.0)


def called(term: Term, labels: Mapping[int, float]) -> float:
    """How likely what has these labels is what a term asks for, its colours left aside.

    Args:
        term: What is asked for.
        labels: Numbers of an encoder's labels, and how sure each is.
    """
    weights = dict(zip(term.ids.tolist(), term.weights.tolist(), strict=True))
    best = max((weights.get(n, 0.0) * score for n, score in labels.items()), default=0.0)
    slope, offset = term.calibration
    return 1 / (1 + math.exp(-slope * math.log(min(max(best, 1e-6), 1.0)) - offset))


def asks_where(question: str) -> bool:
    """Whether a question asks for a place.

    Example:
        >>> asks_where("Where was the red block?"), asks_where("when was the red block seen?")
        (True, False)
    """
    return (
        re.match(r"\W*where(\W?s|\s+(is|are|was|were|did|do|does|has|have))\b", question.lower())
        is not None
    )


def sought(question: str, encoder: Encoder) -> tuple[list[Sought], list[str]]:
    """Read what a question asks the place of.

    Args:
        question: Plain English. What follows "next to", "behind" and the like is not understood
            and left out.
        encoder: Reads the nouns that are no shapes.

    Returns:
        The things, and words that mean something nothing is known of.

    Example:
        >>> from vismem.encoders import load_encoder
        >>> things, unknown = sought("where was the red block?", load_encoder("embedded"))
        >>> [thing.text for thing in things], unknown
        (['red block'], [])
    """
    text = re.split(_RELATIONS, question.lower())[0]
    words = re.findall(r"[a-z]+(?:-[a-z]+)*", text)
    found: list[Sought] = []
    rest: list[str] = []
    color: str | None = None
    for place, word in enumerate(words):
        before, following = words[max(place - 1, 0)], words[place + 1 : place + 2]
        is_can = word != "can" or before in ("the", "a", "an", "that", "this") or before in _COLORS
        names_thing = word in _ANY or (word in _SHAPES and is_can)
        # "An orange" is a fruit, "the orange one" a colour.
        if word in _COLORS and (following and (following[0] in _SHAPES or following[0] in _ANY)):
            color = word
        elif names_thing and (color or word in _SHAPES):
            shown = f"{color} {word}" if color else word
            found.append(Sought(shown, _COLORS.get(color or ""), _SHAPES.get(word)))
            color = None
        elif word not in _SIZES:
            rest.append(word)
    query = encoder.query(" ".join(rest))
    colors = set(range(encoder.things, encoder.things + len(COLORS)))
    for term in query.terms:
        tone = None if term.colors is None else int(term.colors.nonzero()[0, 0])
        if set(term.ids.tolist()) <= colors:  # a colour alone: "where was red?", "the red hammer"
            tone = int(term.ids[0]) - encoder.things
            found.append(Sought(term.text, tone))
        else:
            found.append(Sought(term.text, tone, term=replace(term, several=False)))
    if not encoder.label_names and not found:
        return found, [word for word in rest if len(word) > 3]
    return found, list(query.unknown)


# --------------------------------------------------------------------------- where


def locate(
    thing: Sought,
    snapshot: ObjectSnapshot,
    *,
    span: tuple[float, float] = (-math.inf, math.inf),
    now: float | None = None,
    past: bool = True,
    threshold: float = THRESHOLD,
) -> tuple[Located, ...]:
    """Find where a thing is, or was in a span of time.

    Args:
        thing: What is asked for; see `sought`.
        snapshot: Of an `ObjectMemory`.
        span: Seconds; everything by default.
        now: Second of the newest frame of the memory, with depth or without.
        past: Whether it is asked where it was: then the last place of what is gone counts, too.
        threshold: Least score that is claimed.

    Returns:
        The best and all that come near to it, what is known to be there first, then by the last
        sighting; empty where nothing is good enough.
    """
    now = snapshot.time if now is None else now
    found = []
    for held in snapshot.objects():
        score = thing.score(held) if held.established else 0.0
        if score < threshold:
            continue
        told = _at(held, span, now, snapshot.time)
        if told is None or (told[1] == "gone" and not past and span[1] == math.inf):
            continue
        place, state = told
        sigma = held.sigma
        found.append(
            Located(
                thing.text, place.position, sigma, state, place.first, place.last, held.views,
                score, 0, held.id,
            )
        )  # fmt: skip
    best = max((one.score for one in found), default=0.0)
    near = [one for one in found if one.score >= best - MARGIN]
    near.sort(key=lambda one: (one.state == "gone", one.state != "there", -one.last, one.id))
    return tuple(replace(one, rivals=len(near) - 1) for one in near)


def state_of(held: RememberedObject) -> str:
    """What the newest frame with depth says of a thing's place; see `Located`."""
    return "gone" if held.gone else _TOLD[held.told]


def _at(
    held: RememberedObject, span: tuple[float, float], now: float, looked: float
) -> tuple[Place, str] | None:
    """Where a thing was in a span, and what is known of that place then; ``None`` if nothing is."""
    current = Place(held.position, held.since, held.last)
    state = state_of(held)
    if state == "there" and now > looked + STALE:
        state = "not looked at since"
    if span == (-math.inf, math.inf) or current.last >= span[0] and current.first <= span[1]:
        if span[1] < current.last:
            state = "there"
        return current, state
    if current.first <= span[1]:  # seen before the span alone, and no place is known since
        return (current, state) if not held.gone else None
    for place in held.places:  # newest first
        if place.first <= span[1]:
            return place, "there" if place.last >= span[0] else "moved away"
    return None


# --------------------------------------------------------------------------- words


def _spot(one: Located) -> str:
    x, y, z = one.position
    return f"x {x:.2f} y {y:.2f} z {z:.2f} m (±{100 * one.sigma:.1f} cm)"


_WORDS = {
    "there": "",
    "occluded": ", hidden by something since",
    "not looked at since": ", not looked at since",
    "perhaps gone": ", perhaps gone since",
    "gone": ", gone since",
    "moved away": ", elsewhere later",
    "unknown": ", no depth there since",
}


def _tell(one: Located) -> str:
    return f"{_spot(one)}, seen {clock(one.first)}-{clock(one.last)}{_WORDS[one.state]}"


def _sentence(places: Sequence[Located]) -> str:
    best = places[0]
    text = f"{best.label[0].upper()}{best.label[1:]}: {_tell(best)}"
    for other in places[1:4]:
        text += f"; or {_tell(other)}"
    if len(places) > 4:
        text += f"; and {len(places) - 4} more"
    if any(one.state in ("not looked at since", "occluded", "unknown") for one in places[1:]):
        text += "; whether these are several things or one that moved was not seen"
    return f"{text}."


def with_places(
    found: Answer,
    snapshot: ObjectSnapshot | None,
    encoder: Encoder,
    *,
    threshold: float = THRESHOLD,
) -> Answer:
    """Put places of the world into the answer to a question that begins with "where".

    Args:
        found: What the moments say.
        snapshot: Of the memory of things; ``None`` if no frame had depth, intrinsics and a pose.
        encoder: That reads the question.
        threshold: Least score that is claimed.

    Returns:
        The answer with its places. Where the things held do not answer, but could have been asked
        for by shape or colour, it abstains; what only the moments know is told as a place in the
        picture.
    """
    if snapshot is None:
        if found.abstained:
            return found
        text = found.text.removesuffix(".")
        return replace(found, text=f"{text}; in the picture, for no frame had depth and a pose.")
    span = found.memory.get("span")
    newest = float(span[1]) if span else snapshot.time
    things, unknown = sought(found.question, encoder)
    asked = asked_span(found.question, newest)
    past = re.match(r"\W*where\s+(was|were|did)\b", found.question.lower()) is not None
    places: list[Located] = []
    told, missing = [], []
    for thing in things if not unknown else ():
        here = locate(thing, snapshot, span=asked, now=newest, past=past, threshold=threshold)
        if here:
            places += here
            told.append(_sentence(here))
        else:
            missing.append(thing)
            gone = locate(thing, snapshot, span=asked, now=newest, threshold=threshold)
            places += gone
            if gone:
                told.append(f"Not known where it is now. {_sentence(gone)}")
            elif thing.term is None:
                told.append(f"Not seen: {thing.text}.")
    claimed = len(missing) < len(things) and not unknown
    if claimed or places:
        moments = found.moments if claimed else ()
        return replace(
            found, text=" ".join(told), moments=moments, abstained=not claimed,
            places=tuple(places),
        )  # fmt: skip
    if unknown or any(thing.term is None for thing in things):
        if unknown:
            told = [f"Not seen: nothing is known of {', '.join(unknown)}."]
        return replace(found, text=" ".join(told), moments=(), abstained=True, places=())
    if found.abstained:
        return replace(found, places=())
    text = found.text.removesuffix(".")
    return replace(
        found, text=f"{text}; in the picture, its place in the world is not known.", places=()
    )
