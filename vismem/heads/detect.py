"""`Detector`: the people in every frame of a stream, found more often by what was seen before.

A detector that sees one frame at a time loses a person who turns away. With a memory, the boxes
that it proposed but was not sure of are looked at again: one is accepted if it looks like somebody
whom this stream has shown with certainty, and is where that person was a moment ago (or looks so
much alike that the person must have come back). Nothing is invented: every box is a proposal of the
detector in that very frame, and what one frame alone finds is always found.

`FeatureMemory` holds the looks of people seen with certainty, and only those, so that a mistake
does not feed on itself; `Identities` says who is who. What is held is bounded, only the past is
used, and the same frames give the same boxes.

Source of the second look at weak boxes along a track: Zhang et al., "ByteTrack: Multi-Object
Tracking by Associating Every Detection Box", ECCV 2022 (https://arxiv.org/abs/2110.06864).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vismem.detections import Detections
from vismem.encoders.lite0 import fast_dtype, load_lite0
from vismem.encoders.person import PersonDetector
from vismem.errors import UsageError
from vismem.frame import Frame
from vismem.memory.feature import FeatureConfig, FeatureMemory
from vismem.memory.feature_rows import overlaps
from vismem.memory.identities import Identities, IdentityConfig

__all__ = ["PERSON", "DetectConfig", "Detector", "people", "person_looks"]

PERSON = 1  # as COCO numbers its categories
LOOK_DIM = 320
CROP = (96, 192)  # width and height in pixels that a person is looked at with
BATCH = 16  # crops at once

Propose = Callable[[np.ndarray, float], tuple[Tensor, Tensor]]
Look = Callable[[np.ndarray, Tensor], Tensor]


@dataclass(frozen=True)
class DetectConfig:
    """What counts as found, and what a memory may add.

    Args:
        threshold: Score from which one frame alone is enough.
        weak: Score from which a box is worth a second look.
        most: Boxes of one frame that are looked at, the surest; further ones get no id.
        alike: Cosine with a sure sight of the same person that a weak box needs where it goes on.
        known: The same where it comes back after a gap or elsewhere.
        overlap: Intersection over union with the last box from which a box goes on.
        gap: Seconds unseen after which nobody goes on, but comes back.
        share: Part of the smaller of two boxes inside the other from which a weak one is the same
            person as a surer one.
        frames: Length of the mean of scores along a track.
        budget: Bytes of each stream's remembered looks.
        identities: People held of each stream.

    Raises:
        UsageError: If a number is out of its range.
    """

    threshold: float = 0.5
    weak: float = 0.1
    most: int = 32
    alike: float = 0.6
    known: float = 0.88
    overlap: float = 0.4
    gap: float = 2.0
    share: float = 0.6
    frames: int = 10
    budget: str = "1MB"
    identities: int = 256

    def __post_init__(self) -> None:
        if not (0 < self.threshold <= 1 and 0 <= self.weak):
            raise UsageError(f"a threshold is above 0 and at most 1, not {self.threshold}")
        if min(self.most, self.frames) < 1 or self.identities < 0:
            raise UsageError("most and frames are 1 or more, identities 0 or more")


class Detector:
    """People in frames of any number of streams; see the module.

    Args:
        memory: Whether what was seen before helps; without, every frame stands alone.
        config: What counts as found.
        propose: From a picture ``(H, W, 3)`` uint8 RGB and the least score to boxes ``(N, 4)`` as
            fractions and scores ``(N,)``; `people` by default.
        look: From a picture and boxes to embeddings ``(N, 320)``; `person_looks` by default.

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
        self._seen: dict[str, _Seen] = {}

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
            box that got none, and as score the mean along the track where that is higher.

        Raises:
            ValueError: If the picture is not ``(H, W, 3)`` uint8, or its time goes backwards.
        """
        threshold = self.config.threshold
        least = min(self.config.weak, threshold)
        # The same proposals with and without a memory: what one frame finds is always found.
        boxes, scores = self._propose(frame.image, least)
        if self._look is None:
            sure = scores >= threshold
            return _detections(frame, boxes[sure], scores[sure], None)
        order = scores.argsort(descending=True, stable=True)
        boxes, scores = boxes[order], scores[order]
        best, rest = slice(self.config.most), slice(self.config.most, None)
        looks = self._look(frame.image, boxes[best])
        seen = self._seen.get(frame.stream) or _Seen(self.config, looks.shape[1])
        rows, ids, means = seen.update(looks, boxes[best], scores[best], float(frame.timestamp))
        self._seen[frame.stream] = seen
        more = torch.nonzero(scores[rest] >= threshold)[:, 0] + self.config.most
        rows = torch.cat([rows, more])
        ids = F.pad(ids, (0, len(more)), value=-1)
        raised = torch.maximum(scores[rows], F.pad(means, (0, len(more))))
        order = raised.argsort(descending=True, stable=True)
        return _detections(frame, boxes[rows[order]], raised[order], ids[order])


class _Seen:
    """What is remembered of one stream."""

    def __init__(self, config: DetectConfig, dim: int) -> None:
        self.config = config
        self.looks = FeatureMemory(FeatureConfig(dim, max_tokens=config.most), config.budget)
        self.identities = Identities(
            IdentityConfig(
                dim,
                most=config.identities,
                max_tokens=config.most,
                alike=config.known,
                place=config.known - config.alike + 0.2,
                motion=config.gap / 2,
                birth=config.threshold,
            )
        )
        self._tracks: dict[int, tuple[float, int]] = {}  # mean of scores, and of how many

    @property
    def nbytes(self) -> int:
        return self.looks.nbytes + self.identities.nbytes + 16 * len(self._tracks)

    def update(
        self, looks: Tensor, boxes: Tensor, scores: Tensor, time: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Read, decide, and only then write.

        Returns:
            Rows that are accepted ``(K,)``, their ids ``(K,)`` and the mean score of each track.
        """
        sure = scores >= self.config.threshold
        wanted = sure | self._supported(looks, boxes, time)
        rows, parts = self._without_parts(boxes, sure, wanted)
        births = scores[rows].masked_fill(parts, 0.0)  # part of a person is nobody new
        ids = self.identities.update(looks[rows], time, boxes=boxes[rows], scores=births)
        accepted = sure[rows] | (ids >= 0)
        rows, ids = rows[accepted], ids[accepted]
        certain = sure[rows] & (ids >= 0)
        if certain.any():
            new = rows[certain]
            facts = {"scores": scores[new], "boxes": boxes[new], "labels": ids[certain]}
            self.looks.write(looks[new], time, **facts)
        else:
            self.looks.skip(time)
        return rows, ids, self._means(ids, scores[rows])

    def _supported(self, looks: Tensor, boxes: Tensor, time: float) -> Tensor:
        """Which boxes look like a person seen with certainty who goes on here or comes back."""
        config, remembered = self.config, self.looks.snapshot()
        ids, last = self.identities.held("ids"), self.identities.held("last")
        whose = torch.searchsorted(ids, remembered.labels)
        held = torch.isin(remembered.labels, ids)  # others were forgotten
        bank = F.normalize(remembered.tokens.float(), dim=1)[held]
        cosines = F.normalize(looks.float(), dim=1) @ bank.T
        likeness = torch.full((len(looks), len(ids)), -1.0)
        likeness.scatter_reduce_(1, whose[held].expand(len(looks), -1), cosines, "amax")
        near = overlaps(boxes, self.identities.held("boxes")) >= config.overlap
        goes_on = near & (time - last <= config.gap) & (likeness >= config.alike)
        return (goes_on | (likeness >= config.known)).any(1)

    def _without_parts(self, boxes: Tensor, sure: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Rows that are wanted, without weak boxes of a person who has a surer one already.

        Returns:
            The rows ``(K,)``, and which of them, although sure, are such boxes, ``(K,)`` bool.
        """
        low = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
        high = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        shared = (high - low).clamp_min(0).prod(-1)
        same = shared > self.config.share * torch.minimum(areas[:, None], areas)
        taken: list[int] = []
        parts: list[bool] = []
        for row in torch.nonzero(wanted)[:, 0].tolist():  # surest first
            part = bool(same[row, taken].any())
            if sure[row] or not part:
                taken.append(row)
                parts.append(part)
        return torch.tensor(taken, dtype=torch.int64), torch.tensor(parts, dtype=torch.bool)

    def _means(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Mean of the scores along each track up to now; 0 for a box without an id."""
        means = []
        for who, score in zip(ids.tolist(), scores.tolist(), strict=True):
            mean, count = self._tracks.get(who, (0.0, 0))
            count = min(count + 1, self.config.frames)
            mean += (score - mean) / count
            if who >= 0:
                self._tracks[who] = (mean, count)
            means.append(mean if who >= 0 else 0.0)
        held = set(self.identities.held("ids").tolist())
        self._tracks = {who: track for who, track in self._tracks.items() if who in held}
        return torch.tensor(means, dtype=torch.float32)


def people() -> Propose:
    """Propose people as the embedded encoder does: in two overlapping halves of the picture."""
    detector = PersonDetector()

    def propose(image: np.ndarray, least: float) -> tuple[Tensor, Tensor]:
        height, width = image.shape[:2]
        halves = (1, 2) if width >= height else (2, 1)
        tiles = halves if min(height, width) > 1 else (1, 1)
        return detector.detect(image, tiles=tiles, threshold=least)

    return propose


def person_looks() -> Look:
    """Embed boxes with EfficientNet-Lite0: the mean of the stride-32 map of each crop.

    About 2 ms a box on one core (AVX512-BF16).
    """
    dtype = fast_dtype()
    network = load_lite0(dtype)

    @torch.inference_mode()
    def look(image: np.ndarray, boxes: Tensor) -> Tensor:
        looks = [torch.zeros(0, LOOK_DIM)]
        crops = [_crop(image, box) for box in boxes.tolist()]
        for start in range(0, len(crops), BATCH):
            pixels = torch.from_numpy(np.stack(crops[start : start + BATCH])).permute(0, 3, 1, 2)
            _, coarse = network(pixels.to(dtype).sub_(127).div_(128))
            looks.append(coarse.float().mean((2, 3)))
        return torch.cat(looks).clone()

    return look


def _crop(image: np.ndarray, box: list[float]) -> np.ndarray:
    """The pixels of a box, at least one, squeezed into `CROP`."""
    height, width = image.shape[:2]
    left, top = min(int(box[0] * width), width - 1), min(int(box[1] * height), height - 1)
    right, bottom = math.ceil(box[2] * width), math.ceil(box[3] * height)
    part = image[top : max(bottom, top + 1), left : max(right, left + 1)]
    return cv2.resize(part, CROP, interpolation=cv2.INTER_AREA)


def _detections(frame: Frame, boxes: Tensor, scores: Tensor, ids: Tensor | None) -> Detections:
    sides = np.array([frame.width, frame.height] * 2, np.float32)
    labels = np.full(len(scores), PERSON)
    numbers = None if ids is None else ids.numpy()
    time = float(frame.timestamp)
    return Detections(boxes.numpy() * sides, scores.numpy(), labels, numbers, time, frame.stream)
