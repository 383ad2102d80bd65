"""Sine codes of SAM 2: of the cells of a picture, and of how long ago something was.

Ravi et al., "SAM 2: Segment Anything in Images and Videos", https://arxiv.org/abs/2408.00714, after
Vaswani et al., https://arxiv.org/abs/1706.03762. Axial rotary tables are in
`vismem.kernels.mem_xattn`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["sine_map", "sine_time"]

SLOWEST = 10_000.0


def _speeds(channels: int, device: torch.device | str | None) -> Tensor:
    """How fast each channel turns, ``(channels,)`` float64; neighbours in pairs."""
    pair = torch.arange(channels, device=device) // 2
    return SLOWEST ** -(2.0 * pair.double() / channels)


def sine_map(
    height: int,
    width: int,
    channels: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Code the cells of a grid; a side is one turn long, whatever its number of cells.

    Args:
        height: Cells from top to bottom.
        width: Cells from left to right.
        channels: Width of the code, a multiple of 4: the first half tells the row.
        dtype: Of the code; it is computed in float64.
        device: Where it is to be.

    Returns:
        ``(height * width, channels)``, row by row; sine and cosine alternate.

    Raises:
        ValueError: If the channels are not a multiple of 4.

    Example:
        >>> sine_map(2, 3, 8).shape
        torch.Size([6, 8])
    """
    if channels < 4 or channels % 4:
        raise ValueError(f"a code of cells needs a multiple of 4 channels, not {channels}")

    def side(cells: int) -> Tensor:
        place = torch.arange(1, cells + 1, device=device, dtype=torch.float64)
        angle = (2 * math.pi * place / (cells + 1e-6))[:, None] * _speeds(channels // 2, device)
        return torch.stack([angle[:, ::2].sin(), angle[:, 1::2].cos()], -1).flatten(1)

    rows = side(height)[:, None].expand(-1, width, -1)
    columns = side(width)[None].expand(height, -1, -1)
    return torch.cat([rows, columns], -1).flatten(0, 1).to(dtype)


def sine_time(ago: Tensor, channels: int) -> Tensor:
    """Code a time difference.

    Args:
        ago: ``(...,)`` differences; about 1 for the far end of a window.
        channels: Width of the code, even.

    Returns:
        ``(..., channels)`` in the type of ``ago``: all sines, then all cosines.

    Raises:
        ValueError: If the channels are odd.

    Example:
        >>> sine_time(torch.zeros(1), 4)
        tensor([[0., 0., 1., 1.]])
    """
    if channels < 2 or channels % 2:
        raise ValueError(f"a code of time needs an even number of channels, not {channels}")
    angle = ago.double()[..., None] * _speeds(channels // 2, ago.device)
    return torch.cat([angle.sin(), angle.cos()], -1).to(ago.dtype)
