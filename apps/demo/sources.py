"""What a visitor may watch: the clip that ships, a clip of their own, a webcam, a camera."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from vismem.errors import SourceError, require
from vismem.streams import Stream, open_stream

from .settings import DemoSettings

__all__ = ["check_clip", "first_clip", "open_clip"]

# Containers that hold pictures themselves, as FFmpeg calls them.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg"
NO_VIDEO = "this file is no video; upload an MP4, MKV, WebM or AVI"


def first_clip(settings: DemoSettings) -> Stream:
    """Open what plays when the page opens.

    Raises:
        SourceError: If it cannot be read.
    """
    if settings.source is not None:
        return open_stream(settings.source, fps=settings.watch_fps)
    with as_file(files("vismem.data") / "gallery.mp4") as path:
        return open_stream(path, fps=settings.watch_fps, name="gallery")


def open_clip(path: Path, settings: DemoSettings) -> Stream:
    """Open a clip that was uploaded, once it is known to be within the limits.

    Raises:
        SourceError: If it is no video, too long or too large to decode.
    """
    check_clip(path, settings)
    limits: dict[str, Any] = {"decoder": "pyav", "max_pixels": settings.pixels}
    return open_stream(path, fps=settings.watch_fps, name="upload", **limits)


def check_clip(path: Path, settings: DemoSettings) -> None:
    """Refuse a clip that is no video or beyond the limits, before a picture is decoded.

    Raises:
        SourceError: Saying which limit.
    """
    av = require("av")
    try:
        # No playlists or drawings: they could name other files on this machine, or addresses.
        options = {"protocol_whitelist": "file", "format_whitelist": FORMATS}
        with av.open(str(path), options=options) as container:
            if not container.streams.video:
                raise SourceError(NO_VIDEO)
            video = container.streams.video[0]
            width, height = video.codec_context.width, video.codec_context.height
            seconds = (container.duration or 0) / 1e6
    except av.FFmpegError as error:
        raise SourceError(NO_VIDEO) from error
    if width * height > settings.pixels:
        raise SourceError(
            f"{width}x{height} pixels are too many; upload a clip of at most 4096x2304"
        )
    if seconds > settings.clip_seconds:
        raise SourceError(
            f"{seconds / 60:.0f} minutes are too long; "
            f"upload a clip of at most {settings.clip_seconds / 60:.0f} minutes"
        )
