"""Pictures of DigitVOD: digits on plates over photographs, blurred, covered, dark and noisy.

A digit is a grid of cells, and blur is a Gaussian over each, so the profile of an object along a
line has a closed form and its picture is a product of small matrices; nothing is resampled.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

Split = Literal["train", "test"]

SIDE = 96  # pixels of a frame
CELLS = 10  # a plate is 10x10 cells: the 8x8 of a digit and a margin
EXPOSURES = 5  # sub-frames that a motion blur is made of

PHOTOS: dict[Split, tuple[tuple[str, str], ...]] = {
    "train": (
        ("sklearn", "datasets/images/china.jpg"),
        ("skimage", "data/astronaut.png"),
        ("skimage", "data/coffee.png"),
        ("skimage", "data/motorcycle_left.png"),
        ("skimage", "data/rocket.jpg"),
        ("skimage", "data/ihc.png"),
        ("skimage", "data/brick.png"),
    ),
    "test": (
        ("sklearn", "datasets/images/flower.jpg"),
        ("skimage", "data/chelsea.png"),
        ("skimage", "data/retina.jpg"),
        ("skimage", "data/hubble_deep_field.jpg"),
        ("skimage", "data/camera.png"),
        ("skimage", "data/grass.png"),
    ),
}


@cache
def photos(split: Split) -> tuple[Tensor, ...]:
    """The photographs of a split, ``(H, W, 3)`` uint8, their shorter side 192 pixels."""
    loaded = []
    for package, name in PHOTOS[split]:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(
                f"{package} has the photographs: pip install vismem[benchmarks]"
            )
        image = Image.open(Path(spec.origin).parent / name).convert("RGB")
        scale = 2 * SIDE / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)))
        loaded.append(
            torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
            .reshape(image.height, image.width, 3)
            .clone()
        )
    return tuple(loaded)


@cache
def digits(split: Split) -> tuple[Tensor, Tensor, Tensor]:
    """The digits of a split: ink ``(N, 8, 8)`` of 0 to 1, class ``(N,)`` and number ``(N,)``."""
    from sklearn.datasets import load_digits

    data = load_digits()
    numbers = torch.arange(len(data.target))
    numbers = numbers[(numbers % 5 == 0) == (split == "test")]
    ink = torch.from_numpy(data.images).float()[numbers] / 16
    return ink, torch.from_numpy(data.target).long()[numbers], numbers


class Draw:
    """Random numbers of a generator of its own."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Numbers of an interval."""
        return low + (high - low) * torch.rand(shape, generator=self.generator)

    def chance(self, share: float, *shape: int) -> Tensor:
        """True in such a share of cases."""
        return torch.rand(shape, generator=self.generator) < share

    def integer(self, most: int, *shape: int) -> Tensor:
        """Whole numbers below a limit."""
        return torch.randint(most, shape, generator=self.generator)


def bounce(position: Tensor, span: Tensor) -> Tensor:
    """Fold a straight path into ``[0, span]``, as if it bounced at both ends."""
    return span - ((position % (2 * span)) - span).abs()


@dataclass(frozen=True)
class Objects:
    """What objects look like and where they are; ``V`` videos, ``T`` frames, ``O`` objects.

    Args:
        ink: Of their digits, ``(V, O, 8, 8)``.
        plate: Colour of the plate, ``(V, O, 3)``.
        colour: Of the digit, ``(V, O, 3)``.
        size: Pixels, ``(V, O)``.
        velocity: Pixels a frame, ``(V, O, 2)``.
        corner: Upper left, ``(V, T, O, 2)``.
        visible: Whether they are there, ``(V, T, O)``.
    """

    ink: Tensor
    plate: Tensor
    colour: Tensor
    size: Tensor
    velocity: Tensor
    corner: Tensor
    visible: Tensor


@dataclass(frozen=True)
class Condition:
    """How well objects can be seen, ``(V, T, O)`` each.

    Args:
        degraded: 0 to 1.
        barred: Whether a bar hides a part.
        upright: Whether the bar stands.
        offset: Where the bar begins, as a share of the size.
        width: How much of the size it covers.
        tone: Its grey.
    """

    degraded: Tensor
    barred: Tensor
    upright: Tensor
    offset: Tensor
    width: Tensor
    tone: Tensor


def blurred(cuts: Tensor, sigma: Tensor) -> Tensor:
    """How much of each pixel of a line lies past each cut, blurred: ``(..., 96, E)``."""
    pixels = torch.arange(SIDE)[:, None] + 0.5
    return 0.5 + 0.5 * torch.erf((pixels - cuts[..., None, :]) / (2**0.5 * sigma[..., None, None]))


def covered(low: Tensor, high: Tensor, sigma: Tensor) -> Tensor:
    """How much of each pixel of a line lies between two points, ``(..., 96)``."""
    steps = blurred(torch.stack([low, high], -1), sigma)
    return steps[..., 0] - steps[..., 1]


