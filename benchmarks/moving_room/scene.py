"""A room of boxes with things that move in it, seen by a depth camera on its way round.

5 x 5 x 2.5 m, nine boxes that stand still and four things that move: a ball on a circle, a box
that shuttles, a person who stands for ten seconds and then walks, and a slow box that parks after
twelve. Every ray is cast analytically, so depth, pose, instance and motion are known exactly; what
is handed out has the noise of a structured-light camera and its holes along edges and on grazing
surfaces.

Look at one: ``python benchmarks/moving_room/scene.py FOLDER`` writes an RGB-D folder as of TUM.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numba import njit

from vismem.frame import Frame
from vismem.geometry import depth_sigma, rigid

__all__ = ["MovingRoom", "Shot"]

HALF = np.array([2.5, 2.5, 1.25])  # metres, of the room around its middle
BOXES = 9
WAVES = 5  # of a texture, each channel
MOVERS = ("ball", "shuttle", "person", "slow box")
WALKS, PARKS = 10.0, 12.0  # seconds: the person starts, the slow box stops
SLOW = 0.12  # metres a second
EDGE = 0.04  # metres between neighbouring pixels, and for each metre of depth, that leave holes
GRAZING = 0.08  # cosine below which a surface gives no depth


@dataclass(frozen=True)
class Shot:
    """What the camera gave, and what is true.

    Args:
        frame: Picture, depth with noise and holes, pose (with its noise, if that was asked for).
        true_pose: Camera-to-world, ``(4, 4)``.
        true_depth: ``(H, W)`` float32 metres.
        instance: ``(H, W)`` int16: 0 the room, then boxes, then movers.
        moving: ``(H, W)`` bool, pixels of what moves at that time.
        local: ``(H, W, 3)`` float32, each surface point in its instance's own axes.
    """

    frame: Frame
    true_pose: np.ndarray
    true_depth: np.ndarray
    instance: np.ndarray
    moving: np.ndarray
    local: np.ndarray


class MovingRoom:
    """The room of a seed; see the module.

    Args:
        seed: Of boxes, textures, phases and noise.
        size: Of the pictures, width and height.
        fps: Pictures a second.
        seconds: How long it goes on.
        sensor_noise: Whether depth has noise and holes.
        pose_noise: Of the poses handed out, metres and degrees of one standard deviation, each
            frame by itself.

    Attributes:
        frames: How many there are.
        instances: Their names.

    Example:
        >>> room = MovingRoom(0, size=(64, 48), seconds=1.0)
        >>> room.frames, room.frame(3).frame.depth.shape
        (10, (48, 64))
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        size: tuple[int, int] = (320, 240),
        fps: float = 10.0,
        seconds: float = 30.0,
        sensor_noise: bool = True,
        pose_noise: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        self.seed, self.size, self.fps = seed, size, fps
        self.frames = round(fps * seconds)
        self.sensor_noise, self.pose_noise = sensor_noise, pose_noise
        width, height = size
        focal = 0.87 * width
        self.intrinsics = np.array(
            [[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1.0]]
        )
        draws = np.random.default_rng([seed, 1])
        self.instances = ("room", *(f"box {n}" for n in range(BOXES)), *MOVERS)
        self._places, self._turns, self._halves = _furnish(draws)
        movers = np.array([[0.18] * 3, [0.2] * 3, [0.2, 0.15, 0.8], [0.15] * 3])
        self._halves = np.concatenate([HALF[None], self._halves, movers])
        self._phase = draws.uniform(0, 2 * np.pi, 4)
        self._way = draws.choice([-1.0, 1.0], 3)
        count = len(self.instances)
        self._colors = draws.uniform(70, 190, (count, 3))
        pitch = np.exp(draws.uniform(np.log(2), np.log(16), (count, 3, WAVES, 1)))  # radians/metre
        aim = draws.normal(size=(count, 3, WAVES, 3))
        waves = pitch * aim / np.linalg.norm(aim, axis=-1, keepdims=True)
        self._waves = np.concatenate([waves, draws.uniform(0, 6.3, (count, 3, WAVES, 1))], -1)

    # ------------------------------------------------------------------ what is where

    def pose_of(self, instance: int, time: float) -> np.ndarray:
        """Instance-to-world of an instance at a time in seconds, ``(4, 4)``."""
        place, turn = self._at(time)
        return rigid(
            place[instance], [0, 0, math.sin(turn[instance] / 2), math.cos(turn[instance] / 2)]
        )

    def is_moving(self, instance: int, time: float) -> bool:
        """Whether an instance moves at a time."""
        name = self.instances[instance]
        if name == "person":
            return time >= WALKS
        return name in ("ball", "shuttle") or (name == "slow box" and time < PARKS)

    def camera_pose(self, time: float) -> np.ndarray:
        """True camera-to-world at a time, ``(4, 4)``."""
        angle = self._phase[0] + self._way[0] * 2 * np.pi * time / 25
        eye = np.array(
            [1.95 * math.cos(angle), 1.95 * math.sin(angle), 1.55 + 0.1 * math.sin(0.7 * time)]
        )
        target = np.array([-0.5 * math.cos(angle + 0.3), -0.5 * math.sin(angle + 0.3), 0.85])
        forward = (target - eye) / np.linalg.norm(target - eye)
        right = np.cross(forward, (0, 0, 1.0))
        right /= np.linalg.norm(right)
        pose = np.eye(4)
        pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], 1)
        pose[:3, 3] = eye
        return pose

    def _at(self, time: float) -> tuple[np.ndarray, np.ndarray]:
        """Middles ``(I, 3)`` and turns about the vertical ``(I,)`` of all instances."""
        ball = self._phase[1] + self._way[1] * 0.59 * time
        walk = 0.6 * max(time - WALKS, 0)
        movers = [
            [0.95 * math.cos(ball), 0.95 * math.sin(ball), 1.35],
            [math.sin(time + self._phase[2]), 1.35, 0.2],
            [_to_and_fro(walk), 0.0, 0.8],
            [self._way[2] * (SLOW * min(time, PARKS) - 0.7), -1.3, 0.15],
        ]
        places = np.concatenate([[[0, 0, HALF[2]]], self._places, movers])
        return places, np.concatenate([[0.0], self._turns, [0.0, 0.0, 0.0, 0.0]])

    # ------------------------------------------------------------------ how far it is

    def static_distance(self, points: np.ndarray) -> np.ndarray:
        """Metres from points ``(N, 3)`` to the nearest surface that never moves, ``(N,)``."""
        walls = HALF - np.abs(points - [0, 0, HALF[2]])
        away = np.abs(walls.min(1))
        places, turns = self._at(0.0)
        for n in range(1, 1 + BOXES):
            away = np.minimum(away, _box_distance(points, places[n], turns[n], self._halves[n]))
        return away

    def mover_distance(self, points: np.ndarray, time: float) -> np.ndarray:
        """Metres from points ``(N, 3)`` to the nearest of the four movers, moving or not."""
        places, turns = self._at(time)
        away = np.abs(np.linalg.norm(points - places[-4], axis=1) - self._halves[-4][0])
        for n in range(len(places) - 3, len(places)):
            away = np.minimum(away, _box_distance(points, places[n], turns[n], self._halves[n]))
        return away

    def static_samples(self, count: int, seed: int = 0) -> np.ndarray:
        """Points on surfaces that never move and that the camera could see, ``(count, 3)``."""
        draws = np.random.default_rng([self.seed, 2, seed])
        places, turns = self._at(0.0)
        found = np.empty((0, 3))
        while len(found) < count:
            n = draws.choice(1 + BOXES, p=[0.6] + [0.4 / BOXES] * BOXES)
            points = _on_box(draws, 200, places[n], turns[n], self._halves[n])
            inside = np.zeros(len(points), bool)
            for other in range(1, 1 + BOXES):
                if other != n:
                    inside |= _inside(
                        points, places[other], turns[other], self._halves[other] + 0.01
                    )
            if n:
                inside |= (np.abs(points - [0, 0, HALF[2]]) > HALF - 0.01).any(1)
            found = np.concatenate([found, points[~inside]])
        return found[:count]

    def mover_samples(self, time: float, count: int, seed: int = 0) -> np.ndarray:
        """Points on the movers that move at a time, ``(count, 3)``; none if none does."""
        draws = np.random.default_rng([self.seed, 3, seed])
        places, turns = self._at(time)
        found = []
        for n in range(1 + BOXES, len(places)):
            if not self.is_moving(n, time):
                continue
            if self.instances[n] == "ball":
                way = draws.normal(size=(count, 3))
                way /= np.linalg.norm(way, axis=1, keepdims=True)
                found.append(places[n] + self._halves[n][0] * way)
            else:
                found.append(_on_box(draws, count, places[n], turns[n], self._halves[n]))
        return draws.permutation(np.concatenate(found))[:count] if found else np.empty((0, 3))

    # ------------------------------------------------------------------ what is seen

    def frame(self, number: int) -> Shot:
        """What is seen at a frame; the same each time that it is asked for.

        Raises:
            IndexError: If there is no such frame.
        """
        if not 0 <= number < self.frames:
            raise IndexError(f"the room has frames 0 to {self.frames - 1}, not {number}")
        time = number / self.fps
        true = self.camera_pose(time)
        places, turns = self._at(time)
        width, height = self.size
        depth, instance, local, facing, image = _cast(
            width,
            height,
            self.intrinsics,
            true,
            places,
            turns,
            self._halves,
            self._colors,
            self._waves,
        )
        moves = np.array([self.is_moving(n, time) for n in range(len(places))])
        draws = np.random.default_rng([self.seed, 4, number])
        measured = depth
        if self.sensor_noise:
            measured = depth + draws.normal(size=depth.shape) * depth_sigma(depth)
            near = np.abs(np.diff(depth, axis=1, append=depth[:, -1:])) > EDGE * np.maximum(
                depth, 1
            )
            near |= np.abs(np.diff(depth, axis=0, append=depth[-1:])) > EDGE * np.maximum(depth, 1)
            lost = near & (draws.random(depth.shape) < 0.5)
            measured = np.where(lost | (facing < GRAZING), 0.0, measured)
            image = image + draws.normal(0, 2.0, image.shape)
        frame = Frame(
            np.clip(image, 0, 255).astype(np.uint8),
            time,
            "room",
            number,
            self._told(true, draws),
            measured.astype(np.float32),
            self.intrinsics,
        )
        return Shot(frame, true, depth, instance, moves[instance], local)

    def _told(self, pose: np.ndarray, draws: np.random.Generator) -> np.ndarray:
        """The pose that is handed out."""
        metres, degrees = self.pose_noise
        if not (metres or degrees):
            return pose
        turn = np.radians(degrees) * draws.normal(size=3) / math.sqrt(3)
        noise = rigid(metres * draws.normal(size=3) / math.sqrt(3), [*(turn / 2), 1.0])
        return pose @ noise


