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

__all__ = ["map_tensors", "pack", "pieces", "unpack"]

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.complex64: "C64",
}

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
    return b"".join(pieces(tensors, meta))


def pieces(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> list[bytes | memoryview]:
    """Give the bytes of `pack` piece by piece, each tensor where it lies.

    What is large, a window of keys and values, say, is so written to a file without a copy of it.

    Args:
        tensors: As of `pack`; not to be changed as long as the pieces are in use.
        meta: Likewise.

    Raises:
        UsageError: As of `pack`.
    """
    header: dict[str, Any] = {}
    found: list[bytes | memoryview] = []
    end = 0
    try:
        header["__metadata__"] = {"meta": json.dumps(dict(meta), allow_nan=False)}
        # The widest numbers first, so that all begin at a multiple of their width.
        for name in sorted(tensors, key=lambda name: (-tensors[name].itemsize, name)):
            tensor = tensors[name].detach().cpu().contiguous()
            start, end = end, end + tensor.nbytes
            header[name] = {
                "dtype": _DTYPES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [start, end],
            }
            if tensor.nbytes:
                # A single number may be contiguous by any stride, and no view as bytes by it.
                flat = tensor.as_strided((tensor.numel(),), (1,))
                found.append(flat.view(torch.uint8).numpy().data)
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    except DAMAGE as error:
        raise UsageError(f"this cannot be stored: {error}; give tensors and plain JSON") from error
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little") + text, *found]


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
