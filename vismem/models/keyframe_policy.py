"""A small policy that looks at a scene from several sides and remembers what it saw and did.

After SAM2Act+'s coarse branch, small enough to train on a processor: pictures of several views
become tokens, a transformer looks within each view and then across views, every view is conditioned
on the keyframes that a memory kept (SAM 2's memory attention), heat maps of the next waypoint come
out, and they are written back with the features (SAM 2's memory encoder).

What is repaired against the published code (`vismem.models.sam2act`):

* Tokens have their true positions.
* The first keyframe takes the same way as all others: a learned token that stands for no memory is
  always among the keys. Published, attention and its last normalisation are skipped.
* A heat map is trained up to a constant, so it is made one before it is written: its highest pixel
  is 1. Published, its logits go through a sigmoid, which saturates wherever the constant puts it.
* Ages are true: rows of the table of temporal codes stand for 1, 2, 4, 8 ... keyframes ago, so any
  keyframes may be kept, not the last few alone.
* Attention to memories begins at the same place of the picture, and the encoder's blocks add a
  tenth and not a millionth at first: a few hundred examples are enough to learn to remember.

An augmentation that moves the scene must be the same for all keyframes of a sequence, or memories
are of another place; that is the caller's to see to.

Source: Fang et al., "SAM2Act: Integrating Visual Foundation Model with A Memory Architecture for
Robotic Manipulation", https://arxiv.org/abs/2501.18564. Convex up-sampling: Teed and Deng, "RAFT",
https://arxiv.org/abs/2003.12039.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vismem.memory.spatial import SpatialMemory
from vismem.models.memory_attention import MemoryAttention
from vismem.models.memory_encoder import STRIDE, MemoryEncoder
from vismem.models.sine import sine_map

__all__ = ["Action", "ConvexUpsampler", "KeyframePolicy", "PolicyConfig", "peak_signal"]


@dataclass(frozen=True)
class PolicyConfig:
    """Sizes of a `KeyframePolicy`; the defaults make about a million parameters.

    Args:
        views: Number of views ``V``.
        channels: Of a picture: 3 for colour, 4 with depth.
        size: Height and width of a picture in pixels, multiples of ``patch``.
        patch: Pixels a token is wide, a power of two.
        dim: Width ``C`` of tokens, a multiple of 4 and of ``heads``.
        memory_dim: Width ``E`` of memories.
        heads: Of the transformer.
        within: Layers that look within a view.
        joint: Layers that look across views.
        memory_layers: Of the memory attention.
        ages: Rows of the table of temporal codes; row ``i`` stands for ``2 ** i`` keyframes ago.
        keyframe_seconds: How long a keyframe is where ages are counted in keyframes.
        context: Width of what else is told, such as a goal; 0 for nothing.

    Raises:
        ValueError: If the sizes do not fit.
    """

    views: int = 3
    channels: int = 3
    size: tuple[int, int] = (64, 64)
    patch: int = 8
    dim: int = 96
    memory_dim: int = 64
    heads: int = 4
    within: int = 1
    joint: int = 1
    memory_layers: int = 1
    ages: int = 8
    keyframe_seconds: float = 1.0
    context: int = 0

    def __post_init__(self) -> None:
        if self.patch < 2 or self.patch & (self.patch - 1):
            raise ValueError(f"patch must be a power of two from 2 on, not {self.patch}")
        if any(side < 1 or side % self.patch for side in self.size):
            raise ValueError(f"{self.size} pixels are no whole patches of {self.patch}")
        if self.dim % 4 or self.dim % self.heads or self.memory_dim % 4:
            raise ValueError("dim must be a multiple of 4 and of heads, memory_dim of 4")
        if self.ages < 1 or not self.keyframe_seconds > 0:
            raise ValueError("ages is 1 or more, keyframe_seconds above 0")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of a view's tokens."""
        return self.size[0] // self.patch, self.size[1] // self.patch


class Action(NamedTuple):
    """What a policy does at a keyframe.

    Args:
        heat: ``(V, H, W)`` logits of the waypoint in each view.
        kept: How many keyframes it remembered.
    """

    heat: Tensor
    kept: int


def peak_signal(heat: Tensor) -> Tensor:
    """What the memory encoder takes for a heat map: 10 at the highest pixel, towards -10 elsewhere.

    Args:
        heat: ``(..., H, W)`` logits. A constant that is added to a map changes nothing.

    Example:
        >>> peak_signal(torch.tensor([[5.0, -50.0]]))
        tensor([[ 10., -10.]])
    """
    return (heat - heat.amax((-2, -1), keepdim=True)).exp() * 20 - 10


