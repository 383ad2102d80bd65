"""DigitVOD: videos for object detection, made of real digits and real photographs.

Handwritten digits (scikit-learn's `load_digits`) on dark plates move over photographs out of the
wheels of scikit-learn and scikit-image. What is seen of each object comes and goes: motion blur,
defocus, an occluding bar, darkness and noise follow a Markov chain of its own, so that its class is
hidden about half of the time and plain at others, while its place stays visible.

The digits and the photographs of training and of test have nothing in common. The same
arguments give the same videos, whatever else was drawn before.

The motion buckets and their thresholds are those of FGFA (Zhu et al., arXiv 1703.10025).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from render import SIDE, Condition, Draw, Objects, Split, backgrounds, bounce, digits, render
from torch import Tensor

OBJECTS = 3  # most objects of a video
CLASSES = 10
CHUNK = 20  # videos made at a time
NEIGHBOURS = 10  # frames to each side that the motion of a box is measured over
SWITCH, DEGRADED = 0.25, 0.65  # chance per frame of a new state; of it being a bad one
SPEEDS = ((0.0, 0.25), (0.3, 0.9), (1.0, 3.5))  # pixels a frame: the mixture that is drawn from


@dataclass(frozen=True)
class Scenario:
    """How objects move and when frames are taken.

    Args:
        stride: Frames of motion between two that are taken.
        leaves: Objects leave for 5 to 15 frames and return elsewhere.
        pair: Two objects that look alike cross: ``same`` or ``other`` class; none by default.
        bursts: A camera trap: it stands still, and takes a few frames whenever something passes.
    """

    stride: int = 1
    leaves: bool = False
    pair: Literal["", "same", "other"] = ""
    bursts: bool = False


SCENARIOS = {
    "plain": Scenario(),
    "low rate": Scenario(stride=6),
    "returning": Scenario(leaves=True),
    "crossing": Scenario(pair="same"),
    "camera trap": Scenario(bursts=True),
    "ambiguous": Scenario(pair="other"),
}


@dataclass(frozen=True)
class Videos:
    """Videos and the truth about them; ``V`` videos, ``T`` frames, ``O`` objects.

    Args:
        images: ``(V, T, 96, 96, 3)`` uint8.
        times: ``(V, T)`` float64 seconds; a frame of plain video is one second.
        boxes: ``(V, T, O, 4)`` pixels, x0 y0 x1 y1.
        visible: ``(V, T, O)`` whether the object is there.
        labels: ``(V, O)`` int64.
        digits: ``(V, O)`` int64, which of scikit-learn's digits it is.
        degraded: ``(V, T, O)`` how little of its class is seen, 0 to 1; bad beyond one half.
        motion: ``(V, T, O)`` mean overlap of a box with itself in the frames around; 1 is still.
    """

    images: Tensor
    times: Tensor
    boxes: Tensor
    visible: Tensor
    labels: Tensor
    digits: Tensor
    degraded: Tensor
    motion: Tensor

    def __getitem__(self, videos: slice) -> Videos:
        return Videos(*(getattr(self, field.name)[videos] for field in fields(self)))

    def reordered(self, order: Tensor) -> Videos:
        """With frames in another order ``(V, T)``, as if they had come so: times stay sorted."""
        moved = {name: turned(getattr(self, name), order) for name in ("images", "boxes")}
        moved |= {n: turned(getattr(self, n), order) for n in ("visible", "degraded", "motion")}
        return replace(self, **moved)


def held(renewed: Tensor, drawn: Tensor) -> Tensor:
    """What was drawn at the last renewal, at every frame; both ``(V, T, O)``."""
    frames = torch.arange(renewed.shape[1])[None, :, None]
    return drawn.gather(1, torch.where(renewed, frames, 0).cummax(1).values)


def turned(values: Tensor, order: Tensor) -> Tensor:
    """Frames ``(V, T, ...)`` in another order ``(V, T)``."""
    return values[torch.arange(len(order))[:, None], order]


def overlap(one: Tensor, other: Tensor) -> Tensor:
    """IoU of boxes ``(..., 4)`` that belong together."""
    low = torch.maximum(one[..., :2], other[..., :2])
    high = torch.minimum(one[..., 2:], other[..., 2:])
    common = (high - low).clamp(min=0).prod(-1)
    areas = (one[..., 2:] - one[..., :2]).prod(-1) + (other[..., 2:] - other[..., :2]).prod(-1)
    return common / (areas - common)


def motion_overlap(boxes: Tensor, visible: Tensor) -> Tensor:
    """Mean IoU of each box with the same object's in the frames around it, ``(V, T, O)``."""
    total, count = torch.zeros(visible.shape), torch.zeros(visible.shape)
    for step in range(1, min(NEIGHBOURS, visible.shape[1] - 1) + 1):
        near = overlap(boxes[:, step:], boxes[:, :-step])
        both = (visible[:, step:] & visible[:, :-step]).float()
        for part in (slice(step, None), slice(None, -step)):
            total[:, part] += near * both
            count[:, part] += both
    return torch.where(count > 0, total / count.clamp(min=1), 1.0)


def generate(scenario: Scenario, videos: int, frames: int, split: Split, seed: int) -> Videos:
    """Make videos; the first ones are the same however many are made, twenty at a time.

    Args:
        scenario: What happens in them.
        videos: How many.
        frames: Frames of each.
        split: Whose digits and photographs.
        seed: Equal seeds give equal videos.
    """
    parts = [
        _generate(scenario, min(CHUNK, videos - first), frames, split, Draw(seed * 100_003 + first))
        for first in range(0, videos, CHUNK)
    ]
    return Videos(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Videos)))


