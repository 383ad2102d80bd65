"""`StreamSet`: the memories of all streams, which share one budget; what is sealed of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from vismem.clock import StreamClock
from vismem.memory.base import WriteReport
from vismem.memory.episodic import EpisodicConfig, EpisodicSnapshot, Segment
from vismem.memory.movements import MovementSnapshot
from vismem.memory.slots import SlotSnapshot
from vismem.stats import Stats
from vismem.store import MemoryStore, SegmentData
from vismem.stream_memory import StreamMemory
from vismem.world import World

__all__ = ["StreamSet"]


class StreamSet(Mapping[str, StreamMemory]):
    """The writer's side of every stream, by name, in the order that they were first seen in.

    Args:
        budget: Bytes, shared evenly.
        sizes: Of the moments.
        policy: Of the banks of visual tokens; ``"moments"`` for none.
        stats: Where it is counted what merging and forgetting cost.

    Attributes:
        lock: Held for the moment of a write or a snapshot.
        frames: Written in the whole life of the memory.
        world: Things that frames with depth and pose showed, of all streams.
    """

    def __init__(self, budget: int, sizes: EpisodicConfig, policy: str, stats: Stats) -> None:
        self.budget, self.sizes, self.policy, self.stats = budget, sizes, policy, stats
        self.lock = threading.RLock()
        self.frames = 0
        self.world = World()
        self._streams: dict[str, StreamMemory] = {}

    def __getitem__(self, name: str) -> StreamMemory:
        return self._streams[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._streams)

    def __len__(self) -> int:
        return len(self._streams)

    # ------------------------------------------------------------------ writing

    def take(self, name: str) -> StreamMemory:
        """The writer's side of a stream; a new one takes its share of the budget."""
        if name not in self._streams:
            with self.lock:
                self._streams[name] = self._new(name)
                self._share_budget()
        return self._streams[name]

    def _new(self, name: str, clock: StreamClock | None = None) -> StreamMemory:
        return StreamMemory(name, self.sizes, self.policy, clock)

    def _share_budget(self) -> None:
        left = self.budget - self.world.budget
        for stream in self._streams.values():
            self.count(stream.set_budget(left // len(self._streams)))

    def remember(self, name: str, time: float, tensors: Mapping[str, Tensor]) -> None:
        """Take one frame; see `StreamMemory.write`."""
        stream = self.take(name)
        with self.lock:
            begun = self.world.begin(self.budget, tensors)
            if stream.begin(tensors) or begun:
                self._share_budget()
            self.world.write(time, tensors)
            report = stream.write(time, tensors)
            self.frames += 1
        self.count(report)

    def changed(self, budget: int, policy: str) -> tuple[StreamSet, WriteReport]:
        """A copy with another budget or policy, and what that merged and dropped, not yet counted.

        This set stays as it is and can go on; see `StreamMemory.changed`. Segments are shared.
        Nobody may write meanwhile; readers may read.
        """
        other = StreamSet(budget, self.sizes, policy, self.stats)
        other.frames = self.frames
        other.world = self.world.changed(budget)
        left = budget - other.world.budget
        merged = dropped = 0
        for name, stream in self.items():
            other._streams[name], report = stream.changed(left // len(self), policy)
            merged, dropped = merged + report.merged, dropped + report.dropped
        return other, WriteReport(other.nbytes, merged=merged, dropped=dropped)

    def count(self, report: WriteReport) -> None:
        """Note what merging and forgetting cost."""
        self.stats.merged += report.merged
        self.stats.forgotten += report.dropped

    def forget(self, start: float, end: float, stream: str | None = None) -> int:
        """Give up what touches a span of time, of one stream or of all; how much is gone."""
        with self.lock:
            gone = sum(s.forget(start, end) for s in self.values() if stream in (None, s.name))
            self.world.forget(start, end)  # of any stream: a thing does not know whose it is
        self.stats.forgotten += gone
        return gone

    def expire(self, age: float) -> int:
        """Give up what is older than an age in seconds; how much is gone."""
        with self.lock:
            gone = sum(stream.expire(age) for stream in self.values())
            changed = self.world.expire(age)
        self.stats.forgotten += gone
        return gone + changed

    # ------------------------------------------------------------------ reading

    def snapshots(self) -> dict[str, EpisodicSnapshot]:
        """Immutable views of the moments of all streams, by name."""
        with self.lock:
            return {name: stream.moments.snapshot() for name, stream in self.items()}

    def visual(self) -> dict[str, SlotSnapshot]:
        """Immutable views of the banks of visual tokens, by stream; none for ``"moments"``."""
        with self.lock:
            return {name: s.bank.snapshot() for name, s in self.items() if s.bank}

    def movements(self) -> dict[str, MovementSnapshot]:
        """Immutable views of what moved, of the streams in which that could be told."""
        with self.lock:
            return {name: s.moves.snapshot() for name, s in self.items() if s.moves is not None}

    def describe(self) -> dict[str, Any]:
        """Bytes held, the budget, frames and the span of time."""
        with self.lock:
            spans = [stream.span for stream in self.values() if stream.span]
            span = [min(a for a, _ in spans), max(b for _, b in spans)] if spans else None
            return {
                "bytes": self.nbytes,
                "budget": self.budget,
                "frames": self.frames,
                "span": span,
            }

    def counts(self) -> dict[str, int]:
        """How many ``moments`` and ``scenes`` are held."""
        with self.lock:
            banks = [stream.bank for stream in self.values() if stream.bank]
            return {
                "moments": sum(stream.moments.count for stream in self.values()),
                "scenes": sum(bank.count for bank in banks),
            }

    @property
    def nbytes(self) -> int:
        """Bytes held in memory, all streams together."""
        with self.lock:
            return self.world.nbytes + sum(stream.nbytes for stream in self.values())

    # ------------------------------------------------------------------ sealing

    def contents(self) -> tuple[dict[str, SegmentData], dict[str, Tensor], dict[str, Any]]:
        """What a store must keep to bring all streams back: segments, state and plain facts."""
        segments: dict[str, SegmentData] = {}
        state: dict[str, Tensor] = {}
        kept = []
        for number, stream in enumerate(self.values()):
            for segment in stream.moments.segments:
                segments[f"{number}-{segment.name}"] = SegmentData(
                    segment.columns,
                    segment.thumbnails,
                    float(segment.columns["start"][0]),
                    float(segment.columns["end"].max()),
                )
            working = stream.working_state()
            state |= {f"{number}.{name}": value for name, value in working.items()}
            kept.append({"name": stream.name, "clock": asdict(stream.clock)})
        return segments, state | self.world.state(), {"frames": self.frames, "streams": kept}

    def restore(self, store: MemoryStore) -> None:
        """Take up what `contents` gave to a store with its last commit.

        Raises:
            ValueError: If it is of another configuration or incomplete.
        """
        state = store.state()
        segments: dict[str, list[Segment]] = {}
        for file in store.segments():
            number, _, name = file.entry.name.partition("-")
            held = Segment(name, file.columns, file.thumbnails)
            segments.setdefault(number, []).append(held)
        self.frames = int(store.meta.get("frames", 0))
        self.world.restore(self.budget, state)
        for place, kept in enumerate(store.meta.get("streams", [])):
            prefix = f"{place}."
            own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            stream = self._new(kept["name"], StreamClock(**kept["clock"]))
            stream.set_budget(self.budget)  # its share is set when all streams are there
            stream.restore(segments.get(str(place), []), own)
            self._streams[stream.name] = stream
        self._share_budget()

    def stream_of(self, segment: str) -> str:
        """Name of the stream that a stored segment is of, by the segment's name."""
        return list(self._streams)[int(segment.partition("-")[0])]
