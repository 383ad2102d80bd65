"""Views of a place: what `SpatialMemory` holds, and how it is read.

A view is one frame as a camera or a model gave it: a grid of tokens, when it was seen, from where,
where in the world its tokens lie, and of which objects it is a witness.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vismem.geometry import project
from vismem.memory.base import Recall

__all__ = [
    "Policy",
    "SpatialConfig",
    "SpatialSnapshot",
    "View",
    "differences",
    "place_of",
    "signature_of",
]

Policy = Literal["novelty", "place", "fifo", "first_last", "stride", "reservoir", "last"]

_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
_SECTORS = 8  # of the heading; two more for a camera that looks up or down
_STEEP = math.cos(math.radians(22.5))  # beyond it a heading is not well defined


@dataclass(frozen=True)
class SpatialConfig:
    """Sizes of a `SpatialMemory` and the rule by which views stay.

    Args:
        token_dim: Width D of a view's tokens; 64 for SAM 2's memory maps.
        max_tokens: Tokens (cells of the grid) of a view at most.
        pointer_dim: Width P of an object pointer; 0 for none.
        signature_dim: Width S of the signature that the caller gives; with 0 it is made of the
            tokens, see `signature_of`.
        policy: ``"novelty"`` or ``"place"``, ours; or one of the published and the sceptic's:
            ``"fifo"``, ``"first_last"``, ``"stride"``, ``"reservoir"`` and ``"last"``.
        novelty: Mean absolute difference of signatures up to which a view is no news. The default
            is for block means of a picture on ``[0, 1]``: 16 x 16 of them do not move so far when
            a camera trembles by a pixel. Slow changes of light are news sooner or later; a caller
            who does not want that divides the signature by its mean.
        place: Side in metres of the cell of a place; see `place_of`.
        max_views: Views at most, beside the bytes.
        dtype: What tokens are stored as: ``"float16"``, ``"bfloat16"`` or ``"float32"``.
        seed: Of the memory's own random numbers.

    Raises:
        ValueError: If a number is out of its range.
    """

    token_dim: int
    max_tokens: int
    pointer_dim: int = 0
    signature_dim: int = 0
    policy: Policy = "novelty"
    novelty: float = 0.012
    place: float = 0.5
    max_views: int | None = None
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.policy not in get_args(Policy):
            known = ", ".join(get_args(Policy))
            raise ValueError(f"there is no policy {self.policy!r}; there are {known}")
        if self.dtype not in _DTYPES:
            raise ValueError(f"dtype is one of {', '.join(_DTYPES)}, not {self.dtype!r}")
        if (
            min(self.token_dim, self.max_tokens) < 1
            or min(self.pointer_dim, self.signature_dim) < 0
        ):
            raise ValueError("token_dim and max_tokens are 1 or more, the other widths 0 or more")
        if not self.novelty >= 0 or not 0 < self.place < math.inf:
            raise ValueError("novelty is 0 or more, place above 0 metres")
        if self.max_views is not None and self.max_views < 0:
            raise ValueError(f"max_views is 0 or more, not {self.max_views}")

    @property
    def torch_dtype(self) -> torch.dtype:
        """What tokens are stored as."""
        return _DTYPES[self.dtype]

    @property
    def blocks(self) -> int:
        """Blocks a side of a signature that is made of tokens: at most 4."""
        return min(4, math.isqrt(self.max_tokens))

    @property
    def signature_width(self) -> int:
        """Width S of a signature, given or made of tokens."""
        return self.signature_dim or self.blocks**2 * self.token_dim

    @property
    def row(self) -> np.dtype[np.void]:
        """What is known of a view in so many numbers; the rest are columns and ragged."""
        return np.dtype(
            [
                ("time", "f8"),
                ("seen", "f8"),
                ("source", "i8"),
                ("weight", "i8"),
                ("prompted", "?"),
                ("grid", "i8", 2),
                ("place", "i8", 4),
                ("pose", "f8", (4, 4)),
                ("intrinsics", "f8", (3, 3)),
                ("pointer", "f4", (self.pointer_dim,)),
                ("bytes", "i8"),  # of what is not in the row
                ("draw", "f8"),  # of the reservoir
                ("rank", "f8"),  # how far the nearest other view is, at least
                ("nearest", "i8"),  # and the number of its write, or -1
            ]
        )

    def fingerprint(self) -> Tensor:
        """All fields as numbers, to tell states apart."""
        fields: dict[str, Any] = dict(vars(self))
        fields["policy"] = get_args(Policy).index(self.policy)
        fields["dtype"] = list(_DTYPES).index(self.dtype)
        fields["max_views"] = -1 if self.max_views is None else self.max_views
        return torch.tensor(list(fields.values()), dtype=torch.float64)


@dataclass(frozen=True, eq=False, slots=True)
class View:
    """One frame that is held; never changed once made.

    Args:
        time: When it was seen, in seconds.
        source: Running number of its write.
        tokens: ``(N, D)`` as stored.
        grid: Rows and columns of its cells; ``(1, N)`` where none was given.
        positions: Where each token lies, ``(N, 3)`` float32 metres in the world, NaN where unknown.
        pose: ``(4, 4)`` float64 camera-to-world, OpenCV axes, metres.
        intrinsics: ``(3, 3)`` float64.
        signature: ``(S,)`` float32, by which views are compared.
        pointer: ``(P,)`` float32, SAM 2's object pointer.
        prompted: Whether a person or a start gave it.
        place: Cell and sector of its pose; see `place_of`.
        objects: Numbers of the objects that it is a witness of, ascending.
        seen: When a view was last seen that was no news beside this one; else its own time.
        weight: How many writes it stands for, its own included.
    """

    time: float
    source: int
    tokens: Tensor
    grid: tuple[int, int]
    positions: Tensor | None
    pose: Tensor | None
    intrinsics: Tensor | None
    signature: Tensor
    pointer: Tensor | None
    prompted: bool
    place: tuple[int, ...] | None
    objects: tuple[int, ...]
    seen: float
    weight: int


def place_of(pose: np.ndarray, side: float) -> tuple[int, int, int, int]:
    """The place that a camera is at: the cell of its position, and where it looks.

    After the place-keyed memory of Cho et al., "Spatially-Aware Transformers for Embodied Agents",
    2024 (https://arxiv.org/abs/2402.15160), with a cell for a place. A camera that trembles on the
    border of two cells is at two places, not at more.

    Args:
        pose: ``(4, 4)`` camera-to-world, OpenCV axes, the world's z up.
        side: Of a cell, in metres.

    Returns:
        The cell by x, y and z, and the sector: eight of 45 degrees around z, the first around the
        x axis; 8 for a camera that looks up, 9 for one that looks down.

    Example:
        >>> pose = np.array([[0, 0, 1, 1.3], [-1, 0, 0, 0.2], [0, -1, 0, 0.9], [0, 0, 0, 1]])
        >>> place_of(pose, 0.5)
        (2, 0, 1, 0)
    """
    x, y, z = pose[:3, 2] / max(float(np.linalg.norm(pose[:3, 2])), 1e-12)
    if abs(z) > _STEEP:
        sector = _SECTORS + int(z < 0)
    else:
        sector = round(math.atan2(y, x) * _SECTORS / (2 * math.pi)) % _SECTORS
    i, j, k = np.floor(pose[:3, 3] / side).astype(np.int64).tolist()
    return i, j, k, sector


def signature_of(tokens: Tensor, grid: tuple[int, int], blocks: int) -> Tensor:
    """Block means of a view's tokens, scaled to a root mean square of one.

    So the threshold of novelty is a share of what tokens are like, whatever model made them.

    Args:
        tokens: ``(N, D)``.
        grid: Rows and columns of the tokens; one row is cut into as many blocks in a line.
        blocks: Blocks a side.

    Returns:
        ``(blocks * blocks * D,)`` float32.
    """
    cells = tokens.float().T.reshape(1, -1, *grid)
    size = (1, blocks * blocks) if grid[0] == 1 else (blocks, blocks)
    means = F.adaptive_avg_pool2d(cells, size).flatten()
    return means / means.square().mean().sqrt().clamp(min=1e-12)


def differences(signatures: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Mean absolute difference of each signature ``(V, S)`` from another ``(S,)``."""
    return np.abs(signatures - other).mean(1)


class SpatialSnapshot:
    """An immutable view of a `SpatialMemory`: all its views in time order.

    Args:
        config: Of the memory.
        rows: ``(V,)`` of `SpatialConfig.row`.
        signatures: ``(V, S)`` float32.
        tokens: ``(N, D)`` a view.
        positions: ``(N, 3)`` a view, or ``None``.
        objects: Numbers a view.
    """

    def __init__(
        self,
        config: SpatialConfig,
        rows: np.ndarray,
        signatures: np.ndarray,
        tokens: Sequence[Tensor],
        positions: Sequence[Tensor | None],
        objects: Sequence[tuple[int, ...]],
    ):
        self.config = config
        self.rows = rows
        self.signatures = signatures
        self.tokens = tuple(tokens)
        self.positions = tuple(positions)
        self.objects = tuple(objects)

    def __len__(self) -> int:
        return len(self.rows)

    def views(self) -> tuple[View, ...]:
        """All views in time order."""
        return tuple(self._view(number) for number in range(len(self)))

    def _view(self, number: int) -> View:
        row = self.rows[number]

        def known(name: str) -> Tensor | None:
            value = row[name]
            missing = not value.size or np.isnan(value.flat[0])
            return None if missing else torch.from_numpy(value.copy())

        rows, columns = row["grid"].tolist()
        return View(
            time=float(row["time"]),
            source=int(row["source"]),
            tokens=self.tokens[number],
            grid=(rows, columns),
            positions=self.positions[number],
            pose=known("pose"),
            intrinsics=known("intrinsics"),
            signature=torch.from_numpy(self.signatures[number].copy()),
            pointer=known("pointer"),
            prompted=bool(row["prompted"]),
            place=tuple(row["place"].tolist()) if row["place"][3] >= 0 else None,
            objects=self.objects[number],
            seen=float(row["seen"]),
            weight=int(row["weight"]),
        )

    def read(
        self,
        query: Tensor | None = None,
        *,
        near: tuple[Sequence[float], float] | None = None,
        sees: tuple[np.ndarray | Tensor, np.ndarray | Tensor, tuple[int, int]] | None = None,
        views: int | None = None,
        tokens: int | None = None,
        **context: Any,
    ) -> Recall:
        """Give the tokens of the views that fit best, sorted by time.

        Args:
            query: Signature ``(S,)``; without one the latest views are given.
            near: A point in the world and a distance in metres; tokens whose position is not known
                are not near anything.
            sees: Pose ``(4, 4)``, intrinsics ``(3, 3)`` and the picture's width and height: only
                tokens that lie before that camera and inside its picture. Whether something stands
                before them is not known.
            views: How many views; all by default. Views of which `near` and `sees` leave nothing do
                not count.
            tokens: How many tokens at most, whole views of the best first.
            **context: Ignored, other banks take more.

        Returns:
            Tokens with ``(N, 3)`` world positions, if any view has some, and as scores the negative
            mean absolute difference of signatures.

        Raises:
            ValueError: If the query's width is not the signature's, or the pose is not rigid.
        """
        kept = [self._kept(number, near, sees) for number in range(len(self))]
        counts = np.array([int(rows.sum()) for rows in kept], np.int64)
        scores = np.zeros(len(self), np.float32)
        order = np.arange(len(self))[::-1]  # latest first
        if query is not None:
            if tuple(query.shape) != (self.config.signature_width,):
                width = self.config.signature_width
                raise ValueError(f"a query must be ({width},), not {tuple(query.shape)}")
            scores = -differences(self.signatures, query.detach().to("cpu", torch.float32).numpy())
            order = order[np.argsort(-scores[order], kind="stable")]
        order = order[counts[order] > 0][:views]
        if tokens is not None:
            order = order[np.cumsum(counts[order]) <= tokens]
        chosen = np.sort(order)
        repeats = torch.from_numpy(counts[chosen])

        def spread(values: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values)).repeat_interleave(repeats)

        held = [self.tokens[n][kept[n]].to(torch.float16) for n in chosen.tolist()]
        positions = None
        if any(self.positions[n] is not None for n in chosen.tolist()):
            positions = torch.cat([self._positions(n)[kept[n]] for n in chosen.tolist()])
        empty = torch.empty(0, self.config.token_dim, dtype=torch.float16)
        return Recall(
            tokens=torch.cat([empty, *held]),
            times=spread(self.rows["time"][chosen]),
            weights=spread(self.rows["weight"][chosen]),
            scores=spread(scores[chosen]),
            sources=spread(self.rows["source"][chosen]),
            positions=positions,
        )

    def _positions(self, number: int) -> Tensor:
        positions = self.positions[number]
        if positions is None:
            return torch.full((len(self.tokens[number]), 3), torch.nan)
        return positions

    def _kept(self, number: int, near: Any, sees: Any) -> Tensor:
        """Which tokens of a view are near and can be seen, ``(N,)``."""
        kept = torch.ones(len(self.tokens[number]), dtype=torch.bool)
        if near is not None:
            point, metres = near
            away = self._positions(number) - torch.as_tensor(point, dtype=torch.float32)
            kept &= away.norm(dim=1) <= metres
        if sees is not None:
            pose, intrinsics, size = sees
            pixels, _ = project(
                self._positions(number).numpy(), np.asarray(intrinsics), np.asarray(pose)
            )
            # A pixel's number is its centre; what is behind the camera is NaN.
            inside = ((pixels >= -0.5) & (pixels < np.array(size) - 0.5)).all(1)
            kept &= torch.from_numpy(inside)
        return kept
