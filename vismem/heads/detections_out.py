"""Where detections go as they are made: lines of JSON, COCO results or an annotated video.

Each keeps what was written when the stream is cut short.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, TextIO

from vismem.detections import Detections
from vismem.errors import StoreError, UsageError
from vismem.frame import Frame
from vismem.heads.draw_boxes import BoxVideo

__all__ = ["Format", "open_detections"]

Format = Literal["jsonl", "coco", "video"]
Write = Callable[[Frame, Detections], None]


@contextlib.contextmanager
def open_detections(format: Format, out: Path | None = None) -> Iterator[Write]:
    """Open a file, or standard output, for the detections of one stream.

    Args:
        format: ``"jsonl"``, a line a frame as `Detections.to_json`; ``"coco"``, one list of results
            whose image ids are the frames' running numbers; or ``"video"``, frames with boxes.
        out: File to write, standard output by default; a video needs one.

    Yields:
        What takes a frame and its detections.

    Raises:
        UsageError: If a video has no file to go to.
        StoreError: If the file cannot be written.
    """
    if format == "video":
        if out is None:
            raise UsageError("a video needs a file to go to; add --out boxes.mp4")
        with BoxVideo(out) as video:
            yield video.write
        return
    try:
        with contextlib.ExitStack() as stack:
            file = sys.stdout if out is None else stack.enter_context(out.open("w"))
            with _lines(file) if format == "jsonl" else _results(file) as write:
                yield write
    except BrokenPipeError:
        raise  # who reads has seen enough
    except OSError as error:
        where = out or "standard output"
        raise StoreError(f"{where} cannot be written ({error.strerror}); choose another") from error


@contextlib.contextmanager
def _lines(file: TextIO) -> Iterator[Write]:
    def write(frame: Frame, found: Detections) -> None:
        print(found.to_json(), file=file, flush=True)

    yield write


@contextlib.contextmanager
def _results(file: TextIO) -> Iterator[Write]:
    """One list, written as it grows and closed whatever happens."""
    before = "[\n"

    def write(frame: Frame, found: Detections) -> None:
        nonlocal before
        for result in found.to_coco(frame.index):
            file.write(before + json.dumps(result))
            before = ",\n"

    try:
        yield write
    finally:
        file.write("[]\n" if before == "[\n" else "\n]\n")
