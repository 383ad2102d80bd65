"""A picture as a grid of small cells: what a fixed camera's background is made of.

No network: the colour of each cell, how much it varies and which way, in units of what a camera's
noise and a video's compression do to them.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

__all__ = ["CELL_DIM", "COLUMNS", "MOST_CELLS", "PIXELS", "cell_tokens", "shrink"]

COLUMNS = 48  # of a picture, whatever its size
MOST_ROWS = 96
MOST_CELLS = COLUMNS * MOST_ROWS
PIXELS = 4  # along a cell's side that are looked at
CELL_DIM = 6
# One standard deviation of noise: of lightness, green to red, blue to yellow (CIE L*a*b*), of what
# lightness changes across and down a cell, and of its spread. Of a street in compressed video, nine
# cells of ten have less.
NOISE = np.array([1.0, 0.8, 0.8, 0.5, 0.5, 0.4], np.float32)


def shrink(image: np.ndarray) -> np.ndarray:
    """Make a picture as small as its cells need it.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.

    Returns:
        ``(rows * PIXELS, COLUMNS * PIXELS, 3)`` uint8.

    Example:
        >>> shrink(np.zeros((120, 160, 3), np.uint8)).shape
        (144, 192, 3)
    """
    rows = min(max(round(COLUMNS * image.shape[0] / image.shape[1]), 1), MOST_ROWS)
    size = (COLUMNS * PIXELS, rows * PIXELS)
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))


def cell_tokens(small: np.ndarray) -> Tensor:
    """Describe the cells of a picture that `shrink` gave.

    Returns:
        ``(rows * COLUMNS, CELL_DIM)`` float32, row by row, whose noise has a standard deviation of
        1 or less.

    Example:
        >>> cell_tokens(shrink(np.zeros((120, 160, 3), np.uint8))).shape
        torch.Size([1728, 6])
    """
    rows, half = len(small) // PIXELS, PIXELS // 2
    lab = cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    cells = lab.reshape(rows, PIXELS, COLUMNS, PIXELS, 3)
    light = cells[..., 0]
    across = light[:, :, :, half:].mean((1, 3)) - light[:, :, :, :half].mean((1, 3))
    down = light[:, half:].mean((1, 3)) - light[:, :half].mean((1, 3))
    told = [cells.mean((1, 3)), across[..., None], down[..., None], light.std((1, 3))[..., None]]
    tokens = np.concatenate(told, -1) / NOISE
    return torch.from_numpy(tokens.reshape(-1, CELL_DIM))