def _generate(scenario: Scenario, videos: int, frames: int, split: Split, draw: Draw) -> Videos:
    shape = (videos, frames, OBJECTS)
    count = torch.full((videos,), 2) if scenario.pair else 1 + draw.integer(OBJECTS, videos)
    ink, classes, numbers = digits(split)
    chosen = draw.integer(len(ink), videos, OBJECTS)
    size = draw.uniform(18, 34, videos, OBJECTS)
    kind = draw.integer(len(SPEEDS), videos, OBJECTS)
    low, high = torch.tensor(SPEEDS)[kind].unbind(-1)
    speed = low + (high - low) * draw.uniform(0, 1, videos, OBJECTS)
    angle = draw.uniform(0, 2 * torch.pi, videos, OBJECTS)
    velocity = speed[..., None] * torch.stack([angle.cos(), angle.sin()], -1)

    # A straight path from a start, which is another one after each return.
    start = draw.uniform(0, 1, videos, frames, OBJECTS, 2)
    renewed = draw.chance(1 - (1 - SWITCH) ** scenario.stride, *shape)
    exists = (torch.arange(OBJECTS) < count[:, None])[:, None].expand(shape)
    times, visit, visible, renewed = _visits(scenario, exists, renewed, draw)
    span = (SIDE - size)[:, None, :, None]
    clock = (torch.arange(frames) * float(scenario.stride))[:, None, None]
    path = start.gather(1, visit[..., None].expand(*shape, 2)) * span + velocity[:, None] * clock
    plate = draw.uniform(0, 0.3, videos, OBJECTS, 3)
    colour = draw.uniform(0.55, 1, videos, OBJECTS, 3)
    if scenario.pair:  # two that look alike meet in the middle, half-way through
        for twin in (size, plate, colour):
            twin[:, 1] = twin[:, 0]
        chosen[:, 1] = _partner(classes, chosen[:, 0], scenario.pair == "same", draw)
        velocity[:, :2] *= (draw.uniform(1, 2.5, videos, 1) / speed[:, :2])[..., None]
        velocity[:, 1] = -velocity[:, 0]
        span = (SIDE - size)[:, None, :, None]
        centre = 0.5 + draw.uniform(-0.1, 0.1, videos, 1, OBJECTS, 2)
        path = centre * span + velocity[:, None] * (clock - clock.mean())
    corner = bounce(path, span)
    objects = Objects(ink[chosen], plate, colour, size, velocity, corner, visible)
    condition = _conditions(renewed, draw)
    scenery = backgrounds(videos, frames, split, draw, moves=not scenario.bursts)
    images = render(objects, condition, scenery, draw)
    boxes = torch.cat([corner, corner + size[:, None, :, None]], -1)
    motion = motion_overlap(boxes, visible)
    return Videos(
        images, times, boxes, visible, classes[chosen], numbers[chosen], condition.degraded, motion
    )


def _visits(
    scenario: Scenario, exists: Tensor, renewed: Tensor, draw: Draw
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """When frames are taken, the how-manieth visit each is, who is there, whose state is new."""
    videos, frames, _ = exists.shape
    now = torch.arange(frames)
    times = (now * float(scenario.stride)).double().expand(videos, -1).clone()
    visit, visible = torch.zeros(exists.shape, dtype=torch.int64), exists.clone()
    if scenario.leaves:
        away = 5 + draw.integer(11, videos, 1, OBJECTS)
        room = (frames - 5 - away).clamp(min=1)  # seen for two frames before and after
        gone = 2 + (draw.uniform(0, 1, videos, 1, OBJECTS) * room).long()
        visit = (now[:, None] >= gone + away).long()
        visible &= (now[:, None] < gone) | (visit > 0)
    if scenario.bursts:
        begins = draw.chance(1 / 3, videos, frames)
        waits = torch.where(begins, draw.uniform(60, 3600, videos, frames), 1.0)
        times = waits.double().cumsum(1)
        visit = begins.long().cumsum(1).clamp(max=frames - 1)[..., None].expand(exists.shape)
        comes = draw.chance(0.6, *exists.shape).gather(1, visit)
        comes[..., 0] |= ~(comes & visible).any(-1)  # something has set the camera off
        visible &= comes
        renewed = renewed | begins[..., None]
    return times, visit, visible, renewed


def _conditions(renewed: Tensor, draw: Draw) -> Condition:
    """A state that is drawn anew now and then and holds in between; all ``(V, T, O)``."""
    shape = renewed.shape
    renewed = renewed.clone()
    renewed[:, 0] = True
    bad = draw.chance(DEGRADED, *shape)
    level = torch.where(bad, draw.uniform(0.55, 1, *shape), draw.uniform(0, 0.3, *shape))
    degraded = held(renewed, level)
    barred = held(renewed, draw.chance(0.5, *shape)) & (degraded > 0.5)
    width = held(renewed, draw.uniform(0.3, 0.55, *shape))
    offset = held(renewed, draw.uniform(0, 1, *shape)) * (1 - width)
    upright = held(renewed, draw.chance(0.5, *shape))
    tone = held(renewed, draw.uniform(0.2, 0.8, *shape))
    return Condition(degraded, barred, upright, offset, width, tone)


def _partner(classes: Tensor, first: Tensor, same: bool, draw: Draw) -> Tensor:
    """Another digit for each one, of the same or of another class, ``(V,)``."""
    fits = (classes == classes[first][:, None]) == same
    fits[torch.arange(len(first)), first] = False
    return torch.multinomial(fits.float(), 1, generator=draw.generator)[:, 0]


def stream(split: Split, seed: int, videos: int, frames: int) -> Iterator[Videos]:
    """Plain videos without end, a few at a time; none comes twice."""
    number = 0
    while True:
        yield generate(SCENARIOS["plain"], videos, frames, split, seed + number)
        number += 1