def _to_and_fro(way: float, half: float = 0.5) -> float:
    """Where somebody is who walks from -half to half and back."""
    share = way % (4 * half)
    return -half + share if share < 2 * half else 3 * half - share


def _furnish(draws: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Seven boxes along the walls and two low ones in the middle: middles, turns, half sizes."""
    places, turns, halves = [], [], []
    along = draws.permutation([-1.6, 0.0, 1.6])
    spots = [(side, shift) for side in range(4) for shift in along][:: 12 // 7][:7]
    for side, shift in draws.permutation(spots):
        half = np.array(
            [draws.uniform(0.2, 0.5), draws.uniform(0.08, 0.16), draws.uniform(0.2, 0.9)]
        )
        turn = side * np.pi / 2
        out = 2.5 - half[1]
        shift += draws.uniform(-0.15, 0.15)
        places.append(
            [
                math.sin(turn) * out + math.cos(turn) * shift,
                math.cos(turn) * out - math.sin(turn) * shift,
                half[2],
            ]
        )
        turns.append(-turn)
        halves.append(half)
    for y in (0.62, -0.68):
        half = np.array([0.12, 0.1, draws.uniform(0.1, 0.3)])
        places.append([draws.uniform(-0.3, 0.3), y, half[2]])
        turns.append(draws.uniform(0, 0.3))
        halves.append(half)
    return np.array(places), np.array(turns), np.array(halves)


def _own(points: np.ndarray, place: np.ndarray, turn: float) -> np.ndarray:
    c, s = math.cos(turn), math.sin(turn)
    return (points - place) @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


def _inside(points: np.ndarray, place: np.ndarray, turn: float, half: np.ndarray) -> np.ndarray:
    return (np.abs(_own(points, place, turn)) < half).all(1)


def _box_distance(
    points: np.ndarray, place: np.ndarray, turn: float, half: np.ndarray
) -> np.ndarray:
    """Metres to the surface of a box, from outside or inside."""
    beyond = np.abs(_own(points, place, turn)) - half
    outside = np.linalg.norm(np.maximum(beyond, 0), axis=1)
    return np.where((beyond < 0).all(1), -beyond.max(1), outside)


def _on_box(
    draws: np.random.Generator, count: int, place: np.ndarray, turn: float, half: np.ndarray
) -> np.ndarray:
    """Points on all faces of a box but the lower, by area."""
    area = np.array([half[1] * half[2]] * 2 + [half[0] * half[2]] * 2 + [half[0] * half[1]])
    face = draws.choice(5, count, p=area / area.sum())
    points = draws.uniform(-1, 1, (count, 3))
    points[np.arange(count), face // 2] = np.where(face % 2 & (face < 4), -1.0, 1.0)
    c, s = math.cos(turn), math.sin(turn)
    return points * half @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1.0]]) + place


@njit(cache=True)
def _cast(width, height, camera, pose, places, turns, halves, colors, waves):  # noqa: ANN001
    """Depth, instance, local point, cosine to the surface and colour of each pixel's ray."""
    depth = np.zeros((height, width), np.float32)
    instance = np.zeros((height, width), np.int16)
    local = np.zeros((height, width, 3), np.float32)
    facing = np.zeros((height, width), np.float32)
    image = np.zeros((height, width, 3), np.float32)
    count = len(places)
    ball = count - 4
    eye, way, hit = np.zeros(3), np.zeros(3), np.zeros(3)
    cosine, sine = np.cos(turns), np.sin(turns)
    for v in range(height):
        for u in range(width):
            x, y = (u - camera[0, 2]) / camera[0, 0], (v - camera[1, 2]) / camera[1, 1]
            length = math.sqrt(x * x + y * y + 1)
            nearest, who, axis = 1e9, 0, 0
            for n in range(count):
                for part in range(3):
                    eye[part] = pose[part, 3] - places[n, part]
                    way[part] = pose[part, 0] * x + pose[part, 1] * y + pose[part, 2]
                eye[0], eye[1] = (
                    cosine[n] * eye[0] + sine[n] * eye[1],
                    cosine[n] * eye[1] - sine[n] * eye[0],
                )
                way[0], way[1] = (
                    cosine[n] * way[0] + sine[n] * way[1],
                    cosine[n] * way[1] - sine[n] * way[0],
                )
                found, side = 1e9, 0
                if n == ball:
                    a = way[0] ** 2 + way[1] ** 2 + way[2] ** 2
                    b = way[0] * eye[0] + way[1] * eye[1] + way[2] * eye[2]
                    c = eye[0] ** 2 + eye[1] ** 2 + eye[2] ** 2 - halves[n, 0] ** 2
                    root = b * b - a * c
                    if root > 0:
                        found = (-b - math.sqrt(root)) / a
                        side = 3
                else:
                    enter, leave, first, last = -1e9, 1e9, 0, 0
                    for part in range(3):
                        speed = way[part] if abs(way[part]) > 1e-9 else 1e-9
                        one = (-halves[n, part] - eye[part]) / speed
                        two = (halves[n, part] - eye[part]) / speed
                        if one > two:
                            one, two = two, one
                        if one > enter:
                            enter, first = one, part
                        if two < leave:
                            leave, last = two, part
                    if n == 0:  # the room is seen from inside
                        found, side = leave, last
                    elif enter <= leave:
                        found, side = enter, first
                if 1e-3 < found < nearest:
                    nearest, who, axis = found, n, side
                    for part in range(3):
                        hit[part] = eye[part] + found * way[part]
                    if side < 3:
                        slant = abs(way[side]) / length
                    else:
                        slant = 0.0
                        for part in range(3):
                            slant -= way[part] * hit[part] / halves[n, 0] / length
                    cos_hit = slant
            depth[v, u], instance[v, u], facing[v, u] = nearest, who, cos_hit
            light = (0.85, 0.75, 1.0, 0.9)[axis] * (0.6 + 0.4 * cos_hit)
            for part in range(3):
                local[v, u, part] = hit[part]
            for channel in range(3):
                tone = 0.0
                for k in range(waves.shape[2]):
                    w = waves[who, channel, k]
                    tone += math.sin(w[0] * hit[0] + w[1] * hit[1] + w[2] * hit[2] + w[3])
                image[v, u, channel] = light * (colors[who, channel] + 24.0 * tone)
    return depth, instance, local, facing, image


if __name__ == "__main__":
    # Compiled code that is kept knows this file by the name that the benchmarks import it by.
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from vismem.streams.rgbd import write_rgbd

    room = MovingRoom(0)
    print(write_rgbd(sys.argv[1], (room.frame(n).frame for n in range(room.frames))), "frames")
