"""Where the tokens of Flash-VStream 2025 lie: grids, pixel pooling and position ids (AM-RoPE).

Qwen2-VL's layout: a patch grid of ``t x h x w`` is kept as rows ordered ``(t, h/2, w/2, 2, 2)``, so
that four rows in succession, a block of 2 x 2 patches, make one token of the language model.

Source: Zhang et al., "Flash-VStream: Efficient Real-Time Understanding for Long Video Streams",
ICCV 2025 (https://arxiv.org/abs/2506.23825; https://github.com/IVGSZ/Flash-VStream, folder
``Flash-VStream-Qwen``), re-implemented from a description.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

__all__ = ["Grid", "am_rope", "memory_positions", "pixel_pool", "pool_rows", "real_grids"]

MERGE = 2  # patches a side that make one token of the language model


class Grid(NamedTuple):
    """A grid of patches: ``t`` steps in time of ``h`` rows and ``w`` columns."""

    t: int
    h: int
    w: int


def real_grids(
    video: Grid, synopsis_slots: int, detail_slots: int, pool: int = 2
) -> tuple[Grid, Grid]:
    """Grids of the synopsis and of the detail that a memory makes of a video.

    Args:
        video: Grid of the high-resolution patches.
        synopsis_slots: Most steps in time of the synopsis, whose sides are ``pool`` times shorter
            and rounded up to even.
        detail_slots: Most steps in time of the detail.
        pool: How many times shorter.

    Example:
        >>> real_grids(Grid(120, 32, 32), 60, 30)
        (Grid(t=60, h=16, w=16), Grid(t=30, h=32, w=32))
    """

    def side(patches: int) -> int:
        return -(-(patches // pool) // MERGE) * MERGE

    synopsis = Grid(min(video.t, synopsis_slots), side(video.h), side(video.w))
    return synopsis, Grid(min(video.t, detail_slots), video.h, video.w)


def pool_rows(rows: Tensor, grid: tuple[int, int], pool: int = 2) -> Tensor:
    """Average features over ``pool x pool`` patches, in the row layout of both grids.

    Args:
        rows: ``(T, h*w, D)``.
        grid: ``(h, w)``, multiples of ``2 * pool``.
        pool: Patches a side that become one.

    Returns:
        ``(T, h*w / pool**2, D)``.

    Raises:
        ValueError: If the rows do not fill the grid, or the grid is no multiple.

    Example:
        >>> pool_rows(torch.arange(16.0).reshape(1, 16, 1), (4, 4)).flatten().tolist()
        [1.5, 5.5, 9.5, 13.5]
    """
    h, w = grid
    if rows.ndim != 3 or rows.shape[1] != h * w:
        raise ValueError(f"rows must be (T, {h * w}, D), not {tuple(rows.shape)}")
    _check_grid(h, w, pool)
    raster = rearrange(
        rows, "t (i j a b) d -> t d (i a) (j b)", i=h // MERGE, j=w // MERGE, a=MERGE
    )
    pooled = F.avg_pool2d(raster, pool)
    return rearrange(pooled, "t d (i a) (j b) -> t (i j a b) d", a=MERGE, b=MERGE)


def pixel_pool(
    rows: Tensor, video: Grid, pool: int = 2, *, patch: int = 14, frames: int = 2
) -> tuple[Tensor, Grid]:
    """Average the pixels of patches, which is to patch a picture of half the size.

    Args:
        rows: ``(t*h*w, C*frames*patch*patch)``, each row ``(C, frames, patch, patch)`` pixels.
        video: Grid of the rows; ``h`` and ``w`` are multiples of ``2 * pool``.
        pool: Pixels a side that become one.
        patch: Pixels a side of a patch.
        frames: Frames that one step in time holds.

    Returns:
        ``(t*h*w / pool**2, C*frames*patch*patch)`` in the same layout, and its grid.

    Raises:
        ValueError: If the rows do not fill the grid, or the grid is no multiple.

    Example:
        >>> pooled, grid = pixel_pool(torch.ones(16, 1176), Grid(1, 4, 4))
        >>> tuple(pooled.shape), grid
        ((4, 1176), Grid(t=1, h=2, w=2))
    """
    t, h, w = video
    if rows.ndim != 2 or rows.shape[0] != t * h * w or rows.shape[1] % (frames * patch * patch):
        raise ValueError(
            f"rows must be ({t * h * w}, C*{frames}*{patch}*{patch}), not {tuple(rows.shape)}"
        )
    _check_grid(h, w, pool)
    pictures = rearrange(
        rows,
        "(t i j a b) (c s y x) -> (t s) c (i a y) (j b x)",
        **{"t": t, "i": h // MERGE, "j": w // MERGE, "a": MERGE, "b": MERGE},
        **{"s": frames, "y": patch, "x": patch},
    )
    pooled = rearrange(
        F.avg_pool2d(pictures, pool),
        "(t s) c (i a y) (j b x) -> (t i j a b) (c s y x)",
        **{"s": frames, "a": MERGE, "b": MERGE, "y": patch, "x": patch},
    )
    return pooled, Grid(t, h // pool, w // pool)


def _check_grid(h: int, w: int, pool: int) -> None:
    step = MERGE * pool
    if h < step or w < step or h % step or w % step:
        raise ValueError(f"the grid must have multiples of {step} patches a side, not {h} x {w}")


def memory_positions(
    synopsis: Grid, timestamps: Tensor, detail: Grid, detail_positions: Tensor
) -> Tensor:
    """Ids of all memory tokens from the first of them on: those of the detail, then the synopsis.

    As published, the synopsis begins one id after as many ids as the detail has tokens, so that
    the two have no clock in common.

    Args:
        synopsis: Grid of the synopsis.
        timestamps: ``(synopsis.t,)``; rounded half to even.
        detail: Grid of the detail.
        detail_positions: ``(detail.t,)`` indices of patches in the video.

    Returns:
        ``(3, N)`` int64: time, row and column.
    """
    device = detail_positions.device

    def cells(times: Tensor, grid: Grid, first: int) -> Tensor:
        times = times.to(device, torch.int64)
        rows = torch.arange(grid.h // MERGE, device=device)
        columns = torch.arange(grid.w // MERGE, device=device)
        return torch.cartesian_prod(times, rows, columns).reshape(-1, 3).T + first

    fine = cells(detail_positions, detail, 0)
    return torch.cat([fine, cells(timestamps.round(), synopsis, fine.shape[1])], dim=1)


def am_rope(positions: Tensor, visual_index: Tensor, memory: Tensor) -> Tensor:
    """Give the memory tokens of a prompt their ids (AM-RoPE); those of the text stay.

    Args:
        positions: ``(3, L)`` ids of the whole prompt.
        visual_index: ``(L,)`` number of the memory token at each place, -1 at text.
        memory: ``(3, N)`` of `memory_positions`.

    Returns:
        ``(3, L)``, of the type of `positions`.

    Example:
        >>> prompt = torch.arange(4).expand(3, 4)
        >>> am_rope(prompt, torch.tensor([-1, 0, 1, -1]), torch.tensor([[7, 8]] * 3))[0].tolist()
        [0, 8, 9, 3]
    """
    places = torch.nonzero(visual_index >= 0)[:, 0]
    if not len(places):
        return positions.clone()
    first = positions[:, places[:1]]
    ids = first + memory.to(positions.device)[:, visual_index[places].long()]
    return positions.clone().index_copy(1, places, ids.to(positions.dtype))
