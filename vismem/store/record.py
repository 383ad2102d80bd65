"""Tensors and a few plain facts as bytes, and back: safetensors with JSON inside, never pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import StoreError, UsageError

__all__ = ["map_tensors", "pack", "unpack"]

# Whatever a reader of hostile bytes can trip over: a broken header or JSON, an unknown dtype,
# shapes that overflow, nesting without end. RecursionError is a RuntimeError.
DAMAGE = (
    SafetensorError,
    AttributeError,
    KeyError,
    MemoryError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
)


def pack(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> bytes:
    """Put tensors and plain facts into one piece of bytes, in the safetensors format.

    Args:
        tensors: Any shapes, dtypes and devices; may be empty.
        meta: Plain facts: what JSON can hold, finite numbers only.

    Returns:
        Bytes that :func:`unpack` and every safetensors reader understand.

    Raises:
        UsageError: If ``meta`` is not JSON, or a tensor has a dtype that safetensors cannot hold.

    Example:
        >>> tensors, meta = unpack(pack({"a": torch.arange(3)}, {"time": 0.5}))
        >>> tensors["a"].tolist(), meta["time"]
        ([0, 1, 2], 0.5)
    """
    # safetensors refuses strided tensors and tensors that share storage, so each is copied.
    own = {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    try:
        text = json.dumps(dict(meta), allow_nan=False)
        return safetensors.torch.save(own, metadata={"meta": text})
    except DAMAGE as error:
        raise UsageError(f"this cannot be stored: {error}; give tensors and plain JSON") from error


def unpack(data: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`pack` wrote.

    Args:
        data: The bytes; they are copied, so that the tensors may be written to.

    Returns:
        The tensors, and the plain facts.

    Raises:
        StoreError: If the bytes are anything else than a whole record.
    """
    try:
        tensors = safetensors.torch.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        meta = json.loads(header["__metadata__"]["meta"])
    except DAMAGE as error:
        raise StoreError(f"a stored record is damaged: {error}") from error
    if not isinstance(meta, dict):
        raise StoreError("a stored record is damaged: its meta is not a JSON object")
    return tensors, meta


def map_tensors(path: Path) -> dict[str, Tensor]:
    """Map a safetensors file into memory; only what is used is ever read from disk.

    The mapping is private: tensors may be written to, and the file never changes. It outlives the
    file's name, so a reader keeps what it has while a writer replaces it.

    Args:
        path: A file of :func:`pack`.

    Raises:
        StoreError: If the file cannot be read, or its header is damaged or does not fit its size.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise StoreError(f"{path.name} cannot be read: {error}") from error
    except DAMAGE as error:
        raise StoreError(f"{path.name} is damaged: {error}") from error
