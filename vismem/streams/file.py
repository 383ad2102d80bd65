"""Frames of a video file, through PyAV or decord."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vismem.errors import SourceError, UsageError, require
from vismem.frame import Frame
from vismem.streams.base import Stream, sample

__all__ = ["FileStream"]


class Decoder(Protocol):
    """A video file, looked through packet by packet but not yet decoded.

    Attributes:
        times: When each frame is shown, in seconds since the first one, rising, ``(N,)`` float64.
        problem: What is missing from the file, in one line; empty for a sound file.
    """

    times: np.ndarray
    problem: str

    def read(self, indices: Sequence[int]) -> Generator[tuple[int, np.ndarray], None, None]:
        """Decode the frames at rising ``indices``; what cannot be decoded is left out.

        Yields:
            Index and picture, ``(H, W, 3)`` uint8 RGB, turned upright.
        """
        ...


class PyAVDecoder:
    """Decodes with PyAV: exact times, and a damaged packet costs no more than what it shows."""

    def __init__(self, path: Path) -> None:
        self._av: Any = require("av")
        if not hasattr(self._av.VideoFrame, "rotation"):
            raise ValueError("this PyAV is older than 14.1; run: pip install -U 'av>=14.1'")
        self._path = path
        self.max_pixels: int | None = None
        pts, keyframes = [], []
        try:
            container = self._av.open(str(path))
        except self._av.FFmpegError as error:
            raise ValueError(error.strerror) from error
        with container:
            if not container.streams.video:
                raise ValueError("it holds no video")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise ValueError("PyAV does not know its codec")
            for packet in self._packets(container):
                # An edit list hides packets: they are decoded for the sake of others, not shown.
                pts.append(None if packet.is_discard else packet.pts)
                keyframes.append(packet.is_keyframe)
            claimed, tick = stream.frames, float(stream.time_base)
            seconds = (container.duration or 0) / 1e6
        # Packets come in the order of decoding; B-frames are shown in another.
        numbers = [number for number, shown in enumerate(pts) if shown is not None]
        if not numbers:
            raise ValueError("it holds no frame with a time")
        self._shown = np.array([pts[number] for number in numbers], np.int64)
        order = np.argsort(self._shown, kind="stable")
        self._shown = self._shown[order]
        self._packet = np.array(numbers, np.int64)[order]
        self._keyframes = np.array(keyframes)
        self.times = (self._shown - self._shown[0]) * tick
        self.problem = ""
        if len(pts) < claimed:
            self.problem = f"file ends early: it holds {len(pts)} of {claimed} frames"
        elif not claimed and self.times[-1] < 0.9 * seconds - 1:
            self.problem = f"pictures end early: after {self.times[-1]:.1f} of {seconds:.1f} s"

    def _packets(self, container: Any) -> Iterator[Any]:
        try:
            for packet in container.demux(container.streams.video[0]):
                if packet.size:  # The last one is empty and only asks the decoder to drain.
                    yield packet
        except self._av.FFmpegError:
            return  # The file is cut off here; what came before is good.

    def _needed(self, indices: np.ndarray) -> np.ndarray:
        """Which packets must be decoded: from the keyframe before a wanted frame up to the frame.

        Returns:
            One flag a packet, ``(P,)`` bool.
        """
        shown_at = {
            int(number): int(pts) for number, pts in zip(self._packet, self._shown, strict=True)
        }
        keyframes = np.flatnonzero(self._keyframes)
        change = np.zeros(len(self._keyframes) + 1, np.int64)
        for index in indices:
            number, pts = int(self._packet[index]), int(self._shown[index])
            before = int(np.searchsorted(keyframes, number, side="right")) - 1
            # Frames between a keyframe and its forerunner may be shown before that keyframe.
            while before > 0 and shown_at.get(int(keyframes[before]), pts) > pts:
                before -= 1
            change[keyframes[before] if before >= 0 else 0] += 1
            change[number + 1] -= 1
        return np.fromiter(accumulate(change[:-1]), np.int64) > 0

    def read(self, indices: Sequence[int]) -> Generator[tuple[int, np.ndarray], None, None]:
        """Decode frames, see :meth:`Decoder.read`."""
        chosen = np.asarray(indices, np.int64)
        needed = self._needed(chosen)
        wanted = {int(self._shown[index]): int(index) for index in chosen}
        with self._av.open(str(self._path)) as container:
            codec = container.streams.video[0].codec_context
            # One thread costs the least time of the processor, and frame threads would each hold
            # a picture, which is much at 4K.
            codec.thread_type = "NONE"
            if self.max_pixels is not None:
                codec.options = {"max_pixels": str(self.max_pixels)}
            running = False
            for number, packet in enumerate(self._packets(container)):
                if number >= len(needed):
                    break  # The file grows while it is read.
                if needed[number]:
                    running = True
                    # Frames that no other one needs and nobody asked for are not decoded at all.
                    codec.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
                    yield from self._pictures(codec, packet, wanted)
                elif running:
                    running = False
                    yield from self._pictures(codec, None, wanted)
                    codec.flush_buffers()
            yield from self._pictures(codec, None, wanted)

    def _pictures(
        self, codec: Any, packet: Any, wanted: dict[int, int]
    ) -> Iterator[tuple[int, np.ndarray]]:
        try:
            frames = codec.decode(packet)
        except self._av.FFmpegError:
            return
        for frame in frames:
            if frame.pts in wanted:
                image = frame.to_ndarray(format="rgb24")
                # How far a phone was turned, counter-clockwise; FFmpeg's tools turn it back alike.
                turns = round(frame.rotation / 90)
                yield wanted.pop(frame.pts), np.ascontiguousarray(np.rot90(image, turns))


class DecordDecoder:
    """Decodes with decord: always installed, but times are float32 and damage costs a keyframe."""

    def __init__(self, path: Path) -> None:
        # decord looks for the last frames without waiting and gives up after 10,240 looks, which a
        # sound file on a busy machine needs; 2 ** 20 looks take less than a second.
        os.environ.setdefault("DECORD_EOF_RETRY_MAX", str(2**20))
        self._decord: Any = require("decord")
        self._path = path
        self._reader = self._open()
        try:
            starts = self._reader.get_frame_timestamp(range(len(self._reader)))[:, 0]
        except IndexError as error:
            raise ValueError("decord cannot find all of its frames") from error
        self.times = starts.astype(np.float64) - float(starts[0])
        # Where packets carry no time, decord hands out the lowest integer.
        if not (np.diff(self.times) >= 0).all() or starts[0] < -1e9:
            raise ValueError("decord cannot tell when its frames are shown")
        self.problem = ""

    def _open(self) -> Any:
        try:
            return self._decord.VideoReader(str(self._path), ctx=self._decord.cpu(0), num_threads=1)
        except (self._decord.DECORDError, RuntimeError, AssertionError) as error:
            audio = "cannot find video stream" in str(error)
            raise ValueError("it holds no video" if audio else "decord cannot open it") from error

    def read(self, indices: Sequence[int]) -> Generator[tuple[int, np.ndarray], None, None]:
        """Decode frames, see :meth:`Decoder.read`."""
        keyframes = self._reader.get_key_indices()
        position = 0  # The frame that the reader hands out next.
        for index in indices:
            if index < position:
                continue
            try:
                # One by one: where groups of pictures are open (the default of x265), decord's
                # random access gives a frame or two beside, and its skipping fails more often.
                for _ in range(index - position):
                    self._reader.next()
                image = self._reader.next()
            except (self._decord.DECORDError, StopIteration):
                # A reader that met damage is of no more use; a new one goes on at a keyframe.
                position = min((key for key in keyframes if key > index), default=len(self.times))
                self._reader = self._open()
                if position < len(self.times):
                    self._reader.seek_accurate(position)
                continue
            position = index + 1
            # Another library may have told decord to hand out its own kind of tensor.
            yield index, image.asnumpy() if hasattr(image, "asnumpy") else np.asarray(image)


# The faster one first. Processor time per frame in milliseconds, `benchmarks/decoders.py` on H.264
# clips of 1280x720, 768x432 and 640x360, one thread each: at 2 fps PyAV 16.4, 1.8 and 2.7, decord
# 35.4, 3.9 and 4.6, because PyAV leaves unneeded frames undecoded; every frame: PyAV 3.1, 0.9 and
# 0.8, decord 2.6, 0.9 and 0.8.
_DECODERS: dict[str, tuple[str, Callable[[Path], Decoder]]] = {
    "pyav": ("av", PyAVDecoder),
    "decord": ("decord", DecordDecoder),
}


def _open_decoder(path: Path, decoder: str) -> tuple[Decoder, str]:
    """Open with the first decoder that can, and say why an earlier one could not.

    Raises:
        SourceError: If none can.
        UsageError: If ``decoder`` is unknown or not installed.
    """
    if decoder not in ("auto", *_DECODERS):
        raise UsageError(f"decoder must be auto, {' or '.join(_DECODERS)}, not {decoder!r}")
    names = list(_DECODERS) if decoder == "auto" else [decoder]
    if decoder == "auto":
        names = [name for name in names if find_spec(_DECODERS[name][0])] or names
    reasons: list[str] = []
    for name in names:
        try:
            return _DECODERS[name][1](path), "; ".join(reasons)
        except ValueError as error:
            reasons.append(str(error))
    more = "" if find_spec("av") else ", or run: pip install av, which reads more files"
    raise SourceError(
        f"{path} cannot be read as a video ({reasons[0]}); it is none, or its recorder never "
        f"finished it: record or copy it again{more}"
    )


class FileStream(Stream):
    """Frames of a video file, with the times of the container.

    Timestamps are seconds since the first frame, true for variable frame rates too. With ``fps``,
    only what the wanted frames depend on is decoded. The file is decoded frame by frame and never
    held whole. A file that is cut off or damaged gives what can be read of it; ``stats.problems``
    says what is missing.

    Args:
        path: Video file.
        fps: Frames wanted per second, or ``None`` for every frame.
        name: Name of the stream; the file's name without its ending if not given.
        decoder: ``"pyav"``, ``"decord"``, or ``"auto"`` for the first of them that is installed
            and can open the file. decord keeps times as float32: 0.25 ms off after an hour.
        max_pixels: Largest frame that is decoded, width times height, for files of strangers: what
            their first frame or header says need not hold for the next. Larger ones are dropped.
            Needs ``decoder="pyav"``.

    Raises:
        SourceError: If the file cannot be read as a video, or none of its frames can be decoded.
        UsageError: If ``fps`` is not above zero, or ``decoder`` is unknown, not installed, or has
            no such limit.
    """

    def __init__(
        self,
        path: Path,
        *,
        fps: float | None = None,
        name: str | None = None,
        decoder: str = "auto",
        max_pixels: int | None = None,
    ) -> None:
        super().__init__(name or path.stem)
        if max_pixels is not None and decoder != "pyav":
            raise UsageError("max_pixels needs decoder='pyav'")
        sample((), fps)  # Looking through a long file to find a wrong rate would be unkind.
        self._decoder, refused = _open_decoder(path, decoder)
        if isinstance(self._decoder, PyAVDecoder):
            self._decoder.max_pixels = max_pixels
        if refused:
            self.stats.note("PyAV cannot open it, decord does", refused)
        if self._decoder.problem:
            self.stats.note(self._decoder.problem)
        self._picks = sample(self._decoder.times, fps)
        self.duration = float(self._decoder.times[-1])
        self._start()

    def _read(self) -> Generator[Frame, None, None]:
        times, picks = self._decoder.times, self._picks
        met = 0  # How many of the picks are handed out or given up.
        reader = self._decoder.read(picks)
        try:
            for index, image in reader:
                while picks[met] < index:
                    self._give_up(picks[met])
                    met += 1
                met += 1
                self.stats.skipped = index + 1 - met
                yield Frame(image, float(times[index]), self.name, index)
        finally:
            reader.close()
        for index in picks[met:]:
            self._give_up(index)
        self.stats.skipped = len(times) - len(picks)

    def _give_up(self, index: int) -> None:
        self.stats.dropped += 1
        self.stats.note("frame cannot be decoded", f"at {self._decoder.times[index]:.2f} s")