def render(objects: Objects, condition: Condition, background: Tensor, draw: Draw) -> Tensor:
    """Draw objects over backgrounds, the last one on top.

    Args:
        objects: What they are.
        condition: How well they are seen.
        background: ``(V, T, 96, 96, 3)`` of 0 to 1.
        draw: For the noise.

    Returns:
        ``(V, T, 96, 96, 3)`` uint8.
    """
    digit, plate = strokes(objects, condition.degraded)
    bar = bars(objects, condition)
    image, grain = background, torch.full(background.shape[:-1], 0.02)
    for number in range(objects.size.shape[1]):
        there = objects.visible[:, :, number, None, None]
        bad = condition.degraded[:, :, number, None, None]
        mask = (plate[:, :, number] * there)[..., None]
        light = (1 - 0.3 * bad)[..., None]
        dark = objects.plate[:, None, number, None, None] * light
        bright = objects.colour[:, None, number, None, None] * light
        image = image * (1 - mask) + dark * mask
        image = image + (bright - dark) * (digit[:, :, number] * there)[..., None]
        over = (bar[:, :, number] * there)[..., None]
        tone = condition.tone[:, :, number, None, None, None]
        image = image * (1 - over) + tone * over
        grain = torch.maximum(grain, 0.02 + 0.1 * bad * mask[..., 0])
    noise = torch.randn(image.shape, generator=draw.generator) * grain[..., None]
    return ((image + noise).clamp(0, 1) * 255).round().to(torch.uint8)


def strokes(objects: Objects, degraded: Tensor) -> tuple[Tensor, Tensor]:
    """How much of each pixel is ink and how much plate, blurred: ``(V, T, O, 96, 96)`` each."""
    size = objects.size[:, None]
    smear = objects.velocity[:, None] * (0.5 + 3 * degraded)[..., None]
    steps = torch.linspace(-0.5, 0.5, EXPOSURES)[:, None]
    lows = objects.corner[:, :, :, None] + smear[:, :, :, None] * steps  # (V, T, O, E, 2)
    cells = torch.linspace(0, 1, CELLS + 1)
    cuts = lows[..., None] + size[..., None, None, None] * cells
    defocus = torch.where(degraded > 0.5, 1.2 + 2.6 * degraded, 2.6 * degraded)
    sigma = ((0.3 * size / CELLS) ** 2 + 0.25 + defocus**2).sqrt()
    past = blurred(cuts, sigma[..., None, None].expand(cuts.shape[:-1]))  # (..., E, 2, 96, 11)
    across, down = (past[..., 1 : CELLS - 1] - past[..., 2:CELLS]).unbind(4)
    rows = down @ objects.ink[:, None, :, None]  # (V, T, O, E, 96, 8)
    ink = rows.transpose(3, 4).flatten(4) @ across.transpose(3, 4).flatten(4).mT
    edges = (past[..., 0] - past[..., CELLS]).transpose(3, 4)  # (V, T, O, 2, E, 96)
    plate = edges[..., 1, :, :].mT @ edges[..., 0, :, :]
    return ink / EXPOSURES, plate / EXPOSURES


def bars(objects: Objects, condition: Condition) -> Tensor:
    """How much of each pixel a bar hides, ``(V, T, O, 96, 96)``."""
    size, upright = objects.size[:, None, :, None], condition.upright
    offset = torch.stack([condition.offset * upright, condition.offset * ~upright], -1)
    share = torch.stack([upright, ~upright], -1)
    share = torch.where(share, condition.width[..., None], 1.0)
    low = objects.corner + offset * size
    across, down = covered(low, low + share * size, torch.tensor(0.4).expand(low.shape)).unbind(3)
    return down[..., None] * across[..., None, :] * condition.barred[..., None, None]


def backgrounds(videos: int, frames: int, split: Split, draw: Draw, moves: bool) -> Tensor:
    """Crops of photographs that pan slowly, ``(V, T, 96, 96, 3)`` of 0 to 1.

    Each is mirrored or not and has its colours exchanged: a dozen photographs are few.
    """
    library = photos(split)
    mirrored = draw.chance(0.5, videos)[:, None, None, None, None]
    colours = torch.rand(videos, 3, generator=draw.generator).argsort(1)
    which = draw.integer(len(library), videos)
    start, speed = draw.uniform(0, 1, videos, 2), draw.uniform(-0.4, 0.4, videos, 2) * moves
    crops = torch.empty(videos, frames, SIDE, SIDE, 3)
    for number, photo in enumerate(library):
        mine = (which == number).nonzero()[:, 0]
        span = torch.tensor(photo.shape[:2]) - float(SIDE)
        path = start[mine, None] * span + speed[mine, None] * torch.arange(frames)[:, None]
        corner = bounce(path, span).long()
        lines = corner[..., None] + torch.arange(SIDE)  # (n, T, 2, 96)
        crops[mine] = photo[lines[:, :, 0, :, None], lines[:, :, 1, None, :]].float() / 255
    crops = crops.gather(4, colours[:, None, None, None].expand(crops.shape))
    return torch.where(mirrored, crops.flip(3), crops)
