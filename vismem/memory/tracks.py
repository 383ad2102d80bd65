"""Things that move, followed from frame to frame by where their points are.

Points nearer to each other than `TrackConfig.apart` are one cluster. Each cluster goes to the track
whose predicted place is nearest, one each, nearest pair first; a track moves on at a constant
velocity that is smoothed over frames. What stays near one place for long enough is at rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numba
import numpy as np
import torch
from torch import Tensor

from vismem.memory.columns import Table

__all__ = ["NO_TRACK", "TrackConfig", "Tracks", "clusters"]

NO_TRACK = -1  # of a point whose cluster found no room
_KEPT = 0.6  # share of the velocity before that stays with each sighting


@dataclass(frozen=True)
class TrackConfig:
    """Rules of `Tracks`; lengths in the unit of the positions.

    Args:
        axes: Of a position: 3 in the world, 2 in the picture.
        apart: Points nearer than this are one thing.
        match: Farthest that a thing may be from where it was expected.
        rest_speed: Mean speed below which a thing rests, in units a second.
        rest_seconds: Time over which that speed is the mean.
        lost_seconds: A track not seen for longer is given up.
        max_tracks: Tracks at most; of new ones those of the most points stay.

    Raises:
        ValueError: If a number is out of its range.
    """

    axes: int = 3
    apart: float = 0.3
    match: float = 0.45
    rest_speed: float = 0.02
    rest_seconds: float = 3.0
    lost_seconds: float = 0.5
    max_tracks: int = 64

    def __post_init__(self) -> None:
        if self.axes < 1 or self.max_tracks < 0:
            raise ValueError("axes is 1 or more, max_tracks 0 or more")
        lengths = (self.apart, self.match, self.rest_speed, self.rest_seconds)
        if not all(0 < value < math.inf for value in lengths) or not self.lost_seconds >= 0:
            raise ValueError("lengths, speeds and times are above 0, and lost_seconds not below")

    def columns(self, rows: int) -> dict[str, Tensor]:
        """Columns of a number of tracks."""
        numbers = {"id": torch.zeros(rows, dtype=torch.int64)}
        times = {
            name: torch.zeros(rows, dtype=torch.float64) for name in ("first", "last", "since")
        }
        places = {
            name: torch.zeros(rows, self.axes, dtype=torch.float64)
            for name in ("position", "velocity", "anchor")
        }
        return numbers | times | places


class Tracks:
    """Clusters of points, each with a number that it keeps while it moves; see the module.

    Args:
        config: Rules.

    Example:
        >>> tracks = Tracks(TrackConfig(axes=2))
        >>> ids = [tracks.step(torch.tensor([[0.1 * n, 0.0], [5.0, 5.0]]), 0.1 * n)
        ...        for n in range(30)]
        >>> ids[0].tolist(), ids[-1].tolist()
        ([0, 1], [0, 1])
        >>> [round(speed, 2) for speed in tracks.velocity[:, 0].tolist()]
        [1.0, 0.0]
        >>> [round(x, 2) for x in tracks.at(3.9)[:, 0].tolist()]
        [3.9, 5.0]
    """

    def __init__(self, config: TrackConfig):
        self.config = config
        self.reset()

    def reset(self) -> None:
        """Forget everything; numbers begin at 0 again."""
        self._table = Table(self.config)

    def __len__(self) -> int:
        return len(self._table)

    @property
    def ids(self) -> Tensor:
        """Number of each track, ``(T,)`` int64; a number is never given twice."""
        return self._table.share()["id"]

    @property
    def position(self) -> Tensor:
        """Mean of its points when it was last seen, ``(T, axes)`` float64."""
        return self._table.share()["position"]

    @property
    def velocity(self) -> Tensor:
        """Units a second, ``(T, axes)`` float64."""
        return self._table.share()["velocity"]

    @property
    def first(self) -> Tensor:
        """Second when it was first seen, ``(T,)`` float64."""
        return self._table.share()["first"]

    @property
    def last(self) -> Tensor:
        """Second when it was last seen, ``(T,)`` float64."""
        return self._table.share()["last"]

    @property
    def rest(self) -> Tensor:
        """Seconds for which it has kept to one place, ``(T,)`` float64.

        The place is a ball of the radius that `rest_speed` covers in `rest_seconds`: the centre of
        what is seen of a thing trembles, so that a speed from frame to frame never comes to zero.
        """
        return self._table.held["last"] - self._table.held["since"]

    @property
    def nbytes(self) -> int:
        """Bytes of all tracks held."""
        return self._table.nbytes

    def at(self, time: float) -> Tensor:
        """Where each track is expected at a time, ``(T, axes)`` float64."""
        return self.position + self.velocity * (time - self.last)[:, None]

    def step(self, points: Tensor, time: float) -> Tensor:
        """Follow what one frame shows.

        Args:
            points: ``(N, axes)``, of everything that moves; may be none.
            time: Seconds, never earlier than the step before.

        Returns:
            Number of each point's track, ``(N,)`` int64; `NO_TRACK` where there was no room.

        Raises:
            ValueError: If points or time do not fit, are not finite or go back; nothing changes.
        """
        axes = self.config.axes
        if points.ndim != 2 or points.shape[1] != axes:
            raise ValueError(f"points are (N, {axes}), not {tuple(points.shape)}")
        if not torch.isfinite(points).all():
            raise ValueError("points hold NaN or infinity")
        if not math.isfinite(time) or time < self._table.time:
            raise ValueError(f"time is finite and goes on from {self._table.time} s, not {time} s")
        self._table.writes, self._table.time = self._table.writes + 1, float(time)
        if not len(points):
            self._give_up(time)
            return torch.empty(0, dtype=torch.int64)
        label, centre = clusters(points, self.config.apart)
        self._table.own()
        track, fresh = self._match(centre, time)
        self._move(track, centre, time)
        self._bear(fresh, centre, time)
        ids = torch.full((len(centre),), NO_TRACK, dtype=torch.int64)
        ids[track >= 0] = self.ids[track[track >= 0]]
        ids[fresh] = self.ids[len(self) - len(fresh) :]
        self._give_up(time)
        ids[~torch.isin(ids, self.ids)] = NO_TRACK
        return ids[label]

    def _match(self, centre: Tensor, time: float) -> tuple[Tensor, Tensor]:
        """Row of the track of each cluster, -1 where there is none, and the clusters without."""
        track = torch.full((len(centre),), -1, dtype=torch.int64)
        away = (self.at(time)[:, None] - centre).norm(dim=2)
        old, new = (away <= self.config.match).nonzero(as_tuple=True)
        order = away[old, new].argsort(stable=True)
        taken: set[int] = set()
        for row, cluster in zip(old[order].tolist(), new[order].tolist(), strict=True):
            if row not in taken and track[cluster] < 0:
                track[cluster] = row
                taken.add(row)
        return track, (track < 0).nonzero()[:, 0]

    def _move(self, track: Tensor, centre: Tensor, time: float) -> None:
        held, config = self._table.held, self.config
        rows, place = track[track >= 0], centre[track >= 0]
        passed = (time - held["last"][rows])[:, None]
        speed = (place - held["position"][rows]) / passed.clamp_min(1e-9)
        kept = torch.where(passed > 0, _KEPT, 1.0)
        held["velocity"][rows] = kept * held["velocity"][rows] + (1 - kept) * speed
        held["position"][rows] = place
        held["last"][rows] = time
        reach = config.rest_speed * config.rest_seconds
        left = rows[(place - held["anchor"][rows]).norm(dim=1) > reach]
        held["anchor"][left] = held["position"][left]
        held["since"][left] = time

    def _bear(self, fresh: Tensor, centre: Tensor, time: float) -> None:
        new = self.config.columns(len(fresh))
        new["position"], new["anchor"] = centre[fresh], centre[fresh].clone()
        for name in ("first", "last", "since"):
            new[name][:] = time
        self._table.add(new)

    def _give_up(self, time: float) -> None:
        """Drop what is lost, and beyond the bound what was seen longest ago, of equals the last."""
        held = self._table.held
        seen = (time - held["last"] <= self.config.lost_seconds).nonzero()[:, 0]
        order = held["last"][seen].argsort(descending=True, stable=True)
        keep = seen[order[: self.config.max_tracks]].sort().values
        if len(keep) < len(self):
            self._table.keep(keep)

    def state_dict(self) -> dict[str, Tensor]:
        """Give all state as tensors; loading it continues bit for bit."""
        return self._table.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the state of another instance of the same configuration.

        Raises:
            ValueError: If the state is of another configuration or incomplete.
        """
        self._table.load_state_dict(state)


