from __future__ import annotations

from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from vismem.frame import Frame, as_rgb


def test_a_frame_knows_its_size() -> None:
    frame = Frame(np.zeros((4, 6, 3), np.uint8), timestamp=1.5)
    assert (frame.height, frame.width, frame.stream, frame.index) == (4, 6, "camera", 0)
    with pytest.raises(FrozenInstanceError):
        frame.timestamp = 2.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("image", "pixel"),
    [
        (np.full((2, 3), 7, np.uint8), [7, 7, 7]),
        (np.full((2, 3, 1), 7, np.uint8), [7, 7, 7]),
        (np.full((2, 3, 3), (1, 2, 3), np.uint8), [1, 2, 3]),
        (np.full((2, 3, 4), (1, 2, 3, 99), np.uint8), [1, 2, 3]),
        (np.full((2, 3), 0x12FF, np.uint16), [0x12] * 3),
        (np.full((2, 3, 3), (0, 256, 65535), np.uint16), [0, 1, 255]),
        (np.full((2, 3), True), [255, 255, 255]),
        (np.full((2, 3, 3), (0.0, 0.5, 1.0), np.float32), [0, 128, 255]),
        (np.full((2, 3, 3), (-4.0, 0.25, 9.0), np.float64), [0, 64, 255]),
        (np.full((2, 3), 1.0, np.float16), [255, 255, 255]),
        ([[0.0, 1.0, 1.0], [1.0, 1.0, 1.0]], [0, 0, 0]),
    ],
)
def test_any_ordinary_picture_becomes_rgb(image: np.ndarray, pixel: list[int]) -> None:
    before = np.array(image)
    rgb = as_rgb(image)
    assert rgb.shape == (2, 3, 3) and rgb.dtype == np.uint8 and rgb.flags.c_contiguous
    assert rgb[0, 0].tolist() == pixel
    assert np.array_equal(before, image)


def test_every_layout_gives_the_same() -> None:
    image = np.random.default_rng(0).integers(0, 255, (5, 7, 3), np.uint8)
    turned = np.asfortranarray(image)
    view = np.repeat(image, 2, axis=1)[:, ::2]
    for other in (turned, view, image[::-1][::-1]):
        assert np.array_equal(as_rgb(other), image) and as_rgb(other).flags.c_contiguous


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((0, 4, 3), np.uint8), r"not empty, not \(0, 4, 3\)"),
        (np.zeros((4, 0), np.uint8), "not empty"),
        (np.zeros((4, 4, 2), np.uint8), r"not \(4, 4, 2\)"),
        (np.zeros((1, 4, 4, 3), np.uint8), r"not \(1, 4, 4, 3\)"),
        (np.zeros(4, np.uint8), r"\(H, W\)"),
        (np.array(7, np.uint8), r"\(H, W\)"),
        (np.zeros((4, 4, 3), np.int32), "not int32"),
        (np.zeros((4, 4), np.complex64), "not complex64"),
        (np.array([["a", "b"]]), "not <U1"),
        (np.full((4, 4), np.nan), "NaN or infinity"),
        (np.full((4, 4, 3), np.inf, np.float32), "NaN or infinity"),
        (None, r"not \(\)"),
    ],
)
def test_what_is_no_picture_is_refused(image: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_rgb(image)
