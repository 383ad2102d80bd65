"""A block: the keys and values of a fixed number of consecutive tokens, in all layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from einops import reduce
from torch import Tensor

from vismem.memory.kv.config import KVConfig
from vismem.memory.kv.quantize import pack_record
from vismem.memory.kv.window import Chunk

__all__ = ["Block", "blocks_from", "columns_of", "find_blocks", "pack"]


@dataclass(slots=True, eq=False)
class Block:
    """Keys and values of ``M`` tokens, packed; only where its record is ever changes.

    Compression keeps ``M'`` of the ``M`` tokens, in each layer its own; without it ``M' = M``.

    Args:
        number: Running number of the block in its stream.
        row: Where the index keeps its representative.
        times: When each token was seen, ``(M,)`` float64 seconds, ascending.
        coords: Where each token stands in its frame, ``(M, 3)`` int16 ``t h w``.
        sources: Running number of the write of each token, ``(M,)`` int64.
        kept: Which of the tokens are stored, ``(L, M')`` int16, ascending in each layer.
        weights: How many tokens each stored one stands for, ``(L, M')`` float32.
        record: The packed keys and values in RAM, ``(bytes,)`` uint8, if they are there.
        cold: The same where somebody else keeps it, a memory-mapped file as a rule, if it is there.
        used: When it was last asked for, in questions.
        gone: Whether the memory gave it up, and only snapshots hold it.
    """

    number: int
    row: int
    times: Tensor
    coords: Tensor
    sources: Tensor
    kept: Tensor
    weights: Tensor
    record: Tensor | None = None
    cold: Tensor | None = None
    used: int = 0
    gone: bool = False
    first: float = field(init=False)
    last: float = field(init=False)

    def __post_init__(self) -> None:
        self.first, self.last = float(self.times[0]), float(self.times[-1])

    @property
    def packed(self) -> Tensor:
        """The record, from RAM if it is there."""
        record = self.record  # read once: another thread may let it go
        packed = record if record is not None else self.cold
        assert packed is not None, "a block that is held has a record somewhere"
        return packed

    @property
    def note_bytes(self) -> int:
        """Bytes of everything beside the record."""
        tensors = self.times, self.coords, self.sources, self.kept, self.weights
        return sum(tensor.nbytes for tensor in tensors) + 64


_COLUMNS = ("times", "coords", "sources", "kept", "weights")


def columns_of(blocks: Sequence[Block]) -> dict[str, Tensor]:
    """Blocks as tensors whose first dimension are the blocks; at least one block.

    Their representatives and embeddings are the index's to add, and their records, which may be
    large and in a file, are left where they are.
    """
    columns = {name: torch.stack([getattr(block, name) for block in blocks]) for name in _COLUMNS}
    columns["number"] = torch.tensor([block.number for block in blocks])
    columns["row"] = torch.tensor([block.row for block in blocks])
    return columns


def blocks_from(columns: Mapping[str, Tensor], *, cold: bool = False) -> Iterable[Block]:
    """Inverse of `columns_of`.

    Args:
        columns: The tensors, and the records as ``record (n, bytes)``.
        cold: Whether the records are left where they are, instead of being taken into RAM.

    Raises:
        KeyError: If a column is missing.
    """
    numbers, rows = columns["number"].tolist(), columns["row"].tolist()
    own = {name: columns[name].clone() for name in _COLUMNS}
    records = columns["record"]
    for n, (number, row) in enumerate(zip(numbers, rows, strict=True)):
        times, coords, sources, kept, weights = (own[name][n] for name in _COLUMNS)
        block = Block(number, row, times, coords, sources, kept, weights)
        if cold:
            block.cold = records[n]
        else:
            block.record = records[n].clone()
        yield block


def pack(
    parts: Sequence[tuple[Chunk, slice]], config: KVConfig, number: int, row: int
) -> tuple[Block, Tensor, Tensor]:
    """Make a block of parts of consecutive writes, ``M`` tokens together.

    Returns:
        The block, the mean of its keys ``(L, G, D)``, of all tokens, also of those that compression
        leaves out, and the mean embedding ``(E,)`` of its frames.
    """
    repeats = torch.tensor([part.stop - part.start for _, part in parts])
    kv = torch.cat([chunk.kv[..., part, :] for chunk, part in parts], 3)
    keys = reduce(kv[:, 0].float(), "l g n d -> l g d", "mean").cpu()
    kept = torch.arange(config.block).expand(config.shape.layers, -1)
    weights = torch.ones(kept.shape)
    if config.compression:
        given = [chunk.saliency[:, part] for chunk, part in parts if chunk.saliency.numel()]
        saliency = torch.cat(given, 1) if len(given) == len(parts) else None
        pressed = config.compression(kv, saliency)
        kv, kept, weights = pressed.kv, pressed.kept, pressed.weights
    times = torch.tensor([chunk.time for chunk, _ in parts], dtype=torch.float64)
    sources = torch.tensor([chunk.source for chunk, _ in parts])
    vectors = torch.stack([chunk.embedding.float() for chunk, _ in parts])
    block = Block(
        number,
        row,
        times.repeat_interleave(repeats),
        torch.cat([chunk.coords[part] for chunk, part in parts]),
        sources.repeat_interleave(repeats),
        kept.to("cpu", torch.int16, copy=True),
        weights.to("cpu", torch.float32, copy=True),
        record=pack_record(kv, config.precision).cpu(),
    )
    return block, keys, (vectors * repeats[:, None] / config.block).sum(0).half()


def find_blocks(
    parts: Iterable[tuple[Mapping[str, Tensor], bool]], numbers: Iterable[int], size: int
) -> list[tuple[Block, Tensor, Tensor]]:
    """Blocks by number, each with its representative and its embedding, in order.

    Args:
        parts: Columns, and whether their records stay where they are (cold).
        numbers: Which blocks; others are left out.
        size: Bytes of a record.

    Raises:
        KeyError: If a column is missing.
        ValueError: If a block is missing, or its record is of another size.
    """
    wanted = set(numbers)
    found: dict[int, tuple[Block, Tensor, Tensor]] = {}
    for columns, cold in parts:
        if columns["record"].shape[1:] != (size,):
            raise ValueError(f"blocks have {size} bytes in this memory")
        rows = zip(columns["keys"], columns["embedding"], strict=True)
        for block, (key, vector) in zip(blocks_from(columns, cold=cold), rows, strict=True):
            if block.number in wanted:
                found[block.number] = block, key, vector
    if missing := wanted - set(found):
        raise ValueError(f"{len(missing)} blocks are missing, the first is {min(missing)}")
    return [found[number] for number in sorted(found)]
