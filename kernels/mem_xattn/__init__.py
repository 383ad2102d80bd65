"""Attention of a picture to its memories, as in SAM 2: rotated keys, values narrower than keys."""

from __future__ import annotations

import torch
from torch import Tensor

from ..registry import uses_triton
from .axial import axial_table, half_split, rotate_axial
from .cpu import mem_xattn as _cpu

__all__ = ["axial_table", "fold_output", "half_split", "mem_xattn", "rotate_axial"]

HALVES = (torch.float16, torch.bfloat16)


def mem_xattn(
    query: Tensor,
    keys: Tensor,
    mem: Tensor,
    heads: int = 1,
    scale: float | None = None,
    *,
    lengths: Tensor | None = None,
) -> Tensor:
    """Average memory by attention to its keys, before any projection of values.

    The weights of a softmax sum to one, so a linear projection of values may as well be done to
    what comes out: `fold_output` makes one layer of it and of the output projection. Values then
    are memory itself, a quarter as wide as keys in SAM 2, with nothing kept beside it.

    Args:
        query: ``(B, M, C)``, projected and rotated (`rotate_axial`).
        keys: ``(B, N, C)``, projected and rotated, once when they are written.
        mem: ``(B, N, E)``, without positions; each head averages all of it.
        heads: Number of heads ``H``; divides ``C``.
        scale: Of the products; ``(C / H) ** -0.5`` by default.
        lengths: How many keys each batch entry has, ``(B,)`` whole numbers; the others are not
            read. All by default.

    Returns:
        ``(B, M, H * E)``, head by head; zeros where there is no key. Gradients flow to the first
        three arguments.

    Raises:
        ValueError: If the shapes or types do not fit.

    Source: the cross-attention of SAM 2, https://arxiv.org/abs/2408.00714.

    Example:
        >>> mem = torch.tensor([[[1.0], [3.0], [8.0]]])
        >>> mem_xattn(torch.zeros(1, 1, 4), torch.ones(1, 3, 4), mem, lengths=torch.tensor([2]))
        tensor([[[2.]]])
    """
    _check(query, keys, mem, heads, lengths)
    scale = (query.shape[2] // heads) ** -0.5 if scale is None else scale
    if not keys.shape[1] or not query.shape[1] or not len(query):
        return query.new_zeros(*query.shape[:2], heads * mem.shape[2])
    if uses_triton("mem_xattn", query, _obstacle(query, mem, heads)):
        from .triton import mem_xattn as _triton

        return _triton(query, keys, mem, heads, scale, lengths)
    return _cpu(query, keys, mem, heads, scale, lengths)


def fold_output(
    value_weight: Tensor,
    value_bias: Tensor,
    output_weight: Tensor,
    output_bias: Tensor,
    heads: int = 1,
) -> tuple[Tensor, Tensor]:
    """Make one linear layer of the projection of values and that of the output; exactly.

    Args:
        value_weight: ``(C, E)``: from memory to values.
        value_bias: ``(C,)``.
        output_weight: ``(D, C)``: from what the heads saw to the result.
        output_bias: ``(D,)``.
        heads: Number of heads ``H``; divides ``C``.

    Returns:
        Weight ``(D, H * E)`` and bias ``(D,)`` to apply to what `mem_xattn` gives. Not to zeros
        where there was no key: there a layer's bias says something of nothing.

    Raises:
        ValueError: If the shapes do not fit.

    Example:
        >>> value, output = torch.nn.Linear(2, 4), torch.nn.Linear(4, 3)
        >>> folded = fold_output(value.weight, value.bias, output.weight, output.bias)
        >>> [tuple(part.shape) for part in folded]
        [(3, 2), (3,)]
    """
    width = len(value_weight)
    if (
        value_weight.ndim != 2
        or output_weight.ndim != 2
        or output_weight.shape[1] != width
        or value_bias.shape != (width,)
        or output_bias.shape != output_weight.shape[:1]
        or heads < 1
        or width % heads
    ):
        shapes = [tuple(p.shape) for p in (value_weight, value_bias, output_weight, output_bias)]
        raise ValueError(f"layers of {shapes} and {heads} heads do not follow each other")
    values = value_weight.unflatten(0, (heads, -1))
    outputs = output_weight.unflatten(1, (heads, -1))
    weight = torch.einsum("dhc,hce->dhe", outputs, values).flatten(1)
    return weight, output_weight @ value_bias + output_bias


def _check(query: Tensor, keys: Tensor, mem: Tensor, heads: int, lengths: Tensor | None) -> None:
    """Refuse what does not fit."""
    shapes = f"query {tuple(query.shape)}, keys {tuple(keys.shape)} and mem {tuple(mem.shape)}"
    if not query.ndim == keys.ndim == mem.ndim == 3:
        raise ValueError(f"mem_xattn takes (B, M, C), (B, N, C) and (B, N, E), not {shapes}")
    if keys.shape != (len(query), keys.shape[1], query.shape[2]) or mem.shape[:2] != keys.shape[:2]:
        raise ValueError(f"these are not of one batch, one width and as many rows: {shapes}")
    if heads < 1 or query.shape[2] % heads:
        raise ValueError(f"{heads} heads do not divide a width of {query.shape[2]}")
    if not query.dtype == keys.dtype == mem.dtype:
        kinds = f"{query.dtype}, {keys.dtype} and {mem.dtype}"
        raise ValueError(f"query, keys and mem must be of one type, not {kinds}")
    if lengths is not None and (
        lengths.shape != query.shape[:1] or lengths.dtype not in (torch.int32, torch.int64)
    ):
        raise ValueError(
            f"lengths must be {len(query)} whole numbers, int32 or int64, "
            f"not {lengths.dtype} {tuple(lengths.shape)}"
        )


def _obstacle(query: Tensor, mem: Tensor, heads: int) -> str | None:
    if query.dtype not in (torch.float32, *HALVES):
        return f"{str(query.dtype).removeprefix('torch.')} keeps its precision"
    widest = max(query.shape[2] // heads, mem.shape[2])
    return f"heads of {widest} columns, 256 at most" if widest > 256 else None
