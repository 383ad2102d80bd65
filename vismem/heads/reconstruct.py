"""`MovingMap`: a scene rebuilt while it moves, from depth and poses, without weights.

What stands still is one surface that never ends; what moves is kept as points of the last frames,
with the tracks that they are on. After the idea of Mem4D (https://arxiv.org/abs/2508.07908): one
memory that is slow and persists, one that is fast and passes.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vismem.errors import StoreError, require
from vismem.frame import Frame
from vismem.geometry import check_intrinsics, is_pose, pixel_rays
from vismem.heads.ply import write_ply
from vismem.memory.base import Budget
from vismem.memory.tracks import NO_TRACK, TrackConfig, Tracks
from vismem.memory.tsdf.motion import MotionDetector
from vismem.memory.tsdf.motion_config import MotionConfig
from vismem.memory.tsdf.surface import SOLID, Surface, extract, occupancy
from vismem.store.disk import write_file

__all__ = ["MapConfig", "MapMoment", "MapReport", "MovingMap", "Path4D"]

RING_SHARE = 1 / 8  # of the budget, for what moves
POINT_BYTES = 12 + 3 + 8 + 12  # place, colour, track and velocity


@dataclass(frozen=True)
class MapConfig:
    """Rules of `MovingMap`.

    Args:
        motion: What moves, and the voxels.
        tracks: How it is followed.
        frames: That points of what moves are kept of.
        apart: Metres between those points.
        horizon: Seconds for which a thing is taken to go on as it did.
        paths: Tracks whose way is kept.
        waypoints: Of each way at most; then every second one goes.
    """

    motion: MotionConfig = field(default_factory=MotionConfig)
    tracks: TrackConfig = field(default_factory=TrackConfig)
    frames: int = 10
    apart: float = 0.02
    horizon: float = 1.0
    paths: int = 64
    waypoints: int = 128


@dataclass(frozen=True)
class MapReport:
    """What one frame did.

    Args:
        status: ``"fused"``, ``"lost"`` where the pose disagrees with the map, ``"restarted"`` where
            it did so for so long that a new map was begun, or ``"skipped"``.
        note: Why, if it was skipped.
        moving: Points of what moves.
        refused: Blocks of the room that did not fit into the budget.
        given_up: Blocks, unseen for longest, that went for newer ones.
        nbytes: Held afterwards.
    """

    status: str
    note: str = ""
    moving: int = 0
    refused: int = 0
    given_up: int = 0
    nbytes: int = 0


@dataclass(frozen=True)
class Transient:
    """Points of what moved in one frame: ``(N, 3)``, ``(N, 3)`` RGB, ``(N,)``, ``(N, 3)`` m/s."""

    time: float
    points: np.ndarray
    colors: np.ndarray
    ids: np.ndarray
    velocity: np.ndarray


@dataclass(frozen=True)
class Path4D:
    """The way of one thing: ``(N, 4)`` float64 seconds and metres, and its number."""

    id: int
    waypoints: np.ndarray


@dataclass(frozen=True)
class MapMoment:
    """The scene at one time.

    Args:
        time: Seconds.
        surface: What stands still, as it is known now.
        points: ``(N, 3)`` float32 metres of what moves; none where nothing near that time is held.
        colors: ``(N, 3)`` uint8 RGB.
        ids: ``(N,)`` int64 track of each point.
        tracks: Place of each track that was followed then, ``x y z`` metres by its number.
    """

    time: float
    surface: Surface
    points: np.ndarray
    colors: np.ndarray
    ids: np.ndarray
    tracks: dict[int, list[float]]


class MovingMap:
    """A map of what stands still and of what moves, within a hard budget of bytes; see the module.

    Args:
        budget: Bytes, or text such as ``"64MB"``.
        config: Rules.

    Example:
        >>> scene = MovingMap("16MB")
        >>> scene.write(Frame(np.zeros((48, 64, 3), np.uint8), timestamp=0.0)).note
        'no depth'
    """

    def __init__(self, budget: Budget | int | str = "64MB", config: MapConfig | None = None):
        self.config = MapConfig() if config is None else config
        self.budget = Budget.parse(budget)
        self._room = int(self.budget.bytes * RING_SHARE)
        paths = self.config.paths * self.config.waypoints * 4 * 8
        self.detector = MotionDetector(self.budget.bytes - self._room - paths, self.config.motion)
        self.tracks = Tracks(self.config.tracks)
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.detector.reset()
        self.tracks.reset()
        self._ring: deque[Transient] = deque()
        self._paths: dict[int, np.ndarray] = {}
        self._surface: Surface | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the voxels, the points of what moves, and the ways."""
        ring = sum(len(entry.points) for entry in self._ring) * POINT_BYTES
        return self.detector.nbytes + ring + sum(way.nbytes for way in self._paths.values())

    @property
    def time(self) -> float:
        """Seconds of the newest frame, minus infinity at first."""
        return self.detector.time

    def write(self, frame: Frame) -> MapReport:
        """Take in one frame. What cannot be used is reported, and changes nothing."""
        note = self._unusable(frame)
        if note:
            return MapReport("skipped", note, nbytes=self.nbytes)
        assert frame.depth is not None and frame.intrinsics is not None and frame.pose is not None
        self.detector.step(frame.depth, frame.intrinsics, frame.pose, frame.timestamp, frame.image)
        look = self.detector.look
        assert look is not None
        if look.status == "restarted":
            self.tracks.reset()
            self._ring.clear()
            self._paths.clear()
        if look.status == "lost":
            return MapReport("lost", nbytes=self.nbytes)
        self._surface = None
        v, u = np.nonzero(look.core)
        rays = pixel_rays(frame.width, frame.height, np.asarray(frame.intrinsics, np.float64))
        seen = rays[v, u] * frame.depth[v, u, None] @ look.pose[:3, :3].T + look.pose[:3, 3]
        cells = np.floor(seen / self.config.apart).astype(np.int64)
        # One number a cell: unique rows would take ten times as long.
        cells = (cells - (cells[:1] - (1 << 20))) @ np.array([1 << 42, 1 << 21, 1])
        _, first = np.unique(cells, return_index=True)
        first = np.sort(first)[: self._room // POINT_BYTES]
        points = seen[first].astype(np.float32)
        ids = self.tracks.step(torch.from_numpy(points), frame.timestamp).numpy()
        self._follow(frame.timestamp)
        velocity, tracked = np.zeros((len(ids), 3), np.float32), ids != NO_TRACK
        of = np.searchsorted(self.tracks.ids.numpy(), ids[tracked])
        velocity[tracked] = self.tracks.velocity.numpy()[of]
        colors = frame.image[v[first], u[first]]
        self._ring.append(Transient(frame.timestamp, points, colors, ids, velocity))
        while len(self._ring) > self.config.frames or (
            sum(len(entry.points) for entry in self._ring) * POINT_BYTES > self._room
        ):
            self._ring.popleft()
        return MapReport(look.status, "", len(points), look.refused, look.given_up, self.nbytes)

    def _unusable(self, frame: Frame) -> str:
        """Why a frame cannot be used; empty where it can."""
        for name in ("depth", "intrinsics", "pose"):
            if getattr(frame, name) is None:
                return f"no {name}"
        assert frame.depth is not None and frame.intrinsics is not None
        if frame.depth.shape != frame.image.shape[:2]:
            return f"depth of {frame.depth.shape} is not of the picture's size"
        try:
            matrix = check_intrinsics(frame.intrinsics, frame.width, frame.height)
        except ValueError as error:
            return str(error)
        if matrix[0, 1]:
            return "pixels are skewed; rectify the pictures first"
        if not is_pose(frame.pose):
            return "the pose is no rigid transform"
        if not self.time <= frame.timestamp < np.inf:
            return f"time goes from {self.time:g} to {frame.timestamp:g} seconds"
        farthest = self.config.motion.fuse.farthest
        with np.errstate(invalid="ignore"):
            if not ((frame.depth > 0) & (frame.depth <= farthest)).any():
                return f"nothing is seen nearer than {farthest:g} m"
        return ""

    def _follow(self, time: float) -> None:
        """Add where tracks are to their ways; the way that ended first goes when there are many."""
        seen = self.tracks.last == time
        places = self.tracks.position[seen].numpy()
        for number, place in zip(self.tracks.ids[seen].tolist(), places, strict=True):
            way = self._paths.pop(number, np.empty((0, 4)))
            if len(way) >= self.config.waypoints:
                way = way[::2]
            self._paths[number] = np.vstack([way, [time, *place]])  # last in, last to go
        while len(self._paths) > self.config.paths:
            del self._paths[next(iter(self._paths))]

    def surface(self) -> Surface:
        """What stands still."""
        if self._surface is None:
            self._surface = extract(self.detector.pool, self.config.motion.fuse)
        return self._surface

    def paths(self) -> list[Path4D]:
        """The ways of things that moved, those that ended first at the front."""
        return [Path4D(number, way.copy()) for number, way in self._paths.items()]

    def at(self, time: float) -> MapMoment:
        """The scene at a time: the surface, and what moved then.

        What moves is taken from the nearest frame that is held, and goes on with the velocity of
        its track; beyond `MapConfig.horizon` from any such frame nothing is told of it.

        Args:
            time: Seconds.
        """
        none = np.empty((0, 3), np.float32), np.empty((0, 3), np.uint8), np.empty(0, np.int64)
        near = min(self._ring, key=lambda entry: abs(entry.time - time), default=None)
        if near is None or abs(near.time - time) > self.config.horizon:
            return MapMoment(time, self.surface(), *none, {})
        points = near.points + near.velocity * np.float32(time - near.time)
        tracks = {
            int(n): points[near.ids == n].mean(0).tolist() for n in np.unique(near.ids) if n >= 0
        }
        return MapMoment(time, self.surface(), points, near.colors, near.ids, tracks)

    def occupancy(self, points: np.ndarray, time: float | None = None) -> np.ndarray:
        """What is at points, ``(N,)`` int8: 1 solid, 0 free, -1 never seen.

        Args:
            points: ``(N, 3)`` metres.
            time: Seconds, of what moves; now by default.
        """
        points = np.asarray(points, np.float64)
        fuse = self.config.motion.fuse
        states = occupancy(self.detector.pool, points, fuse)
        there = self.at(self.time if time is None else time).points
        if len(there):
            cells = np.concatenate([there, points]) // fuse.voxel
            _, number = np.unique(cells, axis=0, return_inverse=True)
            number = number.ravel()
            states[np.isin(number[len(there) :], number[: len(there)])] = SOLID
        return states

    def state_dict(self) -> dict[str, Tensor]:
        """All state as tensors; loading it continues bit for bit."""
        state = {f"detector.{n}": value for n, value in self.detector.state_dict().items()}
        state |= {f"tracks.{n}": value for n, value in self.tracks.state_dict().items()}
        for n, entry in enumerate(self._ring):
            state[f"ring.{n}.time"] = torch.tensor(entry.time, dtype=torch.float64)
            for name in ("points", "colors", "ids", "velocity"):
                state[f"ring.{n}.{name}"] = torch.from_numpy(getattr(entry, name).copy())
        for n, (number, way) in enumerate(self._paths.items()):
            state[f"path.{n}.{number}"] = torch.from_numpy(way.copy())
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state_dict` gave.

        Raises:
            ValueError: If it is of another configuration, incomplete or beyond the budget.
        """
        parts: dict[str, dict[str, Tensor]] = {"detector": {}, "tracks": {}, "ring": {}, "path": {}}
        for name, value in state.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = value
        self.detector.load_state_dict(parts["detector"])
        self.tracks.load_state_dict(parts["tracks"])
        self._ring.clear()
        for n in range(len(parts["ring"]) // 5):
            names = ("points", "colors", "ids", "velocity")
            columns = (parts["ring"][f"{n}.{name}"].numpy().copy() for name in names)
            self._ring.append(Transient(float(parts["ring"][f"{n}.time"]), *columns))
        ways = sorted(parts["path"].items(), key=lambda item: int(item[0].partition(".")[0]))
        self._paths = {int(n.partition(".")[2]): way.numpy().copy() for n, way in ways}
        self._surface = None

    def export(self, folder: str | os.PathLike[str]) -> dict[str, Any]:
        """Write ``static.ply``, ``transient.ply`` (of the newest frame) and ``tracks.json``.

        Returns:
            How many points, faces and tracks were written.

        Raises:
            StoreError: If the folder cannot be written, or not whole; files that were there stay.
        """
        folder = Path(folder)
        surface, now = self.surface(), self.at(self.time)
        ways = [{"id": way.id, "waypoints": way.waypoints.tolist()} for way in self.paths()]
        facts = {"units": "seconds and metres: t x y z", "time": self.time, "tracks": ways}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_ply(
                folder / "static.ply",
                surface.points,
                surface.colors,
                surface.normals,
                surface.faces,
            )
            write_ply(folder / "transient.ply", now.points, now.colors)
            write_file(folder / "tracks.json", [json.dumps(facts, indent=1).encode()])
        except OSError as error:
            raise StoreError(f"{folder} cannot be written ({error.strerror})") from error
        return {
            "points": len(surface.points),
            "faces": len(surface.faces),
            "transient": len(now.points),
            "tracks": len(ways),
        }

    def export_rerun(self, out: str | os.PathLike[str]) -> None:
        """Write a recording for the Rerun viewer: the surface, what moves over time, the ways.

        Raises:
            UsageError: If the extra ``rerun`` is not installed.
        """
        rr = require("rerun", extra="rerun")
        recording = rr.RecordingStream("vismem")
        recording.save(str(out))
        surface = self.surface()
        corners = surface.faces[:, [0, 1, 2, 0, 2, 3]].reshape(-1, 3)
        mesh = rr.Mesh3D(
            vertex_positions=surface.points,
            triangle_indices=corners,
            vertex_normals=surface.normals,
            vertex_colors=surface.colors,
        )
        recording.log("map/static", mesh, static=True)
        for way in self.paths():
            line = rr.LineStrips3D([way.waypoints[:, 1:]])
            recording.log(f"map/tracks/{way.id}", line, static=True)
        for entry in self._ring:
            recording.set_time("stream", duration=entry.time)
            recording.log("map/transient", rr.Points3D(entry.points, colors=entry.colors))
        recording.flush()
