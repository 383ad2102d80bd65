"""Small videos and pictures whose frames can be told apart by their pixels."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

av = pytest.importorskip("av")


def picture(number: int, width: int = 96, height: int = 64) -> np.ndarray:
    """Red left, blue right, white corner at the top left, and the number in binary below."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, : width // 2, 0] = 200
    image[:, width // 2 :, 2] = 200
    image[: height // 4, : width // 4] = 255
    image[height - 16 :] = 0
    for bit in range(12):
        image[height - 16 :, bit * 8 : bit * 8 + 8] = 255 * (number >> bit & 1)
    return image


def number_in(image: np.ndarray) -> int:
    """The number that :func:`picture` wrote."""
    row = image[-8, 4:96:8].mean(axis=1) > 127
    return int(sum(1 << bit for bit, white in enumerate(row) if white))


def write_video(
    path: Path,
    times: Sequence[float],
    *,
    gop: int = 12,
    b_frames: int = 2,
    rotation: int = 0,
    faststart: bool = False,
    noise: bool = False,
    **x264: str,
) -> Path:
    """Write an H.264 video with a frame at each of ``times``, in seconds."""
    rng = np.random.default_rng(0)
    options = {"movflags": "faststart"} if faststart else {}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.time_base = stream.time_base = Fraction(1, 90000)
        stream.codec_context.gop_size = gop
        stream.codec_context.max_b_frames = b_frames
        stream.options = {"crf": "18", "preset": "veryfast", **x264}
        if rotation:
            if not hasattr(stream, "set_display_rotation"):
                pytest.skip("this PyAV cannot write how a phone was turned")
            stream.set_display_rotation(rotation)
        for number, seconds in enumerate(times):
            image = picture(number)
            if noise:
                image[16:40] = rng.integers(0, 255, (24, 96, 3))
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = round(seconds * 90000), Fraction(1, 90000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture
def video() -> Callable[..., Path]:
    return write_video


@pytest.fixture
def numbered() -> Callable[..., np.ndarray]:
    return picture


@pytest.fixture
def number() -> Callable[[np.ndarray], int]:
    return number_in
