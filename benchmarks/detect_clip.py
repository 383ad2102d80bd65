"""How often people are found in a clip, one frame at a time against with a memory, and by which id.

``python benchmarks/detect_clip.py CLIP [--fps 2] [--truth FILE] [--pictures DIR]`` prints frames
with a person, the ids and when each was seen; with ``--truth``, a JSON object of who is there from
when to when, one at a time, also IDF1, whole and for each half of the people; with ``--pictures``
it saves the frames with added boxes, drawn, to be judged by eye.

``python benchmarks/detect_clip.py CLIP --truth FILE --composed 6`` cuts those people out and pastes
them over photographs, where they come, cross, go and come back (`composed_people`): that many
videos with the first half of the people, on which the numbers of `DetectConfig` were set, and that
many with the other half, held out but for `known` and `same`, last raised on the whole clip.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import cv2
import torch
from composed_people import Spans, compose, cut_out
from idf1 import IdScore

from vismem.frame import Frame
from vismem.heads.detect import DetectConfig, Detector, people
from vismem.heads.draw_boxes import draw_boxes
from vismem.streams import open_stream


def main() -> None:
    """Run one clip through both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clip")
    parser.add_argument("--fps", type=float)
    parser.add_argument("--threshold", type=float, default=DetectConfig.threshold)
    parser.add_argument("--truth", type=Path)
    parser.add_argument("--composed", type=int, default=0)
    parser.add_argument("--pictures", type=Path)
    given = parser.parse_args()
    truth = json.loads(given.truth.read_text()) if given.truth else {}
    if given.composed:
        composed(given.clip, truth, given.composed)
        return
    torch.set_num_threads(1)
    config, propose = DetectConfig(threshold=given.threshold), people()
    single = Detector(config=config, propose=propose)
    memory = Detector(memory=True, config=config, propose=propose)
    frames = alone = found = boxes_alone = boxes_found = 0
    seconds = [0.0, 0.0]
    spans: dict[int, list[float]] = {}
    half = len(truth) // 2
    parts = {"all": list(truth), "first half": [*truth][:half], "second half": [*truth][half:]}
    ids = {name: IdScore() for name in parts}
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
            assert after.ids is not None
            for who in after.ids.tolist():
                spans.setdefault(who, []).append(after.time)
            there = [who for who, (start, end) in truth.items() if start <= after.time <= end]
            for name, score in ids.items():
                mine = dict.fromkeys(who for who in there if who in parts[name])
                if mine or not there:
                    score.frame(mine, after.boxes, after.ids.tolist())
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
    for name, score in ids.items() if truth else ():
        print(f"{name}: {score.close()}")


def composed(clip: str, truth: Spans, count: int) -> None:
    """Print how well people are followed who are pasted into photographs."""
    pictures, half = cut_out(clip, truth), len(truth) // 2
    for part, names in (("tuned on", [*truth][:half]), ("held out", [*truth][half:])):
        total = IdScore()
        for number in range(count):
            detector, score = Detector(memory=True), IdScore()
            seed = number + 100 * (part == "held out")
            for scene in compose({who: pictures[who] for who in names}, seed):
                found = detector.step(Frame(scene.image, scene.time))
                assert found.ids is not None
                score.frame(scene.people, found.boxes, found.ids.tolist())
            total += score.close()
        print(f"{count} composed videos, people {part}: {total}", flush=True)


if __name__ == "__main__":
    main()
