"""Where detections go as they are made: lines of JSON, COCO results or an annotated video.

Each keeps what was written when the stream is cut short, and when the disk is full.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from vismem.detections import Detections
from vismem.errors import StoreError, UsageError
from vismem.frame import Frame
from vismem.heads.draw_boxes import BoxVideo, Draw, draw_boxes

__all__ = ["Format", "open_detections"]

Format = Literal["jsonl", "coco", "video"]
Write = Callable[[Frame, Any], None]


@contextlib.contextmanager
def open_detections(
    format: Format, out: Path | None = None, *, draw: Draw = draw_boxes
) -> Iterator[Write]:
    """Open a file, or standard output, for what is found in one stream.

    Detections go to all formats; what else has a ``to_json``, such as masks, to lines and videos.

    Args:
        format: ``"jsonl"``, a line a frame as `Detections.to_json`; ``"coco"``, one list of results
            whose image ids are the frames' running numbers; or ``"video"``, frames with boxes.
        out: File to write, standard output by default; a video needs one.
        draw: Draws what was found into a picture of the video; boxes by default.

    Yields:
        What takes a frame and its detections.

    Raises:
        UsageError: If a video has no file to go to.
        StoreError: If the file cannot be written.
    """
    if format == "video":
        if out is None:
            raise UsageError("a video needs a file to go to; add --out boxes.mp4")
        with BoxVideo(out, draw) as video:
            yield video.write
        return
    open_file = _Lines if format == "jsonl" else _Results
    try:
        with contextlib.closing(open_file(out)) as file:
            yield file.write
    except BrokenPipeError:
        raise  # who reads has seen enough
    except OSError as error:
        where = out or "standard output"
        raise StoreError(f"{where} cannot be written ({error.strerror}); choose another") from error


class _Lines:
    """Lines of JSON; whole after every frame, also where the disk becomes full."""

    closing = ""  # what makes the file complete

    def __init__(self, out: Path | None) -> None:
        self._end = 0  # of what was written, without the closing
        self._file: int | None = None
        self._stream = sys.stdout
        if out is None:
            return
        if out.exists() and not out.is_file():  # a pipe or device, where nothing is undone
            self._stream = out.open("w")
        else:
            self._file = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)

    def write(self, frame: Frame, found: Any) -> None:
        """Add a frame."""
        self._append(found.to_json() + "\n")

    def _append(self, text: str) -> None:
        """Write what follows over the closing, and the closing again after it."""
        if self._file is None:
            print(text, end="", file=self._stream, flush=True)
            return
        try:
            self._put((text + self.closing).encode())
        except OSError:
            # The closing fits: it was there before.
            self._put(self.closing.encode() if self._end else b"")
            os.ftruncate(self._file, self._end + len(self.closing) * bool(self._end))
            raise
        self._end += len(text.encode())

    def _put(self, data: bytes) -> None:
        assert self._file is not None
        done = 0
        while done < len(data):
            done += os.pwrite(self._file, data[done:], self._end + done)

    def close(self) -> None:
        """Complete and close the file; standard output stays open."""
        if self._file is not None:
            os.close(self._file)
        elif self._stream is not sys.stdout:
            self._stream.close()


class _Results(_Lines):
    """One list of COCO results."""

    closing = "\n]\n"

    def __init__(self, out: Path | None) -> None:
        super().__init__(out)
        self._before = "[\n"

    def write(self, frame: Frame, found: Detections) -> None:
        """Add a frame."""
        results = [json.dumps(result) for result in found.to_coco(frame.index)]
        if results:
            self._append(self._before + ",\n".join(results))
            self._before = ",\n"

    def close(self) -> None:
        """Complete and close the file."""
        try:
            if self._before == "[\n":
                self._append("[")
            if self._file is None:
                self._stream.write(self.closing)
        finally:
            super().close()