def clusters(points: Tensor, apart: float) -> tuple[Tensor, Tensor]:
    """Put points together that a chain of steps shorter than a distance connects.

    Args:
        points: ``(N, axes)``, finite.
        apart: The distance.

    Returns:
        Number of each point's cluster, ``(N,)`` int64, and the mean of each, ``(C, axes)`` float64;
        the cluster of the most points first, whatever the order of the points.

    Example:
        >>> label, centre = clusters(torch.tensor([[9.0], [0.0], [0.5], [1.0]]), 0.6)
        >>> label.tolist(), centre.tolist()
        ([1, 0, 0, 0], [[0.5], [9.0]])
    """
    place = points.detach().cpu().double().numpy()
    axes = place.shape[1]
    # Points of one cell are always near each other, so that most pairs need no look.
    cell = np.floor(place / (apart / math.sqrt(axes)))
    order = np.lexsort((*place.T[::-1], *cell.T[::-1]))
    place = np.ascontiguousarray(place[order])
    root = _connected(place, np.ascontiguousarray(cell[order]), apart)
    _, label, count = np.unique(root, return_inverse=True, return_counts=True)
    total = [np.bincount(label, place[:, axis], len(count)) for axis in range(axes)]
    by_size = np.argsort(-count, kind="stable")
    rank = np.empty_like(by_size)
    rank[by_size] = np.arange(len(by_size))
    labels = np.empty(len(place), np.int64)
    labels[order] = rank[label]
    centre = np.stack(total, 1) / count[:, None]
    return torch.from_numpy(labels), torch.from_numpy(centre[by_size])


