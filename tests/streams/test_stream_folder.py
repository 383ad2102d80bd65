import cv2
import numpy as np
import pytest

from vismem.errors import SourceError, UsageError
from vismem.streams import open_stream
from vismem.streams.folder import times_of


def write(path, image):
    assert cv2.imwrite(str(path), image)


def fill(folder, names, suffix=".png"):
    for value, name in enumerate(names):
        write(folder / f"{name}{suffix}", np.full((4, 6, 3), value * 10, np.uint8))


def test_natural_order_one_a_second(tmp_path):
    fill(tmp_path, ["f1", "f2", "f10", "f9"])
    (tmp_path / "notes.txt").write_text("no picture")
    stream = open_stream(tmp_path)
    frames = list(stream)
    assert [int(frame.image[0, 0, 0]) for frame in frames] == [0, 10, 30, 20]
    assert [frame.timestamp for frame in frames] == [0, 1, 2, 3]
    assert (stream.name, stream.duration, stream.size) == (tmp_path.name, 3, (6, 4))


def test_fps_without_times_is_the_rate_of_the_pictures(tmp_path):
    fill(tmp_path, range(4))
    assert [frame.timestamp for frame in open_stream(tmp_path, fps=4)] == [0, 0.25, 0.5, 0.75]


def test_rate_and_fps_sample(tmp_path):
    fill(tmp_path, range(10))
    stream = open_stream(tmp_path, fps=2, rate=4)
    assert [frame.index for frame in stream] == [0, 2, 4, 6, 8]
    assert (stream.stats.frames, stream.stats.skipped) == (5, 5)


def test_times_in_names(tmp_path):
    fill(tmp_path, ["1305031102.175304", "1305031102.211214", "1305031101.9"])
    frames = list(open_stream(tmp_path))
    assert [frame.timestamp for frame in frames] == [
        1305031101.9,
        1305031102.175304,
        1305031102.211214,
    ]
    assert frames[0].image[0, 0, 0] == 20


@pytest.mark.parametrize(
    "stems, times",
    [
        (["0.033", "0.067"], [0.033, 0.067]),
        (["1403636579763555584"], [1403636579.763555584]),
        (["1403636579763"], [1403636579.763]),
        (["000001", "000002"], None),
        (["0000000001", "0000000002"], None),
        (["1.5", "x"], None),
        (["1.5", "1.50"], None),
    ],
)
def test_what_looks_like_times(stems, times):
    assert times_of(stems) == times


def test_every_ordinary_kind_of_picture(tmp_path):
    from PIL import Image

    red = np.zeros((4, 6, 3), np.uint8)
    red[..., 2] = 255  # OpenCV writes blue first
    for suffix in ("png", "jpg", "jpeg", "bmp", "webp", "tif", "tiff", "PNG"):
        write(tmp_path / f"red-{suffix}.{suffix}", red)
    write(tmp_path / "rgba.png", np.dstack([red, np.full((4, 6), 9, np.uint8)]))
    write(tmp_path / "deep.png", red.astype(np.uint16) * 257)
    Image.fromarray(red[..., ::-1]).quantize(4).save(tmp_path / "palette.png")
    frames = list(open_stream(tmp_path))
    assert len(frames) == 11
    for frame in frames:
        assert frame.image.dtype == np.uint8 and frame.image.shape == (4, 6, 3)
        assert np.abs(frame.image.astype(int) - (255, 0, 0)).max() < 12


@pytest.mark.parametrize(
    "dtype, value, suffix",
    [(np.uint8, 200, "png"), (np.uint16, 200 << 8, "png"), (np.float32, 200 / 255, "tif")],
)
def test_gray_and_one_pixel(tmp_path, dtype, value, suffix):
    write(tmp_path / f"gray.{suffix}", np.full((1, 1), value, dtype))
    (frame,) = open_stream(tmp_path)
    assert frame.image.tolist() == [[[200, 200, 200]]]


def test_phones_are_turned_upright(tmp_path):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to show
    Image.new("RGB", (6, 4)).save(tmp_path / "a.jpg", exif=exif)
    (frame,) = open_stream(tmp_path)
    assert (frame.width, frame.height) == (4, 6)


def test_unreadable_pictures_are_counted(tmp_path):
    fill(tmp_path, ["a", "b", "c", "d"])
    (tmp_path / "b.png").write_bytes(b"")
    (tmp_path / "c.png").write_text("no picture")
    stream = open_stream(tmp_path)
    assert [frame.index for frame in stream] == [0, 3]
    assert stream.stats.dropped == 2
    assert stream.stats.problems[0].startswith("picture cannot be read (2 times, first: b.png")


def test_nothing_to_read(tmp_path):
    with pytest.raises(SourceError, match="holds no pictures"):
        open_stream(tmp_path)
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(SourceError, match="no frame can be read from .*a.png"):
        open_stream(tmp_path)


def test_wrong_rate(tmp_path):
    fill(tmp_path, ["a"])
    with pytest.raises(UsageError):
        open_stream(tmp_path, rate=0)
