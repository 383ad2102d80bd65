"""A view on its way into a `SpatialMemory`: checked, and in the form that it is stored in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vismem.geometry import is_pose
from vismem.memory.views import SpatialConfig, place_of, signature_of

__all__ = ["UNKNOWN", "NewView"]

UNKNOWN = -1  # the nearest of a view, while nobody needs it
_NOWHERE = (0, 0, 0, -1)  # the place of a view without a pose


@dataclass(frozen=True, eq=False, slots=True)
class NewView:
    """What a write brings.

    Args:
        row: ``(1,)`` of `SpatialConfig.row`.
        signature: ``(S,)`` float32.
        tokens: ``(N, D)``, a copy.
        positions: ``(N, 3)`` float32, a copy, or none.
        objects: Numbers, ascending.
    """

    row: np.ndarray
    signature: np.ndarray
    tokens: Tensor
    positions: Tensor | None
    objects: tuple[int, ...]

    @classmethod
    def checked(
        cls,
        config: SpatialConfig,
        source: int,
        tokens: Tensor,
        time: float,
        *,
        grid: tuple[int, int] | None,
        pose: Tensor | np.ndarray | None,
        intrinsics: Tensor | np.ndarray | None,
        positions: Tensor | np.ndarray | None,
        signature: Tensor | np.ndarray | None,
        pointer: Tensor | None,
        prompted: bool,
        objects: Iterable[int],
    ) -> NewView:
        """Take the arguments of `SpatialMemory.write`, tokens and time checked already.

        Raises:
            ValueError: If anything does not fit or is not finite.
        """
        cells = tokens.detach().to("cpu", config.torch_dtype, copy=True).contiguous()
        if not torch.isfinite(cells.half()).all():
            raise ValueError("tokens must be within ±65504, the range of float16")
        count = len(cells)
        shape = (1, count) if grid is None else (int(grid[0]), int(grid[1]))
        if min(shape) < 1 or shape[0] * shape[1] != count:
            raise ValueError(f"a grid of {shape} does not hold {count} tokens")
        points = None
        if positions is not None:
            points = torch.as_tensor(positions).detach().to("cpu", torch.float32, copy=True)
            if tuple(points.shape) != (count, 3) or torch.isinf(points).any():
                raise ValueError(f"positions must be ({count}, 3) metres, NaN where unknown")
        shown = tuple(sorted({int(number) for number in objects}))
        if config.signature_dim == 0:
            if signature is not None:
                raise ValueError(
                    "the signature is made of the tokens; set signature_dim to give one"
                )
            signature = signature_of(cells, shape, config.blocks)
        elif signature is None:
            raise ValueError(f"a write needs a signature of ({config.signature_dim},)")
        look = _finite("signature", signature, (config.signature_width,), np.dtype("f4"))

        row = np.zeros(1, config.row)
        row["time"] = row["seen"] = time
        row["source"], row["weight"], row["prompted"] = source, 1, prompted
        row["grid"], row["place"] = shape, _NOWHERE
        row["rank"], row["nearest"] = math.inf, UNKNOWN
        row["bytes"] = cells.nbytes + (0 if points is None else points.nbytes) + 8 * len(shown)
        for name, value in {"pose": pose, "intrinsics": intrinsics, "pointer": pointer}.items():
            row[name] = math.nan
            if value is not None:
                row[name] = _finite(name, value, row[name].shape[1:], row.dtype[name].base)
        if pose is not None:
            if not is_pose(row["pose"][0]):
                raise ValueError("a pose is a rigid (4, 4) camera-to-world transform")
            row["place"] = place_of(row["pose"][0], config.place)
        return cls(row, look, cells, points, shown)


def _finite(name: str, value: Any, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Take numbers of a known shape as they are stored.

    Raises:
        ValueError: If the shape is another, or a number is not finite.
    """
    if isinstance(value, Tensor):
        value = value.detach().cpu().double().numpy()
    with np.errstate(over="ignore"):
        numbers = np.asarray(value).astype(dtype)
    if numbers.shape != tuple(shape):
        raise ValueError(f"the {name} must be {tuple(shape)}, not {numbers.shape}")
    if not np.isfinite(numbers).all():
        raise ValueError(f"the {name} holds NaN or infinity; leave it out where it is unknown")
    return numbers
