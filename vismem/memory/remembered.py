"""What an `ObjectMemory` keeps of a thing, and what a reader sees of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vismem.memory.base import Recall
from vismem.memory.volumes import SEEN

__all__ = ["ObjectConfig", "ObjectSnapshot", "Place", "RememberedObject", "likeness"]


def likeness(looks: Tensor, galleries: Tensor) -> Tensor:
    """How much each look is like the best of each gallery.

    Args:
        looks: ``(N, D)`` of unit length.
        galleries: ``(M, V, D)``; zero where there is no look.

    Returns:
        Cosines, ``(N, M)`` float32.
    """
    each = looks.float() @ galleries.float().flatten(0, 1).T
    return each.view(len(looks), *galleries.shape[:2]).amax(-1)


@dataclass(frozen=True)
class ObjectConfig:
    """Sizes and rules of an `ObjectMemory`.

    Args:
        look_dim: Width ``D`` of a look.
        colors: Names of colours, ``C``.
        labels: Labels kept of a thing.
        looks: Looks kept of a thing.
        places: Places kept where a thing was before.
        max_things: The most things of one frame.
        near: Metres between centres of what may be one thing.
        pad: Metres that boxes are grown by before their volumes are compared.
        overlap: Share of the smaller box that two sightings of one thing have in common.
        alike: Cosine of looks below which two at one place are different things.
        new_look: Cosine below which a look is worth keeping beside the others.
        same_look: Cosine from which a thing elsewhere may be one that left its place,
        margin: if it is by this much more alike than any other,
        size_ratio: and at most so many times larger or smaller.
        jump: Metres beyond three sigmas that a thing has moved by if it is seen there.
        least_sigma: Metres; many sightings make no place surer than this.
        most_info: Sightings that a mean of places counts at most.
        most_views: Sightings that a mean of colours counts at most.
        sightings: After so many a thing is established,
        viewpoints: or after so many from places apart by `step` metres and `turn`,
        step: see there,
        turn: the cosine of an angle around the thing.
        votes: Frames that must have seen through its place until a thing is gone.
        place: Metres; the side of a place, for what is given up of a crowd.

    Raises:
        ValueError: If a number is out of its range.
    """

    look_dim: int
    colors: int = 11
    labels: int = 3
    looks: int = 8
    places: int = 8
    max_things: int = 24
    near: float = 0.15
    pad: float = 0.015
    overlap: float = 0.2
    alike: float = 0.6
    new_look: float = 0.9
    same_look: float = 0.9
    margin: float = 0.05
    size_ratio: float = 1.6
    jump: float = 0.02
    least_sigma: float = 0.003
    most_info: float = 20.0
    most_views: int = 50
    sightings: int = 3
    viewpoints: int = 2
    step: float = 0.05
    turn: float = math.cos(math.radians(10))
    votes: int = 2
    place: float = 1.0

    def __post_init__(self) -> None:
        if min(self.look_dim, self.colors, self.labels, self.looks, self.places) < 1:
            raise ValueError("sizes are 1 or more")
        if min(self.max_things, self.votes, self.near, self.place, self.least_sigma) <= 0:
            raise ValueError("max_things, votes, near, place and least_sigma are above 0")

    @property
    def row_bytes(self) -> int:
        """Bytes of one thing."""
        return sum(column.nbytes for column in self.columns(1).values())

    def columns(self, rows: int) -> dict[str, Tensor]:
        """Columns for a number of things."""

        def wide(*shape: int) -> Tensor:
            return torch.zeros(rows, *shape, dtype=torch.float64)

        def whole(*shape: int) -> Tensor:
            return torch.zeros(rows, *shape, dtype=torch.int32)

        return {
            "id": torch.zeros(rows, dtype=torch.int64),
            "position": wide(3),
            "info": wide(),  # sum of inverse variances
            "sigma": torch.zeros(rows),
            "extent": torch.zeros(rows, 3),
            "box": torch.zeros(rows, 4),  # in the picture that it was seen in last
            "looks": torch.zeros(rows, self.looks, self.look_dim, dtype=torch.float16),
            "look_count": whole(self.looks),  # sightings that each stands for
            "look_time": wide(self.looks),
            "look_source": torch.zeros(rows, self.looks, dtype=torch.int64),
            "color": torch.zeros(rows, self.colors),
            "shape": torch.zeros(rows, 3),
            "label": torch.full((rows, self.labels), -1, dtype=torch.int16),
            "label_score": torch.zeros(rows, self.labels),
            "views": whole(),
            "viewpoints": whole(),
            "eye": wide(3),  # of the viewpoint that was counted last
            "first": wide(),
            "since": wide(),  # first seen at this place
            "last": wide(),
            "gone": torch.zeros(rows, dtype=torch.bool),
            "votes": torch.zeros(rows, dtype=torch.uint8),
            "told": torch.full((rows,), SEEN, dtype=torch.int8),  # by the newest frame
            "told_time": wide(),
            "places": torch.full((rows, self.places, 5), torch.nan, dtype=torch.float64),
        }

    def established(self, held: Mapping[str, Tensor]) -> Tensor:
        """Which of the rows were seen often enough, or from enough sides, ``(N,)`` bool."""
        return (held["views"] >= self.sightings) | (held["viewpoints"] >= self.viewpoints)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a thing was, and from which sighting to which, in seconds."""

    position: tuple[float, float, float]
    first: float
    last: float


