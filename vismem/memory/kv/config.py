"""Sizes of a memory of keys and values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vismem.memory.kv.compress import Compression
from vismem.memory.kv.quantize import Precision, record_bytes
from vismem.memory.kv.shape import KVShape

__all__ = ["KVConfig"]


@dataclass(frozen=True)
class KVConfig:
    """Sizes of a `KVMemory`.

    Args:
        shape: Of the language model.
        dtype: Of the language model: what sinks and window are kept in.
        precision: What blocks are stored in: ``"model"`` for every bit, ``"int8"`` or ``"int4"``.
        block: Tokens of a block, ``M``; as published those of one frame.
        window: Newest tokens that encoding attends to.
        max_tokens: The most tokens of one write.
        embedding_dim: Width ``E`` of a frame's embedding by another encoder, that blocks can be
            found by as well; 0 for none.
        compression: What leaves tokens out of a block before it is stored, if anything does.
    """

    shape: KVShape
    dtype: torch.dtype = torch.float16
    precision: Precision = "int8"
    block: int = 196
    window: int = 4096
    max_tokens: int = 1024
    embedding_dim: int = 0
    compression: Compression | None = None

    def __post_init__(self) -> None:
        if min(self.block, self.window, self.max_tokens) < 1 or self.embedding_dim < 0:
            raise ValueError("block, window and max_tokens are at least one token")
        if self.block >= 2**15:
            raise ValueError(f"a block has fewer than {2**15} tokens, not {self.block}")

    @property
    def stored(self) -> int:
        """Tokens that are stored of a block, ``M'``."""
        return self.compression.tokens(self.block) if self.compression else self.block

    @property
    def record_bytes(self) -> int:
        """Bytes of a packed block."""
        return record_bytes(self.shape, self.stored, self.precision, self.dtype)

    @property
    def token_bytes(self) -> int:
        """Bytes of a token in the window."""
        return self.shape.width * self.dtype.itemsize

    def fingerprint(self) -> Tensor:
        """What two configurations must have in common to read each other's state, int64."""
        shape, dtypes = self.shape, [torch.float32, torch.float16, torch.bfloat16]
        sizes = [shape.layers, shape.heads, shape.kv_heads, shape.head_dim, self.block, self.window]
        precisions = ["model", "int8", "int4"]
        kinds = [dtypes.index(self.dtype), precisions.index(self.precision)]
        return torch.tensor([*sizes, *kinds, self.stored, self.max_tokens, self.embedding_dim])
