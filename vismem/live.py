"""What a live view of a memory shows: counts, moments and scenes as plain values, pictures by id.

Everything is cheap enough to be asked for every second, while frames are written: nothing waits
for the writer longer than it takes to remember one frame.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from vismem.heads.answer import LEAST_TOLD
from vismem.memory.episodic import EpisodicSnapshot
from vismem.pipeline import VisualMemory
from vismem.scenes import LEAST_FRAMES, scene_label, thumbnail_of

__all__ = ["Facts", "MomentView", "SceneView", "facts", "moments", "scenes", "thumbnail"]


@dataclass(frozen=True, slots=True)
class Facts:
    """How a memory stands.

    Args:
        bytes: Held now, all streams together.
        budget: The most that may be held.
        policy: Which bank of pictures there is, or ``"moments"``.
        frames: Written in the whole life of the memory.
        span: First and last second that is remembered.
        moments: How many are held.
        scenes: How many slots the bank of pictures holds.
        waiting: Frames handed over that are not in the memory yet.
        merged: Moments and scenes merged into another since the memory was opened, to keep the
            budget.
        forgotten: Moments and scenes given up since then.
        dropped: Frames of a live source that came while the queue was full.
        late: Frames older than one before, left out.
        refused: Frames that could not be taken.
        encode_seconds: Processor time of encoding.
        problems: One line each.
    """

    bytes: int
    budget: int
    policy: str
    frames: int
    span: tuple[float, float] | None
    moments: int
    scenes: int
    waiting: int
    merged: int
    forgotten: int
    dropped: int
    late: int
    refused: int
    encode_seconds: float
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MomentView:
    """A moment, as it is shown.

    Args:
        id: Stays the same while the moment is held, and finds its picture; of two moments that are
            merged the earlier one's id is kept. Safe in an address.
        stream: Name of its stream.
        start: First second.
        end: Last second.
        time: When its picture was seen; it is another picture when this is another time.
        frames: How many it stands for.
        label: The thing that was seen surest; empty if nothing was.
        score: How sure, from 0 to 1.
    """

    id: str
    stream: str
    start: float
    end: float
    time: float
    frames: int
    label: str
    score: float


@dataclass(frozen=True, slots=True)
class SceneView:
    """A slot of a bank of pictures, as it is shown.

    Args:
        id: Stays the same while its representative does, and finds its picture. Safe in an address.
        stream: Name of its stream.
        time: When its representative was seen.
        first: When the first of its observations was seen.
        last: When the last of them was.
        weight: How many there were.
        level: Which part of the bank it lies in: ``"recent"``, ``"detail"``, ``"level 2"``…
        tokens: How many it holds, the mean over its observations included.
        label: The thing that was seen surest; empty if nothing was.
    """

    id: str
    stream: str
    time: float
    first: float
    last: float
    weight: int
    level: str
    tokens: int
    label: str


def facts(memory: VisualMemory) -> Facts:
    """Tell how a memory stands.

    Example:
        >>> with VisualMemory("1MB") as memory:
        ...     now = facts(memory)
        >>> now.budget, now.moments, now.waiting
        (1000000, 0, 0)
    """
    held, stats, counts = memory.describe(), memory.stats, memory.counts()
    return Facts(
        bytes=held["bytes"],
        budget=held["budget"],
        policy=memory.policy,
        frames=held["frames"],
        span=held["span"] and (held["span"][0], held["span"][1]),
        **counts,
        merged=stats.merged,
        forgotten=stats.forgotten,
        dropped=stats.dropped,
        late=stats.late,
        refused=stats.refused,
        encode_seconds=stats.encode_seconds,
        problems=tuple(stats.problems),
    )


def moments(memory: VisualMemory, *, newest: int | None = None) -> list[MomentView]:
    """List the moments of all streams by their first seconds.

    Args:
        memory: Whose.
        newest: At most so many of each stream, the newest; all by default.
    """
    found = []
    for place, (stream, snapshot) in enumerate(memory.snapshots().items()):
        first = 0 if newest is None else max(0, len(snapshot) - newest)
        rows = torch.arange(first, len(snapshot))
        sources = snapshot.rows("source", rows).tolist()
        times = torch.stack([snapshot.rows(name, rows) for name in ("start", "end", "peak")], 1)
        frames = snapshot.rows("frames", rows).tolist()
        labels = _labels(memory, snapshot, rows)
        for source, (start, end, time), count, (label, score) in zip(
            sources, times.tolist(), frames, labels, strict=True
        ):
            view = MomentView(f"m{place}.{source}", stream, start, end, time, count, label, score)
            found.append(view)
    return sorted(found, key=lambda moment: moment.start)


def _labels(
    memory: VisualMemory, snapshot: EpisodicSnapshot, rows: Tensor
) -> list[tuple[str, float]]:
    """The thing that was seen surest in each moment, and how sure; see `scene_label`."""
    ids = snapshot.rows("label", rows)
    most, total = snapshot.rows("label_max", rows), snapshot.rows("label_sum", rows)
    frames = snapshot.rows("frames", rows).clamp(min=LEAST_FRAMES)
    sure = (most * total / frames[:, None]).clamp(min=0).sqrt()
    sure[(ids < 0) | (ids >= memory.encoder.things)] = 0
    score, best = sure.max(1)
    named = ids.gather(1, best[:, None])[:, 0].tolist()
    names = memory.encoder.label_names
    return [
        (names[label], min(value, 1.0)) if value >= LEAST_TOLD else ("", 0.0)
        for label, value in zip(named, score.tolist(), strict=True)
    ]


def scenes(memory: VisualMemory) -> list[SceneView]:
    """List the slots of the banks of pictures of all streams, by their time."""
    encoder, sizes, found = memory.encoder, memory.sizes, []
    places = {name: place for place, name in enumerate(memory.snapshots())}
    for stream, view in memory.visual().items():
        for slot in view.slots():
            synopsis = 0 if slot.synopsis is None else len(slot.synopsis)
            label = scene_label(slot, sizes, encoder.label_names, encoder.things, LEAST_TOLD)
            found.append(
                SceneView(
                    id=f"s{places[stream]}.{slot.source}",
                    stream=stream,
                    time=slot.time,
                    first=slot.first,
                    last=slot.last,
                    weight=slot.weight,
                    level=slot.level,
                    tokens=len(slot.tokens) + synopsis,
                    label=label,
                )
            )
    return sorted(found, key=lambda scene: scene.time)


def thumbnail(memory: VisualMemory, id: str) -> bytes | None:
    """The picture of a moment or a scene.

    Args:
        memory: Whose.
        id: Of a `MomentView` or a `SceneView`; anything else is found as little as what is gone.

    Returns:
        A JPEG, empty if none was kept; ``None`` if there is no such moment or scene any more.
    """
    match = re.fullmatch(r"([ms])([0-9]{1,9})\.([0-9]{1,18})", id)
    if not match:
        return None
    kind, place, source = match[1], int(match[2]), int(match[3])
    snapshots = memory.snapshots()
    if place >= len(snapshots):
        return None
    stream = list(snapshots)[place]
    if kind == "m":
        rows = torch.nonzero(snapshots[stream].column("source") == source)[:, 0]
        return snapshots[stream].thumbnail(int(rows[0])) if len(rows) else None
    view = memory.visual().get(stream)
    for slot in view.slots() if view else ():
        if slot.source == source:
            return thumbnail_of(slot, memory.sizes)
    return None
