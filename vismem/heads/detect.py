"""`Detector`: the people in every frame of a stream, found more often by what was seen before.

A detector that sees one frame at a time loses a person who turns away. With a memory, the boxes
that it proposed but was not sure of are looked at again: one is accepted if it looks like somebody
whom this stream has shown with certainty, and is where that person was a moment ago (or looks so
much alike that the person must have come back). Nothing is invented: every box is a proposal of the
detector in that very frame, and what one frame alone finds is always found.

What is held is bounded (`vismem.heads.seen`), only the past is used, and the same frames give the
same boxes.

Source of the second look at weak boxes along a track: Zhang et al., "ByteTrack: Multi-Object
Tracking by Associating Every Detection Box", ECCV 2022 (https://arxiv.org/abs/2110.06864).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vismem.detections import Detections
from vismem.encoders.person import PersonDetector
from vismem.frame import Frame
from vismem.heads.looks import person_looks
from vismem.heads.seen import DetectConfig, Seen

__all__ = ["PERSON", "DetectConfig", "Detector", "people"]

PERSON = 1  # as COCO numbers its categories
MOST = torch.finfo(torch.float16).max  # what memory can hold of a look

Propose = Callable[[np.ndarray, float], tuple[Tensor, Tensor]]
Look = Callable[[np.ndarray, Tensor], Tensor]


class Detector:
    """People in frames of any number of streams; see the module.

    Args:
        memory: Whether what was seen before helps; without, every frame stands alone.
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
        config: DetectConfig | None = None,
        propose: Propose | None = None,
        look: Look | None = None,
    ) -> None:
        self.config = DetectConfig() if config is None else config
        self.memory = memory
        self._propose = people() if propose is None else propose
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


def people() -> Propose:
    """Propose people as the embedded encoder does: in two overlapping halves of the picture."""
    detector = PersonDetector()

    def propose(image: np.ndarray, least: float) -> tuple[Tensor, Tensor]:
        height, width = image.shape[:2]
        halves = (1, 2) if width >= height else (2, 1)
        tiles = halves if min(height, width) > 1 else (1, 1)
        return detector.detect(image, tiles=tiles, threshold=least)

    return propose


def _detections(frame: Frame, boxes: Tensor, scores: Tensor, ids: Tensor | None) -> Detections:
    sides = np.array([frame.width, frame.height] * 2, np.float32)
    labels = np.full(len(scores), PERSON)
    numbers = None if ids is None else ids.numpy()
    time = float(frame.timestamp)
    return Detections(boxes.numpy() * sides, scores.numpy(), labels, numbers, time, frame.stream)
