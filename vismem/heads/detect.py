"""`Detector`: the people in every frame of a stream, found more often by what was seen before.

A detector that sees one frame at a time loses a person who turns away. With a memory, the boxes
that it proposed but was not sure of are looked at again: one is accepted if it looks like somebody
whom this stream has shown with certainty, and is where that person was a moment ago (or looks so
much alike that the person must have come back). Nothing is invented: every box is a proposal of the
detector in that very frame, and what one frame alone finds is always found.

Somebody small is lost to a network that sees a picture at 300 pixels. Where it is known what moves
(`vismem.heads.moving`), those regions are looked at from near as well.

What is held is bounded (`vismem.heads.seen`), only the past is used, and the same frames give the
same boxes.

Source of the second look at weak boxes along a track: Zhang et al., "ByteTrack: Multi-Object
Tracking by Associating Every Detection Box", ECCV 2022 (https://arxiv.org/abs/2110.06864).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import nms

from vismem.detections import Detections
from vismem.encoders.person import PersonDetector
from vismem.frame import Frame
from vismem.heads.looks import person_looks
from vismem.heads.moving import MotionWatch
from vismem.heads.seen import DetectConfig, Seen

__all__ = ["PERSON", "DetectConfig", "Detector", "people", "windows"]

PERSON = 1  # as COCO numbers its categories
WINDOW = 2.2  # sides of a region that the square around it has, at least
LEAST_WINDOW = 140  # pixels
MOST_WINDOWS = 8  # each costs half of what the picture does
EDGE = 0.01  # of a window's side
SAME = 0.5  # overlap over union of two boxes around one person
MOST = torch.finfo(torch.float16).max  # what memory can hold of a look

Propose = Callable[[np.ndarray, float], tuple[Tensor, Tensor]]
Look = Callable[[np.ndarray, Tensor], Tensor]


class Detector:
    """People in frames of any number of streams; see the module.

    Args:
        memory: Whether what was seen before helps; without, every frame stands alone.
        moving: What tells which regions move; without, no region is looked at from near.
        config: What counts as found.
        propose: From a picture ``(H, W, 3)`` uint8 RGB and the least score to boxes ``(N, 4)`` as
            fractions and scores ``(N,)``; `people` by default.
        look: From a picture and boxes to embeddings ``(N, C)``;
            `vismem.heads.looks.person_looks` by default.

    Example:
        >>> detector = Detector(memory=True)
        >>> found = detector.step(Frame(np.zeros((48, 64, 3), np.uint8), timestamp=0.0))
        >>> len(found), found.stream, detector.streams
        (0, 'camera', ('camera',))
    """

    def __init__(
        self,
        *,
        memory: bool = False,
        moving: MotionWatch | None = None,
        config: DetectConfig | None = None,
        propose: Propose | None = None,
        look: Look | None = None,
    ) -> None:
        self.config = DetectConfig() if config is None else config
        self.memory, self.moving = memory, moving
        network = PersonDetector() if propose is None else None
        self._propose = propose or people(network)
        self._near = propose or people(network, tiles=(1, 1))
        self._look = (person_looks() if look is None else look) if memory else None
        self._seen: dict[str, Seen] = {}  # the one unseen for longest first

    @property
    def streams(self) -> tuple[str, ...]:
        """Those that something is remembered of."""
        return tuple(self._seen)

    @property
    def nbytes(self) -> int:
        """Bytes remembered of all streams."""
        return sum(seen.nbytes for seen in self._seen.values())

    def reset(self, stream: str | None = None) -> None:
        """Forget a stream, or all of them; its ids begin anew, and its time may be any."""
        if stream is None:
            self._seen.clear()
        else:
            self._seen.pop(stream, None)

    def step(self, frame: Frame) -> Detections:
        """Find the people in the next frame of its stream.

        Returns:
            Boxes in pixels, surest first, all labelled `PERSON`. With a memory also ids, -1 for a
            box that has none (yet), and as score the mean along the track where that is higher.

        Raises:
            ValueError: If the picture is not ``(H, W, 3)`` uint8, its time goes backwards, or the
                proposals or looks do not fit each other or are not finite; nothing is then changed.
        """
        threshold = self.config.threshold
        least = min(self.config.weak, threshold)
        # The same proposals with and without a memory: what one frame finds is always found.
        boxes, scores = self._propose(frame.image, least)
        if self.moving and (regions := self.moving.step(frame)):
            near = [self._from_near(frame.image, at, least) for at in windows(frame, regions.boxes)]
            boxes = torch.cat([boxes, *(boxes for boxes, _ in near)])
            scores = torch.cat([scores, *(scores for _, scores in near)])
            one_each = nms(boxes, scores, SAME)
            boxes, scores = boxes[one_each], scores[one_each]
        if boxes.shape != (len(scores), 4) or not (
            boxes.isfinite().all() & scores.isfinite().all()
        ):
            raise ValueError(f"proposals are not finite boxes (N, 4) and scores: {boxes.shape}")
        if self._look is None:
            sure = scores >= threshold
            return _detections(frame, boxes[sure], scores[sure], None)
        order = scores.argsort(descending=True, stable=True)
        boxes, scores = boxes[order], scores[order]
        best, rest = slice(self.config.most), slice(self.config.most, None)
        looks = self._look(frame.image, boxes[best])
        if len(looks) != len(boxes[best]) or not (looks.abs() <= MOST).all():
            raise ValueError("looks are not one a box, finite and within float16")
        seen = self._seen.get(frame.stream) or Seen(self.config, looks.shape[1])
        rows, ids, means = seen.update(looks, boxes[best], scores[best], float(frame.timestamp))
        self._seen.pop(frame.stream, None)
        self._seen[frame.stream] = seen
        if len(self._seen) > self.config.streams:
            self._seen.pop(next(iter(self._seen)))
        more = torch.nonzero(scores[rest] >= threshold)[:, 0] + self.config.most
        rows = torch.cat([rows, more])
        ids = F.pad(ids, (0, len(more)), value=-1)
        raised = torch.maximum(scores[rows], F.pad(means, (0, len(more))))
        order = raised.argsort(descending=True, stable=True)
        return _detections(frame, boxes[rows[order]], raised[order], ids[order])

    def _from_near(
        self, image: np.ndarray, window: tuple[int, int, int], least: float
    ) -> tuple[Tensor, Tensor]:
        """What is proposed in a square of a picture, in fractions of the whole picture."""
        x, y, side = window
        boxes, scores = self._near(image[y : y + side, x : x + side], least)
        sides = torch.tensor([image.shape[1], image.shape[0]] * 2)
        low, high = torch.tensor([x, y]) > 0, torch.tensor([x, y]) + side < sides[:2]
        # What an inner edge of the window cuts is whole in the picture, or in another window.
        cut = ((boxes[:, :2] < EDGE) & low) | ((boxes[:, 2:] > 1 - EDGE) & high)
        whole = ~cut.any(1)
        return (boxes[whole] * side + torch.tensor([x, y] * 2)) / sides, scores[whole]

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Give what is remembered of each stream as tensors, which ``torch.save`` takes.

        Example:
            >>> detector, other = Detector(memory=True), Detector(memory=True)
            >>> _ = detector.step(Frame(np.zeros((48, 64, 3), np.uint8), timestamp=0.0))
            >>> other.load_state_dict(detector.state_dict())
            >>> other.streams
            ('camera',)
        """
        return {stream: seen.state_dict() for stream, seen in self._seen.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Continue where another detector of the same configuration was, with the same ids.

        Raises:
            ValueError: If it is of another configuration, incomplete, of too many streams, or this
                detector has no memory; nothing is then changed.
        """
        if self._look is None:
            raise ValueError("this detector has no memory; make it with memory=True")
        if len(state) > self.config.streams:
            raise ValueError(f"{len(state)} streams are more than {self.config.streams}")
        self._seen = {name: Seen.from_state(self.config, part) for name, part in state.items()}


def windows(frame: Frame, regions: Tensor) -> list[tuple[int, int, int]]:
    """Squares to look at from near, so that all of each region is well inside of one.

    A long region may be several people side by side, and is covered by several.

    Args:
        frame: The picture.
        regions: Boxes of what moves, ``(K, 4)`` fractions.

    Returns:
        Left, top and side of each in pixels; at most `MOST_WINDOWS`, for the largest regions.
    """
    width, height = frame.width, frame.height
    boxes = regions.double().numpy() * [width, height, width, height]
    order = np.argsort(-(boxes[:, 2:] - boxes[:, :2]).prod(1), kind="stable")
    found: list[tuple[int, int, int]] = []
    for box in boxes[order]:
        low, high = box[:2], box[2:]
        across, down = high - low
        long = max(across, down)
        # Somebody upright is as high as the region, or lower where it is more than one below.
        side = int(min(max(WINDOW * min(down, 1.5 * across), LEAST_WINDOW), width, height))
        count = max(1, math.ceil((long - side / 2) / (side / 2)))
        for n in range(count):
            part = (high - low) / np.where(high - low == long, count, 1)
            begin = low + np.where(high - low == long, n * part, 0)
            margin = 0.1 * side
            if any(
                (at + margin <= begin).all() and (begin + part + margin <= at + held).all()
                for at, held in ((np.array(one[:2]), one[2]) for one in found)
            ):
                continue
            x, y = np.clip(begin + (part - side) / 2, 0, [width - side, height - side]).astype(int)
            found.append((int(x), int(y), side))
    return found[:MOST_WINDOWS]


def people(detector: PersonDetector | None = None, tiles: tuple[int, int] | None = None) -> Propose:
    """Propose people as the embedded encoder does.

    Args:
        detector: A new one by default.
        tiles: That a picture is looked at in; two overlapping halves by default.
    """
    detector = PersonDetector() if detector is None else detector

    def propose(image: np.ndarray, least: float) -> tuple[Tensor, Tensor]:
        height, width = image.shape[:2]
        halves = (1, 2) if width >= height else (2, 1)
        cut = tiles or (halves if min(height, width) > 1 else (1, 1))
        return detector.detect(image, tiles=cut, threshold=least)

    return propose


def _detections(frame: Frame, boxes: Tensor, scores: Tensor, ids: Tensor | None) -> Detections:
    sides = np.array([frame.width, frame.height] * 2, np.float32)
    labels = np.full(len(scores), PERSON)
    numbers = None if ids is None else ids.numpy()
    time = float(frame.timestamp)
    return Detections(boxes.numpy() * sides, scores.numpy(), labels, numbers, time, frame.stream)
