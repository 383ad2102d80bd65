"""What the page shows of a visit, as text and HTML: everything that comes from outside is escaped.

Names of things, words of an answer, questions and names of files are data. They enter the page
through `html.escape` alone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from html import escape
from typing import Any

from vismem.heads.answer import Moment, clock
from vismem.live import Facts, MomentView, facts, moments, scenes

from .map import memory_map
from .session import Session, Turn

__all__ = ["chat", "size", "speaking", "state", "timeline"]

MOST_CARDS = 40  # moments with a picture on the timeline, the newest
MOST_CHIPS = 4  # moments shown below an answer


def state(session: Session, known: str) -> tuple[str, dict[str, Any]]:
    """What has changed on the page.

    Args:
        session: The visit.
        known: Version of the memory that the page shows; empty for none.

    Returns:
        The version now, and values for JSON; timeline and map only if the version is another.
    """
    memory = session.memory
    now = facts(memory)
    version = f"{session.number}.{now.frames}.{now.bytes}.{now.merged}.{now.forgotten}.{now.policy}"
    values: dict[str, Any] = {"live": _live(session), "facts": _facts(session, now)}
    values["number"] = session.number
    if version != known:
        held = moments(memory)
        values["moments"] = timeline(held[-MOST_CARDS:], session.token, session.number)
        values["map"] = memory_map(held, scenes(memory))
        values["earlier"] = max(0, len(held) - MOST_CARDS)
    return version, values


def _live(session: Session) -> dict[str, Any]:
    """How the watching goes."""
    player, picture = session.player, session.picture
    status = "idle"
    if player is not None:
        status = "ended" if player.ended else "paused" if player.paused else "playing"
        if status == "playing" and not picture.jpeg:
            status = "waiting"
    return {
        "status": status,
        "source": player.name if player else "",
        "time": clock(picture.time),
        "fps": round(player.fps, 1) if player else 0.0,
        "people": picture.boxes,
        "problem": player.problem if player else "",
    }


def _facts(session: Session, now: Facts) -> dict[str, Any]:
    """Figures, each as it is shown."""
    wished = session.asked_to_forget
    start, end = now.span or (0.0, 0.0)
    late = session.player.dropped if session.player else 0
    return {
        "bytes": size(now.bytes),
        "budget": size(now.budget),
        "share": round(min(1.0, now.bytes / max(1, now.budget)), 4),
        "moments": f"{now.moments:,}",
        "scenes": f"{now.scenes:,}" if now.policy != "moments" else "",
        "policy": now.policy,
        "frames": f"{now.frames:,}",
        "span": duration(end - start),
        "merged": f"{now.merged:,}",
        "forgotten": f"{wished:,}",
        "crowded": f"{max(0, now.forgotten - wished):,}",
        "dropped": f"{now.dropped + late:,}",
    }


def timeline(moments: Sequence[MomentView], token: str, number: int = 0) -> list[tuple[str, str]]:
    """A card for every moment: what it is known by on the page, and its HTML.

    Args:
        moments: What to show.
        token: Of the visit.
        number: Of the memory: another one may have moments of the same ids.
    """
    return [(f"{number}.{m.id}", _card(m, token, number)) for m in moments]


def _card(moment: MomentView, token: str, number: int) -> str:
    label = escape(moment.label or "unnamed")
    when = f"{clock(moment.start)}–{clock(moment.end)}"
    return _opener(
        "moment",
        key=moment.id,
        token=token,
        version=f"{number}.{moment.time:.3f}",
        title=moment.label or "a moment",
        when=f"{when} · picture from {clock(moment.time)}",
        more=f"stands for {count(moment.frames, 'frame')}",
        inside=(
            f'<span class="what">{label}</span>'
            f'<span class="when">{when}<i>{moment.frames}</i></span>'
        ),
    )


def _opener(
    kind: str, *, key: str, token: str, version: str, title: str, when: str, more: str, inside: str
) -> str:
    """A button with a thumbnail that opens large; `inside` is HTML already."""
    source = f"visit/{escape(token)}/moment/{escape(key)}.jpg?{escape(version)}"
    said = "".join(
        f' data-{name}="{escape(value)}"'
        for name, value in (("key", key), ("title", title), ("when", when), ("more", more))
    )
    return (
        f'<button type="button" class="{kind}" data-testid="{kind}"{said}>'
        f'<img alt="" src="{source}">{inside}</button>'
    )


# --------------------------------------------------------------------------- chat


def chat(turns: Sequence[Turn], token: str) -> str:
    """All turns, the newest last."""
    return "".join(_asked(turn.answer.question) + _answered(turn, token) for turn in turns)


def speaking(question: str, words: str) -> str:
    """A question, and as much of its answer as has been said."""
    shown = f"{escape(words)} <i class='caret'></i>" if words else "<i class='caret'></i>"
    return _asked(question) + f'<div class="bubble answer" data-testid="speaking">{shown}</div>'


def _asked(question: str) -> str:
    return f'<div class="bubble question" data-testid="question">{escape(question)}</div>'


def _answered(turn: Turn, token: str) -> str:
    answer = turn.answer
    kind = "answer abstained" if answer.abstained else "answer"
    chips = [_chip(turn, place, token) for place in range(len(answer.moments))][:MOST_CHIPS]
    more = len(answer.moments) - len(chips)
    rest = f'<span class="rest">and {more} more</span>' if more > 0 else ""
    evidence = f'<div class="chips">{"".join(chips)}{rest}</div>' if chips else ""
    took = f'<span class="took">answered in {turn.seconds:.2f} s</span>'
    return (
        f'<div class="bubble {kind}" data-testid="answer" data-seconds="{turn.seconds:.3f}">'
        f"{escape(answer.text)}{evidence}{took}</div>"
    )


def _chip(turn: Turn, place: int, token: str) -> str:
    moment: Moment = turn.answer.moments[place]
    when = clock(moment.start)
    if clock(moment.end) != when:
        when += f"–{clock(moment.end)}"
    return _opener(
        "chip",
        key=f"a{turn.number}.{place}",
        token=token,
        version=hashlib.sha1(moment.thumbnail, usedforsecurity=False).hexdigest()[:8],
        title=moment.label,
        when=f"{when} · seen best at {clock(moment.time)}",
        more=f"score {moment.score:.2f}",
        inside=f'<span class="when">{when}</span><span class="score">{moment.score:.2f}</span>',
    )


# --------------------------------------------------------------------------- figures in words


def count(number: int, noun: str) -> str:
    """Write how many.

    Example:
        >>> count(1, "frame"), count(1200, "frame")
        ('1 frame', '1,200 frames')
    """
    return f"{number:,} {noun}" + "s" * (number != 1)


def size(nbytes: int) -> str:
    """Write bytes to three digits, in the units that budgets are given in.

    Example:
        >>> size(0), size(250_000), size(1_230_000)
        ('0 B', '250 kB', '1.23 MB')
    """
    for unit, one in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if nbytes >= one:
            digits = max(0, 2 - int(math.log10(nbytes / one)))
            return f"{round(nbytes / one, digits):g} {unit}"
    return f"{nbytes} B"


def duration(seconds: float) -> str:
    """Write a length of time.

    Example:
        >>> duration(42.4), duration(130), duration(7300)
        ('42 s', '2 min 10 s', '2 h 1 min')
    """
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
