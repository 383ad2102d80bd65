"""Blocks of a `KVMemory` as segments of a store: sealed, mapped, given up, read again.

A segment holds consecutive blocks: their packed records end to end in the file of bytes, which is
mapped, and what they are found by in columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vismem.kv_store.sizes import ASIDE, ENTRY, DiskSizes
from vismem.memory.kv.block import Block
from vismem.memory.kv.memory import KVMemory
from vismem.store import CommitReport, MemoryStore, SegmentData, SegmentFile

__all__ = ["KVSegments"]

INDEX_SHARE = 0.25  # of the RAM budget, for what blocks are found by; the window may take half


class KVSegments:
    """What is sealed of one memory.

    Args:
        store: Where.
        memory: Whose blocks.
        sizes: Of the files.
        disk: Bytes that the directory may hold.
        stream: Number of the stream; segments of another are refused.

    Attributes:
        numbers: Of the blocks in each segment.
        held: The most bytes that the directory holds beside the log.
    """

    def __init__(
        self, store: MemoryStore, memory: KVMemory, sizes: DiskSizes, disk: int, stream: int
    ) -> None:
        self._store, self._memory = store, memory
        self._sizes, self._disk, self._stream = sizes, disk, stream
        self.numbers: dict[str, list[int]] = {}
        self.held = ASIDE

    # ------------------------------------------------------------------ reading

    def restore(self, salvage: bool) -> int:
        """Give the memory its blocks and state as they were sealed.

        Args:
            salvage: Whether to go on without blocks whose segment is gone.

        Returns:
            How many blocks that were.

        Raises:
            KeyError: If something is missing in a file.
            ValueError: If state and segments do not fit together or to this memory.
        """
        segments, state = self._store.segments(), self._store.state()
        if self._store.meta and not state:
            raise ValueError("the state is lost, and with it the init prompt and the window")
        parts = [self._columns(segment) for segment in segments]
        for segment, part in zip(segments, parts, strict=True):
            self.numbers[segment.name] = part["number"].tolist()
        self._measure()
        if not state:
            return 0
        self.own(state.pop("stream"), "the state")
        wanted = state["blocks"].tolist()
        if salvage:
            there = {number for inside in self.numbers.values() for number in inside}
            found = [number for number in wanted if number in there]
            state["blocks"] = torch.tensor(found, dtype=torch.int64)
        self._memory.restore([(part, True) for part in parts], state)
        return len(wanted) - len(self._memory.blocks)

    def own(self, stream: Tensor, what: str) -> None:
        """Refuse what another stream has written.

        Raises:
            ValueError: If it has.
        """
        if stream.unique().tolist() != [self._stream]:
            raise ValueError(f"{what} is of another stream")

    def _columns(self, segment: SegmentFile) -> dict[str, Tensor]:
        """Blocks as `KVMemory.restore` takes them; records are mapped."""
        columns = dict(segment.columns)
        self.own(columns.pop("stream"), f"segment {segment.name}")
        return columns | {"record": segment.thumbnails.blob.reshape(segment.rows, -1)}

    def hand_over(self) -> None:
        """Let records leave RAM that are in a segment by now, and blocks that are in none more."""
        known, self.numbers = self.numbers, {}
        for segment in self._store.segments():
            if segment.name not in known:
                columns = self._columns(segment)
                known[segment.name] = columns["number"].tolist()
                records = zip(known[segment.name], columns["record"], strict=True)
                self._memory.seal(dict(records))
            self.numbers[segment.name] = known[segment.name]
        held = {number for inside in self.numbers.values() for number in inside}
        blocks = self._memory.blocks
        self._memory.drop([b.number for b in blocks if b.cold is not None and b.number not in held])
        self._measure()

    def _measure(self) -> None:
        held = self._store.nbytes
        files = held["segments"] + held["thumbnails"] + held["state"]
        self.held = ASIDE + files + ENTRY * len(self.numbers)

    # ------------------------------------------------------------------ writing

    def commit(self, more: int, erase: bool, room: int) -> tuple[set[int], CommitReport]:
        """Seal the memory as it is, the oldest segments left out where there is no room for them.

        The memory does not change: drop what was left out, then call `hand_over`.

        Args:
            more: Bytes beside the usual that the next write brings.
            erase: Whether a segment is written again where blocks of it are gone; else it stays as
                long as one of them is held.
            room: Bytes to leave free beside the usual.

        Returns:
            Numbers of the blocks that were left out, and the store's report.

        Raises:
            StoreError: If the disk is full or fails; the last seal and the log still hold.
        """
        held = {block.number: block for block in self._memory.blocks}
        parts: dict[str, SegmentData] = {}
        numbers: dict[str, list[int]] = {}
        for segment in self._store.segments():
            inside = self.numbers[segment.name]
            rows = [row for row, number in enumerate(inside) if number in held]
            if not rows:
                continue
            if erase and len(rows) < len(inside):
                data, inside = _some(segment, rows), [inside[row] for row in rows]
            else:
                entry = segment.entry
                data = SegmentData(segment.columns, segment.thumbnails, entry.start, entry.end)
            parts[_name(inside)], numbers[_name(inside)] = data, inside
        known = {number for inside in self.numbers.values() for number in inside}
        fresh = [block for number, block in held.items() if number not in known]
        cycle = self._sizes.cycle  # more than that only where a whole memory is taken over
        for end in range(len(fresh) % cycle or cycle, len(fresh) + 1, cycle):
            some = fresh[max(0, end - cycle) : end]
            inside = [block.number for block in some]
            parts[_name(inside)], numbers[_name(inside)] = self._data(some), inside
        out = self._without(numbers, more, room)
        gone = {number for name in out for number in numbers[name]} & held.keys()
        state = self._memory.working_state()
        state["blocks"] = torch.tensor([n for n in held if n not in gone], dtype=torch.int64)
        state["stream"] = torch.tensor([self._stream])
        kept = {name: data for name, data in parts.items() if name not in out}
        return gone, self._store.commit(kept, state, meta={"blocks": len(held) - len(gone)})

    def _data(self, blocks: Sequence[Block]) -> SegmentData:
        """New blocks as a segment."""
        columns = self._memory.columns(blocks)
        columns["stream"] = torch.full((len(blocks),), self._stream)
        records = [block.packed.numpy().data for block in blocks]
        return SegmentData(columns, records, blocks[0].first, blocks[-1].last)

    def _without(self, segments: Mapping[str, Sequence[int]], more: int, room: int) -> set[str]:
        """Which of the oldest segments must go, so that all fits until the next seal is done."""
        sizes, cycle, beside = self._sizes, self._sizes.cycle, self.beside(more)
        disk = self._disk - ASIDE - sizes.log - more - sizes.segment(cycle) - room
        disk -= 2 * sizes.state(cycle, beside)
        index = INDEX_SHARE * self._memory.budget.bytes
        # 8 bytes of a block are in the state, before and after.
        files = {name: sizes.segment(len(held)) + 16 * len(held) for name, held in segments.items()}
        total, blocks = sum(files.values()), sum(map(len, segments.values()))
        out: set[str] = set()
        for name, held in segments.items():
            newest = len(out) == len(segments) - 1
            if total <= disk and (newest or (blocks + cycle) * sizes.note <= index):
                break
            total, blocks = total - files[name], blocks - len(held)
            out.add(name)
        return out

    def beside(self, more: int = 0) -> int:
        """Bytes of init prompt and companion, which every state holds.

        Args:
            more: Bytes of the companion that the next write brings.
        """
        companion = sum(value.nbytes for value in self._memory.companion.values())
        return self._memory.sinks.nbytes + max(companion, more)

    def again(self, start: float, end: float) -> int:
        """Bytes of segments that are to be written again if a span of time is forgotten."""
        blocks = self._memory.blocks
        left = {b.number for b in blocks if b.first > end or b.last < start}
        again = 0
        for inside in self.numbers.values():
            if (count := len(left.intersection(inside))) < len(inside):
                again += self._sizes.segment(count)
        return again


def _name(numbers: Sequence[int]) -> str:
    """Of a segment of these blocks: at no time has another the same first block and length."""
    return f"{numbers[0]}-{len(numbers)}"


def _some(segment: SegmentFile, rows: Sequence[int]) -> SegmentData:
    """Some rows of a segment, to become another."""
    columns = {name: column[list(rows)] for name, column in segment.columns.items()}
    records = [segment.thumbnails[row] for row in rows]
    times = columns["times"]
    return SegmentData(columns, records, float(times.min()), float(times.max()))