@dataclass(frozen=True, slots=True, eq=False)
class RememberedObject:
    """A thing as a reader sees it.

    Args:
        id: Its number, for as long as it is remembered.
        position: World metres, where it was seen last.
        sigma: One standard deviation of it.
        extent: Sides of its box along the world's axes, metres.
        first: Second of the first sighting.
        since: Of the first one at this place.
        last: Of the last one.
        views: Sightings.
        established: Whether they are enough to speak of it.
        gone: Whether its place was seen empty since.
        told: What the newest frame says of its place, see `vismem.memory.volumes`.
        color: Share of each colour name, ``(C,)``.
        shape: How much it looks like each of `vismem.sightings.SHAPES`, ``(3,)``.
        labels: Numbers and scores of an encoder's labels for it.
        looks: ``(V, D)`` float16.
        box: In the picture that it was seen in last, as fractions.
        places: Where it was before, newest first.
    """

    id: int
    position: tuple[float, float, float]
    sigma: float
    extent: tuple[float, float, float]
    first: float
    since: float
    last: float
    views: int
    established: bool
    gone: bool
    told: int
    color: Tensor
    shape: Tensor
    labels: dict[int, float]
    looks: Tensor
    box: tuple[float, float, float, float]
    places: tuple[Place, ...]


class ObjectSnapshot:
    """An immutable view of an `ObjectMemory`.

    Args:
        config: Of the memory.
        held: Its columns, shared until the memory changes them.
        time: Second of the newest write.
    """

    def __init__(self, config: ObjectConfig, held: Mapping[str, Tensor], time: float):
        self.config, self._held, self.time = config, held, time

    def __len__(self) -> int:
        return len(self._held["id"])

    def objects(self) -> tuple[RememberedObject, ...]:
        """All things, in order of number."""
        held = self._held
        sure = self.config.established(held).tolist()
        plain = {
            name: held[name].tolist()
            for name in ("id", "position", "sigma", "extent", "first", "since", "last", "views")
            + ("gone", "told", "label", "label_score", "box", "places")
        }
        found = []
        for n in range(len(self)):
            row = {name: values[n] for name, values in plain.items()}
            scored = zip(row.pop("label"), row.pop("label_score"), strict=True)
            places = [Place(tuple(p[:3]), p[3], p[4]) for p in row.pop("places") if p[0] == p[0]]
            for name in ("position", "extent", "box"):
                row[name] = tuple(row[name])
            found.append(
                RememberedObject(
                    **row,
                    established=sure[n],
                    color=held["color"][n].clone(),
                    shape=held["shape"][n].clone(),
                    labels={label: score for label, score in scored if label >= 0},
                    looks=held["looks"][n][held["look_count"][n] > 0],
                    places=tuple(places),
                )
            )
        return tuple(found)

    def read(self, query: Tensor | None = None, *, k: int = 64, **context: Any) -> Recall:
        """Give the looks of things, one row a look.

        Args:
            query: A look ``(D,)`` that the best of them are like; the newest without one.
            k: Things at most.
            **context: Of no meaning here.
        """
        held = self._held
        if query is None:
            rank, score = held["last"], torch.zeros(len(self))
        else:
            unit = query.float() / query.float().norm().clamp_min(1e-12)
            score = likeness(unit[None], held["looks"])[0]
            rank = score.double()
        rows = rank.argsort(descending=True, stable=True)[:k]
        of, slot = torch.nonzero(held["look_count"][rows] > 0, as_tuple=True)
        of = rows[of]
        order = held["look_time"][of, slot].argsort(stable=True)
        of, slot = of[order], slot[order]
        return Recall(
            tokens=held["looks"][of, slot].clone(),
            times=held["look_time"][of, slot].clone(),
            weights=held["look_count"][of, slot].long(),
            scores=score[of].clone(),
            sources=held["look_source"][of, slot].clone(),
        )
