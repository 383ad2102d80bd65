"""What a sceptic would try: follow boxes by their overlap and average the classes of a track.

Causal, greedy, best boxes first; no training, and no feature is kept.
"""

from __future__ import annotations

from typing import Literal

import torch
from detector import Found
from generate import overlap
from torch import Tensor

TRACKS = 24  # most at a time
FOLLOWS = 0.3  # IoU from which a box continues a track
PATIENCE = 5  # frames after which a track that was not seen is over


def track_mean(
    found: Found, probabilities: Tensor, weigh: Literal["equal", "sure"] = "equal"
) -> tuple[Tensor, int]:
    """Average classes along tracks, up to and including each frame.

    Args:
        found: What the detector found.
        probabilities: Of classes, ``(V, T, P, 10)``.
        weigh: Every frame alike, or by its score.

    Returns:
        ``(V, T, P, 10)``, and the bytes that the tracks of one video take.
    """
    videos, frames, peaks, classes = probabilities.shape
    everyone = torch.arange(videos)
    places = torch.zeros(videos, TRACKS, 4)
    totals = torch.zeros(videos, TRACKS, classes)
    weights = torch.zeros(videos, TRACKS)
    seen = torch.full((videos, TRACKS), -(10**6))
    out = probabilities.clone()
    for now in range(frames):
        boxes, there = found.boxes[:, now], found.objectness[:, now] > 0
        near = overlap(boxes[:, :, None], places[:, None])
        near = near.masked_fill((now - seen > PATIENCE)[:, None], 0.0)
        for peak in range(peaks):
            most, which = near[:, peak].max(1)
            follows = most >= FOLLOWS
            which = torch.where(follows, which, seen.argmin(1))  # else in the oldest one's place
            keeps = follows.float()[:, None]
            mine = probabilities[:, now, peak]
            weight = mine.amax(1) * found.objectness[:, now, peak] if weigh == "sure" else 1.0
            weight = torch.ones(videos) * weight
            total = totals[everyone, which] * keeps + mine * weight[:, None]
            whole = weights[everyone, which] * keeps[:, 0] + weight
            real = there[:, peak]
            out[real, now, peak] = (total / whole[:, None])[real]
            rows, columns = everyone[real], which[real]
            totals[rows, columns], weights[rows, columns] = total[real], whole[real]
            places[rows, columns], seen[rows, columns] = boxes[real, peak], now
            near[rows, :, columns] = 0.0  # a track continues in one box
    return out, sum(part[0].nbytes for part in (places, totals, weights, seen))
