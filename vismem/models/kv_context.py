"""What one question may read of a memory: sinks, the blocks that it chooses, the newest frames."""

from __future__ import annotations

import time as clock
from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from vismem.memory.kv.snapshot import KVSnapshot
from vismem.models.families import Family
from vismem.models.kv_attention import Pair

__all__ = ["Context"]

NEVER = 2**62  # the running number of no write


class Context:
    """A snapshot as one question reads it: ``sinks | chosen blocks | tail``.

    The tail are the newest writes, whole. Blocks that lie in it are not on offer, and of one that
    reaches into it only the part before is read, so that no token is read twice. With ``before``
    all this is as it was at that time; what the window has lost of the tail since is then read from
    blocks.

    Args:
        family: The model.
        snapshot: Of its memory.
        tail: Most tokens of the tail; writes that no block has to the end are in it even beyond
            that. 0 for no tail at all.
        before: Nothing that was seen later than this second is read.

    Attributes:
        view: The snapshot as of ``before``; rows count its blocks.
        inside: Rows that lie in the tail, ``(n,)`` int64.
        gathering: Seconds spent on reading blocks so far.
    """

    def __init__(
        self, family: Family, snapshot: KVSnapshot, tail: int, before: float | None = None
    ) -> None:
        self.family, self._all = family, snapshot
        self.view = snapshot if before is None else snapshot.before(before)
        self.gathering, self._tick = 0.0, snapshot.tick()
        self._angles: dict[int, Pair] = {}
        blocks = self.view.blocks
        # Blocks with anything seen in time: the one behind those of the view may have begun.
        begun = len(blocks) + any(
            before is not None and block.first <= before
            for block in snapshot.blocks[len(blocks) : len(blocks) + 1]
        )
        until = float("inf") if before is None else before
        packed = int(blocks[-1].sources[-1]) if blocks else -1
        self._first, self._older, end, left = NEVER, NEVER, -1, tail
        for source, size in self._writes(begun, until) if tail else ():
            if size > left and source < packed:
                break
            self._first, end, left = source, max(end, source + 1), left - size
        self._chunks = [chunk for chunk in self.view.window if chunk.source >= self._first]
        self._older = self._chunks[0].source if self._chunks else end
        self._rest = [
            row for row in self._reaching(begun) if snapshot.blocks[row].sources[0] < self._older
        ]
        inside = [
            row
            for row in self._reaching(len(blocks))
            if snapshot.blocks[row].sources[0] >= self._first
        ]
        self.inside = torch.tensor(inside, dtype=torch.int64)

    def _reaching(self, count: int) -> list[int]:
        """Which of the first blocks reach into the tail, ascending; no look at all the others."""
        first = count
        while first and self._all.blocks[first - 1].sources[-1] >= self._first:
            first -= 1
        return list(range(first, count))

    def _writes(self, begun: int, until: float) -> Iterator[tuple[int, int]]:
        """Number and tokens of the writes up to a time, the newest first."""
        known = NEVER
        for chunk in reversed(self.view.window):
            yield chunk.source, len(chunk)
            known = chunk.source
        source, size = -1, 0
        for block in reversed(self._all.blocks[:begun]):
            seen = block.sources[(block.times <= until) & (block.sources < known)]
            numbers, counts = torch.unique_consecutive(seen, return_counts=True)
            for number, count in zip(numbers.tolist()[::-1], counts.tolist()[::-1], strict=True):
                if size and number != source:
                    yield source, size
                    size = 0
                source, size = number, size + count
        if size:
            yield source, size

    def raw(self, layer: int, rows: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Everything in time order, not rotated.

        Args:
            layer: Of the language model.
            rows: Chosen blocks, ascending.

        Returns:
            Keys and values ``(G, n0 + n, D)``; of the tokens behind the sinks coordinates
            ``(n, 3)`` int16 and running numbers of their writes ``(n,)``.
        """
        began = clock.perf_counter()
        taken = [*rows, *self._rest]
        keys, values = self._all.gather(layer, taken, self._tick)
        self.gathering += clock.perf_counter() - began
        blocks, chunks = [self._all.blocks[row] for row in taken], self._chunks
        whole = self._all.config.compression is None
        kept = [slice(None) if whole else block.kept[layer].long() for block in blocks]
        none = torch.empty(0, dtype=torch.int64)
        sources = torch.cat([none, *(b.sources[k] for b, k in zip(blocks, kept, strict=True))])
        coords = torch.cat(
            [
                none.short().new_empty(0, 3),
                *(b.coords[k] for b, k in zip(blocks, kept, strict=True)),
            ]
        )
        split = len(rows) * self._all.config.stored
        wanted = sources < self._first
        wanted[split:] = (sources[split:] >= self._first) & (sources[split:] < self._older)
        if not wanted.all():
            sources, coords = sources[wanted], coords[wanted]
            there = wanted.nonzero()[:, 0].to(keys.device)
            keys, values = keys[:, there], values[:, there]
        sinks = self._all.sinks[layer]
        return (
            torch.cat([sinks[0], keys, *(chunk.kv[layer, 0] for chunk in chunks)], 1),
            torch.cat([sinks[1], values, *(chunk.kv[layer, 1] for chunk in chunks)], 1),
            torch.cat([coords, *(chunk.coords for chunk in chunks)]),
            torch.cat([sources, *(torch.full((len(c),), c.source) for c in chunks)]),
        )

    def placed(self, layer: int, rows: Sequence[int]) -> Pair:
        """Keys, rotated to positions that end right before 0, and values, as of `raw`."""
        keys, values, coords, sources = self.raw(layer, rows)
        return self.family.rope.apply(keys, *self._placing(coords, sources)), values

    def _placing(self, coords: Tensor, sources: Tensor) -> Pair:
        """Angles of sinks and tokens; without M-RoPE it is their number alone that matters."""
        if self.family.mrope or len(coords) not in self._angles:
            count = self._all.sinks.shape[3]
            where, end = self.family.context_positions(coords, sources, start=count)
            prompt = self.family.text_positions(count)
            angles = self.family.angles(torch.cat([prompt, where], -1) - end)
            if self.family.mrope:
                return angles
            self._angles[len(coords)] = angles
        return self._angles[len(coords)]

    def times(self, rows: Sequence[Sequence[int]]) -> dict[float, int]:
        """When the frames of chosen blocks were seen, ascending, and how many layers read them.

        Args:
            rows: Of every layer.
        """
        layers: Counter[float] = Counter()
        for chosen in rows:
            blocks = [self._all.blocks[row] for row in chosen]
            seen = [block.times[block.sources < self._first] for block in blocks]
            layers.update(torch.cat(seen).unique().tolist() if seen else ())
        return dict(sorted(layers.items()))
