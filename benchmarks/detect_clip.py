"""How often people are found in a clip, one frame at a time against with a memory.

``python benchmarks/detect_clip.py CLIP [--fps 2] [--pictures DIR]`` prints frames with a person,
the ids and when each was seen, and what the memory added; with ``--pictures`` it saves the frames
with added boxes, drawn, to be judged by eye: there is no ground truth.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import cv2
import torch

from vismem.heads.detect import DetectConfig, Detector, people
from vismem.heads.draw_boxes import draw_boxes
from vismem.streams import open_stream


def main() -> None:
    """Run one clip through both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clip")
    parser.add_argument("--fps", type=float)
    parser.add_argument("--threshold", type=float, default=DetectConfig.threshold)
    parser.add_argument("--pictures", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    config, propose = DetectConfig(threshold=given.threshold), people()
    single = Detector(config=config, propose=propose)
    memory = Detector(memory=True, config=config, propose=propose)
    frames = alone = found = boxes_alone = boxes_found = 0
    seconds = [0.0, 0.0]
    spans: dict[int, list[float]] = {}
    with open_stream(given.clip, fps=given.fps) as stream:
        for frame in stream:
            began = time.process_time()
            before = single.step(frame)
            between = time.process_time()
            after = memory.step(frame)
            seconds[0] += between - began
            seconds[1] += time.process_time() - between
            frames += 1
            alone, found = alone + bool(len(before)), found + bool(len(after))
            boxes_alone, boxes_found = boxes_alone + len(before), boxes_found + len(after)
            for who in [] if after.ids is None else after.ids.tolist():
                spans.setdefault(who, []).append(after.time)
            if given.pictures and len(after) > len(before):
                given.pictures.mkdir(parents=True, exist_ok=True)
                drawn = draw_boxes(frame.image, after)[:, :, ::-1]
                cv2.imwrite(str(given.pictures / f"{after.time:08.2f}.png"), drawn)
    print(f"{frames} frames at threshold {given.threshold}")
    for name, some, all_, cost in (
        ("one frame alone", alone, boxes_alone, seconds[0]),
        ("with memory", found, boxes_found, seconds[1]),
    ):
        print(
            f"{name:<16} {some} frames with a person, {all_} boxes, {cost / frames:.4f} CPU s each"
        )
    for who, times in sorted(spans.items()):
        print(f"id {who:<4} {len(times):>5} boxes, {times[0]:.1f} s to {times[-1]:.1f} s")
    print(f"{memory.nbytes} bytes remembered")


if __name__ == "__main__":
    main()
