"""What a memory says, as ROS messages; needs no ROS: the types are handed in.

They may be those of rclpy or, in tests, of rosbags. The other direction is
`vismem.streams.messages`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch

from vismem.detections import Detections
from vismem.encoders.base import Encoder
from vismem.encoders.color import COLORS
from vismem.geometry import quaternion_of
from vismem.heads.answer import LEAST_TOLD, Answer, Moment
from vismem.heads.locate import SHARE_OF_COLOR, Located, state_of
from vismem.memory.episodic import EpisodicSnapshot
from vismem.memory.remembered import RememberedObject
from vismem.sightings import SHAPES

__all__ = ["Messages", "camera_at", "goal_before", "thing_name"]

PLAIN_SHAPE = 0.75  # likelihood of a shape from which it names a thing before any label
MOST_SECONDS = 2**31 - 1  # that a stamp can hold


def goal_before(place: Sequence[float], eye: Sequence[float] | None, standoff: float) -> np.ndarray:
    """A pose on the ground that a robot can be sent to, facing a thing.

    Args:
        place: Of the thing, world metres, z up.
        eye: Where it was seen from, which is where there was room; None if that is not known.
        standoff: Metres before the thing.

    Returns:
        ``(4, 4)``: at z = 0, turned about z alone.

    Example:
        >>> goal_before((2.0, 0.0, 0.8), (0.0, 0.0, 1.2), 0.5)[:3, 3]
        array([1.5, 0. , 0. ])
    """
    thing = np.asarray(place, np.float64)[:2]
    away = (np.zeros(2) if eye is None else np.asarray(eye, np.float64)[:2]) - thing
    far = float(np.linalg.norm(away))
    away = away / far if far > 1e-6 else np.array([-1.0, 0.0])
    pose = np.eye(4)
    pose[:2, 3] = thing + standoff * away
    pose[:2, 0] = -away
    pose[:2, 1] = away[1], -away[0]
    return pose


def camera_at(streams: Iterable[EpisodicSnapshot], seconds: float) -> np.ndarray | None:
    """Where a camera was nearest to a time, ``(4, 4)`` camera-to-world; None if that is not known.

    Args:
        streams: Moments of each stream.
        seconds: The time.
    """
    best, nearest = None, math.inf
    for moments in streams:
        poses, peaks = moments.column("pose"), moments.column("peak")
        for row in torch.nonzero(poses.isfinite().all((1, 2)))[:, 0].tolist():
            away = abs(float(peaks[row]) - seconds)
            if away < nearest:
                best, nearest = poses[row].double().numpy(), away
    return best


def thing_name(thing: RememberedObject, encoder: Encoder) -> str:
    """What a thing is called: its colour, and its shape where that is plain or else a label."""
    label, score = max(thing.labels.items(), key=lambda item: item[1], default=(-1, 0.0))
    known = 0 <= label < len(encoder.label_names) and score >= LEAST_TOLD
    plain = float(thing.shape.max()) >= PLAIN_SHAPE
    noun = SHAPES[int(thing.shape.argmax())] if plain or not known else encoder.label_names[label]
    color = int(thing.color.argmax())
    return f"{COLORS[color]} {noun}" if thing.color[color] >= SHARE_OF_COLOR else noun


class Messages:
    """Makes messages.

    Args:
        type_of: From ``"geometry_msgs/msg/Pose"`` to its class.
        frame: Frame of reference of poses, ``"map"``.
        vision: Whether detections and things go out as ``vision_msgs``.
    """

    def __init__(self, type_of: Callable[[str], Any], frame: str, *, vision: bool):
        self.frame, self.vision = frame, vision
        self._type_of = type_of

    def make(self, kind: str, **fields: Any) -> Any:
        """A message of a type such as ``"geometry_msgs/Pose"``."""
        return self._type_of(kind.replace("/", "/msg/"))(**fields)

    # ------------------------------------------------------------------ parts

    def time(self, seconds: float) -> Any:
        """A stamp; what it cannot hold becomes the nearest that it can."""
        nanoseconds = round(min(max(seconds, -MOST_SECONDS), MOST_SECONDS) * 1e9)
        whole, rest = divmod(nanoseconds, 10**9)
        return self.make("builtin_interfaces/Time", sec=whole, nanosec=rest)

    def header(self, seconds: float, frame: str | None = None) -> Any:
        """A header of a time, in the world's frame by default."""
        name = self.frame if frame is None else frame
        return self.make("std_msgs/Header", stamp=self.time(seconds), frame_id=name)

    def _vector(self, kind: str, values: Sequence[float]) -> Any:
        fields = dict(zip("xyzw", map(float, values), strict=False))
        return self.make(f"geometry_msgs/{kind}", **fields)

    def pose(self, matrix: np.ndarray) -> Any:
        """A ``geometry_msgs/Pose`` of a rigid transform."""
        matrix = np.asarray(matrix, np.float64)
        return self.make(
            "geometry_msgs/Pose",
            position=self._vector("Point", matrix[:3, 3].tolist()),
            orientation=self._vector("Quaternion", quaternion_of(matrix)),
        )

    def _at(self, position: Sequence[float], sigma: float | None = None) -> Any:
        """A pose without rotation; with a sigma in metres, one with covariance."""
        matrix = np.eye(4)
        matrix[:3, 3] = position
        if sigma is None:
            return self.pose(matrix)
        # Which way a thing is turned is not known: anything up to half a turn.
        variances = [sigma**2] * 3 + [math.pi**2] * 3
        covariance = np.diag(variances).reshape(-1)
        kind = "geometry_msgs/PoseWithCovariance"
        return self.make(kind, pose=self.pose(matrix), covariance=covariance)

    def pose_stamped(self, seconds: float, matrix: np.ndarray) -> Any:
        """A ``geometry_msgs/PoseStamped`` in the world's frame."""
        kind = "geometry_msgs/PoseStamped"
        return self.make(kind, header=self.header(seconds), pose=self.pose(matrix))

    # ------------------------------------------------------------------ detections

    def detections(self, found: Detections, header: Any, names: Callable[[int], str]) -> Any:
        """Boxes of a picture, with its own header.

        Args:
            found: In pixels of the picture.
            header: Of the picture.
            names: From the number of a class to its name.
        """
        ids = [-1] * len(found) if found.ids is None else found.ids.tolist()
        rows = []
        columns = found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), ids
        for (x0, y0, x1, y1), score, label, number in zip(*columns, strict=True):
            box = {"size_x": x1 - x0, "size_y": y1 - y0}
            middle = {"x": (x0 + x1) / 2, "y": (y0 + y1) / 2}
            name, id = names(label), str(number) if number >= 0 else ""
            if not self.vision:
                fields = {"id": id, "class_id": name, "score": score, **middle, **box}
                rows.append(self.make("vismem_msgs/Detection", **fields))
                continue
            position = self.make("vision_msgs/Point2D", **middle)
            center = self.make("vision_msgs/Pose2D", position=position, theta=0.0)
            rows.append(
                self.make(
                    "vision_msgs/Detection2D",
                    header=header,
                    results=[self._hypothesis(name, score, (0.0, 0.0, 0.0), 0.0)],
                    bbox=self.make("vision_msgs/BoundingBox2D", center=center, **box),
                    id=id,
                )
            )
        kind = "vision_msgs/Detection2DArray" if self.vision else "vismem_msgs/DetectionArray"
        return self.make(kind, header=header, detections=rows)

    def _hypothesis(self, name: str, score: float, position: Sequence[float], sigma: float) -> Any:
        return self.make(
            "vision_msgs/ObjectHypothesisWithPose",
            hypothesis=self.make("vision_msgs/ObjectHypothesis", class_id=name, score=score),
            pose=self._at(position, sigma),
        )

    # ------------------------------------------------------------------ things

    def objects(self, things: Sequence[RememberedObject], names: Sequence[str], now: float) -> Any:
        """Things in the world.

        Args:
            things: What is held.
            names: One for each.
            now: Second of the newest frame.
        """
        rows = []
        for thing, name in zip(things, names, strict=True):
            score = 0.0 if thing.gone else 1.0
            size = self._vector("Vector3", thing.extent)
            if not self.vision:
                place = Located(
                    name, thing.position, thing.sigma, state_of(thing), thing.first, thing.last,
                    thing.views, score, id=thing.id,
                )  # fmt: skip
                rows.append(self.place(place, size))
                continue
            box = self.make("vision_msgs/BoundingBox3D", center=self._at(thing.position), size=size)
            results = [self._hypothesis(name, score, thing.position, thing.sigma)]
            header = self.header(thing.last)
            rows.append(
                self.make(
                    "vision_msgs/Detection3D", header=header, results=results, bbox=box,
                    id=str(thing.id),
                )
            )  # fmt: skip
        if self.vision:
            kind, key = "vision_msgs/Detection3DArray", "detections"
        else:
            kind, key = "vismem_msgs/RememberedObjectArray", "objects"
        return self.make(kind, header=self.header(now), **{key: rows})

    def place(self, place: Located, size: Any = None) -> Any:
        """Where a thing is, as an answer tells it."""
        return self.make(
            "vismem_msgs/RememberedObject",
            header=self.header(place.last),
            id=str(place.id),
            label=place.label,
            score=float(place.score),
            state=place.state,
            pose=self._at(place.position, place.sigma),
            size=self._vector("Vector3", (0.0, 0.0, 0.0)) if size is None else size,
            first=self.time(place.first),
            views=int(place.views),
            rivals=int(place.rivals),
        )

    def markers(
        self, things: Sequence[RememberedObject], names: Sequence[str], retired: Sequence[int]
    ) -> list[dict[str, Any]]:
        """Fields of ``visualization_msgs/Marker`` for RViz: a box and a name for each thing.

        Args:
            things: To show.
            names: One for each.
            retired: Numbers of things that were shown and are no more.
        """
        rows: list[dict[str, Any]] = []
        for thing, name in zip(things, names, strict=True):
            faint = 0.25 if thing.gone else 0.8
            red, green, blue = _PAINT.get(name.split()[0], (0.6, 0.6, 0.6))
            color = self.make("std_msgs/ColorRGBA", r=red, g=green, b=blue, a=faint)
            white = self.make("std_msgs/ColorRGBA", r=1.0, g=1.0, b=1.0, a=faint)
            size = [max(side, 0.01) for side in thing.extent]
            above = (*thing.position[:2], thing.position[2] + size[2] / 2 + 0.05)
            common = {"header": self.header(thing.last), "id": thing.id, "action": 0}
            rows += [
                common
                | {"ns": "things", "type": 1, "pose": self._at(thing.position), "color": color}
                | {"scale": self._vector("Vector3", size), "text": ""},
                common
                | {"ns": "names", "type": 9, "pose": self._at(above), "color": white}
                | {"scale": self._vector("Vector3", (0.0, 0.0, 0.05)), "text": name},
            ]
        for number in retired:
            gone = {"header": self.header(0.0), "id": number, "action": 2}
            rows += [gone | {"ns": "things"}, gone | {"ns": "names"}]
        return rows

    # ------------------------------------------------------------------ answers

    def moment(self, moment: Moment) -> Any:
        """A piece of evidence."""
        matrix = np.eye(4) if moment.pose is None else np.asarray(moment.pose, np.float64)
        return self.make(
            "vismem_msgs/Moment",
            start=self.time(moment.start),
            end=self.time(moment.end),
            stamp=self.time(moment.time),
            score=float(moment.score),
            label=moment.label,
            stream=moment.stream,
            count=int(moment.count),
            box=[float(x) for x in moment.box or ()],
            has_pose=moment.pose is not None,
            pose=self.pose_stamped(moment.time, matrix),
        )

    def fill(self, reply: Any, answer: Answer, most: int = 0) -> Any:
        """Put an answer into the response of a query or the result of an action."""
        end = most or None
        reply.success, reply.reason = True, ""
        reply.answer, reply.abstained = answer.text, answer.abstained
        reply.moments = [self.moment(moment) for moment in answer.moments[:end]]
        reply.objects = [self.place(place) for place in (answer.places or ())[:end]]
        return reply


_PAINT = {
    "red": (0.85, 0.1, 0.1),
    "orange": (0.95, 0.5, 0.05),
    "yellow": (0.92, 0.85, 0.1),
    "green": (0.1, 0.65, 0.15),
    "cyan": (0.05, 0.75, 0.8),
    "blue": (0.1, 0.2, 0.85),
    "purple": (0.55, 0.1, 0.65),
    "pink": (0.98, 0.55, 0.75),
    "brown": (0.45, 0.3, 0.15),
    "white": (1.0, 1.0, 1.0),
    "gray": (0.5, 0.5, 0.5),
    "black": (0.06, 0.06, 0.06),
}
