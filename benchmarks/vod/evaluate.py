"""Average precision, by hotcoco and by a sum of our own that can be resampled.

Every box of the detector stands for all ten classes, with objectness times probability as score.
AP50 in the table is hotcoco's (COCO's, 101 points). Intervals come from resampling whole videos;
`curves` gives the all-point AP of a resample as weights, so that nothing is matched anew.

Objects outside a motion bucket are ``iscrowd`` while it is measured: an ``ignore`` field is
overwritten by COCO's own code. A false positive counts in every bucket, so buckets lie below "all".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from detector import Found
from generate import CLASSES, Videos
from heads import FOUND_FROM, overlaps
from hotcoco import COCO, COCOeval
from torch import Tensor

LEAST = 0.01  # score of a detection that is counted
SPEEDS = {"slow": (0.9, 1.01), "medium": (0.7, 0.9), "fast": (-0.01, 0.7)}  # FGFA's, motion overlap
SHARE = 0.95  # of the resamples that an interval holds


@dataclass(frozen=True)
class Matched:
    """All detections of one arm, ``N``, and which of them are right.

    Args:
        video: Which video, ``(N,)``.
        kind: Which class, ``(N,)``.
        score: ``(N,)``.
        right: Whether it found an object of its class that no better one had found, ``(N,)``.
        objects: Objects to find, ``(V, 10)``.
    """

    video: np.ndarray
    kind: np.ndarray
    score: np.ndarray
    right: np.ndarray
    objects: np.ndarray


def scores_of(found: Found, probabilities: Tensor) -> Tensor:
    """``(V, T, P, 10)``; 0 where there is no box."""
    return found.objectness[..., None] * probabilities


def match(found: Found, videos: Videos, probabilities: Tensor) -> Matched:
    """Give each object its best detection, best score first, frame by frame as COCO does."""
    score = scores_of(found, probabilities)
    near = overlaps(found, videos)
    classes = torch.arange(CLASSES)
    mine = (videos.labels[..., None] == classes)[:, None, None]  # (V, 1, 1, O, C)
    fits = (near[..., None] * mine).transpose(3, 4)  # (V, T, P, C, O)
    fits = torch.where(fits >= FOUND_FROM, fits, 0.0)
    order = score.argsort(dim=2, descending=True, stable=True)
    right = torch.zeros(score.shape, dtype=torch.bool)
    free = torch.ones(*score.shape[:2], *fits.shape[3:], dtype=torch.bool)
    for rank in range(score.shape[2]):
        peak = order[:, :, rank : rank + 1]
        here = fits.gather(2, peak[..., None].expand(-1, -1, -1, -1, fits.shape[-1]))[:, :, 0]
        best, which = (here * free).max(3, keepdim=True)
        hit = best > 0
        free.scatter_(3, which, free.gather(3, which) & ~hit)
        right.scatter_(2, peak, hit[:, :, None, :, 0])
    counted = score > LEAST
    video, _, _, kind = counted.nonzero(as_tuple=True)
    seen = videos.visible.sum(1)[..., None] * (videos.labels[..., None] == classes)
    columns = (video, kind, score[counted], right[counted], seen.sum(1))
    return Matched(*(column.numpy() for column in columns))


def curves(matched: Matched, weights: np.ndarray) -> np.ndarray:
    """All-point AP50 of each resample, ``(R,)``: the mean over the classes that it has.

    Args:
        matched: The detections of an arm.
        weights: How often each resample has each video, ``(R, V)``.
    """
    total, classes = np.zeros(len(weights)), np.zeros(len(weights))
    for kind in range(CLASSES):
        rows = np.flatnonzero(matched.kind == kind)
        rows = rows[np.argsort(-matched.score[rows], kind="stable")]
        times = weights[:, matched.video[rows]].astype(np.float32)
        objects = weights @ matched.objects[:, kind]
        hits = times * matched.right[rows]
        precision = np.cumsum(hits, 1) / np.maximum(np.cumsum(times, 1), 1)
        best = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
        total += (hits * best).sum(1) / np.maximum(objects, 1)
        classes += objects > 0
    return total / np.maximum(classes, 1)


def resamples(videos: int, count: int, seed: int = 0) -> np.ndarray:
    """Videos drawn with replacement: how often each, ``(R, V)``."""
    draw = np.random.default_rng(seed)
    return draw.multinomial(videos, np.full(videos, 1 / videos), count)


def resampled(matched: list[Matched], weights: np.ndarray, seed: int = 0) -> np.ndarray:
    """AP50 of an arm in each resample of videos and of its training seeds, ``(R,)``.

    Equal arguments draw equal videos and seeds, so differences of arms are paired.

    Args:
        matched: Of one arm, by training seed; one for an arm that was not trained.
        weights: Of `resamples`.
        seed: Of the draw of training seeds.
    """
    each = np.stack(
        [np.concatenate([curves(m, part) for part in np.array_split(weights, 10)]) for m in matched]
    )
    seeds = max(2, len(matched))
    drawn = np.random.default_rng(seed).integers(0, seeds, (len(weights), seeds)) % len(matched)
    return each[drawn, np.arange(len(weights))[:, None]].mean(1)


def interval(values: np.ndarray) -> tuple[float, float]:
    """What holds 95 % of the resamples."""
    low, high = np.quantile(values, [(1 - SHARE) / 2, (1 + SHARE) / 2])
    return float(low), float(high)


# ---------------------------------------------------------------------------- by hotcoco


class Judge:
    """Scores arms on some videos.

    Args:
        videos: The truth.
        found: What the detector found in them.
    """

    def __init__(self, videos: Videos, found: Found):
        self.videos, self.found = videos, found
        self._truth = {"all": self._objects(torch.ones_like(videos.visible))}
        for name, (low, high) in SPEEDS.items():
            self._truth[name] = self._objects((videos.motion >= low) & (videos.motion < high))

    def _objects(self, inside: Tensor) -> COCO:
        visible = self.videos.visible
        video, frame, number = visible.nonzero(as_tuple=True)
        boxes = self.videos.boxes[visible]
        count = visible.shape[0] * visible.shape[1]
        return COCO.from_arrays(
            [{"id": 1 + i, "width": 96, "height": 96} for i in range(count)],
            [{"id": 1 + c, "name": str(c)} for c in range(CLASSES)],
            (1 + video * visible.shape[1] + frame).numpy(),
            (1 + self.videos.labels[video, number]).numpy(),
            _corner_size(boxes),
            iscrowd=(~inside[visible]).numpy(),
        )

    def average_precision(self, probabilities: Tensor, speed: str = "all") -> tuple[float, float]:
        """AP50 and AP50:95 in percent; NaN where there is nothing to find."""
        score = scores_of(self.found, probabilities)
        video, frame, peak, kind = (score > LEAST).nonzero(as_tuple=True)
        truth = self._truth[speed]
        columns = np.column_stack(
            [
                (1 + video * score.shape[1] + frame).numpy(),
                _corner_size(self.found.boxes[video, frame, peak]),
                score[video, frame, peak, kind].double().numpy(),
                (1 + kind).numpy(),
            ]
        )
        if not len(columns):
            return 0.0, 0.0
        evaluation = COCOeval(truth, truth.load_res(columns), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        precision = np.asarray(evaluation.eval["precision"])[..., 0, -1]  # any size, 100 a frame
        precision = np.where(precision < 0, np.nan, precision)
        if np.isnan(precision).all():
            return float("nan"), float("nan")
        return 100 * float(np.nanmean(precision[0])), 100 * float(np.nanmean(precision))

    def accuracy(self, probabilities: Tensor) -> tuple[float, float]:
        """Share of objects found whose class is right, of clean and of degraded ones, percent."""
        best, peak = overlaps(self.found, self.videos).max(2)
        named = probabilities.argmax(-1).gather(2, peak)
        labels = self.videos.labels[:, None].expand(named.shape)
        seen = self.videos.visible & (best >= FOUND_FROM)
        bad = self.videos.degraded > 0.5
        right = (named == labels).float()
        clean, degraded = (right[seen & part] for part in (~bad, bad))
        return 100 * float(clean.mean()), 100 * float(degraded.mean())

    def oracle(self) -> Tensor:
        """Probabilities that name every object found rightly: no head can do better."""
        best, owner = overlaps(self.found, self.videos).max(3)
        labels = self.videos.labels[:, None].expand(self.videos.visible.shape).gather(2, owner)
        sure = torch.nn.functional.one_hot(labels, CLASSES).float()
        return torch.where((best >= FOUND_FROM)[..., None], sure, self.found.logits.softmax(-1))


def _corner_size(boxes: Tensor) -> np.ndarray:
    """COCO's boxes: x y of a corner, width, height."""
    return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).double().numpy()
