from __future__ import annotations

import numpy as np
import pytest

from vismem.encoders.color import COLORS, color_shares, name_colors

SWATCHES = {
    "black": [(0, 0, 0), (12, 12, 12), (20, 18, 22)],
    "white": [(255, 255, 255), (240, 240, 240), (250, 248, 240)],
    "gray": [(128, 128, 128), (90, 90, 90), (160, 165, 160)],
    "red": [(255, 0, 0), (200, 20, 30), (120, 10, 10)],
    "orange": [(255, 140, 0), (240, 120, 20), (255, 165, 0)],
    "yellow": [(255, 255, 0), (250, 220, 30), (255, 240, 100)],
    "green": [(0, 255, 0), (30, 140, 40), (0, 90, 20)],
    "blue": [(0, 0, 255), (30, 90, 200), (0, 0, 160), (60, 80, 130)],
    "purple": [(128, 0, 128), (140, 30, 200), (90, 20, 140), (147, 112, 219)],
    "pink": [(255, 105, 180), (255, 182, 193), (240, 130, 170)],
    "brown": [(110, 60, 20), (139, 90, 43), (80, 45, 20)],
}


def test_every_colour_has_swatches() -> None:
    assert tuple(SWATCHES) == COLORS


@pytest.mark.parametrize(
    ("name", "rgb"), [(name, rgb) for name, swatches in SWATCHES.items() for rgb in swatches]
)
def test_plain_swatches(name: str, rgb: tuple[int, int, int]) -> None:
    named = name_colors(np.full((3, 2, 3), rgb, np.uint8))
    assert named.shape == (3, 2) and named.dtype == np.uint8
    assert {COLORS[n] for n in named.ravel()} == {name}


def test_every_value_has_a_name() -> None:
    levels = np.arange(0, 256, 5, dtype=np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
    numbers, counts = np.unique(name_colors(cube), return_counts=True)
    assert numbers.tolist() == list(range(len(COLORS)))
    assert counts.min() > cube.shape[1] / 500  # each is a region and not a speck


def test_shares_of_a_grid() -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    image[:2, :3] = (255, 0, 0)
    image[:2, 3:] = (0, 0, 255)
    image[2, :] = (255, 255, 255)
    shares = color_shares(image, 2, 2)
    assert shares.shape == (2, 2, 11) and shares.dtype == np.float32
    assert shares.sum(-1) == pytest.approx(1.0)
    assert shares[0, 0, COLORS.index("red")] == shares[0, 1, COLORS.index("blue")] == 1.0
    for column in range(2):
        assert shares[1, column, COLORS.index("white")] == 0.5
        assert shares[1, column, COLORS.index("black")] == 0.5
