"""What a `MovementMemory` keeps of a movement, and what a reader sees of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vismem.memory.base import Recall

__all__ = ["Movement", "MovementConfig", "MovementSnapshot", "Waypoint"]

_BOX, _POSITION = slice(1, 5), slice(5, 8)  # of a waypoint; before them its time


@dataclass(frozen=True)
class MovementConfig:
    """Sizes and rules of a `MovementMemory`.

    Args:
        look_dim: Width ``D`` of a look.
        labels: Labels ``L`` that a write gives of each region.
        votes: Labels kept of a movement, those of the largest summed score.
        max_regions: The most regions of one frame.
        gap: Seconds unseen after which a number of the finder is another movement.
        waypoints: Sightings kept along a movement, evenly over it.
        step: Metres that a thing must have come before they count as way; less is noise.
        most_views: Sightings that a mean look counts at most.
        alike: Cosine of looks from which two movements may be told as one, where room is short,
        near: if so few seconds lie between them,
        longest: and so few from the start of the one to the end of the other.

    Raises:
        ValueError: If a number is out of its range.
    """

    look_dim: int
    labels: int = 3
    votes: int = 6
    max_regions: int = 64
    gap: float = 2.0
    waypoints: int = 8
    step: float = 0.05
    most_views: int = 50
    alike: float = 0.9
    near: float = 10.0
    longest: float = 60.0

    def __post_init__(self) -> None:
        sizes = (self.look_dim, self.labels, self.votes, self.max_regions, self.most_views)
        if min(sizes) < 1 or self.waypoints < 2:
            raise ValueError("sizes are 1 or more, waypoints 2 or more")
        if min(self.gap, self.step, self.near, self.longest) < 0:
            raise ValueError("gap, step, near and longest are not below 0")

    @property
    def row_bytes(self) -> int:
        """Bytes of one movement."""
        return sum(column.nbytes for column in self.columns(1).values())

    def columns(self, rows: int) -> dict[str, Tensor]:
        """Columns for a number of movements; a waypoint is ``time x0 y0 x1 y1 x y z``."""

        def waypoint(*shape: int) -> Tensor:
            return torch.full((rows, *shape, 8), torch.nan, dtype=torch.float64)

        def whole() -> Tensor:
            return torch.zeros(rows, dtype=torch.int32)

        return {
            "id": torch.zeros(rows, dtype=torch.int64),
            "track": torch.zeros(rows, dtype=torch.int64),
            "source": torch.zeros(rows, dtype=torch.int64),  # running number of the last write
            "first": waypoint(),
            "last": waypoint(),
            "best": waypoint(),
            "way": waypoint(self.waypoints),
            "ways": whole(),
            "stride": whole(),  # sightings from one waypoint to the next
            "waited": whole(),  # sightings since the last one
            "frames": whole(),
            "count": whole(),  # movements that are told as this one
            "look": torch.zeros(rows, self.look_dim, dtype=torch.float16),
            "score": torch.zeros(rows),
            "union": torch.zeros(rows, 4),
            "anchor": torch.full((rows, 3), torch.nan, dtype=torch.float64),
            "path": torch.zeros(rows, dtype=torch.float64),
            "label": torch.full((rows, self.votes), -1, dtype=torch.int16),
            "label_sum": torch.zeros(rows, self.votes),
            "label_max": torch.zeros(rows, self.votes),
        }


@dataclass(frozen=True, slots=True)
class Waypoint:
    """Where something was at a time.

    Args:
        time: Seconds.
        box: In the picture, ``x0 y0 x1 y1`` as fractions.
        position: World metres, if known.
    """

    time: float
    box: tuple[float, float, float, float]
    position: tuple[float, float, float] | None

    @classmethod
    def of(cls, row: Sequence[float]) -> Waypoint:
        """Read a row of a table."""
        x0, y0, x1, y1 = row[_BOX]
        x, y, z = row[_POSITION]
        return cls(row[0], (x0, y0, x1, y1), None if math.isnan(x) else (x, y, z))


@dataclass(frozen=True, slots=True, eq=False)
class Movement:
    """One thing that moved, from start to end, as a reader sees it.

    Args:
        id: Its number, for as long as it is remembered.
        track: The number that the finder gave.
        first: Where it began.
        last: Where it ended, or was seen last.
        best: Where it was surest.
        way: Waypoints from the first to the last.
        frames: Sightings.
        count: Movements that are told as this one; more than one where room was short.
        score: How sure the finder was at best, from 0 to 1.
        box: Around all that it took up of the picture.
        path: Metres that it came, along its way; 0 where positions are not known.
        labels: Numbers of an encoder's labels for it, the surest first, and how sure: the geometric
            mean of the best frame and the mean over all frames.
        look: Mean look, ``(D,)`` float16.
    """

    id: int
    track: int
    first: Waypoint
    last: Waypoint
    best: Waypoint
    way: tuple[Waypoint, ...]
    frames: int
    count: int
    score: float
    box: tuple[float, float, float, float]
    path: float
    labels: dict[int, float]
    look: Tensor

    @property
    def start(self) -> float:
        """First second."""
        return self.first.time

    @property
    def end(self) -> float:
        """Last second."""
        return self.last.time


class MovementSnapshot:
    """An immutable view of a `MovementMemory`.

    Args:
        config: Of the memory.
        held: Its columns, shared until the memory changes them.
        time: Second of the newest write.
    """

    def __init__(self, config: MovementConfig, held: Mapping[str, Tensor], time: float):
        self.config, self._held, self.time = config, held, time

    def __len__(self) -> int:
        return len(self._held["id"])

    def movements(self) -> tuple[Movement, ...]:
        """All movements, by when they began."""
        held = self._held
        plain = {
            name: held[name].tolist()
            for name in ("id", "track", "frames", "count", "score", "path", "first", "last")
            + ("best", "way", "ways", "union", "label")
        }
        mean = held["label_sum"] / held["frames"].clamp_min(1)[:, None]
        sure = (held["label_max"] * mean).sqrt().tolist()
        found = []
        for n in range(len(self)):
            row = {name: values[n] for name, values in plain.items()}
            last = Waypoint.of(row.pop("last"))
            way = [Waypoint.of(point) for point in row.pop("way")[: row.pop("ways")]]
            if not way or way[-1].time < last.time:
                way.append(last)
            labels = zip(row.pop("label"), sure[n], strict=True)
            ranked = sorted(labels, key=lambda pair: -pair[1])
            found.append(
                Movement(
                    first=Waypoint.of(row.pop("first")),
                    last=last,
                    best=Waypoint.of(row.pop("best")),
                    way=tuple(way),
                    box=tuple(row.pop("union")),
                    labels={label: score for label, score in ranked if label >= 0},
                    look=held["look"][n].clone(),
                    **row,
                )
            )
        return tuple(found)

    def read(self, query: Tensor | None = None, *, k: int = 64, **context: Any) -> Recall:
        """Give the mean looks of movements, each at the time when it was seen last.

        Args:
            query: A look ``(D,)`` that the best of them are like; the newest without one.
            k: Movements at most.
            **context: Of no meaning here.
        """
        held = self._held
        times, looks = held["last"][:, 0], held["look"].float()
        score = torch.zeros(len(self))
        if query is not None:
            score = torch.cosine_similarity(looks, query.float()[None], dim=1)
        rank = times if query is None else score
        rows = rank.argsort(descending=True, stable=True)[:k]
        rows = rows[times[rows].argsort(stable=True)]
        return Recall(
            tokens=held["look"][rows],
            times=times[rows],
            weights=held["frames"][rows].long(),
            scores=score[rows],
            sources=held["source"][rows],
            positions=held["last"][rows, _POSITION].float(),
        )
