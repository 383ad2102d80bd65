"""Pictures from outside: the newest one, whatever else was sent."""

from __future__ import annotations

import cv2
import numpy as np
from vismem.apps.demo.webcam import PushedStream


def jpeg(value: int, width: int = 6, height: int = 4) -> bytes:
    return cv2.imencode(".jpg", np.full((height, width, 3), value, np.uint8))[1].tobytes()


def test_the_newest_picture_is_given_and_others_are_counted() -> None:
    with PushedStream("webcam", pixels=1000) as stream:
        for value in (10, 100, 200):
            stream.push(jpeg(value))
        frame = next(stream)
        assert abs(int(frame.image.mean()) - 200) < 3 and stream.stats.dropped == 2
        assert not stream.waiting and frame.timestamp >= 0.0
        stream.push(jpeg(50))
        assert next(stream).timestamp >= frame.timestamp


def test_colours_are_not_swapped() -> None:
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 2] = 255  # OpenCV writes blue first
    with PushedStream("webcam", pixels=1000) as stream:
        stream.push(cv2.imencode(".jpg", red)[1].tobytes())
        image = next(stream).image
    assert image[..., 0].mean() > 200 and image[..., 2].mean() < 60


def test_what_is_no_picture_or_too_large_is_left_out() -> None:
    stream = PushedStream("webcam", pixels=100)
    wrong = [b"", b"\xff\xd8 broken", jpeg(9)[:60], jpeg(9, 20, 20)]
    taken = iter([*wrong, jpeg(77)])
    stream.push(next(taken))

    real = stream._decode

    def decode(data: bytes) -> np.ndarray | None:
        image = real(data)
        if image is None:
            stream.push(next(taken))
        return image

    stream._decode = decode  # type: ignore[method-assign]
    assert abs(int(next(stream).image.mean()) - 77) < 3
    assert len(stream.stats.problems) >= 2
    stream.close()
    assert list(stream) == []
