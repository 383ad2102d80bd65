"""Where records are: dequantised on the device, packed in RAM, or cold with somebody else."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

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
        self.clear()

    def clear(self) -> None:
        """Hold nothing."""
        with self._lock:
            self._hot: list[dict[int, tuple[int, Pair]]] = [{} for _ in range(self.shape.layers)]
            # Those that could leave, the least recently used first.
            self._ram: OrderedDict[int, Block] = OrderedDict()
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
                self._ram[block.number] = block

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
                self._ram[block.number] = block
            block.cold = cold

    def drop(self, block: Block) -> None:
        """Forget a block; a snapshot that holds it can still read it."""
        with self._lock:
            if block.record is not None:
                self.ram_bytes -= block.record.nbytes
                if block.cold is None:
                    self.fixed_bytes -= block.record.nbytes
            block.gone = True
            self._ram.pop(block.number, None)
            for layer in self._hot:
                layer.pop(block.number, None)

    def shrink(self, limit: int) -> None:
        """Keep the records in RAM within a limit in bytes, as far as they may leave."""
        with self._lock:
            self.limit = limit
            self._shrink()

    def _shrink(self) -> None:
        while self.ram_bytes > self.limit and self._ram:
            _, block = self._ram.popitem(last=False)
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
            found = {block.number: hot[block.number][1] for block in blocks if block.number in hot}
            # One layer's share is read from where it lies; a record asked for again comes whole.
            again = [b for b in blocks if b.record is None and b.used and not b.gone]
            for block in blocks:
                block.used = max(block.used, time)
                if block.number in self._ram:
                    self._ram.move_to_end(block.number)
        missing = [block for block in blocks if block.number not in found]
        pairs = self._unpack(layer, missing) if missing else []
        fresh = {block.number: pair for block, pair in zip(missing, pairs, strict=True)}
        copies = [(block, block.packed.clone()) for block in again]
        with self._lock:
            self._promote(copies)
            self._heat(layer, blocks, fresh, time)
        chosen = [found.get(block.number) or fresh[block.number] for block in blocks]
        return torch.cat([k for k, _ in chosen], 1), torch.cat([v for _, v in chosen], 1)

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
                block.record = record
                self.ram_bytes += record.nbytes
                self._ram[block.number] = block
        self._shrink()

    def _heat(self, layer: int, blocks: Sequence[Block], fresh: dict[int, Pair], time: int) -> None:
        hot = self._hot[layer]
        needed = {block.number for block in blocks}
        more = len(hot.keys() | needed) - self._room
        idle = sorted((used, number) for number, (used, _) in hot.items() if number not in needed)
        for _, number in idle[: max(0, more)]:
            del hot[number]
        for block in blocks:
            if block.gone:
                continue
            if block.number in hot:
                hot[block.number] = (time, hot[block.number][1])
            elif len(hot) < self._room:
                keys, values = fresh[block.number]
                hot[block.number] = (time, (keys.clone(), values.clone()))

    def hot_blocks(self, layer: int) -> list[int]:
        """Numbers of the blocks of a layer that are dequantised on the device, ascending."""
        with self._lock:
            return sorted(self._hot[layer])

    @property
    def hot_bytes(self) -> int:
        """Bytes of dequantised blocks on the device."""
        with self._lock:
            return self._pair_bytes * sum(map(len, self._hot))
