"""The cells of a picture, and whether a camera stands still."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from vismem.encoders.cells import CELL_DIM, COLUMNS, MOST_CELLS, PIXELS, cell_tokens, shrink
from vismem.encoders.steady import Steady


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 900), (900, 1), (480, 640), (36, 64)])
def test_pictures_of_any_size_have_cells(height: int, width: int) -> None:
    tokens = cell_tokens(shrink(np.full((height, width, 3), 90, np.uint8)))
    assert tokens.shape[1] == CELL_DIM and len(tokens) % COLUMNS == 0
    assert 0 < len(tokens) <= MOST_CELLS and bool(tokens.isfinite().all())


def test_each_cell_has_its_own_colour_and_the_rows_come_first() -> None:
    picture = np.zeros((120, 160, 3), np.uint8)
    picture[60:, 80:] = (255, 0, 0)
    small = shrink(picture)
    tokens = cell_tokens(small).reshape(len(small) // PIXELS, COLUMNS, CELL_DIM)
    rows = len(tokens)
    assert bool((tokens[: rows // 2] == 0).all())
    assert bool((tokens[rows // 2 + 1 :, COLUMNS // 2 + 1 :, :3] > 10).all())
    assert bool((tokens[rows // 2 + 1 :, COLUMNS // 2 + 1 :, 3:].abs() < 1e-3).all())


def test_an_edge_inside_of_a_cell_has_a_direction() -> None:
    small = np.zeros((PIXELS, COLUMNS * PIXELS, 3), np.uint8)
    small[:, 2::PIXELS] = small[:, 3::PIXELS] = 200
    _, _, _, across, down, spread = cell_tokens(small)[5].tolist()
    assert across > 50 and down == 0 and spread > 20
    lower = small[:, ::-1].copy()
    assert cell_tokens(lower)[5][3] == -across


def test_noise_is_about_one() -> None:
    """Of a camera's eight bits; nothing of it may look like a change."""
    draws = np.random.default_rng(0)
    wall = cv2.GaussianBlur(draws.integers(60, 200, (240, 320, 3)).astype(np.uint8), (0, 0), 9)
    taken = [np.clip(wall + draws.normal(0, 3, wall.shape), 0, 255) for _ in range(20)]
    tokens = torch.stack([cell_tokens(shrink(one.astype(np.uint8))) for one in taken])
    spread = tokens.std(0).mean(0)
    assert bool((spread < 1).all()) and bool((spread > 0.05).all())


def textured(seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 255, (108, 192, 3)).astype(np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 2)


@pytest.mark.parametrize("shift", [(0, 2), (3, 0), (2, -2)])
def test_a_camera_that_moves_does_not_stand_still(shift: tuple[int, int]) -> None:
    steady, picture = Steady(), textured()
    assert steady.step(picture, 0.0) and steady.step(picture, 0.1)
    moved = np.roll(picture, shift, (0, 1))
    assert not steady.step(moved, 0.2)
    assert steady.step(moved, 0.3)  # and stands still again


def test_a_slow_pan_is_noticed_all_the_same() -> None:
    """A fifth of a pixel a frame: too little from one to the next."""
    steady, picture = Steady(), cv2.resize(textured(), None, fx=5, fy=5)
    told = []
    for n in range(12):
        moved = cv2.resize(np.roll(picture, n, 1), (192, 108), interpolation=cv2.INTER_AREA)
        told.append(steady.step(moved, 0.1 * n))
    assert told[:2] == [True, True] and not all(told)


def test_a_thing_before_it_moves_no_camera() -> None:
    steady, picture, thing = Steady(), textured(), textured(1)[:60, :50]
    for n in range(30):
        shown = picture.copy()
        shown[20:80, 3 * n : 3 * n + 50] = thing
        assert steady.step(shown, 0.1 * n), n


def test_another_picture_is_no_still_camera_and_one_without_texture_is() -> None:
    steady = Steady()
    assert steady.step(textured(), 0.0)
    assert not steady.step(textured(5), 0.1)
    plain = np.full((108, 192, 3), 128, np.uint8)
    assert not steady.step(plain, 0.2)
    assert steady.step(plain, 0.3) and steady.step(plain, 0.4)
    assert steady.step(textured(), 0.5)  # nothing is known of a wall


def test_another_size_is_another_camera() -> None:
    steady = Steady()
    assert steady.step(textured(), 0.0)
    assert not steady.step(textured()[:96], 0.1)
