"""Axial rotary positions: half of the channels turn with the column of a cell, half with its row.

Heo et al., "Rotary Position Embedding for Vision Transformer", https://arxiv.org/abs/2403.13298, as
SAM 2 uses it: cells row by row, for keys again for every picture in memory, and tokens without a
place (object pointers) last, which are not turned.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["axial_table", "half_split", "rotate_axial"]


def axial_table(
    height: int,
    width: int,
    dim: int,
    *,
    theta: float = 10_000.0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Turns of the cells of a grid, of any two sides.

    Args:
        height: Cells from top to bottom.
        width: Cells from left to right.
        dim: Channels of a head, a multiple of 4.
        theta: Slowest turns are about so many cells long, over two pi.
        dtype: Of the table; it is computed in float64.
        device: Where it is to be.

    Returns:
        ``(2, height * width, dim / 2)``: cosine and sine for each pair of channels.

    Raises:
        ValueError: If the channels are not a multiple of 4.

    Example:
        >>> axial_table(2, 3, 8).shape
        torch.Size([2, 6, 4])
    """
    if dim < 4 or dim % 4:
        raise ValueError(f"channels of a head must be a multiple of 4, not {dim}")
    speed = theta ** -(torch.arange(0, dim, 4, dtype=torch.float64) / dim)
    cell = torch.arange(height * width)
    column, row = cell % width, cell // max(width, 1)
    angle = torch.cat([column[:, None] * speed, row[:, None] * speed], 1)
    return torch.stack([angle.cos(), angle.sin()]).to(device, dtype)


def rotate_axial(
    x: Tensor, table: Tensor, *, heads: int = 1, unrotated: int = 0, halves: bool = False
) -> Tensor:
    """Turn queries or keys by their places in the picture.

    Args:
        x: ``(B, N, C)``: the cells of one picture or of several, one after the other, and then
            tokens without a place.
        table: Of `axial_table` for the picture's grid and the channels of a head.
        heads: Number of heads; divides ``C``.
        unrotated: How many of the last tokens have no place.
        halves: Whether the two channels of a pair stand half a head apart, as after a projection
            whose rows were put in the order of `half_split`; else next to each other, as in SAM 2.
            Whole halves are cheaper to turn, and products of queries and keys are the same.

    Returns:
        As ``x``; computed in float32 at least.

    Raises:
        ValueError: If the tokens are no whole number of pictures, or the widths do not fit.

    Example:
        >>> table = axial_table(2, 3, 8)
        >>> x = torch.ones(1, 2 * 6 + 4, 8)  # two pictures and four pointers
        >>> turned = rotate_axial(x, table, unrotated=4)
        >>> torch.equal(turned[:, [0, 6, 12]], x[:, :3])  # the corner is not turned either
        True
    """
    cells, pairs = table.shape[1:]
    placed = x.shape[1] - unrotated
    if unrotated < 0 or placed < 0 or (placed % cells if cells else placed):
        raise ValueError(f"{placed} tokens with a place are no whole pictures of {cells} cells")
    if x.shape[2] != heads * pairs * 2:
        raise ValueError(f"{heads} heads of {2 * pairs} channels are no {x.shape[2]}")
    pictures = placed // max(cells, 1)
    kind = torch.promote_types(x.dtype, torch.float32)
    part = x[:, :placed].to(kind)
    cos, sin = table.to(kind)[:, :, None]
    if halves:
        split = part.reshape(len(x), pictures, cells, heads, 2, pairs)
        a, b = split.unbind(-2)
    else:
        split = part.reshape(len(x), pictures, cells, heads, pairs, 2)
        a, b = split.unbind(-1)
    turned = torch.stack([a * cos - b * sin, a * sin + b * cos], -2 if halves else -1)
    turned = turned.reshape(len(x), placed, x.shape[2]).to(x.dtype)
    return torch.cat([turned, x[:, placed:]], 1) if unrotated else turned


def half_split(dim: int, heads: int = 1) -> Tensor:
    """Which channel goes where so that the pairs of each head stand half a head apart.

    Args:
        dim: Channels of all heads, ``C``.
        heads: Number of heads.

    Returns:
        ``(C,)`` int64, for ``weight[order]`` and ``bias[order]`` of the projections of queries and
        of keys.

    Example:
        >>> half_split(8, heads=2).tolist()
        [0, 2, 1, 3, 4, 6, 5, 7]
    """
    return torch.arange(dim).view(heads, -1, 2).transpose(1, 2).flatten()
