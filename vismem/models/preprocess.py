"""From frames to what a vision tower takes: resize, rescale, normalise, cut into patches.

Plain tensor operations that run where the frames are and take one frame as well as many; what they
give is what the stock processors of transformers give (of SmolVLM nearly: these resize twice). The
size rule of the Qwen models follows Wang et al., "Qwen2-VL", 2024
(https://arxiv.org/abs/2409.12191), section 2.1.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from math import ceil, floor, sqrt
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

__all__ = ["PixelScale", "check_frames", "normalise", "patches", "resize", "smart_size"]

# Where a checkpoint says how its pixels are scaled; the first file that says so wins.
SCALE_FILES = ("video_preprocessor_config.json", "preprocessor_config.json")


@dataclass(frozen=True, slots=True)
class PixelScale:
    """Mean and standard deviation of each colour, of pixels between 0 and 1.

    Args:
        mean: Red, green and blue.
        std: Red, green and blue.

    Example:
        >>> PixelScale().mean
        (0.5, 0.5, 0.5)
    """

    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @classmethod
    def read(cls, folder: Path) -> PixelScale | None:
        """What a checkpoint's folder says of its pixels; None where it says nothing.

        Args:
            folder: Holds ``video_preprocessor_config.json``, ``preprocessor_config.json`` or
                ``processor_config.json``.
        """
        found = [_json(folder / name) for name in SCALE_FILES]
        whole = _json(folder / "processor_config.json")
        found += [whole.get("video_processor", {}), whole.get("image_processor", {})]
        for scale in found:
            if "image_mean" in scale and "image_std" in scale:
                return cls(tuple(scale["image_mean"]), tuple(scale["image_std"]))
        return None


def check_frames(frames: Tensor | np.ndarray) -> Tensor:
    """The frames as a tensor, or an error that says what is wrong with them.

    Args:
        frames: ``(F, H, W, 3)`` uint8 RGB.

    Raises:
        ValueError: If shape or number format is another, or a frame has no pixels.

    Example:
        >>> check_frames(np.zeros((2, 4, 6, 3), np.uint8)).shape
        torch.Size([2, 4, 6, 3])
    """
    tensor = torch.as_tensor(frames)
    if tensor.ndim != 4 or tensor.shape[-1] != 3 or tensor.dtype != torch.uint8:
        raise ValueError(
            f"frames are (F, H, W, 3) uint8, not {tuple(tensor.shape)} {str(tensor.dtype)[6:]}"
        )
    if 0 in tensor.shape:
        raise ValueError(f"frames without a pixel: {tuple(tensor.shape)}")
    return tensor


def resize(frames: Tensor, height: int, width: int) -> Tensor:
    """Resize bicubically with antialiasing, in whole levels as the stock processors do.

    Args:
        frames: ``(F, H, W, 3)`` uint8.
        height: Of the result.
        width: Of the result.

    Returns:
        ``(F, 3, height, width)`` uint8. The CPU has a path for bytes; elsewhere the same is done
        in float32 and rounded, which differs by one level at most.
    """
    planes = rearrange(frames, "f h w c -> f c h w")
    if planes.shape[-2:] == (height, width):
        return planes
    bicubic = partial(F.interpolate, size=(height, width), mode="bicubic", antialias=True)
    if planes.device.type == "cpu":
        return bicubic(planes)
    return bicubic(planes.float()).round_().clamp_(0, 255).to(torch.uint8)


def normalise(planes: Tensor, scale: PixelScale) -> Tensor:
    """From levels 0 to 255 to what a vision tower was trained on.

    Args:
        planes: ``(F, 3, H, W)`` uint8.
        scale: The model's.

    Returns:
        ``(F, 3, H, W)`` float32.
    """
    mean, std = (torch.tensor(part, device=planes.device) for part in (scale.mean, scale.std))
    shift, factor = (255 * part.view(3, 1, 1) for part in (mean, std))
    return (planes.float() - shift) / factor


def smart_size(
    height: int, width: int, factor: int, tokens: tuple[int, int], *, ratio: float = 200
) -> tuple[int, int]:
    """The size that a Qwen model sees a frame at: whole tokens, aspect kept as far as that goes.

    Args:
        height: Of the frame.
        width: Of the frame.
        factor: Pixels along a token's side: patch size times merge size.
        tokens: Least and most tokens of a frame; the most is a hard limit.
        ratio: The longest side may be this many times the shortest.

    Returns:
        Height and width, multiples of ``factor``.

    Raises:
        ValueError: If the frame is too elongated.

    Example:
        >>> smart_size(480, 640, 28, (128, 768))
        (476, 644)
    """
    if max(height, width) > ratio * min(height, width):
        raise ValueError(f"a frame of {height} x {width} pixels is too elongated for this model")
    low, high = (count * factor**2 for count in tokens)
    rows, columns = round(height / factor), round(width / factor)
    area = rows * columns * factor**2
    if area > high:
        shrink = sqrt(height * width / high)
        rows, columns = (max(1, floor(side / shrink / factor)) for side in (height, width))
    elif area < low:
        grow = sqrt(low / (height * width))
        rows, columns = (ceil(side * grow / factor) for side in (height, width))
    rows = min(rows, tokens[1])  # the published rule exceeds the bound for narrow frames
    columns = min(columns, tokens[1] // rows)
    return rows * factor, columns * factor


def patches(planes: Tensor, patch: int, merge: int, depth: int) -> Tensor:
    """Cut each frame into patches, those that merge into one token next to each other.

    Args:
        planes: ``(F, 3, H, W)``, sides multiples of ``patch * merge``.
        patch: Pixels along a patch's side.
        merge: Patches along a token's side.
        depth: Frames that a patch is deep. Each frame is repeated this often, so that it is one
            step in time by itself: a stream has no next frame to wait for. The stock processors
            do the same with a picture.

    Returns:
        ``(F * H/patch * W/patch, 3 * depth * patch**2)``.
    """
    tiles = rearrange(
        planes,
        "f c (gh mh ph) (gw mw pw) -> (f gh gw mh mw) c ph pw",
        **{"mh": merge, "mw": merge, "ph": patch, "pw": patch},
    )
    return repeat(tiles, "n c ph pw -> n (c t ph pw)", t=depth)


def _json(path: Path) -> dict:
    """What a JSON file holds; nothing where there is no such file."""
    return json.loads(path.read_text()) if path.is_file() else {}
