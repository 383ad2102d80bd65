"""Videos of DigitVOD made by hand, and detections and heads of no meaning."""

from __future__ import annotations

from dataclasses import fields

import torch


def same(one, other) -> bool:
    return all(torch.equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))


def random_found(vod, videos=4, frames=6, seed=0, peaks=8):
    """Boxes that drift, tokens and classes of no meaning."""
    draw = torch.Generator().manual_seed(seed)
    low = torch.rand(videos, 1, peaks, 2, generator=draw) * 60
    low = low + torch.randn(videos, frames, peaks, 2, generator=draw)
    boxes = torch.cat([low, low + 24], -1).clamp(0, 96)
    objectness = torch.rand(videos, frames, peaks, generator=draw)
    objectness = objectness.sort(dim=2, descending=True).values
    objectness[..., -1] = 0  # no peak
    return vod.detector.Found(
        torch.randn(videos, frames, peaks, vod.detector.DIM, generator=draw).relu(),
        boxes,
        objectness,
        torch.randn(videos, frames, peaks, 10, generator=draw),
        torch.arange(frames).double().expand(videos, -1).clone(),
    )


def random_head(vod, kind: str, seed=0):
    """A head whose attention says something."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = vod.heads.Head(vod.detector.Detector(), vod.heads.ATTENTIONS[kind]())
        for part in head.parameters():
            torch.nn.init.normal_(part, std=0.2)
    return head.eval().requires_grad_(False)


def scene(vod, boxes, labels, visible=None, motion=None):
    """Truth of one video: ``boxes`` by frame and object, ``labels`` by object."""
    boxes = torch.tensor(boxes, dtype=torch.float32)[None]
    shape = boxes.shape[:3]
    ones = torch.ones(shape)
    return vod.generate.Videos(
        torch.zeros(1, shape[1], 1, 1, 3, dtype=torch.uint8),
        torch.arange(shape[1]).double()[None],
        boxes,
        ones.bool() if visible is None else torch.tensor(visible)[None],
        torch.tensor(labels)[None],
        torch.tensor(labels)[None],
        0 * ones,
        ones if motion is None else torch.tensor(motion)[None],
    )


def seen(vod, boxes, objectness):
    """Found in one video, by frame."""
    boxes, objectness = torch.tensor(boxes)[None].float(), torch.tensor(objectness)[None]
    shape = objectness.shape
    return vod.detector.Found(
        torch.zeros(*shape, 128), boxes, objectness, torch.zeros(*shape, 10),
        torch.arange(shape[1]).double()[None],
    )  # fmt: skip


def named(classes) -> torch.Tensor:
    """Probabilities of one video that name one class for sure; -1 names none."""
    classes = torch.tensor(classes)[None]
    sure = torch.nn.functional.one_hot(classes.clamp_min(0), 10).float()
    return sure * (classes >= 0)[..., None]


HERE, THERE, ASIDE = [0, 0, 20, 20], [50, 50, 80, 80], [7, 0, 27, 20]


def every_arm(vod):
    return [*vod.arms.DURABLE, *vod.arms.CONTROLS, *vod.arms.SWEEP]
