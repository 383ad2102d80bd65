"""People in a street that are found, with and without a look from near at what moves.

A fixed camera sees 73 people in twelve frames, most of them small; their middles were set by eye
(``street_people.json``). A person counts as found if a box of its own holds that point. Beside the
detector alone, with its memory and with moving regions stand the sceptic's ways: the picture in six
tiles, as many windows at places drawn at random, and windows where OpenCV's background subtraction
says that something moves.

Run: ``python benchmarks/street_people.py [CLIP]``; two to three minutes. The clip is vtest.avi of
OpenCV's samples: ``apt-get install opencv-doc``.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

import vismem as vm
from vismem.encoders.person import PersonDetector
from vismem.frame import Frame
from vismem.heads.detect import Detector, people
from vismem.heads.moving import MotionWatch, Moving

FPS = 2
NEAR = 0.01  # of the picture that a point may lie outside of its box


class Elsewhere(MotionWatch):
    """As many regions of the same sizes, at places drawn at random: a control."""

    def __init__(self) -> None:
        super().__init__()
        self._draws = np.random.default_rng(0)

    def step(self, frame: Frame) -> Moving | None:
        """As many as move."""
        found = super().step(frame)
        if found is None:
            return None
        size = (found.boxes[:, 2:] - found.boxes[:, :2]).numpy()
        low = self._draws.uniform(0, 1 - size)
        boxes = torch.from_numpy(np.concatenate([low, low + size], 1)).float()
        return Moving(found.ids, boxes, found.scores, found.positions, found.looks)


class Subtracted(MotionWatch):
    """Regions by OpenCV's mixture of Gaussians: the sceptic's background."""

    def __init__(self) -> None:
        super().__init__()
        self._model = cv2.createBackgroundSubtractorMOG2(200, 25, True)

    def step(self, frame: Frame) -> Moving | None:
        """What is no background."""
        moving = (self._model.apply(frame.image) == 255).astype(np.uint8)
        moving = cv2.morphologyEx(moving, cv2.MORPH_OPEN, np.ones((3, 3)))
        moving = cv2.dilate(moving, np.ones((9, 5)))
        _, _, stats, _ = cv2.connectedComponentsWithStats(moving)
        parts = stats[1:][stats[1:, cv2.CC_STAT_AREA] > 150][:, :4]
        boxes = np.concatenate([parts[:, :2], parts[:, :2] + parts[:, 2:]], 1)
        sides = [frame.width, frame.height] * 2
        count = len(boxes)
        return Moving(
            torch.arange(count),
            torch.from_numpy((boxes / sides).astype(np.float32)),
            torch.ones(count),
            torch.full((count, 3), torch.nan),
            torch.zeros(count, 0),
        )


def found_of(boxes: np.ndarray, points: np.ndarray) -> int:
    """How many points lie in a box of their own, of boxes ``(N, 4)`` in fractions."""
    if not len(boxes):
        return 0
    inside = (points[:, None] >= boxes[:, :2] - NEAR) & (points[:, None] <= boxes[:, 2:] + NEAR)
    rows, columns = linear_sum_assignment(~inside.all(2))
    return int(inside.all(2)[rows, columns].sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    clips = Path("/usr/share/doc/opencv-doc").rglob("vtest.avi")
    parser.add_argument("clip", nargs="?", default=next(clips, None))
    clip = parser.parse_args().clip
    if clip is None:
        raise SystemExit("no clip; run: apt-get install opencv-doc")
    torch.set_num_threads(1)
    truth = json.loads(Path(__file__).with_suffix(".json").read_text())["frames"]
    points = {int(number): np.array(frame) for number, frame in truth.items()}
    tiles = people(PersonDetector(), tiles=(2, 3))
    ways = {
        "one frame at a time": Detector(),
        "in six tiles": Detector(propose=tiles),
        "windows at random places": Detector(moving=Elsewhere()),
        "windows by OpenCV's MOG2": Detector(moving=Subtracted()),
        "windows where it moves": Detector(moving=MotionWatch()),
        "with memory": Detector(memory=True),
        "with memory, in six tiles": Detector(memory=True, propose=tiles),
        "with memory, where it moves": Detector(memory=True, moving=MotionWatch()),
    }
    total = sum(map(len, points.values()))
    print(f"{'':30}{'found of ' + str(total):>12}{'other boxes':>14}{'CPU ms a frame':>18}")
    for name, detector in ways.items():
        hits = boxes = frames = 0
        began = time.process_time()
        for number, frame in enumerate(vm.open_stream(clip, fps=FPS)):
            seen = detector.step(frame)
            frames += 1
            if number in points:
                sides = np.array([frame.width, frame.height] * 2)
                hits += found_of(seen.boxes / sides, points[number])
                boxes += len(seen)
        cost = 1e3 * (time.process_time() - began) / frames
        print(f"{name:30}{hits:12d}{boxes - hits:14d}{cost:18.0f}", flush=True)


if __name__ == "__main__":
    main()
