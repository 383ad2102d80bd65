"""How blocks of keys and values become bytes, and how one layer of many blocks is read back.

A record holds one block in all layers. Layers lie one after the other, each on a 16-byte border, so
that a reader of one layer touches the bytes of that layer alone, also in a mapped file:
``[layer][key low, key step | value low, value step | keys | values]``.

Keys are stored as the model projects them, before positions are rotated in, and are quantised by
channel over the tokens of the block; values by token over their channels. Both after KIVI
(arXiv 2402.02750); that keys are quantised best before the rotation is from KVQuant
(arXiv 2401.18079). Codes run from the lowest value in equal steps, also at eight bits: raw keys of
models such as Qwen2 carry a bias in each channel that is many times wider than their spread, and
steps from zero would be spent on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vismem.memory.kv.shape import KVShape

__all__ = ["LARGEST", "Precision", "pack_record", "record_bytes", "unpack_layer", "unpack_layers"]

Precision = Literal["model", "int8", "int4"]
"""What numbers of a block are stored as; ``model`` keeps the bits of the model's own type."""

_BITS = {"int8": 8, "int4": 4}
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_BORDER = 16  # bytes; where a layer may begin
LARGEST = torch.finfo(torch.float32).max / 2  # two such numbers are a finite span apart


def record_bytes(shape: KVShape, tokens: int, precision: Precision, dtype: torch.dtype) -> int:
    """Give the size of the record of one block.

    Args:
        shape: Layers, heads and widths.
        tokens: Tokens of the block, ``M``.
        precision: What the numbers are stored as.
        dtype: Type of the model, float32, float16 or bfloat16; low values and steps have it too.

    Raises:
        ValueError: If the precision or the type is none of these, or there are fewer than 0 tokens.

    Example:
        >>> shape = KVShape(layers=28, heads=28, kv_heads=4, head_dim=128)
        >>> [record_bytes(shape, 196, p, torch.float16) for p in ("model", "int8", "int4")]
        [11239424, 5764864, 2955008]
    """
    return shape.layers * _layer_bytes(_sections(shape, tokens, precision, dtype))


def pack_record(kv: Tensor, precision: Precision) -> Tensor:
    """Pack the keys and values of a block, all layers in one pass.

    Quantised numbers come back within half a step, besides rounding to the model's type. A step is
    the span of a key channel (or of a value token) by 255 or 15, and no less than the smallest
    normal number of the type. Next to the largest number of the type an error may reach a whole
    step, so that nothing overflows.

    Args:
        kv: ``(L, 2, G, M, D)``, keys and values, in the type of the model.
        precision: What the numbers are stored as.

    Returns:
        The record, ``(record_bytes,)`` uint8 on the device of ``kv``.

    Raises:
        ValueError: If ``kv`` has another form or type, or is to be quantised and holds NaN,
            infinity or a number beyond half the range of float32.

    Example:
        >>> kv = torch.randn(2, 2, 1, 5, 8, generator=torch.Generator().manual_seed(0))
        >>> shape = KVShape(layers=2, heads=1, kv_heads=1, head_dim=8)
        >>> keys, values = unpack_layer(pack_record(kv, "int8"), 1, shape, 5, "int8", kv.dtype)
        >>> bool((keys - kv[1, 0]).abs().max() < 0.01)
        True
    """
    if kv.ndim != 5 or kv.shape[1] != 2:
        raise ValueError(f"a block is (layers, 2, heads, tokens, width), not {tuple(kv.shape)}")
    layers, _, heads, tokens, width = kv.shape
    shape = KVShape(layers, heads, heads, width)
    sections = _sections(shape, tokens, precision, kv.dtype)
    if not tokens:
        return kv.new_zeros(layers * _layer_bytes(sections), dtype=torch.uint8)
    if precision == "model":
        parts = [kv]
    else:
        keys, key_low, key_step = _encode(kv[:, 0], -2, precision)
        values, value_low, value_step = _encode(kv[:, 1], -1, precision)
        parts = [key_low, key_step, value_low, value_step, keys, values]
    packed = torch.cat([part.reshape(layers, -1).view(torch.uint8) for part in parts], dim=1)
    return F.pad(packed, (0, _layer_bytes(sections) - packed.shape[1])).reshape(-1)


