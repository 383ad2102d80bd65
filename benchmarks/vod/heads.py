"""Heads: what turns the detector's embeddings into classes, with or without a memory.

The detector stays frozen and boxes stay as they are; a head is an attention to rows of a memory
(or none) and a copy of the detector's class layer. All are trained for the same number of steps on
the same clips: a frame, and as its memory what the detector found, right or wrong, in one to eight
random frames before it; a share of steps has no memory. The truth is never a key.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detector import DIM, Detector, Found
from generate import Videos, overlap
from torch import Tensor, nn

from vismem.models.enhancement import GeneralizedEnhancement, SelsaAttention

HEADS = 8
MOST_FRAMES = 8  # of a memory in training
WITHOUT_MEMORY = 0.25  # share of steps
BATCH = 64
FOUND_FROM = 0.5  # IoU from which a box shows an object


@dataclass(frozen=True)
class Rows:
    """What is attended to, of ``V`` videos, ``K`` rows each; ``now`` is ``(V,)`` seconds."""

    tokens: Tensor
    boxes: Tensor
    scores: Tensor
    times: Tensor
    mask: Tensor
    now: Tensor

    @property
    def index(self) -> Tensor:
        """Numbers of the rows, ``(V, K)``; -1 where there is none."""
        return torch.where(self.mask, torch.arange(self.mask.shape[1]), -1)

    @property
    def ages(self) -> Tensor:
        """Seconds, ``(V, K)``."""
        return (self.now[:, None] - self.times).float()


def rows_of(found: Found, frames: Tensor, kept: Tensor, now: Tensor) -> Rows:
    """All that was found in some frames ``(V, F)``, where ``kept`` says so.

    Args:
        found: Of ``V`` videos.
        frames: Numbers of frames, ``(V, F)``.
        kept: Which of these count, ``(V, F)``.
        now: ``(V,)`` seconds.
    """
    video = torch.arange(len(frames))[:, None]
    mask = kept[..., None] & (found.objectness[video, frames] > 0)
    times = found.times[video, frames][..., None].expand(mask.shape)
    columns = (found.tokens, found.fractions, found.scores)
    return Rows(*(c[video, frames].flatten(1, 2) for c in columns), *map(_flat, (times, mask)), now)


def _flat(values: Tensor) -> Tensor:
    return values.flatten(1)


class Head(nn.Module):
    """Classes of embeddings.

    Args:
        detector: Whose class layer it starts from.
        attention: To a memory; none for the class layer alone.
    """

    def __init__(self, detector: Detector, attention: nn.Module | None):
        super().__init__()
        self.attention = attention
        self.classify = nn.Linear(DIM, detector.classify.out_features)
        self.classify.load_state_dict(detector.classify.state_dict())

    def enhance(self, tokens: Tensor, boxes: Tensor, rows: Rows | None) -> Tensor:
        """Embeddings ``(V, P, 128)`` of boxes ``(V, P, 4)`` with what the memory adds to them."""
        if self.attention is None or rows is None or not rows.mask.any():
            return tokens
        keys = rows.tokens.float()
        if isinstance(self.attention, SelsaAttention):
            return tokens + self.attention(tokens, keys, index=rows.index)
        return self.attention(
            tokens,
            keys,
            boxes=boxes,
            key_boxes=rows.boxes,
            key_scores=rows.scores,
            ages=rows.ages,
            index=rows.index,
        )

    def forward(self, tokens: Tensor, boxes: Tensor, rows: Rows | None) -> Tensor:
        """Logits ``(V, P, 10)``."""
        return self.classify(self.enhance(tokens, boxes, rows))


def _ours(score: bool, geometry: bool) -> Callable[[], nn.Module]:
    return lambda: GeneralizedEnhancement(DIM, HEADS, score_bias=score, geometry_bias=geometry)


ATTENTIONS: dict[str, Callable[[], nn.Module | None]] = {
    "no memory": lambda: None,
    "within the frame": _ours(True, True),
    "published": lambda: SelsaAttention(DIM, HEADS),
    "appearance": _ours(False, False),
    "score": _ours(True, False),
    "ours": _ours(True, True),
}


def present(found: Found, frames: Tensor) -> Rows:
    """The frames themselves as their own memory; ``frames`` is ``(V, 1)``."""
    now = found.times.gather(1, frames)[:, 0]
    return rows_of(found, frames, torch.ones_like(frames, dtype=torch.bool), now)


def past(found: Found, frames: Tensor, draw: torch.Generator) -> Rows | None:
    """One to eight random frames before each of ``(V, 1)``; now and then nothing at all."""
    if torch.rand((), generator=draw) < WITHOUT_MEMORY:
        return None
    length = found.times.shape[1]
    order = torch.rand(len(frames), length, generator=draw)
    before = torch.arange(length) < frames
    order = order.masked_fill(~before, 2.0).argsort(1)[:, :MOST_FRAMES]
    most = 1 + torch.randint(MOST_FRAMES, (len(frames), 1), generator=draw)
    kept = torch.arange(order.shape[1]) < torch.minimum(most, frames)
    return rows_of(found, order, kept, found.times.gather(1, frames)[:, 0])


def around(found: Found, frames: Tensor, draw: torch.Generator) -> Rows:
    """One frame before and one after each of ``(V, 1)``, itself at the ends: as published."""
    last = found.times.shape[1] - 1
    share = torch.rand(len(frames), 2, generator=draw)
    before = (share[:, :1] * frames).long()
    after = torch.minimum(frames + 1 + (share[:, 1:] * (last - frames)).long(), torch.tensor(last))
    kept = torch.ones(len(frames), 2, dtype=torch.bool)
    now = found.times.gather(1, frames)[:, 0]
    return rows_of(found, torch.cat([before, after], 1), kept, now)


def overlaps(found: Found, videos: Videos) -> Tensor:
    """IoU of every box found with every object that is there, ``(V, T, P, O)``."""
    near = overlap(found.boxes[:, :, :, None], videos.boxes[:, :, None])
    return near.masked_fill(~videos.visible[:, :, None], 0.0)


def truth_of(found: Found, videos: Videos) -> Tensor:
    """The class of the object that each box shows, ``(V, T, P)``; -1 if it shows none."""
    best, owner = overlaps(found, videos).max(3)
    named = videos.labels[:, None].expand(videos.visible.shape).gather(2, owner)
    return torch.where((best >= FOUND_FROM) & (found.objectness > 0), named, -1)


def train_head(kind: str, detector: Detector, found: Found, truth: Tensor, steps: int, seed: int):
    """Train one head.

    Args:
        kind: Of `ATTENTIONS`.
        detector: Whose class layer it starts from.
        found: In clips of the training split.
        truth: Of `truth_of`.
        steps: Of 64 clips.
        seed: Of everything drawn.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = Head(detector, ATTENTIONS[kind]())
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(head.parameters(), 1e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    videos, length = found.times.shape
    for _ in range(steps):
        chosen = torch.randint(videos, (BATCH,), generator=draw)
        frames = 1 + torch.randint(length - 1, (BATCH, 1), generator=draw)
        clips = found[chosen]
        if kind == "no memory":
            rows = None
        elif kind == "within the frame":
            rows = present(clips, frames)
        elif kind == "published":
            rows = around(clips, frames, draw)
        else:
            rows = past(clips, frames, draw)
        video = torch.arange(BATCH)[:, None]
        tokens, boxes = clips.tokens[video, frames], clips.fractions[video, frames]
        logits = head(tokens[:, 0], boxes[:, 0], rows)
        wanted = truth[chosen][video, frames][:, 0]
        value = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=-1)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
    return head.eval().requires_grad_(False)
