"""Say what moved, when and where, from the movements that a memory holds.

A movement is named by the labels that its frames voted for, where they are sure enough; else it is
"something". Nothing that moved is told apart from not having watched for movement.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from vismem.encoders.base import Encoder
from vismem.heads.answer import (
    LEAST_TOLD,
    MOST_MOMENTS,
    THRESHOLD,
    Answer,
    Moment,
    asked_span,
    clock,
)
from vismem.heads.answer import place_in_picture as place_of
from vismem.heads.locate import Sought, called, locate, sought
from vismem.heads.moved_question import MovedQuestion, asks_moved, read_moved
from vismem.heads.moved_words import Evidence, Moved, Spot, list_others, sentence
from vismem.heads.near import beside
from vismem.memory.episodic import EpisodicSnapshot
from vismem.memory.movements import Movement, MovementSnapshot
from vismem.memory.objects import ObjectSnapshot
from vismem.memory.remembered import Place

__all__ = ["Moved", "asks_moved", "with_movements"]

LEAST_FRAMES = 2  # of a movement that is told; once is a flicker
JUST_NOW = 2.0  # seconds; what moved so lately is moving
EVER = (-math.inf, math.inf)


def with_movements(
    found: Answer,
    movements: Mapping[str, MovementSnapshot | None] | None,
    objects: ObjectSnapshot | None,
    snapshots: Mapping[str, EpisodicSnapshot],
    encoder: Encoder,
    *,
    threshold: float = THRESHOLD,
) -> Answer:
    """Put what moved into the answer to a question that `asks_moved`.

    Args:
        found: What the moments say; its ``memory["span"]`` tells what is now.
        movements: By name of stream, of those that were watched for movement.
        objects: Of the memory of things, if frames had depth and a pose.
        snapshots: By name of stream, the moments.
        encoder: That reads the question and wrote the labels.
        threshold: Least score that is claimed.

    Returns:
        The answer with its movements. It abstains where nothing moved, where what is asked for is
        not known, and where nothing was watched for movement, and says which.
    """
    asked = read_moved(found.question, tuple(snapshots) if len(snapshots) > 1 else ())
    streams = asked.streams or tuple(snapshots)
    watched = {name: held for name in streams if (held := (movements or {}).get(name)) is not None}
    newest = _newest(found, watched)
    span = (newest - JUST_NOW, math.inf) if asked.now else asked_span(found.question, newest)
    things, strange = sought(asked.subject, encoder) if asked.subject else ([], [])
    if asked.subject and encoder.label_names and not things and not strange:  # it is no thing
        left_out = f"{asked.subject} {asked.left_out}".strip()
        asked = replace(asked, subject="", left_out=left_out)
    subject = " and ".join([*(thing.text for thing in things), *strange]) or asked.subject
    hops: list[Evidence] = []
    if objects is not None and streams and not (asked.near or asked.sides):
        hops = _hops(things, objects, span, threshold, streams[0])
    if not watched and not hops:
        text = f"Whether {subject or 'something'} moved is not known"
        return _answer(
            found,
            f"{text}: this memory did not watch, or no camera stood still for long enough.",
            (),
        )

    def tell(stream: str, one: Movement, label: str = "", fit: float = 1.0) -> Evidence:
        return _evidence(one, label or _name(one, encoder), fit, stream, snapshots.get(stream))

    then = [
        (stream, one)
        for stream, held in watched.items()
        for one in held.movements()
        if one.score >= threshold and one.frames >= LEAST_FRAMES
        and one.end >= span[0] and one.start <= span[1]
    ]  # fmt: skip
    places = [beside(text, objects, snapshots, encoder, threshold) for text in asked.near]
    there = [
        (stream, one)
        for stream, one in then
        if _is_on(one, asked.sides) and all(place.holds(stream, one) for place in places)
    ]
    told = [tell(stream, one) for stream, one in there]
    if asked.subject:
        told = [
            tell(stream, one, thing.text, fit)
            for thing in things
            for stream, one in there
            if (fit := _fit(thing, one)) >= threshold
        ]
        told += [hop for hop in hops if not any(_same_time(hop, one) for one in told)]
    told.sort(key=lambda one: (one.moved.start, one.moved.end))
    where = "".join(f" near {place.text}" for place in places)
    where += f" on the {' '.join(asked.sides)}" if asked.sides else ""
    others = [tell(stream, one) for stream, one in then]
    if lost := [place.text for place in places if not place.known]:
        text = f"Not seen: {' and '.join(lost)}{list_others(others, '{} then')}"
        told = []
    elif told:
        many = len(watched)
        text, told = sentence(found.question, subject, where, told, now=asked.now, streams=many)
    elif asked.subject:
        still = "" if objects is None else _stays(things, objects, newest, threshold)
        text = f"Not seen to move: {subject}{where}{still}{list_others(others, 'other {}')}"
    else:
        text = f"Nothing {'is moving now' if asked.now else 'moved'}{where}"
        text += " then" if span != EVER and not asked.now else ""
        text += list_others(others, "{} elsewhere")
    return _answer(found, f"{text}{_left_out(asked, streams, watched)}.", told)


def _answer(found: Answer, text: str, told: Sequence[Evidence]) -> Answer:
    best = sorted(told, key=lambda one: -one.moved.score)
    return replace(
        found,
        text=text,
        moments=tuple(one.moment for one in best[:MOST_MOMENTS]),
        abstained=not told,
        places=None,
        movements=tuple(one.moved for one in told),
    )


def _newest(found: Answer, watched: Mapping[str, MovementSnapshot]) -> float:
    if span := found.memory.get("span"):
        return float(span[1])
    return max((held.time for held in watched.values() if len(held)), default=0.0)


def _left_out(
    asked: MovedQuestion, streams: Sequence[str], watched: Mapping[str, MovementSnapshot]
) -> str:
    """What the answer does not know, or did not understand."""
    blind = [name for name in streams if name not in watched]
    text = f"; {', '.join(blind)} not watched for movement" if blind and watched else ""
    return text + (f'; "{asked.left_out}" was not understood' if asked.left_out else "")


# --------------------------------------------------------------------------- movements


def _is_on(one: Movement, sides: Sequence[str]) -> bool:
    """Whether a movement came by a part of the picture; its middle is in no other part."""
    spots = (set(place_of(point.box).split()) for point in one.way)
    if "centre" in sides:
        return any(spot == set(sides) for spot in spots)
    return any(spot >= set(sides) for spot in spots)


def _fit(thing: Sought, one: Movement) -> float:
    """How likely a movement is of a thing; its colour and shape are not known of a movement."""
    if thing.term is None or thing.color is not None or thing.shape is not None:
        return 0.0
    return called(thing.term, one.labels)


def _name(one: Movement, encoder: Encoder) -> str:
    """The surest label, if it is sure enough to be told unasked."""
    for number, score in one.labels.items():  # the surest first
        if number < encoder.things and score >= LEAST_TOLD:
            return encoder.label_names[number]
    return "something"


def _evidence(
    one: Movement, label: str, fit: float, stream: str, snapshot: EpisodicSnapshot | None
) -> Evidence:
    """A movement under a name, with the picture of the moment in which it was surest."""
    score, best = min(one.score, fit), one.best
    begun, ended = (Spot(point.box, point.position) for point in (one.first, one.last))
    picture = b""
    if snapshot is not None and len(snapshot):
        showing = (snapshot.column("start") <= best.time) & (snapshot.column("end") >= best.time)
        for moment in showing.nonzero()[:1, 0].tolist():
            picture = snapshot.thumbnail(moment)
    return Evidence(
        Moved(one.start, one.end, label, score, stream, begun, ended, one.count),
        Moment(
            one.start, one.end, score, label, best.box, None, stream, best.time, thumbnail=picture
        ),
    )


def _same_time(one: Evidence, other: Evidence) -> bool:
    return one.moved.start <= other.moved.end and other.moved.start <= one.moved.end


# --------------------------------------------------------------------------- things of the world


def _hops(
    things: Sequence[Sought],
    objects: ObjectSnapshot,
    span: tuple[float, float],
    threshold: float,
    stream: str,
) -> list[Evidence]:
    """Things that were at one place before and at another after, or are gone, seen or not.

    A hop lasts from the last sighting at the old place to the first one at the new.
    """
    found = []
    for held in objects.objects() if things else ():
        score, label = max((thing.score(held), thing.text) for thing in things)
        if not held.established or score < threshold:
            continue
        stays = [*reversed(held.places), Place(held.position, held.since, held.last)]
        ends: list[tuple[Place, float, Spot]] = [
            (before, after.first, Spot(held.box if after is stays[-1] else None, after.position))
            for before, after in pairwise(stays)
        ]
        if held.gone:
            ends.append((stays[-1], objects.time, Spot()))
        for before, until, ended in ends:
            if until >= span[0] and before.last <= span[1]:
                begun = Spot(position=before.position)
                found.append(
                    Evidence(
                        Moved(before.last, until, label, score, stream, begun, ended),
                        Moment(before.last, until, score, label, ended.box, None, stream, until),
                    )
                )
    return found


def _stays(
    things: Sequence[Sought], objects: ObjectSnapshot, newest: float, threshold: float
) -> str:
    """From when to when things are known to have been where they are."""
    return "".join(
        f", seen at one place {clock(place.first)}-{clock(place.last)}"
        for thing in things
        for place in locate(thing, objects, now=newest, threshold=threshold)[:1]
    )
