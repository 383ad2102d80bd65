"""The parameters of the memory node: names, defaults, ranges and what each is for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vismem.memory.base import Budget
from vismem.memory.policies import POLICIES

__all__ = ["SETTINGS", "Setting", "defaults", "problem_of"]

Value = bool | int | float | str | list[float]


@dataclass(frozen=True, slots=True)
class Setting:
    """One parameter.

    Args:
        name: As it is declared.
        default: Its type is the parameter's.
        about: What it is for.
        low: Least number.
        high: Greatest number.
        choices: Texts that it may be.
        dynamic: Whether it may change while the node is configured.
    """

    name: str
    default: Value
    about: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    dynamic: bool = False

    def problem(self, value: Any) -> str:
        """Say what is wrong with a value; empty if nothing is.

        Example:
            >>> Setting("rate", 2.0, "frames a second", 0.0, 120.0).problem(-1.0)
            'rate must be from 0 to 120, not -1.0'
        """
        given: Any = value  # of the default's type from here on
        kind = type(self.default)
        if type(value) is not kind and not (kind is list and isinstance(value, (list, tuple))):
            if kind is list and hasattr(value, "typecode"):
                return self.problem(list(value))
            return f"{self.name} must be {kind.__name__}, not {value!r}"
        if self.choices and value not in self.choices:
            return f"{self.name} must be one of {', '.join(self.choices)}; not {value!r}"
        if self.low is not None and self.high is not None:
            if not self.low <= given <= self.high:  # NaN neither
                return f"{self.name} must be from {self.low:g} to {self.high:g}, not {value!r}"
        if self.name == "budget":
            try:
                Budget.parse(given)
            except ValueError as error:
                return f"budget: {error}"
        if self.name == "mount" and not _is_pose(given):
            return f"mount must be x y z and a quaternion x y z w, not {list(given)}"
        return ""


def _is_pose(values: Any) -> bool:
    return (
        len(values) == 7
        and all(isinstance(value, float) and math.isfinite(value) for value in values)
        and math.hypot(*values[3:]) > 0
    )


SETTINGS: tuple[Setting, ...] = (
    # The memory, as of `vismem run`.
    Setting("path", "", "Directory of the memory, gone on with if it is there; empty: in RAM."),
    Setting("stream", "camera", "Name of the camera in the memory."),
    Setting("budget", "64MB", "What the memory may hold.", dynamic=True),
    Setting(
        "policy",
        "moments",
        "What remembers pictures beside the moments.",
        choices=("moments", *POLICIES),
    ),
    Setting("encoder", "embedded", "What understands pictures; embedded needs no hub."),
    Setting("fps", 2.0, "Pictures a second to remember; 0 for every one.", 0, 240, dynamic=True),
    Setting("retain", 0.0, "Forget what is older, seconds; 0 keeps all.", 0, 1e9),
    Setting("every_frame", False, "Lose no picture: for replay, not for a live camera."),
    # What comes in.
    Setting(
        "image_transport",
        "compressed",
        "compressed reads <image>/compressed.",
        choices=("compressed", "raw"),
    ),
    Setting(
        "image_reliability",
        "best_effort",
        "Of pictures, depth and camera_info.",
        choices=("best_effort", "reliable"),
    ),
    Setting("queue", 30, "Messages of a sensor that wait while the machine is busy.", 1, 10000),
    Setting("depth", False, "Wait for a depth picture and the camera's matrix."),
    Setting(
        "pose_source",
        "none",
        "Topic that tells where the camera was.",
        choices=("none", "pose", "pose_with_covariance", "odom", "tf"),
    ),
    Setting("map_frame", "map", "Frame of reference of poses and of everything that is told."),
    Setting(
        "mount",
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0],
        "The camera's optical frame in what pose or odom tell the pose of; tf knows it itself.",
    ),
    Setting("pose_gap", 0.5, "Seconds between two poses that are interpolated.", 0, 60),
    Setting("pose_hold", 0.05, "Seconds that a pose counts beyond its own time.", 0, 10),
    Setting("slop", 0.05, "Seconds that a depth picture may be away.", 0, 10),
    Setting("patience", 0.3, "Seconds that a picture waits for depth and pose.", 0.01, 60),
    # What goes out.
    Setting(
        "detect",
        "memory",
        "Find people: better by memory, each frame by itself, or not.",
        choices=("memory", "frame", "none"),  # not "off", which is false in YAML
    ),
    Setting("detect_rate", 5.0, "Pictures a second to detect in; 0 for all.", 0, 240, dynamic=True),
    Setting("detect_threshold", 0.5, "Score from which one frame alone is enough.", 0.01, 1),
    Setting("threshold", 0.5, "Least score that is claimed in an answer.", 0.01, 1, dynamic=True),
    Setting("objects_rate", 1.0, "How often things are published, Hz.", 0.01, 30),
    Setting("standoff", 0.6, "Metres before a thing that a goal stops at.", 0, 10, dynamic=True),
    # How it fares.
    Setting(
        "max_age", 1.0, "Seconds old from which a picture counts as late.", 0, 1e6, dynamic=True
    ),
    Setting("min_rate", 1.0, "Pictures a second below which is warned.", 0, 240, dynamic=True),
    Setting("autostart", True, "Configure and activate at the start; off under a manager."),
)

_BY_NAME = {setting.name: setting for setting in SETTINGS}


def defaults() -> dict[str, Value]:
    """Name and default of every parameter."""
    return {setting.name: setting.default for setting in SETTINGS}


def problem_of(changes: Mapping[str, Any], *, configured: bool) -> str:
    """Say why parameters may not be set like this; empty if they may.

    Args:
        changes: By name; those that are not the node's own are left alone.
        configured: Whether the node holds a memory, so that most may not change.

    Example:
        >>> problem_of({"fps": 500.0}, configured=False)
        'fps must be from 0 to 240, not 500.0'
        >>> problem_of({"path": "other"}, configured=True)
        'path is taken when the node is configured; clean it up first'
    """
    for name, value in changes.items():
        setting = _BY_NAME.get(name)
        if setting is None:
            continue
        if problem := setting.problem(value):
            return problem
        if configured and not setting.dynamic:
            return f"{name} is taken when the node is configured; clean it up first"
    return ""
