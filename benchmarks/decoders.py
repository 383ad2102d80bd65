"""Compare the decoders of video files: `python benchmarks/decoders.py CLIP...`.

Prints a table of processor time per handed-out frame, in milliseconds (median of the rounds,
looking through the file included), for each clip, rate and decoder. The rows `pyav` and `decord`
are what `vismem.open_stream` does; `cv2` is OpenCV read from front to back, as a yardstick.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import cv2

from vismem.streams import open_stream
from vismem.streams.base import Sampler


def through_vismem(clip: Path, fps: float | None, decoder: str) -> list[float]:
    with open_stream(clip, fps=fps, decoder=decoder) as stream:
        return [frame.timestamp for frame in stream]


def through_cv2(clip: Path, fps: float | None) -> list[float]:
    capture = cv2.VideoCapture(str(clip))
    wants = Sampler(fps)
    times = []
    while capture.grab():
        timestamp = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        if wants(timestamp):
            cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB)
            times.append(timestamp)
    capture.release()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips", nargs="+", type=Path, metavar="CLIP")
    parser.add_argument("--fps", type=float, default=2.0, help="the sampled rate")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    decoders: dict[str, Callable[[Path, float | None], list[float]]] = {
        "pyav": lambda clip, fps: through_vismem(clip, fps, "pyav"),
        "decord": lambda clip, fps: through_vismem(clip, fps, "decord"),
        "cv2": through_cv2,
    }
    print(f"CPU ms per frame, median of {arguments.rounds}; load {os.getloadavg()[0]:.1f}\n")
    print("| clip | fps | frames | " + " | ".join(decoders) + " | same times |")
    print("|---|---|---|" + "---|" * (len(decoders) + 1))
    for clip in arguments.clips:
        for fps in (arguments.fps, None):
            spent: dict[str, list[float]] = {name: [] for name in decoders}
            times: dict[str, list[float]] = {}
            for _ in range(arguments.rounds):  # In turn, so that a busy minute hits all of them.
                for name, decode in decoders.items():
                    start = time.process_time()
                    times[name] = decode(clip, fps)
                    cost = (time.process_time() - start) / max(len(times[name]), 1)
                    spent[name].append(cost * 1000)
            first = times["pyav"]
            same = all(
                len(other) == len(first)
                and all(abs(a - b) < 1e-3 for a, b in zip(first, other, strict=True))
                for other in times.values()
            )
            medians = " | ".join(f"{statistics.median(spent[name]):.2f}" for name in decoders)
            rate = fps if fps else "all"
            print(f"| {clip.name} | {rate} | {len(first)} | {medians} | {same} |", flush=True)


if __name__ == "__main__":
    main()
