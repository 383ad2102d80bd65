"""A small detector of digits: five convolutions, and at most eight objects of a frame.

It looks at one frame alone. Its weights, `data/digit_detector.safetensors`, are made by
`python benchmarks/vod/train.py`, and stay as they are in everything that is compared.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from generate import CLASSES, SIDE, Videos, overlap, turned
from safetensors.torch import load_file
from torch import Tensor, nn

WEIGHTS = Path(__file__).parents[2] / "data" / "digit_detector.safetensors"
STRIDE = 8  # pixels of a cell
GRID = SIDE // STRIDE
DIM = 128
PEAKS = 8  # most objects of a frame
TYPICAL = 26.0  # pixels of a box before anything is learnt
APART = 0.5  # IoU from which the weaker of two boxes is given up


def convolution(inputs: int, outputs: int, size: int, stride: int) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class Detector(nn.Module):
    """Cells of 8 pixels, each with an embedding, an objectness and a box."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            convolution(3, 16, 3, 2),
            convolution(16, 32, 3, 2),
            convolution(32, 64, 3, 2),
            convolution(64, 96, 3, 1),
            convolution(96, 96, 3, 1),
        )
        self.embed = convolution(96, DIM, 1, 1)
        self.place = nn.Conv2d(DIM, 5, 1)  # objectness, shift x y, log size x y
        self.classify = nn.Linear(DIM, CLASSES)
        nn.init.zeros_(self.place.weight)
        nn.init.zeros_(self.place.bias)
        nn.init.constant_(self.place.bias[:1], -4.0)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings ``(B, 144, 128)``, objectness ``(B, 144)`` as logits, boxes ``(B, 144, 4)``.

        Args:
            images: ``(B, 96, 96, 3)`` uint8.
        """
        pixels = images.permute(0, 3, 1, 2).float() / 127.5 - 1
        cells = self.embed(self.body(pixels))
        objectness, shift, size = self.place(cells).flatten(2).mT.split([1, 2, 2], 2)
        centre = centres() + shift * STRIDE
        half = size.clamp(-2, 2).exp() * TYPICAL / 2
        boxes = torch.cat([centre - half, centre + half], 2)
        return cells.flatten(2).mT, objectness[..., 0], boxes


def centres() -> Tensor:
    """Of the cells, ``(144, 2)`` pixels, row by row."""
    line = (torch.arange(GRID) + 0.5) * STRIDE
    return torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).flatten(0, 1)


def load_detector(path: Path = WEIGHTS) -> Detector:
    """The trained detector, frozen.

    Raises:
        FileNotFoundError: If there are no weights, naming what makes them.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; python benchmarks/vod/train.py makes it")
    detector = Detector()
    detector.load_state_dict(load_file(path))
    return detector.eval().requires_grad_(False)


@dataclass(frozen=True)
class Found:
    """What the detector found; ``V`` videos, ``T`` frames, ``P`` peaks, best first.

    Args:
        tokens: ``(V, T, P, 128)`` embeddings.
        boxes: ``(V, T, P, 4)`` pixels.
        objectness: ``(V, T, P)`` 0 to 1; 0 where there is no peak.
        logits: ``(V, T, P, 10)`` of the classes, by the detector itself.
        times: ``(V, T)`` float64 seconds.
    """

    tokens: Tensor
    boxes: Tensor
    objectness: Tensor
    logits: Tensor
    times: Tensor

    def __getitem__(self, videos: slice | Tensor) -> Found:
        return Found(*(getattr(self, field.name)[videos] for field in fields(self)))

    @cached_property
    def scores(self) -> Tensor:
        """Of the best class, ``(V, T, P)``: what a detector would print beside a box."""
        return self.objectness * self.logits.softmax(-1).amax(-1)

    @cached_property
    def fractions(self) -> Tensor:
        """Boxes as fractions of the frame, ``(V, T, P, 4)``."""
        return (self.boxes / SIDE).clamp(0, 1)

    def reordered(self, order: Tensor) -> Found:
        """With frames in another order ``(V, T)``, as if they had come so: times stay sorted."""
        columns = (self.tokens, self.boxes, self.objectness, self.logits)
        return Found(*(turned(column, order) for column in columns), self.times)


def peaks(objectness: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Pick local maxima that do not overlap: cells ``(B, 8)`` and their objectness, best first.

    Args:
        objectness: ``(B, 144)`` of 0 to 1.
        boxes: ``(B, 144, 4)``.
    """
    grid = objectness.reshape(-1, 1, GRID, GRID)
    top = F.max_pool2d(grid, 3, 1, 1)
    values, cells = torch.where(grid == top, grid, 0.0).flatten(1).topk(PEAKS, sorted=True)
    near = boxes.gather(1, cells[..., None].expand(-1, -1, 4))
    close = overlap(near[:, :, None], near[:, None]) > APART
    for better in range(PEAKS - 1):
        taken = close[:, better, better + 1 :] & (values[:, better, None] > 0)
        values[:, better + 1 :] = values[:, better + 1 :].masked_fill(taken, 0.0)
    values, order = values.sort(dim=1, descending=True, stable=True)
    return cells.gather(1, order), values


@torch.no_grad()
def find(detector: Detector, videos: Videos, batch: int = 64) -> Found:
    """Run the detector over every frame by itself."""
    shape = videos.images.shape[:2]
    parts = []
    for images in videos.images.flatten(0, 1).split(batch):
        tokens, objectness, boxes = detector(images)
        cells, values = peaks(objectness.sigmoid(), boxes)
        index = cells[..., None]
        tokens = tokens.gather(1, index.expand(-1, -1, DIM))
        boxes = boxes.gather(1, index.expand(-1, -1, 4))
        parts.append((tokens, boxes, values, detector.classify(tokens)))
    columns = (torch.cat(column).unflatten(0, shape) for column in zip(*parts, strict=True))
    return Found(*columns, videos.times)
