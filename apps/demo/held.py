"""What a page shows of a memory: its moments with names, its scenes, its figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vismem.heads.answer import LEAST_TOLD
from vismem.memory.episodic import EpisodicSnapshot
from vismem.memory.slots import Slot
from vismem.pipeline import VisualMemory

__all__ = ["Held", "HeldMoment", "held"]


@dataclass(frozen=True, slots=True)
class HeldMoment:
    """One moment on the page.

    Args:
        key: Names it, and its thumbnail, for as long as it is held.
        start: First second.
        end: Last second.
        peak: When its picture was taken.
        frames: How many frames it stands for.
        label: What was seen surest; empty if nothing was sure.
    """

    key: str
    start: float
    end: float
    peak: float
    frames: int
    label: str


@dataclass(frozen=True)
class Held:
    """All that is held.

    Args:
        moments: In time order, stream by stream.
        slots: Scenes of the visual bank, in time order; none for the policy ``"moments"``.
        nbytes: Bytes held.
        budget: Bytes that may be held.
        frames: Frames written in the whole life of the memory.
        policy: What remembers pictures beside the moments.
        merged: Moments merged to keep the budget.
        forgotten: Moments given up, by wish or for lack of room.
        dropped: Frames that came while the writer was busy.
    """

    moments: Sequence[HeldMoment]
    slots: Sequence[Slot]
    nbytes: int
    budget: int
    frames: int
    policy: str
    merged: int
    forgotten: int
    dropped: int

    @property
    def span(self) -> tuple[float, float]:
        """First and last second of anything held."""
        starts = [m.start for m in self.moments] + [slot.first for slot in self.slots]
        ends = [m.end for m in self.moments] + [slot.last for slot in self.slots]
        return (min(starts), max(ends)) if starts else (0.0, 0.0)


def held(memory: VisualMemory) -> Held:
    """Look into a memory; a fraction of a millisecond for a hundred moments."""
    facts, stats = memory.describe(), memory.stats
    moments: list[HeldMoment] = []
    for place, snapshot in enumerate(memory.snapshots().values()):
        moments += _moments(place, snapshot, memory)
    slots = [slot for view in memory.visual().values() for slot in view.slots()]
    return Held(
        moments,
        slots,
        facts["bytes"],
        facts["budget"],
        facts["frames"],
        memory.policy,
        stats.merged,
        stats.forgotten,
        stats.dropped,
    )


def _moments(place: int, snapshot: EpisodicSnapshot, memory: VisualMemory) -> list[HeldMoment]:
    """The moments of one stream, each named by the label that is surest over its frames."""
    if not len(snapshot):
        return []
    names, labels = memory.encoder.label_names, snapshot.column("label")
    mean = snapshot.column("label_sum") / snapshot.column("frames")[:, None]
    sure = torch.sqrt(snapshot.column("label_max") * mean)
    sure = sure * ((labels >= 0) & (labels < memory.encoder.things))
    score, best = sure.max(1)
    told = labels.gather(1, best[:, None])[:, 0].tolist()
    rows = zip(
        *(snapshot.column(name).tolist() for name in ("source", "start", "end", "peak", "frames")),
        *(told, score.tolist()),
        strict=True,
    )
    return [
        HeldMoment(
            f"m{place}.{source}",
            start,
            end,
            peak,
            frames,
            names[label] if sureness >= LEAST_TOLD else "",
        )
        for source, start, end, peak, frames, label, sureness in rows
    ]
