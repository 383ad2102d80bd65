"""`KVSnapshot`: what a question reads, while encoding goes on."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from functools import cached_property

import torch
from einops import rearrange
from torch import Tensor

from vismem.memory.base import Recall
from vismem.memory.kv.block import Block
from vismem.memory.kv.config import KVConfig
from vismem.memory.kv.index import TableView
from vismem.memory.kv.tiers import Tiers
from vismem.memory.kv.window import Chunk

__all__ = ["KVSnapshot"]


class KVSnapshot:
    """An immutable view of a `KVMemory`: sinks, blocks and window as they were.

    Attributes:
        config: Of the memory.
        sinks: Keys and values of the init prompt, ``(L, 2, G, n0, D)``.
        window: The newest writes, oldest first.
        blocks: In time order; their tokens may be in the window as well.
        packed: Absolute number behind the last token that is in a block.
        seen: Tokens seen so far, the init prompt included.
    """

    def __init__(
        self,
        config: KVConfig,
        sinks: Tensor,
        window: Sequence[Chunk],
        blocks: Sequence[Block],
        packed: int,
        seen: int,
        keys: TableView,
        embeddings: TableView,
        tiers: Tiers,
    ) -> None:
        self.config, self.sinks = config, sinks
        self.window, self.blocks = tuple(window), tuple(blocks)
        self.packed, self.seen = packed, seen
        self._keys, self._embeddings, self._tiers = keys, embeddings, tiers

    def before(self, time: float) -> KVSnapshot:
        """The view of what was seen up to a time; a block that lasts longer is left out."""
        count = bisect.bisect_right(self._ends, time)
        window = [chunk for chunk in self.window if chunk.time <= time]
        # Behind the last token that is left: of the window, else of the blocks, cut one by one.
        behind = (self.blocks[count - 1].number + 1) * self.config.block if count else 0
        seen = window[-1].end if window else self.sinks.shape[3] + behind
        return KVSnapshot(
            self.config,
            self.sinks,
            window,
            self.blocks[:count],
            self.packed,
            seen,
            self._keys.first(count),
            self._embeddings.first(count),
            self._tiers,
        )

    @cached_property
    def _ends(self) -> list[float]:
        return [block.last for block in self.blocks]

    def representatives(self, layer: int) -> Tensor:
        """Mean key of every block, not rotated, ``(N, G, D)`` float32."""
        shape = self.config.shape
        if not self.blocks:
            return torch.empty(0, shape.kv_heads, shape.head_dim)
        return self._keys.layer(layer)

    def embeddings(self) -> Tensor:
        """Mean embedding of the frames of every block, ``(N, E)`` float16."""
        if not self.blocks:
            return torch.empty(0, self.config.embedding_dim, dtype=torch.float16)
        return self._embeddings.layer(0)

    def tick(self) -> int:
        """Begin a question; give what this returns to `gather`."""
        return self._tiers.tick()

    def gather(self, layer: int, rows: Tensor | Sequence[int], tick: int) -> tuple[Tensor, Tensor]:
        """Keys and values of blocks in one layer.

        Args:
            layer: Of the language model.
            rows: Places in `blocks`, in the order that is wanted.
            tick: Of the question, see `tick`.

        Returns:
            ``(G, len(rows) * M', D)`` each, not rotated, on the memory's device.
        """
        places = rows.tolist() if isinstance(rows, Tensor) else list(rows)
        if not places:
            shape = self.config.shape
            none = self.sinks.new_empty(shape.kv_heads, 0, shape.head_dim)
            return none, none
        return self._tiers.read(layer, [self.blocks[place] for place in places], tick)

    def read(
        self,
        query: Tensor | None = None,
        *,
        tokens: int | None = None,
        k: int | None = None,
        before: float | None = None,
        **context: object,
    ) -> Recall:
        """Read keys and values of all layers as tokens, one choice of blocks for all of them.

        A model's question reads layer by layer instead: see `vismem.memory.kv.retrieval`.

        Args:
            query: Folded query of every layer, ``(L, G, D)`` or flat; ``None`` for no question.
            tokens: The most that is read; the newest first in any case.
            k: The most blocks that are read; those that fit the query best, else the newest.
            before: Nothing that was seen later than this second is read.
            **context: Other banks' ways of reading are left to them.

        Returns:
            Tokens of width ``L * 2 * G * D`` in time order.
        """
        if before is not None:
            return self.before(before).read(query, tokens=tokens, k=k)
        shape = self.config.shape
        scores = torch.zeros(len(self.blocks))
        if query is not None and self.blocks:
            query = query.reshape(shape.layers, shape.kv_heads, shape.head_dim).float()
            for layer in range(shape.layers):
                keys = self.representatives(layer).float()
                scores += torch.einsum("gd,ngd->n", query[layer].to(keys.device), keys).cpu()
        parts = [self._pending(chunk) for chunk in self.window if chunk.end > self.packed]
        left = None if tokens is None else max(0, tokens - sum(len(part[0]) for part in parts))
        count = len(self.blocks) if k is None else min(k, len(self.blocks))
        if left is not None:
            count = min(count, left // max(1, self.config.stored))
        best = sorted(range(len(self.blocks)), key=lambda n: (-float(scores[n]), -n))[:count]
        parts = [self._opened(n, float(scores[n])) for n in sorted(best)] + parts
        if not parts:
            none = torch.zeros(0, dtype=torch.int64)
            empty = torch.zeros(0, shape.width, dtype=torch.float16)
            return Recall(empty, none.double(), none, none.float(), none)
        flat, times, sources, scored = (torch.cat(column) for column in zip(*parts, strict=True))
        newest = slice(max(0, len(flat) - tokens), None) if tokens is not None else slice(None)
        return Recall(
            flat[newest].half(),
            times[newest],
            torch.ones_like(sources)[newest],
            scored[newest],
            sources[newest],
        )

    def _pending(self, chunk: Chunk) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The tokens of a write that no block has yet."""
        start = max(0, self.packed - chunk.first)
        flat = rearrange(chunk.kv[..., start:, :], "l two g n d -> n (l two g d)").cpu()
        count = len(flat)
        times = torch.full((count,), chunk.time, dtype=torch.float64)
        return flat, times, torch.full((count,), chunk.source), torch.zeros(count)

    def _opened(self, place: int, score: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        block, tick = self.blocks[place], 0
        pairs = [self._tiers.read(n, [block], tick) for n in range(self.config.shape.layers)]
        kv = torch.stack([torch.stack(pair) for pair in pairs])
        flat = rearrange(kv, "l two g n d -> n (l two g d)").cpu()
        kept = block.kept[0].long()  # where layers keep different tokens, those of the first
        return flat, block.times[kept], block.sources[kept], torch.full((len(kept),), score)
