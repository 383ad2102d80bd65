"""`Sightings`: the things that one frame shows, as places in the world, and what could be seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

__all__ = ["SHAPES", "Sightings"]

SHAPES = ("block", "ball", "can")  # what geometry alone tells apart


@dataclass(frozen=True, slots=True, eq=False)
class Sightings:
    """``N`` things seen in one frame, and the coarse depth picture that tells what is not there.

    Everything that a memory of objects takes from a frame; a log of them replays it bit for bit.

    Args:
        look: Appearance, ``(N, D)`` float16 of unit length.
        position: Centre of the volume in the world, ``(N, 3)`` float64 metres.
        sigma: One standard deviation of it, ``(N,)`` float32 metres.
        extent: Sides of the box along the world's axes, ``(N, 3)`` float32 metres.
        box: Where in the picture, ``(N, 4)`` float32 ``x0 y0 x1 y1`` as fractions.
        color: Share of each colour name, ``(N, C)`` float32.
        shape: How much it looks like each of `SHAPES`, ``(N, 3)`` float32, summing to one.
        label: Numbers of the encoder's labels for it, ``(N, L)`` int16, -1 for none.
        label_score: How sure, ``(N, L)`` float32.
        cut: Whether the picture's edge or something nearer cuts it, ``(N,)`` bool; its place is
            then less sure than ``sigma`` says.
        near: Least depth in each cell of a grid over the picture, ``(h, w)`` int16 millimetres;
            0 where nothing is known.
        pose: Camera-to-world, ``(4, 4)`` float64.
        intrinsics: ``(3, 3)`` float64, for a picture of width and height 1.
    """

    look: Tensor
    position: Tensor
    sigma: Tensor
    extent: Tensor
    box: Tensor
    color: Tensor
    shape: Tensor
    label: Tensor
    label_score: Tensor
    cut: Tensor
    near: Tensor
    pose: Tensor
    intrinsics: Tensor

    def __len__(self) -> int:
        return len(self.look)

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name, as a log keeps it."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Sightings:
        """Inverse of `tensors`; what else is in the mapping is left alone.

        Raises:
            ValueError: If something is missing.
        """
        missing = [field.name for field in fields(cls) if field.name not in tensors]
        if missing:
            raise ValueError(f"sightings without {', '.join(missing)}")
        return cls(**{field.name: tensors[field.name] for field in fields(cls)})

    def check(self, look_dim: int, labels: int, most: int) -> None:
        """Refuse what no memory can take.

        Args:
            look_dim: ``D``.
            labels: ``L``.
            most: Things at most.

        Raises:
            ValueError: If a shape does not fit, a number is not finite, or a size is negative.
        """
        count, (height, width) = len(self.look), tuple(self.near.shape)
        if count > most:
            raise ValueError(f"a frame shows {most} things at most, not {count}")
        shapes = {
            "look": (count, look_dim),
            "position": (count, 3),
            "sigma": (count,),
            "extent": (count, 3),
            "box": (count, 4),
            "color": (count, self.color.shape[-1]),
            "shape": (count, len(SHAPES)),
            "label": (count, labels),
            "label_score": (count, labels),
            "cut": (count,),
            "near": (height, width),
            "pose": (4, 4),
            "intrinsics": (3, 3),
        }
        for name, shape in shapes.items():
            value = getattr(self, name)
            if tuple(value.shape) != shape:
                raise ValueError(f"{name} must be {shape}, not {tuple(value.shape)}")
            if not torch.isfinite(value).all():
                raise ValueError(f"{name} holds NaN or infinity")
        if not torch.isfinite(self.look.half()).all():
            raise ValueError("looks must be within ±65504, the range of float16")
        if count and not bool((self.sigma > 0).all() and (self.extent >= 0).all()):
            raise ValueError("sigma is above 0 metres and an extent 0 or more")
