"""SAM 2's memory encoder: the features of a picture and a mask on it become a memory map.

The mask is brought to the size of the features in four steps of a convolution that halves it, is
added to the features, and two ConvNeXt blocks mix the two before a projection makes them narrow.

Source: Ravi et al., "SAM 2: Segment Anything in Images and Videos", https://arxiv.org/abs/2408.00714;
github.com/facebookresearch/sam2. Blocks after Liu et al., https://arxiv.org/abs/2201.03545. The map
may have any two sides. Weights load by `vismem.models.sam2_names`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["MaskDownsampler", "MemoryEncoder", "exclusive_masks", "mask_signal"]

STEPS = 4  # halvings of the mask
STRIDE = 2**STEPS


def mask_signal(logits: Tensor, *, binary: bool = False) -> Tensor:
    """What the encoder takes for a mask: from -10 where nothing is to 10 where the object is.

    Args:
        logits: Of the mask, any shape.
        binary: Whether a pixel is all or nothing, as for masks that a person clicked.

    Example:
        >>> mask_signal(torch.tensor([-1.0, 2.0]), binary=True)
        tensor([-10.,  10.])
    """
    there = (logits > 0).to(logits.dtype) if binary else logits.sigmoid()
    return there * 20 - 10


def exclusive_masks(logits: Tensor) -> Tensor:
    """Give every pixel to one object alone, the one surest of it.

    Args:
        logits: ``(B, 1, H, W)`` masks of the ``B`` objects of a picture.

    Returns:
        As ``logits``, at most -10 where another object is surer; the first wins a tie.

    Example:
        >>> exclusive_masks(torch.tensor([3.0, 5.0]).view(2, 1, 1, 1)).flatten()
        tensor([-10.,   5.])
    """
    if len(logits) < 2:
        return logits
    owner = logits.argmax(0, keepdim=True)
    mine = owner == torch.arange(len(logits), device=logits.device)[:, None, None, None]
    return torch.where(mine, logits, logits.clamp(max=-10))


class _ChannelNorm(nn.LayerNorm):
    """Normalise the channels of each cell of a map ``(B, C, H, W)``."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _Halving(nn.Module):
    """A convolution that halves a map and makes it four times as deep."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4 * channels, 3, stride=2, padding=1)
        self.norm = _ChannelNorm(4 * channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.norm(self.conv(x)))


class MaskDownsampler(nn.Module):
    """A mask at sixteen times the size of a map becomes a map.

    Args:
        dim: Width of the map.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(_Halving(4**step) for step in range(STEPS))
        self.output = nn.Conv2d(4**STEPS, dim, 1)

    def forward(self, mask: Tensor) -> Tensor:
        """From ``(B, 1, 16 H, 16 W)`` to ``(B, dim, H, W)``."""
        for stage in self.stages:
            mask = stage(mask)
        return self.output(mask)


class _Block(nn.Module):
    """A ConvNeXt block: a wide look around by channel, then a network of two layers by cell."""

    def __init__(self, dim: int, scale: float) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = _ChannelNorm(dim, eps=1e-6)
        self.widen, self.narrow = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.scale = nn.Parameter(torch.full((dim,), scale))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x)).permute(0, 2, 3, 1)
        y = self.scale * self.narrow(F.gelu(self.widen(y)))
        return x + y.permute(0, 3, 1, 2)


class MemoryEncoder(nn.Module):
    """Make a memory map of the features of a picture and a mask.

    Args:
        dim: Width ``C`` of features.
        memory_dim: Width ``E`` of the memory.
        blocks: How many blocks mix features and mask.
        scale: How much of it a block adds at first; hardly anything as published.

    Example:
        >>> encoder = MemoryEncoder(dim=16, memory_dim=4)
        >>> encoder(torch.randn(1, 16, 2, 3), torch.randn(1, 1, 32, 48)).shape
        torch.Size([1, 4, 2, 3])
    """

    def __init__(
        self, dim: int = 256, memory_dim: int = 64, blocks: int = 2, scale: float = 1e-6
    ) -> None:
        super().__init__()
        self.dim = dim
        self.mask = MaskDownsampler(dim)
        self.features = nn.Conv2d(dim, dim, 1)
        self.blocks = nn.ModuleList(_Block(dim, scale) for _ in range(blocks))
        self.output = nn.Conv2d(dim, memory_dim, 1)

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Encode.

        Args:
            features: ``(B, C, H, W)``, not conditioned on memories.
            mask: ``(B, 1, 16 H, 16 W)`` of `mask_signal`.

        Returns:
            ``(B, E, H, W)``.

        Raises:
            ValueError: If the shapes do not fit.
        """
        if features.ndim != 4 or features.shape[1] != self.dim:
            raise ValueError(f"features must be (B, {self.dim}, H, W), not {tuple(features.shape)}")
        height, width = (STRIDE * side for side in features.shape[2:])
        if mask.shape != (len(features), 1, height, width):
            raise ValueError(
                f"the mask must be ({len(features)}, 1, {height}, {width}), {STRIDE} times the "
                f"features' grid, not {tuple(mask.shape)}; bring it there with F.interpolate"
            )
        x = self.features(features) + self.mask(mask)
        for block in self.blocks:
            x = block(x)
        return self.output(x)
