"""Read a question about movement: of what, where in the picture, near what."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["MovedQuestion", "asks_moved", "read_moved"]

_MOVE = r"\b(?:mov(?:e|es|ed|ing)|movements?|motions?)\b"
# The words are there, but nobody asks what moved.
_OTHER = re.compile(
    r"\bslow motion\b|\bmotion (?:pictures?|blur|sickness|sensors?|detectors?)\b"
    r"|\bmoving (?:vans?|trucks?|compan\w+|box(?:es)?|pictures?|images?|day)\b"
)
_ASIDE = re.compile(
    r"^(?:please |and |so |hey |tell me |show me |list |do you (?:know|remember|recall|see) "
    r"|(?:can|could|would) you (?:please )?(?:tell me |show me |see |say )|(?:if|whether) )+"
)
_ORDER = re.compile(
    r"(?:(?:can|could|will|would|should|must) (?:i|you|we|it) (?:please )?)?move\b"
    r"|(?:where|why)\b|how (?:do|can|could|should|would) (?:i|you|we)\b"
)
_SELF = re.compile(
    r"\b(?:i|you|we|camera|cam)\s+(?:(?:has|have|had|been|was|were|is|are|ever|still|not)\s+)*mov"
)
_STILL = re.compile(rf"^(?:what|which|who)\b.*(?:\bnot\b|n't\b|\bnever\b).*{_MOVE}")
_DID = re.compile(r"\b(?:did|does|do)(?:n't)?\b")
_AFTER_DID = re.compile(
    r"\b(?:move|movements?|motions?)\b"
    r"|\b(?:see|saw|notice|spot|detect|start|begin|stop|keep|finish)\b.*\bmoving\b"
)
_CLAUSE = re.compile(
    r"\b(?:after|before|while|until|since|when|because|as soon as)\b"
    r"(?!\s+(?:second |minute )?\d)"
)
_OPENS = re.compile(r"(?:what|who|which|how|when|did|does|do|is|are|was|were|has|have|had)\b")
# Is said to be left out: how they compare, and days.
_UNREAD = re.compile(
    r"\bthe (?:fastest|slowest|farthest|furthest|longest|most)\b(?! recent)"
    r"|\b(?:today|yesterday|tonight)\b"
    r"|\b(?:this|last|every) (?:morning|evening|night|week|\w+day)\b"
)

_AMOUNT = r"\d[\d:.]*(?:\s*(?:s|sec\w*|min\w*|h|hours?)\b)?"
_TIME = re.compile(
    r"\b(?:between|from|after|before|at|around|(?:in |during |within |over )?(?:the )?last)\s+"
    rf"(?:second |minute )?{_AMOUNT}(?:\s+(?:and|to)\s+{_AMOUNT})?"
)
_SIDES = {"upper": "top", "lower": "bottom", "middle": "centre", "center": "centre"}
_SIDE = r"(?:top|upper|bottom|lower|left|right|middle|centre|center)"
_PICTURE = r"(?:picture|image|frame|view|screen|video|scene|room|footage|recording|film|clip)"
_ON_SIDE = re.compile(
    rf"\b(?:on|at|in|to|near|from|along) the (?:far )?({_SIDE}(?:[ -]{_SIDE})?)(?:[ -]hand)?"
    rf"(?: (?:side|half|corner|part|edge|third))?(?: of (?:the|this) {_PICTURE})?(?! of)"
    r"(?=\s*(?:$|[?.!,;]|(?:and|between|from|after|before|at|in|during|near|next|beside|by)\b))"
)
_DETERMINER = r"(?:the|a|an|my|your|his|her|its|their|our|this|that|these|those|any|some)"
_NEAR = re.compile(
    rf"\b(?:(?:near(?:by)?(?: to)?|next to|besides?|close to|in front of|behind)(?: {_DETERMINER})?"
    rf"|(?:(?:on|to|at|in) the {_SIDE}(?: side)? of|on top of|around|by|at|on|in|inside|into|onto"
    r"|off|between|under|underneath|below|above|over|from|to|towards?|past|through|across)"
    rf" {_DETERMINER})\s+"
)
# Everything is in the picture, and some of these say nothing of a place.
_EVERYWHERE = frozenset(
    "picture image frame view screen video scene room footage recording film clip world background "
    "moment time minute second hour seconds minutes hours end start beginning way same day night "
    "morning evening meantime memory".split()
)
_WORDS = frozenset(
    "what which who when how many much often times time did does do has have had is are was were "
    "be been being there ever still just now currently right anything something everything nothing "
    "anyone someone anybody somebody any some all the a an of that it in first last latest "
    "earliest most recent recently start started begin began stop stopped finish keep kept see saw "
    "seen notice spot detect detected and or thing things object objects else then so far place "
    "around about you i me at on in by with near to for from".split()
)


@dataclass(frozen=True, slots=True)
class MovedQuestion:
    """What a question about movement asks for.

    Args:
        subject: Words for what may have moved; empty for anything.
        near: Words for what it was near to.
        sides: Words for a part of the picture, of ``left right top bottom centre``.
        streams: Those of the given names that it is asked of; empty for all.
        now: Whether it is asked what moves at present.
        left_out: What is not understood: what follows "after", "when" and the like, days, and
            how movements compare.
    """

    subject: str
    near: tuple[str, ...]
    sides: tuple[str, ...]
    streams: tuple[str, ...]
    now: bool
    left_out: str


def asks_moved(question: str) -> bool:
    """Whether a question asks what moved, when, how often, or whether something did.

    Not whether the camera did, where to, or what happened when something moved.

    Example:
        >>> [asks_moved(text) for text in ("What moved near the table?", "Did the dog move?")]
        [True, True]
        >>> [asks_moved(text) for text in ("When did the dog appear?", "What was removed?")]
        [False, False]
    """
    text, _ = _main_clause(_plain(question))
    if _ORDER.match(text) or _SELF.search(text) or _STILL.search(text):
        return False
    text = _OTHER.sub(" ", text)
    if did := _DID.search(text):
        return _AFTER_DID.search(text, did.end()) is not None
    return re.search(_MOVE, text) is not None


def read_moved(question: str, streams: Iterable[str] = ()) -> MovedQuestion:
    """Read what a question about movement asks for.

    Args:
        question: One that `asks_moved` takes.
        streams: Names of streams, which are no things.

    Example:
        >>> asked = read_moved("did the dog move near the table on the left in the last 20 s?")
        >>> asked.subject, asked.near, asked.sides
        ('dog', ('table',), ('left',))
    """
    text, left_out = _main_clause(_plain(question))
    now = re.search(r"\b(?:is|are|'s)\b.*\bmov(?:ing|ement)\b|\bright now\b|\bcurrently\b", text)
    limited = _TIME.search(text)
    text = _TIME.sub(" ", text)
    left_out = " ".join([*_UNREAD.findall(text), left_out])
    text = _UNREAD.sub(" ", text)
    of: list[str] = []
    for name in streams:
        of_stream = rf"\b(?:on|from|by|in) (?:the )?(?:camera )?{re.escape(name.lower())}\b(?! of)"
        text, count = re.subn(rf"{of_stream}(?: camera)?", " ", text)
        of += [name] * bool(count)
    sides: list[str] = []
    for match in _ON_SIDE.finditer(text):
        sides += [_SIDES.get(side, side) for side in re.findall(_SIDE, match[1])]
    first, *places = _NEAR.split(_ON_SIDE.sub(" ", text))
    near = (_nouns(place) for place in places)
    first = re.sub(r"\bwho\b", "person", first)
    return MovedQuestion(
        subject=_nouns(first),
        near=tuple(place for place in near if place and place.split()[0] not in _EVERYWHERE),
        sides=tuple(sides),
        streams=tuple(of),
        now=bool(now) and not limited,
        left_out=left_out.strip(),
    )


def _plain(question: str) -> str:
    text = re.sub(r"\s+", " ", question.lower().replace("’", "'")).strip(" \"'?!.")
    return _ASIDE.sub("", text)


def _main_clause(text: str) -> tuple[str, str]:
    """A question and what follows it as a clause of its own, "when the dog came"."""
    clause = _CLAUSE.search(text, 1)
    if clause and _OPENS.match(text):
        return text[: clause.start()], text[clause.start() :]
    return text, ""


def _nouns(text: str) -> str:
    """Words without those that ask; a colour may stand before "thing"."""
    words = re.findall(r"[a-z]+(?:-[a-z]+)*", re.sub(rf"{_MOVE}|n't\b|'\w+", " ", text))
    kept = [word for word in words if word not in _WORDS]
    if kept and words[-1] in ("thing", "things", "object", "one") and words[-1] not in kept:
        kept.append(words[-1])
    return " ".join(kept)