@numba.njit(cache=True)
def _connected(place: np.ndarray, cell: np.ndarray, apart: float) -> np.ndarray:
    """First point of each point's component; points are sorted by cell."""
    count, axes = place.shape
    root = np.arange(count)
    start = np.empty(count + 1, np.int64)
    cells = 0
    for i in range(count):
        same = i > 0
        for axis in range(axes):
            same = same and cell[i, axis] == cell[i - 1, axis]
        if not same:
            start[cells] = i
            cells += 1
        root[i] = start[cells - 1]
    start[cells] = count
    reach = math.ceil(math.sqrt(axes))
    for a in range(cells):
        for b in range(a + 1, cells):
            if cell[start[b], 0] - cell[start[a], 0] > reach:
                break
            near = True
            for axis in range(1, axes):
                gap = cell[start[b], axis] - cell[start[a], axis]
                near = near and -reach <= gap <= reach
            if not near:
                continue
            one, other = _root(root, start[a]), _root(root, start[b])
            if one != other and _touch(
                place, start[a], start[a + 1], start[b], start[b + 1], apart
            ):
                root[max(one, other)] = min(one, other)
    for i in range(count):
        root[i] = _root(root, i)
    return root


@numba.njit(cache=True)
def _root(root: np.ndarray, i: int) -> int:
    while root[i] != i:
        root[i] = root[root[i]]
        i = root[i]
    return i


@numba.njit(cache=True)
def _touch(place: np.ndarray, a: int, a_end: int, b: int, b_end: int, apart: float) -> bool:
    """Whether a point of one range is nearer than a distance to one of the other."""
    for i in range(a, a_end):
        for j in range(b, b_end):
            square = 0.0
            for axis in range(place.shape[1]):
                square += (place[i, axis] - place[j, axis]) ** 2
            if square < apart * apart:
                return True
    return False
