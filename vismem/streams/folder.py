"""Frames of a folder of pictures."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

import numpy as np

from vismem.errors import SourceError
from vismem.frame import Frame, as_rgb
from vismem.streams.base import Sampler, Stream, StreamStats, sample

__all__ = ["SUFFIXES", "FolderStream", "read_picture", "read_pictures", "times_of"]

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"})

# How many digits Unix time has, as a whole number, from the year 2001 to 2286: in seconds,
# milliseconds, microseconds and nanoseconds. A running number does not get that long.
_UNITS = {10: 1, 13: 10**3, 16: 10**6, 19: 10**9}


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key that puts ``frame2`` before ``frame10``."""
    parts = re.findall(r"\d+|\D+", name.casefold())
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts]


def times_of(stems: Sequence[str]) -> list[float] | None:
    """Read file names as times, where all of them look like times.

    They do if all are decimal seconds with a point (TUM RGB-D: ``1305031102.175304``) or all are
    Unix times of 10, 13, 16 or 19 digits, which are seconds, milliseconds, microseconds or
    nanoseconds (EuRoC: ``1403636579763555584``), and no two are equal.

    Args:
        stems: File names without their endings.

    Returns:
        Seconds, in the order of ``stems``, or ``None`` where the names are no times.

    Example:
        >>> times_of(["1305031102.175304", "1305031102.211214"])
        [1305031102.175304, 1305031102.211214]
        >>> times_of(["000001", "000002"]) is None
        True
    """
    if all(re.fullmatch(r"\d+\.\d+", stem, re.ASCII) for stem in stems):
        times = [float(stem) for stem in stems]
    elif all(re.fullmatch(r"[1-9]\d*", stem, re.ASCII) and len(stem) in _UNITS for stem in stems):
        times = [int(stem) / _UNITS[len(stem)] for stem in stems]
    else:
        return None
    return times if len(set(times)) == len(times) else None


def read_picture(data: bytes) -> np.ndarray:
    """Decode a compressed picture: gray, palette, alpha and 16 bits too, turned upright by EXIF.

    Args:
        data: The content of a picture file.

    Returns:
        The picture, ``(H, W, 3)`` uint8 RGB.

    Raises:
        ValueError: If it is no picture, or its pixels are none that :func:`as_rgb` takes.
    """
    import cv2  # Here, because `open_stream` asks this module for the endings of pictures.

    try:
        image = cv2.imdecode(
            np.frombuffer(data, np.uint8), cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH
        )
    except cv2.error as error:  # Empty, or larger than OpenCV dares to allocate.
        raise ValueError("it is no picture, or far too large") from error
    if image is None:
        raise ValueError("it is no picture")
    return as_rgb(image if image.ndim == 2 else image[:, :, ::-1])


def read_pictures(
    files: Sequence[tuple[float, Path]], picks: Sequence[int], stats: StreamStats
) -> Iterator[tuple[int, float, np.ndarray]]:
    """Read the pictures that are wanted, and count those that are left out.

    Args:
        files: Time and file of every picture.
        picks: Which are wanted.
        stats: Where it is counted.

    Yields:
        Number, time in seconds, and the picture ``(H, W, 3)`` uint8 RGB.
    """
    for met, index in enumerate(picks, start=1):
        timestamp, file = files[index]
        stats.skipped = index + 1 - met
        try:
            image = read_picture(file.read_bytes())
        except (OSError, ValueError) as error:
            stats.dropped += 1
            stats.note("picture cannot be read", f"{file.name}: {error}")
            continue
        yield index, timestamp, image
    stats.skipped = len(files) - len(picks)


class FolderStream(Stream):
    """Frames of a folder of pictures, in natural order: ``frame2`` comes before ``frame10``.

    Timestamps come from the file names where these are times, see :func:`times_of`; the frames
    are then in the order of time. Otherwise the pictures are taken to be ``rate`` per second,
    counted from 0 s. Pictures that cannot be read are counted and left out.

    Args:
        path: Folder; only its own pictures count (png jpg jpeg bmp webp tif tiff), not those of
            folders inside it.
        fps: Frames wanted per second, or ``None`` for every picture.
        name: Name of the stream; the folder's name if not given.
        rate: Pictures per second where the names are no times. If not given, every picture is
            wanted and they are ``1 / fps`` apart, or one second without ``fps``.

    Raises:
        SourceError: If the folder holds no picture, or none that can be read.
        UsageError: If ``fps`` or ``rate`` is not above zero.
    """

    def __init__(
        self,
        path: Path,
        *,
        fps: float | None = None,
        name: str | None = None,
        rate: float | None = None,
    ) -> None:
        super().__init__(name or path.resolve().name)
        Sampler(fps)
        Sampler(rate)
        files = [
            file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file()
        ]
        if not files:
            raise SourceError(
                f"{path} holds no pictures ({' '.join(sorted(SUFFIXES))}); "
                "give the folder that the pictures lie in"
            )
        files.sort(key=lambda file: (_natural(file.stem), file.name))
        times = times_of([file.stem for file in files])
        if times is None:
            rate = rate or fps or 1.0
            times = [index / rate for index in range(len(files))]
        self._files = sorted(zip(times, files, strict=True), key=lambda pair: pair[0])
        self._picks = sample([timestamp for timestamp, _ in self._files], fps)
        self.duration = self._files[-1][0] - self._files[0][0]
        self._start()

    def _read(self) -> Generator[Frame, None, None]:
        for index, timestamp, image in read_pictures(self._files, self._picks, self.stats):
            yield Frame(image, timestamp, self.name, index)
