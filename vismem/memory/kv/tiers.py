"""Where records are: dequantised on the device, packed in RAM, or cold with somebody else."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vismem.memory.kv.block import Block
from vismem.memory.kv.quantize import Precision, unpack_layers
from vismem.memory.kv.shape import KVShape

__all__ = ["Tiers"]

Pair = tuple[Tensor, Tensor]


class Tiers:
    """The records of the blocks of one memory, least recently used first to leave.

    A record may leave RAM only if it is cold as well, that is, somebody else keeps it. What a
    question reads comes up: cold records to RAM, and dequantised to the device as far as ``hot``
    allows. As published, all blocks of one question were used at the same time, and none that it
    needs makes room for another that it needs.

    Args:
        shape: Of the language model.
        tokens: Stored tokens of a block, ``M'``.
        precision: Of the records.
        dtype: Of what is read.
        device: Of what is read.
        hot: Bytes of dequantised blocks on the device, an equal share for each layer.
    """

    def __init__(
        self,
        shape: KVShape,
        tokens: int,
        precision: Precision,
        dtype: torch.dtype,
        device: torch.device,
        hot: int,
    ) -> None:
        self.shape, self.tokens, self.precision = shape, tokens, precision
        self.dtype, self.device = dtype, device
        pair = 2 * shape.kv_heads * tokens * shape.head_dim * dtype.itemsize
        self._room = hot // (shape.layers * pair)  # blocks of a layer
        self._pair_bytes = pair
        self._lock = threading.Lock()
        # By block, not by number: a memory that begins anew counts from 0 again, and a snapshot of
        # the one before may still be read.
        self._hot: list[dict[Block, tuple[int, Pair]]] = [{} for _ in range(shape.layers)]
        self._ram: OrderedDict[Block, None] = OrderedDict()  # what could leave, least used first
        self.ram_bytes = 0
        self.fixed_bytes = 0  # of them, what could not
        self.limit = 0
        self._clock = 0

    def tick(self) -> int:
        """Begin a question: what it reads was used at the time that this gives."""
        with self._lock:
            self._clock += 1
            return self._clock

    # ------------------------------------------------------------------ the writer's side

    def admit(self, block: Block) -> None:
        """Count a block that is new, or was restored."""
        with self._lock:
            if block.record is None:
                return
            self.ram_bytes += block.record.nbytes
            if block.cold is None:
                self.fixed_bytes += block.record.nbytes
            else:
                self._ram[block] = None

    def seal(self, block: Block, cold: Tensor) -> None:
        """Take note that somebody else keeps a record from now on.

        Raises:
            ValueError: If it is not the record of this block.
        """
        if cold.dtype != torch.uint8 or cold.shape != block.packed.shape:
            raise ValueError(
                f"block {block.number} has {block.packed.nbytes} bytes, not {tuple(cold.shape)}"
            )
        with self._lock:
            if block.cold is None and block.record is not None:
                self.fixed_bytes -= block.record.nbytes
                self._ram[block] = None
            block.cold = cold

    def drop(self, block: Block) -> None:
        """Forget a block; a snapshot that holds it can still read it."""
        with self._lock:
            if block.record is not None:
                self.ram_bytes -= block.record.nbytes
                if block.cold is None:
                    self.fixed_bytes -= block.record.nbytes
            block.gone = True
            self._ram.pop(block, None)
            for layer in self._hot:
                layer.pop(block, None)

    def shrink(self, limit: int) -> None:
        """Keep the records in RAM within a limit in bytes, as far as they may leave."""
        with self._lock:
            self.limit = limit
            self._shrink()

    def _shrink(self, more: int = 0) -> None:
        """Let records leave until ``more`` bytes fit in."""
        while self.ram_bytes + more > self.limit and self._ram:
            block, _ = self._ram.popitem(last=False)
            assert block.record is not None
            self.ram_bytes -= block.record.nbytes
            block.record = None

    # ------------------------------------------------------------------ the readers' side

    def read(self, layer: int, blocks: Sequence[Block], time: int) -> Pair:
        """Keys and values of blocks in one layer, in their order.

        Args:
            layer: Of the language model.
            blocks: Which; at least one. Those that were given up since leave no trace.
            time: Of the question, see `tick`.

        Returns:
            Keys and values, ``(G, len(blocks) * M', D)`` each, on the device.
        """
        with self._lock:
            hot = self._hot[layer]
            pairs = {block: hot[block][1] for block in blocks if block in hot}
            # One layer's share is read from where it lies; a record asked for again comes whole.
            again = [b for b in blocks if b.record is None and b.used and not b.gone]
            for block in blocks:
                block.used = max(block.used, time)
                if block in self._ram:
                    self._ram.move_to_end(block)
            again = again[: self._room_for(blocks[0].packed.nbytes, time)]
        if missing := [block for block in blocks if block not in pairs]:
            pairs |= zip(missing, self._unpack(layer, missing), strict=True)
        copies = [(block, block.packed.clone()) for block in again]
        with self._lock:
            self._promote(copies)
            self._heat(layer, pairs, time)
        chosen = [pairs[block] for block in blocks]
        return torch.cat([k for k, _ in chosen], 1), torch.cat([v for _, v in chosen], 1)

    def _room_for(self, size: int, time: int) -> int:
        """How many records of a size fit in RAM, if none leaves that a question needs."""
        room = self.limit - self.fixed_bytes
        for block in reversed(self._ram):
            if block.used < time:
                break
            room -= size
        return max(0, room // size)

    def _unpack(self, layer: int, blocks: Sequence[Block]) -> list[Pair]:
        sizes = self.shape, self.tokens, self.precision, self.dtype
        records = [block.packed for block in blocks]
        keys, values = unpack_layers(records, layer, *sizes, device=self.device)
        parts = keys.split(self.tokens, 1), values.split(self.tokens, 1)
        return list(zip(*parts, strict=True))

    def _promote(self, copies: Sequence[tuple[Block, Tensor]]) -> None:
        for block, record in copies:
            room = self.limit - self.fixed_bytes
            if block.record is None and not block.gone and record.nbytes <= room:
                self._shrink(record.nbytes)
                block.record = record
                self.ram_bytes += record.nbytes
                self._ram[block] = None

    def _heat(self, layer: int, pairs: Mapping[Block, Pair], time: int) -> None:
        hot = self._hot[layer]
        more = len(hot.keys() | pairs.keys()) - self._room
        idle = sorted(hot.keys() - pairs.keys(), key=lambda block: (hot[block][0], block.number))
        for block in idle[: max(0, more)]:
            del hot[block]
        for block, (keys, values) in pairs.items():
            if block.gone:
                continue
            if block in hot:
                used, pair = hot[block]
                hot[block] = (max(used, time), pair)
            elif len(hot) < self._room:
                hot[block] = (time, (keys.clone(), values.clone()))

    def hot_blocks(self, layer: int) -> list[int]:
        """Numbers of the blocks of a layer that are dequantised on the device, ascending."""
        with self._lock:
            return sorted(block.number for block in self._hot[layer])

    @property
    def hot_bytes(self) -> int:
        """Bytes of dequantised blocks on the device."""
        with self._lock:
            return self._pair_bytes * sum(map(len, self._hot))
