"""Answer a question from the evidence that a memory holds, and abstain where it holds none.

Evidence first: moments are scored, scores are calibrated, and a sentence is put together from the
best of them. No language model takes part, so nothing can be made up.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from vismem.encoders.base import Encoder, Query, Term
from vismem.memory.episodic import EpisodicSnapshot

__all__ = ["Answer", "Moment", "answer", "clock"]

THRESHOLD = 0.5  # of a calibrated probability; benchmarks/calibrate.py prints what it costs
JOIN_GAP = 2.5  # seconds between moments that are told as one,
SAME_SCENE = 0.7  # if their embeddings have at least this cosine
SHARE_OF_COLOR = 0.3  # of a part of its window: even odds that the thing has that colour
ONE_FOR_SEVERAL = 0.8  # of its probability is left to a moment with one, if several are asked for
MOST_MOMENTS = 10
WALL_CLOCK = 1e9  # seconds since 1970, in 2001; no recording is that long
LEAST_TOLD = 0.6  # score of a label that a summary names unasked


@dataclass(frozen=True, slots=True)
class Moment:
    """A span of time in which something was seen.

    Args:
        start: First second, in the stream's time.
        end: Last second.
        score: Evidence on a scale from 0 to 1; at 0.5 it is claimed. How often claims of a score
            come true depends on how often absent things are asked for (benchmarks/calibrate.py).
        label: What was recognised.
        box: Where in the picture at `time`, ``x0 y0 x1 y1`` as fractions, if known.
        pose: Where the camera was, ``4x4`` camera-to-world, if known.
        stream: Name of the stream.
        time: When the evidence was strongest.
        count: How many were seen at once at that time.
        thumbnail: A picture of the moment as JPEG, possibly empty.
    """

    start: float
    end: float
    score: float
    label: str
    box: tuple[float, float, float, float] | None = None
    pose: list[list[float]] | None = None
    stream: str = "camera"
    time: float = 0.0
    count: int = 1
    thumbnail: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a memory says to a question.

    Args:
        question: As it was asked.
        text: One sentence made from the evidence.
        moments: The evidence, best first; empty if nothing was found.
        abstained: Whether nothing was good enough to claim.
        memory: ``bytes``, ``budget``, ``frames`` and ``span`` of the memory that was asked.
        places: `vismem.heads.locate.Located` things in the world, for a question that begins with
            "where" and a memory of frames with depth and pose; else ``None``.
        movements: `vismem.heads.moved.Moved`, for a question of what moved; else ``None``.
    """

    question: str
    text: str
    moments: tuple[Moment, ...]
    abstained: bool
    memory: dict[str, Any] = field(default_factory=dict)
    places: tuple[Any, ...] | None = None
    movements: tuple[Any, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The answer as plain values, as ``vismem ask --json`` prints it."""
        keys = ("start", "end", "score", "label", "box", "pose", "stream", "time", "count")
        moments = []
        for moment in self.moments:
            values = {key: getattr(moment, key) for key in keys}
            for key in ("start", "end", "time"):
                values[key] = round(values[key], 3)
            values["score"] = round(moment.score, 4)
            values["box"] = moment.box and [round(x, 4) for x in moment.box]
            moments.append(values)
        more = {"places": self.places, "movements": self.movements}
        shown = {name: told for name, told in more.items() if told is not None}
        return {
            "question": self.question,
            "answer": self.text,
            "abstained": self.abstained,
            "moments": moments,
            "memory": self.memory,
        } | {name: [one.to_dict() for one in told] for name, told in shown.items()}


def clock(seconds: float) -> str:
    """Write a time as a person would: of the recording, or of the day where a camera gave it.

    Args:
        seconds: Since the recording began, or since 1970 by a camera's or a robot's clock.

    Example:
        >>> clock(75), clock(3700), clock(9.58)
        ('1:15', '1:01:40', '0:09')
    """
    if seconds >= WALL_CLOCK:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    sign, whole = ("-", int(-seconds)) if seconds < 0 else ("", int(seconds))
    if whole >= 3600:
        return f"{sign}{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
    return f"{sign}{whole // 60}:{whole % 60:02d}"


# --------------------------------------------------------------------------- scoring

# From a snapshot and a query's vector to the numbers of the moments worth comparing.
Nearest = Callable[[EpisodicSnapshot, Tensor], Tensor]


def term_scores(snapshot: EpisodicSnapshot, term: Term) -> tuple[Tensor, Tensor]:
    """Score every moment for one thing.

    A label's score within a moment is the geometric mean of its best frame and its mean over the
    frames: one lucky frame is doubted, a short appearance is not lost.

    Args:
        snapshot: ``M`` moments.
        term: What is looked for.

    Returns:
        Calibrated probabilities ``(M,)`` and the label row that speaks most for each ``(M,)``.
    """
    ids = snapshot.column("label")
    most = max(int(ids.max()) if ids.numel() else 0, int(term.ids.max())) + 2
    weights = torch.zeros(most)
    weights[term.ids] = term.weights
    weight = weights[ids]  # label -1 reads the last entry, which no label has
    mean = snapshot.column("label_sum") / snapshot.column("frames")[:, None]
    score = weight * torch.sqrt(snapshot.column("label_max") * mean)
    total = score.sum(-1).clamp(1e-6, 1.0)
    slope, offset = term.calibration
    probability = torch.sigmoid(slope * total.log() + offset)
    if term.colors is not None:
        share = snapshot.column("label_color").float()[..., term.colors].sum(-1)
        tinted = (score * share).sum(-1) / total  # of all labels that speak for the thing
        probability = torch.sqrt(
            probability * torch.sigmoid(4 * (tinted.clamp(min=1e-6) / SHARE_OF_COLOR).log())
        )
    best = score.argmax(-1)
    if term.several:  # the more of them at once, the better a moment answers
        counts = snapshot.column("label_count").gather(-1, best[:, None])[:, 0].clamp(min=1)
        probability = probability * (1 - (1 - ONE_FOR_SEVERAL) / counts)
    return probability, best


def score_moments(
    snapshot: EpisodicSnapshot, query: Query, encoder: Encoder, nearest: Nearest | None = None
) -> tuple[Tensor, Tensor]:
    """Score every moment for a whole question: all its things must be there.

    Args:
        snapshot: ``M`` moments.
        query: What is asked.
        encoder: The one that wrote them.
        nearest: Picks the moments that are worth comparing by vector; all are by default.

    Returns:
        Probabilities ``(M,)`` and the label row of the first thing asked for ``(M,)``, -1 if the
        question was compared by vector alone.
    """
    if not query.terms:
        scores = torch.zeros(len(snapshot))
        near = nearest(snapshot, query.vector) if nearest else torch.arange(len(snapshot))
        scores[near] = encoder.probability(query, snapshot.rows("embedding", near))
        return scores, torch.full((len(snapshot),), -1)
    parts = [term_scores(snapshot, term) for term in query.terms]
    scores = torch.stack([score for score, _ in parts]).log().mean(0).exp()
    return scores, parts[0][1]


def find(
    snapshot: EpisodicSnapshot,
    query: Query,
    encoder: Encoder,
    *,
    stream: str = "camera",
    threshold: float = THRESHOLD,
    span: tuple[float, float] = (-torch.inf, torch.inf),
    nearest: Nearest | None = None,
) -> list[Moment]:
    """Find the moments that show what is asked, neighbours told as one, best first."""
    if not len(snapshot):
        return []
    scores, rows = score_moments(snapshot, query, encoder, nearest)
    starts, ends = snapshot.column("start"), snapshot.column("end")
    good = (scores >= threshold) & (ends >= span[0]) & (starts <= span[1])
    moments = torch.nonzero(good)[:, 0]
    scenes = snapshot.rows("embedding", moments).float()
    runs: list[list[int]] = []
    for place, moment in enumerate(moments.tolist()):
        if (
            runs
            and starts[moment] - ends[runs[-1][-1]] <= JOIN_GAP
            and scenes[place] @ scenes[place - 1] >= SAME_SCENE
        ):
            runs[-1].append(moment)
        else:
            runs.append([moment])
    names = encoder.label_names
    found: list[Moment] = []
    for run in runs:
        best = max(run, key=lambda moment: float(scores[moment]))
        segment, place = snapshot.locate(best)
        row = int(rows[best])
        columns = segment.columns
        pose = columns["pose"][place]
        found.append(
            Moment(
                start=float(starts[run].min()),
                end=float(ends[run].max()),
                score=float(scores[best]),
                label=names[int(columns["label"][place, row])] if row >= 0 else query.text,
                box=tuple(columns["label_box"][place, row].tolist()) if row >= 0 else None,
                pose=pose.tolist() if bool(torch.isfinite(pose).all()) else None,
                stream=stream,
                time=float(columns["label_time" if row >= 0 else "peak"][place].reshape(-1)[row]),
                count=int(columns["label_count"][place, row]) if row >= 0 else 1,
                thumbnail=snapshot.thumbnail(best),
            )
        )
    return sorted(found, key=lambda moment: -moment.score)


def either(moments: Sequence[Moment], scenes: Sequence[Moment]) -> list[Moment]:
    """Put together what moments and scenes say; of two that tell of the same time, the surer."""

    def same_time(one: Moment, other: Moment) -> bool:
        return one.stream == other.stream and one.start <= other.end and other.start <= one.end

    kept: list[Moment] = []
    for moment in sorted([*moments, *scenes], key=lambda moment: -moment.score):
        if not any(same_time(moment, other) for other in kept):
            kept.append(moment)
    return kept


def _is_told(time: float, moments: EpisodicSnapshot | None) -> bool:
    """Whether a moment that was never merged with another tells of a time already.

    It has seen more frames of that time than a scene has; a second opinion would only be another
    chance of a false alarm.
    """
    if moments is None or not len(moments):
        return False
    start, end = moments.column("start"), moments.column("end")
    whole = end - start <= moments.config.max_seconds
    return bool((whole & (start <= time) & (time <= end)).any())


def _at_its_time(moment: Moment) -> Moment:
    """A scene comes back; where its evidence is of another visit, tell that instant alone.

    Picture and pose are of the visit that lent them.
    """
    if moment.start <= moment.time <= moment.end:
        return moment
    return replace(moment, start=moment.time, end=moment.time, pose=None, thumbnail=b"")


# --------------------------------------------------------------------------- questions

_SUMMARY = re.compile(r"\b(what (happen|did|was|is|were|can|do)|describe|summar|overview)")


def _seconds(text: str, unit: str = "") -> float:
    value = 0.0
    for part in text.split(":"):
        value = value * 60 + float(part)
    if ":" in text:
        return value
    return value * (60 if unit.startswith("min") else 3600 if unit.startswith("h") else 1)


def asked_span(question: str, newest: float) -> tuple[float, float]:
    """The span of time that a question is limited to, in seconds; everything by default.

    Example:
        >>> asked_span("what happened between 0:10 and 0:20?", newest=60.0)
        (10.0, 20.0)
        >>> asked_span("was there a dog in the last 15 seconds?", newest=60.0)
        (45.0, inf)
    """
    text = question.lower()
    amount = r"(\d+:\d\d(?::\d\d)?|\d+(?:\.\d+)?)\s*(s|sec\w*|min\w*|h|hours?)?\b"
    if match := re.search(rf"\b(?:between|from) {amount} (?:and|to) {amount}", text):
        unit = match[4] or ""  # of both, in "between 1 and 2 minutes"
        return _seconds(match[1], match[2] or unit), _seconds(match[3], unit)
    if match := re.search(rf"\blast {amount}", text):
        return newest - _seconds(match[1], match[2] or ""), torch.inf
    if match := re.search(rf"\b(?:at|around) (second |minute )?{amount}", text):
        at = _seconds(match[2], match[1] or match[3] or "")
        return at - 1.0, at + 1.0
    if match := re.search(rf"\bafter {amount}", text):
        return _seconds(match[1], match[2] or ""), torch.inf
    if match := re.search(rf"\bbefore {amount}", text):
        return -torch.inf, _seconds(match[1], match[2] or "")
    return -torch.inf, torch.inf


def place_in_picture(box: Sequence[float] | None) -> str:
    """Say where a box lies, ``"left"``, ``"right"``, ``"top centre"``; empty if it is unknown."""
    if box is None:
        return ""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    across = "left" if x < 0.4 else "right" if x > 0.6 else "centre"
    height = "top" if y < 0.3 else "bottom" if y > 0.7 else ""
    return f"{height} {across}".strip()


def _evidence(moment: Moment, many_streams: bool) -> str:
    where = place_in_picture(moment.box)
    parts = [f"{clock(moment.start)}-{clock(moment.end)} ({moment.score:.2f})", where]
    if many_streams:
        parts.append(f"on {moment.stream}")
    return ", ".join(part for part in parts if part)


def _sentence(
    question: str, things: str, moments: Sequence[Moment], many_streams: bool
) -> tuple[str, Sequence[Moment]]:
    """Put the evidence into words; gives the moments that they speak of as well."""
    text = question.lower()
    told = moments[:3]
    if re.search(r"\bhow many times\b", text):
        told = sorted(moments[:MOST_MOMENTS], key=lambda m: m.start)
        things += f": {len(moments)} time{'s' * (len(moments) > 1)}"
    elif re.search(r"\bhow many\b", text):
        most = max(moments, key=lambda m: m.count)
        return f"{things}: at most {most.count} at once, at {clock(most.time)}.", [most]
    elif re.search(r"\b(first|earliest)\b", text):
        told = [min(moments, key=lambda m: m.start)]
        things += ", first"
    elif re.search(r"\b(last|latest)\b(?! \d)", text):
        told = [max(moments, key=lambda m: m.end)]
        things += ", last"
    more = len(moments) - len(told)
    rest = f"; and {more} more" if more > 0 and len(told) > 1 else ""
    return f"{things}: {'; '.join(_evidence(m, many_streams) for m in told)}{rest}.", told


def summarise(
    snapshots: Mapping[str, EpisodicSnapshot], encoder: Encoder, span: tuple[float, float]
) -> list[Moment]:
    """Tell what was seen in a span: the surest label of each moment, equal neighbours as one."""
    names = encoder.label_names
    told: list[Moment] = []
    for stream, snapshot in snapshots.items():
        starts, ends = snapshot.column("start"), snapshot.column("end")
        inside = (ends >= span[0]) & (starts <= span[1])
        for moment in torch.nonzero(inside)[:, 0].tolist():
            segment, place = snapshot.locate(moment)
            columns = segment.columns
            mean = columns["label_sum"][place] / columns["frames"][place]
            sure = torch.sqrt(columns["label_max"][place] * mean)
            sure = sure * (columns["label"][place] < encoder.things)
            best = int(sure.argmax())
            score, label = float(sure[best]), "something unclear"
            if score >= LEAST_TOLD:
                label = names[int(columns["label"][place, best])]
            previous = told[-1] if told else None
            if (
                previous
                and (previous.label, previous.stream) == (label, stream)
                and starts[moment] - previous.end <= JOIN_GAP
            ):
                told.pop()
                start, score = previous.start, max(score, previous.score)
            else:
                start = float(starts[moment])
            told.append(
                Moment(
                    start=start,
                    end=float(ends[moment]),
                    score=score,
                    label=label,
                    box=tuple(columns["label_box"][place, best].tolist()) if score else None,
                    stream=stream,
                    time=float(columns["peak"][place]),
                    thumbnail=snapshot.thumbnail(moment),
                )
            )
    return told


def answer(
    question: str,
    snapshots: Mapping[str, EpisodicSnapshot],
    encoder: Encoder,
    *,
    scenes: Mapping[str, EpisodicSnapshot] | None = None,
    threshold: float = THRESHOLD,
    memory: Mapping[str, Any] | None = None,
    nearest: Mapping[str, Nearest] | None = None,
) -> Answer:
    """Answer a question from the snapshots of one or more streams.

    Args:
        question: Plain English; a thing ("a blue mug"), a question ("when did the dog appear?",
            "how many people?", "what happened between 0:10 and 0:20?").
        snapshots: By name of stream.
        encoder: The one that wrote the memories.
        scenes: By name of stream, what a bank of visual tokens knows, read as moments; heard for
            times whose own moments were merged or given up.
        threshold: Least calibrated probability that is claimed.
        memory: Figures of the memory, passed on in the answer.
        nearest: By name of stream, what picks the moments worth comparing in a very large memory.

    Raises:
        ValueError: If the question is empty.
    """
    if not question.strip():
        raise ValueError('ask something, for example "when does the dog appear?"')
    facts = dict(memory or {})
    held = [s for s in (*snapshots.values(), *(scenes or {}).values()) if len(s)]
    newest = max((float(s.column("end").max()) for s in held), default=0.0)
    span = asked_span(question, newest)
    query = encoder.query(question)
    if not query.terms and _SUMMARY.search(question.lower()):
        told = summarise(snapshots, encoder, span)
        if not told:
            return Answer(question, "Nothing was seen then.", (), True, facts)
        listed = "; ".join(f"{clock(m.start)}-{clock(m.end)} {m.label}" for m in told[:12])
        rest = f"; and {len(told) - 12} more" if len(told) > 12 else ""
        return Answer(question, f"Seen: {listed}{rest}.", tuple(told), False, facts)
    found: list[Moment] = []
    for stream, snapshot in snapshots.items():
        found += find(
            snapshot,
            query,
            encoder,
            stream=stream,
            threshold=threshold,
            span=span,
            nearest=(nearest or {}).get(stream),
        )
    for stream, snapshot in (scenes or {}).items():
        seen = find(snapshot, query, encoder, stream=stream, threshold=threshold, span=span)
        told = [_at_its_time(moment) for moment in seen]
        inside = [m for m in told if m.end >= span[0] and m.start <= span[1]]
        found = either(found, [m for m in inside if not _is_told(m.time, snapshots.get(stream))])
    found.sort(key=lambda m: -m.score)
    things = _things(query.terms) or f'"{question.strip()}"'
    if not found:
        text = f"Not seen: {things}."
        if query.unknown and not query.terms:
            words = ", ".join(f'"{word}"' for word in query.unknown)
            text = f"Not seen: this encoder has no label for {words}."
        return Answer(question, text, (), True, facts)
    things = things[0].upper() + things[1:]
    sentence, spoken_of = _sentence(question, things, found, len(snapshots) > 1)
    evidence = [m for n, m in enumerate(found) if n < MOST_MOMENTS or m in spoken_of]
    return Answer(question, sentence, tuple(evidence), False, facts)


def _things(terms: Iterable[Term]) -> str:
    return " and ".join(term.text for term in terms)
