"""`open_stream`: looks at what a source is and opens the stream for it."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from vismem.errors import SourceError, UsageError
from vismem.streams.base import Sampler, Stream
from vismem.streams.folder import SUFFIXES

__all__ = ["BAG_SUFFIXES", "open_stream"]

# Imported when first needed: they bring OpenCV, PyAV, decord or rosbags with them.
_STREAMS = {
    "camera": ("vismem.streams.camera", "CameraStream"),
    "video file": ("vismem.streams.file", "FileStream"),
    "image folder": ("vismem.streams.folder", "FolderStream"),
    "RGB-D recording": ("vismem.streams.rgbd", "RgbdStream"),
    "ROS bag": ("vismem.streams.bag", "BagStream"),
}
_SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "http", "https")
BAG_SUFFIXES = {".bag", ".mcap", ".db3"}


def open_stream(
    source: str | os.PathLike[str] | int,
    *,
    fps: float | None = None,
    name: str | None = None,
    reconnect: bool = True,
    open_timeout: float = 10.0,
    read_timeout: float = 10.0,
    **options: Any,
) -> Stream:
    """Open whatever frames come from.

    Args:
        source: Path of a video file, a folder of pictures, an RGB-D recording (a folder
            with ``rgb.txt`` and ``depth.txt``) or a ROS 1 or 2 bag; number of a webcam
            (``0`` or ``"0"``) or path of its device; or address of a network camera
            (``rtsp://``, ``rtmp://``, ``http://`` and their TLS forms).
        fps: Frames wanted per second: the first frame at or after each multiple of ``1 / fps``
            since the first one. ``None`` for every frame.
        name: Name of the stream, which every frame carries; made from the source if not given.
        reconnect: Whether to open a lost camera again. Cameras only.
        open_timeout: How long opening a network camera may take, in seconds. Cameras only.
        read_timeout: How long a network camera may be silent until it counts as lost, in seconds.
            Cameras only.
        **options: For a file ``decoder`` and ``max_pixels``, see
            :class:`vismem.streams.file.FileStream`; for a folder ``rate``, see
            :class:`vismem.streams.folder.FolderStream`; for a bag ``topic`` and ``pose_topic``,
            see :class:`vismem.streams.bag.BagStream`.

    Returns:
        The stream, with its first frame read, so that a source without frames fails here.

    Raises:
        SourceError: If the source is missing, unreachable, or nothing can be read from it.
        UsageError: If an option is unknown for this kind of source, or out of range.

    Example:
        >>> import cv2, numpy, tempfile, pathlib
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> for number in range(3):
        ...     _ = cv2.imwrite(str(folder / f"{number}.png"), numpy.zeros((4, 6, 3), numpy.uint8))
        >>> with open_stream(folder, rate=10) as stream:
        ...     print([frame.timestamp for frame in stream])
        [0.0, 0.1, 0.2]
    """
    Sampler(fps)  # A wrong rate is refused before anything is opened.
    kind, place = _recognise(source)
    module, name_of_class = _STREAMS[kind]
    stream_class = getattr(importlib.import_module(module), name_of_class)
    common = {"fps", "name", "reconnect", "open_timeout", "read_timeout"}
    known = [
        parameter
        for parameter in list(inspect.signature(stream_class).parameters)[1:]
        if parameter not in common
    ]
    unknown = [option for option in options if option not in known]
    if unknown:
        valid = ", ".join(known) if known else "none"
        raise UsageError(f"unknown option {unknown[0]!r} for {kind}s; its own options: {valid}")
    if kind == "camera":
        options.update(reconnect=reconnect, open_timeout=open_timeout, read_timeout=read_timeout)
    return stream_class(place, fps=fps, name=name, **options)


def _recognise(source: str | os.PathLike[str] | int) -> tuple[str, Path | str | int]:
    """Kind of the source, a key of ``_STREAMS``, and what its stream takes as a source."""
    if isinstance(source, int) and not isinstance(source, bool) and source >= 0:
        return "camera", source
    if isinstance(source, str):
        if re.fullmatch(r"[0-9]{1,3}", source):
            return "camera", int(source)
        scheme, separator, _ = source.partition("://")
        if separator and scheme.lower() == "file":
            source = url2pathname(urlsplit(source).path)
        elif separator:
            if scheme.lower() not in _SCHEMES:
                raise SourceError(f"cannot read {scheme}:// addresses; use {', '.join(_SCHEMES)}")
            return "camera", source
    if not isinstance(source, (str, os.PathLike)) or not os.fspath(source):
        raise UsageError(f"a source is a path, an address or a camera's number, not {source!r}")
    path = Path(source).expanduser()
    if not path.exists():
        raise SourceError(f"{path} does not exist{_suggestion(path)}")
    if path.is_char_device():
        return "camera", str(path)
    if path.is_dir():
        if (path / "rgb.txt").is_file() and (path / "depth.txt").is_file():
            return "RGB-D recording", path
        bag = (path / "metadata.yaml").exists() or any(
            file.suffix in BAG_SUFFIXES for file in path.iterdir()
        )
        return ("ROS bag" if bag else "image folder"), path
    if not path.is_file():
        raise SourceError(f"{path} is no file that can be read twice; save it to a file first")
    if path.stat().st_size == 0:
        raise SourceError(f"{path} is empty (0 bytes); copy or record it again")
    if path.suffix.lower() in SUFFIXES:
        raise SourceError(f"{path} is one picture; give the folder that it lies in: {path.parent}")
    return ("ROS bag" if path.suffix.lower() in BAG_SUFFIXES else "video file"), path


def _suggestion(path: Path) -> str:
    """Close names in the same folder, or which folder is missing."""
    folder = path.parent
    if not folder.is_dir():
        return f": there is no folder {folder}; check the path"
    try:
        names = [entry.name for entry in folder.iterdir()]
    except OSError:
        return "; check the path"
    close = difflib.get_close_matches(path.name, names, n=3)
    return f"; did you mean {' or '.join(close)}?" if close else "; check the path"
