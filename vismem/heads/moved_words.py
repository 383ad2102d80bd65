"""Movements as an answer tells them, and the sentences that are made of them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vismem.heads.answer import Moment, clock, place_in_picture

__all__ = ["Evidence", "Moved", "Spot", "list_others", "sentence"]

SAME_PLACE = 0.1  # metres between two ends that are told as one place
MOST_TOLD = 6  # movements in a sentence
MOST_OTHERS = 3  # movements beside what is asked for


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a movement began or ended.

    Args:
        box: In the picture, ``x0 y0 x1 y1`` as fractions, if known.
        position: World metres, if known.
    """

    box: tuple[float, float, float, float] | None = None
    position: tuple[float, float, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "box": self.box and [round(x, 4) for x in self.box],
            "position": self.position and [round(x, 4) for x in self.position],
        }


@dataclass(frozen=True, slots=True)
class Moved:
    """One movement, as an answer tells it.

    Args:
        start: First second.
        end: Last second.
        label: What moved, ``"something"`` where that is not known.
        score: How sure, from 0 to 1.
        stream: Name of the stream that showed it.
        begun: Where it began.
        ended: Where it ended; empty where a thing is gone.
        count: Movements that are told as this one.
    """

    start: float
    end: float
    label: str
    score: float
    stream: str
    begun: Spot
    ended: Spot
    count: int = 1

    def to_dict(self) -> dict[str, Any]:
        """As plain values, as ``vismem ask --json`` prints it."""
        return {
            "start": round(self.start, 3),
            "end": round(self.end, 3),
            "label": self.label,
            "score": round(self.score, 4),
            "stream": self.stream,
            "from": self.begun.to_dict(),
            "to": self.ended.to_dict(),
            "count": self.count,
        }


@dataclass(frozen=True, slots=True)
class Evidence:
    """A movement, and the moment that shows it."""

    moved: Moved
    moment: Moment


def sentence(
    question: str, subject: str, where: str, told: list[Evidence], *, now: bool, streams: int
) -> tuple[str, list[Evidence]]:
    """Put movements into words.

    Args:
        question: As it was asked: for how many, for the first or the last, or for all.
        subject: What was asked for by name; empty for anything.
        where: What was asked for of the place, as it is told.
        told: One movement or more, in order of time.
        now: Whether it is asked what moves at present.
        streams: How many streams there are to tell apart.

    Returns:
        The sentence without its full stop, and the movements that it speaks of.
    """
    text = question.lower()
    head = f"{_capital(subject)} {'is moving' if now else 'moved'}" if subject else "Moved"
    if now and not subject:
        head = "Moving now"
    if re.search(r"\bhow (?:many|often)\b", text):
        total = sum(one.moved.count for one in told)
        noun = ("time" if subject else "movement") + "s" * (total != 1)
        head = f"{head}{where}: {total} {noun}" if subject else f"{total} {noun}{where}"
        head += f", at most {_at_once(told)} at once"
    else:
        if re.search(r"\b(?:first|earliest)\b", text):
            head, told = f"{head} first", told[:1]
        elif re.search(r"\b(?:last|latest)\b(?! \d)", text):
            head, told = f"{head} last", [max(told, key=lambda one: one.moved.end)]
        head += where
    listed = "; ".join(
        _tell(one.moved, not subject, streams) for one in _strongest(told, MOST_TOLD)
    )
    rest = f"; and {len(told) - MOST_TOLD} more" if len(told) > MOST_TOLD else ""
    return f"{head}: {listed}{rest}", told


def list_others(others: Sequence[Evidence], kind: str) -> str:
    """Add to a sentence what moved beside what is asked for.

    Args:
        others: In any order.
        kind: What they are called, with ``{}`` for "movement" or "movements".
    """
    if not others:
        return ""
    best = _strongest(others, MOST_OTHERS)
    spans = (f"{one.label} {clock(one.start)}-{clock(one.end)}" for one in (b.moved for b in best))
    more = f" and {len(others) - len(best)} more" if len(others) > len(best) else ""
    noun = "movement" if len(others) == 1 else "movements"
    return f"; {len(others)} {kind.format(noun)}: {', '.join(spans)}{more}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _strongest(told: Sequence[Evidence], most: int) -> list[Evidence]:
    """The surest, in order of time."""
    best = sorted(told, key=lambda one: -one.moved.score)[:most]
    return sorted(best, key=lambda one: (one.moved.start, one.moved.end))


def _at_once(told: Sequence[Evidence]) -> int:
    """The most movements at one time, which is when one of them begins."""
    spans = [(one.moved.start, one.moved.end) for one in told]
    return max(sum(start <= at <= end for start, end in spans) for at, _ in spans)


def _tell(one: Moved, with_name: bool, streams: int) -> str:
    name = f"{one.label} " if with_name else ""
    parts = [f"{name}{clock(one.start)}-{clock(one.end)} ({one.score:.2f})", _way(one)]
    if streams > 1:
        parts.append(f"on {one.stream}")
    if one.count > 1:
        parts.append(f"{one.count} movements")
    return ", ".join(part for part in parts if part)


def _way(one: Moved) -> str:
    """From where to where, in metres of the world if that is known, else in the picture."""
    start, end = one.begun.position, one.ended.position
    if start and end:
        if math.dist(start, end) < SAME_PLACE:
            return f"at {_spot(end)} m"
        return f"from {_spot(start)} to {_spot(end)} m"
    if start and not one.ended.box:
        return f"from {_spot(start)} m, not known where to"
    before, after = place_in_picture(one.begun.box), place_in_picture(one.ended.box)
    return f"from {before} to {after}" if before and before != after else after


def _spot(position: Sequence[float]) -> str:
    return " ".join(f"{axis} {value:.2f}" for axis, value in zip("xyz", position, strict=True))
