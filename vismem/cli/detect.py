"""``vismem detect``: find the people in every frame of a source."""

from __future__ import annotations

import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from vismem.errors import UsageError

__all__ = ["Detect"]


@dataclass
class Detect:
    """Find the people in every frame of a source; more often, and by id, with --memory."""

    source: Positional[str]
    """File, folder, bag, webcam number or rtsp:// or http:// address."""
    memory: bool = False
    """Let what was seen before help: ids, and boxes that one frame alone is not sure of."""
    moving: bool = False
    """Look from near at what moves, if the camera stands still or gives depth and poses."""
    out: Path | None = None
    """File to write; standard output by default."""
    format: Literal["jsonl", "coco", "video"] = "jsonl"
    """A line of JSON a frame, results as the COCO evaluation takes them, or an annotated video."""
    fps: float | None = None
    """Frames a second to look at; every frame by default."""
    threshold: float = 0.5
    """Score from which one frame alone is enough."""
    seconds: float | None = None
    """Stop after this much time of the stream."""
    threads: int = 1
    """Threads a picture is looked at with."""

    def __call__(self) -> int:
        """Do it; gives the exit code."""
        import torch

        from vismem.heads.detect import DetectConfig, Detector
        from vismem.heads.detections_out import open_detections
        from vismem.heads.moving import MotionWatch
        from vismem.streams import open_stream

        if self.threads < 1:
            raise UsageError(f"--threads is 1 or more, not {self.threads}")
        torch.set_num_threads(self.threads)
        detector = Detector(
            memory=self.memory,
            moving=MotionWatch() if self.moving else None,
            config=DetectConfig(threshold=self.threshold),
        )
        frames = found = refused = 0
        people: set[int] = set()
        stopped = ""
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with (
            open_stream(self.source, fps=self.fps) as stream,
            open_detections(self.format, self.out) as write,
        ):
            first, began = None, time.monotonic()
            try:
                for frame in stream:
                    first = frame.timestamp if first is None else first
                    if self.seconds is not None and frame.timestamp - first >= self.seconds:
                        break
                    try:
                        boxes = detector.step(frame)
                    except ValueError:
                        refused += 1
                        continue
                    write(frame, boxes)
                    frames, found = frames + 1, found + (len(boxes) > 0)
                    people.update([] if boxes.ids is None else boxes.ids.tolist())
            except KeyboardInterrupt:
                stopped = "; stopped"
            rate = frames / max(time.monotonic() - began, 1e-9)
        who = f", {len(people - {-1})} different" if self.memory else ""
        print(
            f"{frames} frames, {found} with somebody{who}; {rate:.1f} frames a second{stopped}",
            file=sys.stderr,
        )
        counts = {"dropped": stream.stats.dropped, "late": stream.stats.late, "refused": refused}
        told = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        if told:
            print(f"left out: {told}", file=sys.stderr)
        for problem in stream.stats.problems:
            print(f"note: {problem}", file=sys.stderr)
        return 0
