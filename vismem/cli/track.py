"""``vismem track``: follow objects through a source, pixel by pixel."""

from __future__ import annotations

import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, UseAppendAction

from vismem.errors import UsageError, require

if TYPE_CHECKING:
    from vismem.models.mask_tracker import Prompt

__all__ = ["Track"]


@dataclass
class Track:
    """Follow objects through a source with SAM 2, however long it is, in constant memory."""

    source: Positional[str]
    """File, folder, bag, webcam number or rtsp:// or http:// address."""
    model: str
    """A SAM 2 video model: a repository of the hub, or a folder."""
    box: Annotated[tuple[str, ...], UseAppendAction] = ()
    """x0,y0,x1,y1 in pixels around an object; again for another object."""
    point: Annotated[tuple[str, ...], UseAppendAction] = ()
    """x,y in pixels on an object; again for another object. Boxes are numbered first, from 1."""
    at: float = 0.0
    """Seconds after the start at which boxes and points are meant."""
    out: Path | None = None
    """File to write; standard output by default."""
    format: Literal["jsonl", "video"] = "jsonl"
    """A line of JSON a frame, with masks as COCO codes them, or an annotated video."""
    fps: float | None = None
    """Frames a second to look at; every frame by default."""
    seconds: float | None = None
    """Stop after this much time of the stream."""
    views: int = 8
    """Views of an object that are kept for long, those of boxes and points included."""
    policy: Literal["novelty", "published"] = "novelty"
    """What is kept for long: views unlike the others too, or prompted ones alone as published."""
    threads: int = 1
    """Threads a picture is looked at with."""

    def __call__(self) -> int:
        """Do it; gives the exit code."""
        prompts = self._prompts()
        if self.threads < 1:
            raise UsageError(f"--threads is 1 or more, not {self.threads}")
        if self.views < 1:
            raise UsageError(f"--views is 1 or more, not {self.views}")

        import torch

        from vismem.heads.detections_out import open_detections
        from vismem.heads.draw_masks import draw_masks
        from vismem.models.mask_tracker import MaskTracker, TrackConfig
        from vismem.streams import open_stream

        torch.set_num_threads(self.threads)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        require("transformers", extra="video").logging.disable_progress_bar()
        with open_stream(self.source, fps=self.fps) as stream:
            tracker = MaskTracker.load(self.model, TrackConfig(self.policy, self.views))
            frames = 0
            first: float | None = None
            last, began, stopped = 0.0, time.monotonic(), ""
            seen: dict[int, float] = {}
            with open_detections(self.format, self.out, draw=draw_masks) as write:
                try:
                    for frame in stream:
                        first = frame.timestamp if first is None else first
                        last = frame.timestamp - first
                        if self.seconds is not None and last >= self.seconds:
                            break
                        if last < self.at and not tracker.ids:
                            continue
                        try:
                            masks = tracker.step(frame, () if tracker.ids else prompts)
                        except ValueError as error:
                            raise UsageError(f"at {last:.2f} s: {error}") from error
                        write(frame, masks)
                        frames += 1
                        seen |= dict.fromkeys(masks.ids[masks.seen].tolist(), last)
                except KeyboardInterrupt:
                    stopped = "; stopped"
        if not tracker.ids and not stopped:
            raise UsageError(
                f"the stream ended after {last:.2f} s, before --at {self.at:g}; take an earlier one"
            )
        rate = frames / max(time.monotonic() - began, 1e-9)
        print(
            f"{frames} frames, {len(tracker.ids)} objects, {tracker.nbytes} bytes kept; "
            f"{rate:.1f} frames a second{stopped}",
            file=sys.stderr,
        )
        for number in tracker.ids:
            if number not in seen:
                print(f"object {number} was never found; try another box", file=sys.stderr)
            elif seen[number] < last:
                print(f"object {number} was last seen at {seen[number]:.2f} s", file=sys.stderr)
        for problem in stream.stats.problems:
            print(f"note: {problem}", file=sys.stderr)
        return 0

    def _prompts(self) -> list[Prompt]:
        """One prompt an object."""
        boxes = [_numbers("--box", text, "x0,y0,x1,y1") for text in self.box]
        points = [_numbers("--point", text, "x,y") for text in self.point]
        if not boxes and not points:
            raise UsageError("there is nothing to follow; add --box x0,y0,x1,y1 or --point x,y")
        if not self.at >= 0:
            raise UsageError(f"--at is 0 seconds or more, not {self.at}")

        from vismem.models.mask_tracker import Prompt

        found = [
            Prompt(number, box=(x0, y0, x1, y1)) for number, (x0, y0, x1, y1) in enumerate(boxes, 1)
        ]
        found += [
            Prompt(number, points=[(x, y)]) for number, (x, y) in enumerate(points, len(found) + 1)
        ]
        return found


def _numbers(option: str, text: str, form: str) -> list[float]:
    """Numbers between commas, as many as in the form.

    Raises:
        UsageError: If they are not.
    """
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != len(form.split(",")):
        raise UsageError(f"{option} is {form} in pixels, not {text!r}")
    return numbers
