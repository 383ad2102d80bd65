"""What is chosen once about a static/dynamic memory."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
from functools import cached_property

import torch
from torch import Tensor

from vismem.memory.static_dynamic.motion_cue import View

__all__ = ["StaticDynamicConfig"]

_FARTHEST = 2**20  # cells from the origin


@dataclass(frozen=True)
class StaticDynamicConfig:
    """Sizes and rules of a `StaticDynamicMemory`.

    Args:
        token_dim: Width D of tokens.
        axes: Of positions: 3 for metres in the world, 2 for fractions of a fixed camera's picture,
            0 where there are none.
        dynamic_share: Of the budget for the ring of what moves.
        voxel: Size of a cell at the start, in units of the positions. In the world its radius; in
            the picture its side: what one token covers, or a little less.
        growth: By which cells grow when room runs out; the less, the fuller the budget stays.
        most_weight: Observations after which a mean follows as a running one.
        max_tokens: Of one write.
        noise: Standard deviation of a channel of a token between two looks at the same thing, in
            the token's own units; for ``axes=2``. Measure it on a few seconds in which little moves
            with `vismem.memory.static_dynamic.motion_cue.noise_of`.
        bucket: Root mean square over channels, in units of ``noise``, up to which two tokens of a
            patch are one look; for ``axes=2``.
        cosine: From which on two tokens are one look; for ``axes=0``.
        rest_seconds: After which what came to rest is static, and over which a look has to be seen
            in sum until it counts as background.
        apart: Moving tokens nearer than this are one thing, in units of the positions; None is four
            voxels.
        max_tracks: Moving things followed at most.

    Raises:
        ValueError: If a number is out of its range.
    """

    token_dim: int
    axes: int = 3
    dynamic_share: float = 0.2
    voxel: float = 0.08
    growth: float = 2 ** (1 / 24)
    most_weight: float = 200.0
    max_tokens: int = 4096
    noise: float = 0.05
    bucket: float = 3.0
    cosine: float = 0.9
    rest_seconds: float = 3.0
    apart: float | None = None
    max_tracks: int = 64

    def __post_init__(self) -> None:
        if self.axes not in (0, 2, 3):
            raise ValueError(f"axes is 3, 2 or 0, not {self.axes}")
        if min(self.token_dim, self.max_tokens) < 1 or self.max_tracks < 0:
            raise ValueError("token_dim and max_tokens are 1 or more, max_tracks 0 or more")
        above = (self.voxel, self.most_weight, self.noise, self.bucket, self.rest_seconds)
        if not all(0 < value < math.inf for value in (*above, self.reach)):
            raise ValueError("lengths, weights, noise and times are above 0")
        if not (0 <= self.dynamic_share <= 1 and 1 < self.growth <= 4 and -1 < self.cosine < 1):
            raise ValueError("dynamic_share is in 0 to 1, growth in 1 to 4, cosine in -1 to 1")

    @property
    def reach(self) -> float:
        """Distance of moving tokens from which on they are two things."""
        return 4 * self.voxel if self.apart is None else self.apart

    def checked(
        self,
        tokens: Tensor,
        positions: Tensor | None,
        motion: Tensor | None,
        confidence: Tensor | None,
        view: View | None,
    ) -> Tensor:
        """Refuse what does not fit into a `StaticDynamicMemory.write`, of which the arguments are.

        Returns:
            The places of the tokens, ``(N, axes)`` float32.

        Raises:
            ValueError: If something is of another shape, out of its range or not finite.
        """
        count = len(tokens)
        if tokens.detach().abs().max() > torch.finfo(torch.float16).max:
            raise ValueError("tokens are beyond float16; scale them down")
        if (positions is None) != (self.axes == 0):
            raise ValueError(f"positions must be {(count, self.axes)}, or none without axes")
        places = torch.zeros(count, 0) if positions is None else positions.detach().float()
        if places.shape != (count, self.axes) or not torch.isfinite(places).all():
            raise ValueError(f"positions must be finite, {(count, self.axes)}")
        if self.axes and places.abs().max() >= self.voxel * _FARTHEST:
            raise ValueError(f"positions lie within {_FARTHEST} cells of the origin")
        for name, value in (("motion", motion), ("confidence", confidence)):
            if value is not None and (value.shape != (count,) or not torch.isfinite(value).all()):
                raise ValueError(f"{name} must be finite, {(count,)}")
        if motion is not None and not ((motion >= 0) & (motion <= 1)).all():
            raise ValueError("motion is in 0 to 1")
        if confidence is not None and not (confidence > 0).all():
            raise ValueError("confidence is above 0")
        if view is not None and self.axes != 3:
            raise ValueError("a view is for positions in the world")
        return places

    def columns(self, rows: int) -> dict[str, Tensor]:
        """Columns of a number of rows of the static layer."""
        held = {
            "feature": torch.zeros(rows, self.token_dim),
            "position": torch.zeros(rows, self.axes),
            "mass": torch.zeros(rows),  # weight of the mean
            "count": torch.zeros(rows, dtype=torch.int32),  # tokens; 0 as long as it is unproven
            "source": torch.zeros(rows, dtype=torch.int32),
            "time": torch.zeros(rows, dtype=torch.float64),  # of the newest token
        }
        if self.axes != 3:
            held["key"] = torch.zeros(rows, dtype=torch.int64)  # of its cell
            held["evidence"] = torch.zeros(rows)  # seconds for which it was seen
            held["spread"] = torch.ones(rows)  # mean square of the residual, in units of the noise
        return held

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of one row of the static layer."""
        return sum(column.nbytes for column in self.columns(1).values())

    def fingerprint(self) -> Tensor:
        """All fields as numbers, to tell states apart."""
        fields = [-1.0 if value is None else value for value in astuple(self)]
        return torch.tensor(fields, dtype=torch.float64)