def unpack_layer(
    record: Tensor,
    layer: int,
    shape: KVShape,
    tokens: int,
    precision: Precision,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Read one layer of one block, see :func:`unpack_layers`.

    Returns:
        Keys and values, ``(G, M, D)`` each, in ``dtype``.
    """
    return unpack_layers([record], layer, shape, tokens, precision, dtype)


def unpack_layers(
    records: Sequence[Tensor],
    layer: int,
    shape: KVShape,
    tokens: int,
    precision: Precision,
    dtype: torch.dtype,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """Read one layer of many blocks in one go, in the order given.

    Only the bytes of that layer are touched; they go to the device packed and are widened there.
    Nothing returned shares memory with a record.

    Args:
        records: ``N`` records of :func:`pack_record`, each ``(record_bytes,)`` uint8, in memory or
            mapped; all of the same number of tokens and precision, on one device.
        layer: Which layer, from 0.
        shape: Layers, heads and widths.
        tokens: Tokens of each block, ``M``.
        precision: What the numbers are stored as.
        dtype: Type of the model.
        device: Where keys and values shall be; where the records are if not given.

    Returns:
        Keys and values, ``(G, N * M, D)`` each, in ``dtype``.

    Raises:
        ValueError: If a record has another size or type than these blocks have, or the layer
            does not exist.
    """
    if not 0 <= layer < shape.layers:
        raise ValueError(f"there is no layer {layer} of {shape.layers}")
    sections = _sections(shape, tokens, precision, dtype)
    size = _layer_bytes(sections)
    for record in records:
        if record.dtype != torch.uint8 or record.shape != (shape.layers * size,):
            raise ValueError(
                f"a record of {tokens} tokens in {precision} is {shape.layers * size} bytes, "
                f"not {tuple(record.shape)} of {record.dtype}; it is damaged or of another model"
            )
    heads, width, count = shape.kv_heads, shape.head_dim, len(records)
    if device is None:
        device = records[0].device if records else "cpu"
    out = torch.empty(2, heads, count, tokens, width, dtype=dtype, device=device)
    if count and tokens:
        # Whole layers are stacked, borders and all, so that each part may be viewed as its type.
        rows = torch.stack([record[layer * size : (layer + 1) * size] for record in records])
        if torch.device(device).type == "cuda" and rows.device.type == "cpu":
            rows = rows.pin_memory()  # from a buffer that torch keeps for the next time
        parts = rows.to(device, non_blocking=True)[:, : sum(sections)].split(sections, dim=1)
        if precision == "model":
            for part, target in zip(parts, out, strict=True):
                target.copy_(part.view(dtype).unflatten(1, (heads, tokens, width)).transpose(0, 1))
        else:
            key_low, key_step, value_low, value_step, keys, values = parts
            _decode(keys, key_low, key_step, (heads, 1, width), precision, out[0])
            _decode(values, value_low, value_step, (heads, tokens, 1), precision, out[1])
    return out[0].flatten(1, 2), out[1].flatten(1, 2)


def _sections(
    shape: KVShape, tokens: int, precision: Precision, dtype: torch.dtype
) -> tuple[int, ...]:
    """Bytes of the parts of one layer, in their order."""
    if dtype not in _DTYPES or tokens < 0:
        raise ValueError(
            f"blocks hold 0 or more tokens in one of {_DTYPES}, not {tokens} in {dtype}"
        )
    heads, width = shape.kv_heads, shape.head_dim
    if precision == "model":
        return (heads * tokens * width * dtype.itemsize,) * 2
    if precision not in _BITS:
        raise ValueError(f"a precision is model, {', '.join(_BITS)}, not {precision!r}")
    channel, each = heads * width * dtype.itemsize, heads * tokens * dtype.itemsize
    codes = heads * tokens * (width if precision == "int8" else _half(width))
    return channel, channel, each, each, codes, codes


def _layer_bytes(sections: tuple[int, ...]) -> int:
    """Bytes of one layer with what is left free up to the next border."""
    return -(-sum(sections) // _BORDER) * _BORDER


def _half(width: int) -> int:
    """Bytes of ``width`` codes of four bits; the last half byte of an odd row is zero."""
    return (width + 1) // 2


def _encode(x: Tensor, dim: int, precision: Precision) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise over one dimension: codes uint8, lowest values and steps in the type of ``x``."""
    levels = 2 ** _BITS[precision] - 1
    low, high = (bound.float() for bound in torch.aminmax(x, dim=dim, keepdim=True))
    if not (torch.maximum(-low, high) <= LARGEST).all():  # NaN compares as false
        raise ValueError("keys and values to quantise must be finite")
    # The floor keeps a constant channel from dividing by zero, and a step from losing its digits.
    info = torch.finfo(x.dtype)
    exact = ((high - low) / levels).clamp_min(info.tiny)
    # Rounded up to the type, never down: 255 steps of bfloat16 could end a whole step too early.
    step = (exact * (1 + info.eps / 2)).to(x.dtype)
    # Rounded up, the last steps may lead beyond the largest number of the type.
    last = ((info.max - low) / step.float()).floor().clamp(0, levels)
    codes = torch.minimum(((x.float() - low) / step.float()).round().clamp_min(0), last)
    return _fold(codes.to(torch.uint8), precision), low.to(x.dtype), step


def _fold(codes: Tensor, precision: Precision) -> Tensor:
    """Put code ``j`` and code ``j + half`` of a row of four-bit codes into byte ``j``."""
    if precision == "int8":
        return codes
    half = _half(codes.shape[-1])
    first, second = codes[..., :half], codes[..., half:]
    return first | F.pad(second, (0, half - second.shape[-1])) << 4


def _decode(
    codes: Tensor,
    low: Tensor,
    step: Tensor,
    form: tuple[int, ...],
    precision: Precision,
    out: Tensor,
) -> None:
    """Write ``low + code * step`` to ``out`` ``(G, N, M, D)``; the rest are ``(N, bytes)``.

    The sum is done in float32: a product of float16 may overflow where the sum does not.
    """
    heads, _, tokens, width = out.shape
    codes = codes.unflatten(1, (heads, tokens, -1)).transpose(0, 1)
    low, step = (
        part.view(out.dtype).unflatten(1, form).transpose(0, 1).float() for part in (low, step)
    )
    if precision == "int4":
        half, pairs = codes.shape[-1], codes
        codes = torch.empty(out.shape, dtype=torch.uint8, device=out.device)
        torch.bitwise_and(pairs, 15, out=codes[..., :half])
        torch.bitwise_right_shift(pairs[..., : width - half], 4, out=codes[..., half:])
    out.copy_(codes.float().mul_(step).add_(low))
