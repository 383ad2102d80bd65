"""Where frames come from: :func:`open_stream` for files, cameras, folders and ROS bags."""

from vismem.streams.base import Sampler, Stream, StreamStats, sample
from vismem.streams.source import open_stream

__all__ = ["Sampler", "Stream", "StreamStats", "open_stream", "sample"]