class ConvexUpsampler(nn.Module):
    """Make a map larger: each fine pixel is a weighted mean of the nine coarse ones around it.

    Args:
        dim: Channels of what is known of each coarse pixel.
        factor: How many times larger.
    """

    def __init__(self, dim: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.mix = nn.Conv2d(dim, dim, 3, padding=1)
        self.value = nn.Conv2d(dim, 1, 3, padding=1)
        self.weight = nn.Conv2d(dim, 9 * factor**2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """From ``(B, C, H, W)`` to ``(B, factor * H, factor * W)``."""
        x = F.gelu(self.mix(x))
        around = F.unfold(F.pad(self.value(x), (1, 1, 1, 1), "replicate"), 3)  # (B, 9, H * W)
        # The weights' gradients are made small, as published, so that values are learned first.
        weight = (0.1 * self.weight(x)).unflatten(1, (9, self.factor**2)).softmax(1)
        fine = (weight.flatten(3) * around[:, :, None]).sum(1)
        return F.pixel_shuffle(fine.unflatten(2, x.shape[2:]), self.factor)[:, 0]


class KeyframePolicy(nn.Module):
    """Heat maps of the next waypoint from several views and a memory of keyframes.

    Args:
        config: Sizes.

    Example:
        >>> policy = KeyframePolicy(PolicyConfig(size=(16, 24), dim=16, memory_dim=4))
        >>> policy(torch.rand(2, 4, 3, 3, 16, 24)).shape  # two sequences of four keyframes
        torch.Size([2, 4, 3, 16, 24])
    """

    def __init__(self, config: PolicyConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or PolicyConfig()
        dim, steps = config.dim, config.patch.bit_length() - 1
        widths = [config.channels, *(max(16, dim >> (steps - 1 - step)) for step in range(steps))]
        widths[-1] = dim
        stem: list[nn.Module] = []
        for a, b in zip(widths, widths[1:], strict=False):
            stem += [nn.Conv2d(a, b, 3, stride=2, padding=1), nn.GELU()]
        self.stem = nn.Sequential(*stem)
        self.view = nn.Parameter(0.02 * torch.randn(config.views, 1, dim))
        self.context = nn.Linear(config.context, dim) if config.context else None
        self.within, self.joint = (
            nn.ModuleList(self._layer() for _ in range(count))
            for count in (config.within, config.joint)
        )
        self.attention = MemoryAttention(
            dim, config.memory_dim, config.memory_layers, 4 * dim, dropout=0.0
        )
        for reader in self.attention.readers():
            # Equal biases agree best where they are turned alike: each cell looks at its own past
            # at first, and need not find out that places are the same from keyframe to keyframe.
            nn.init.constant_(reader.query.bias, 4.0)
            nn.init.constant_(reader.key.bias, 4.0)
        self.encoder = MemoryEncoder(dim, config.memory_dim, scale=0.1)
        self.temporal = nn.Parameter(0.02 * torch.randn(config.ages, config.memory_dim))
        self.nothing = nn.Parameter(0.02 * torch.randn(config.memory_dim))
        self.upsampler = ConvexUpsampler(dim, config.patch)

    def _layer(self) -> nn.TransformerEncoderLayer:
        dim = self.config.dim
        return nn.TransformerEncoderLayer(
            dim, self.config.heads, 4 * dim, 0.0, "gelu", batch_first=True, norm_first=True
        )

    # ------------------------------------------------------------------ the parts of a step

    def encode(self, images: Tensor, context: Tensor | None = None) -> Tensor:
        """Tokens of the views, not conditioned on memories.

        Args:
            images: ``(B, V, channels, H, W)``.
            context: ``(B, context)``, if the policy takes one.

        Returns:
            ``(B, V, N, C)``.

        Raises:
            ValueError: If the shapes do not fit.
        """
        config = self.config
        if images.ndim != 5 or images.shape[1:] != (config.views, config.channels, *config.size):
            wanted = ", ".join(map(str, (config.views, config.channels, *config.size)))
            raise ValueError(f"images must be (B, {wanted}), not {tuple(images.shape)}")
        batch, views = images.shape[:2]
        if (context is None) != (self.context is None) or (
            context is not None and context.shape != (batch, config.context)
        ):
            found = None if context is None else tuple(context.shape)
            raise ValueError(f"context must be ({batch}, {config.context}), not {found}")
        x = self.stem(images.flatten(0, 1)).flatten(2).mT + self._place(config.dim)
        for layer in self.within:
            x = layer(x)
        x = (x.unflatten(0, (batch, views)) + self.view).flatten(1, 2)
        if context is not None and self.context is not None:
            x = torch.cat([x, self.context(context)[:, None]], 1)
        for layer in self.joint:
            x = layer(x)
        return x[:, : views * math.prod(config.grid)].unflatten(1, (views, -1))

    def read(self, x: Tensor, kept: Sequence[Tensor], ages: Sequence[float]) -> Tensor:
        """Condition tokens on keyframes.

        Args:
            x: ``(B, V, N, C)``.
            kept: Of each keyframe that is remembered, ``(B, V, N, E)``, in any order.
            ages: How many keyframes ago each was.

        Returns:
            ``(B, V, N, C)``; each view has looked at its own past alone.

        Raises:
            ValueError: If an age is not above 0, or there are not as many as keyframes.
        """
        if len(ages) != len(kept) or any(not age > 0 for age in ages):
            raise ValueError(f"{len(kept)} keyframes need as many ages above 0, not {list(ages)}")
        place = self._place(self.config.memory_dim)
        rows = [min(max(round(math.log2(age)), 0), self.config.ages - 1) for age in ages]
        codes = [place + self.temporal[row] for row in rows]
        none = self.nothing.expand(len(x) * x.shape[1], 1, -1)
        memory = torch.cat([*(tokens.flatten(0, 1).to(none) for tokens in kept), none], 1)
        seen = self.attention(
            x.flatten(0, 1),
            memory,
            grid=self.config.grid,
            position=self._place(self.config.dim),
            memory_position=torch.cat([*codes, torch.zeros_like(self.nothing)[None]]),
            pointers=1,
        )
        return seen.unflatten(0, x.shape[:2])

    def heat(self, x: Tensor) -> Tensor:
        """Logits of the waypoint, ``(B, V, H, W)``, from tokens ``(B, V, N, C)``."""
        maps = x.flatten(0, 1).mT.unflatten(2, self.config.grid)
        return self.upsampler(maps).unflatten(0, x.shape[:2])

    def write(self, x: Tensor, heat: Tensor) -> Tensor:
        """Make the memory of a keyframe.

        Args:
            x: ``(B, V, N, C)`` of `encode`.
            heat: ``(B, V, H, W)`` of `heat`.

        Returns:
            ``(B, V, N, E)``.
        """
        grid = self.config.grid
        signal = peak_signal(heat).flatten(0, 1)[:, None]
        size = (STRIDE * grid[0], STRIDE * grid[1])
        signal = F.interpolate(signal, size, mode="bilinear", align_corners=False)
        maps = x.flatten(0, 1).mT.unflatten(2, grid)
        return self.encoder(maps, signal).flatten(2).mT.unflatten(0, x.shape[:2])

    def _place(self, channels: int) -> Tensor:
        where = self.temporal
        return sine_map(*self.config.grid, channels, dtype=where.dtype, device=where.device)

    # ------------------------------------------------------------------ a sequence, a stream

    def forward(
        self, images: Tensor, context: Tensor | None = None, *, last: int | None = None
    ) -> Tensor:
        """Act through sequences of keyframes; gradients flow through the memory.

        Args:
            images: ``(B, T, V, channels, H, W)``.
            context: ``(B, T, context)``, if the policy takes one.
            last: How many of the last keyframes are remembered; all by default, none with 0.

        Returns:
            Logits ``(B, T, V, H, W)``.
        """
        out: list[Tensor] = []
        kept: list[Tensor] = []
        for step in range(images.shape[1]):
            x = self.encode(images[:, step], None if context is None else context[:, step])
            out.append(self.heat(self.read(x, kept, range(len(kept), 0, -1))))
            if last != 0 and step + 1 < images.shape[1]:
                kept = [*kept, self.write(x, out[-1])][-(last or step + 1) :]
        return torch.stack(out, 1)

    @torch.no_grad()
    def act(
        self,
        images: Tensor,
        bank: SpatialMemory,
        time: float,
        context: Tensor | None = None,
        **write: Any,
    ) -> Action:
        """Act at one keyframe of a stream: read what the bank kept, and write.

        The views of a keyframe are one view of the bank, one below the other: its tokens are
        ``(V * N, E)``. The last few keyframes alone are remembered by the policy ``"fifo"`` of a
        bank of so many ``max_views``.

        Args:
            images: ``(V, channels, H, W)``.
            bank: Whose views are read and written.
            time: Seconds, later than the write before.
            context: ``(context,)``, if the policy takes one.
            **write: What else the bank is to know, such as ``pose`` or ``prompted``.

        Returns:
            The heat maps, and how many keyframes were remembered.
        """
        config = self.config
        views = bank.snapshot().views()
        x = self.encode(images[None], None if context is None else context[None])
        kept = [view.tokens.unflatten(0, (config.views, -1))[None] for view in views]
        ages = [(time - view.time) / config.keyframe_seconds for view in views]
        heat = self.heat(self.read(x, kept, ages))
        grid = (config.views * config.grid[0], config.grid[1])
        bank.write(self.write(x, heat)[0].flatten(0, 1), time, grid=grid, **write)
        return Action(heat[0], len(views))
