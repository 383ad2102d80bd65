"""Act on an answer: from where a memory says something is to the waypoints of a gripper.

Nothing here drives a robot. `plan` turns a located answer into a few straight moves (above it, down
to grasp, up; above the goal, down to release, up), keeps them within a workspace, and refuses an
answer that is too uncertain for the gripper's opening or that abstained. Who refuses may look
again; who acts on a guess knocks something over.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["Plan", "Target", "Waypoint", "Workspace", "plan"]


@dataclass(frozen=True, slots=True)
class Target:
    """Where an answer says something is.

    Args:
        xyz: Its place in the world, metres.
        sigma: One standard deviation of each axis, metres.
        abstained: Whether the answer is that nothing is known.
    """

    xyz: tuple[float, float, float]
    sigma: float = 0.0
    abstained: bool = False


@dataclass(frozen=True, slots=True)
class Waypoint:
    """One straight move of the finger's tip, and what it does when it is there.

    Args:
        xyz: Where the tip goes, metres in the world.
        then: ``"grasp"``, ``"release"`` or nothing.
    """

    xyz: tuple[float, float, float]
    then: Literal["", "grasp", "release"] = ""


@dataclass(frozen=True, slots=True)
class Workspace:
    """Where the tip may go, and what it can hold.

    Args:
        low: Least x, y and z, metres.
        high: Greatest.
        opening: How far off the middle a thing may be and still be grasped, metres.
        clearance: How high above what it approaches, carries or leaves the tip travels, metres.

    Raises:
        ValueError: If it is empty, or opening or clearance are not above 0.
    """

    low: tuple[float, float, float]
    high: tuple[float, float, float]
    opening: float = 0.04
    clearance: float = 0.15

    def __post_init__(self) -> None:
        if not all(a < b for a, b in zip(self.low, self.high, strict=True)):
            raise ValueError(f"a workspace reaches from low to high, not {self.low} to {self.high}")
        if not (self.opening > 0 and self.clearance > 0):
            raise ValueError("opening and clearance are above 0 metres")

    def holds(self, xyz: Sequence[float]) -> bool:
        """Whether the tip may be there."""
        return all(a <= x <= b for a, x, b in zip(self.low, xyz, self.high, strict=True))


@dataclass(frozen=True, slots=True)
class Plan:
    """Waypoints in order, or why there are none.

    Args:
        waypoints: Empty if refused.
        refused: The reason, for a person to read; empty if there is a plan.
    """

    waypoints: tuple[Waypoint, ...] = ()
    refused: str = ""


def plan(pick: Target, place: Target | None, workspace: Workspace) -> Plan:
    """Plan to pick something up and, if there is a goal, to put it there.

    Args:
        pick: What is grasped: where its top is.
        place: Where its top is to be; without it the thing is held up where it was found.
        workspace: Limits and the gripper.

    Returns:
        Three waypoints for a pick and three more for a place; or none, and why.

    Example:
        >>> table = Workspace((-0.4, -0.4, 0.4), (0.4, 0.4, 0.8))
        >>> [(w.xyz[2], w.then) for w in plan(Target((0.1, 0.0, 0.45)), None, table).waypoints]
        [(0.6, ''), (0.45, 'grasp'), (0.6, '')]
        >>> plan(Target((0.1, 0.0, 0.45), sigma=0.2), None, table).refused
        'what to pick is known to 20.0 cm only; the gripper takes 4.0 cm'
    """
    waypoints: list[Waypoint] = []
    steps: list[tuple[str, Target, Literal["grasp", "release"]]] = [("what to pick", pick, "grasp")]
    if place is not None:
        steps.append(("where to place", place, "release"))
    for name, target, then in steps:
        reason = _refusal(name, target, workspace)
        if reason:
            return Plan(refused=reason)
        x, y, z = target.xyz
        above = (x, y, round(z + workspace.clearance, 9))
        # Above the top of the workspace there is no room to travel over what stands there.
        if not workspace.holds(above):
            return Plan(refused=f"{name} leaves no room above {_metres(target.xyz)}")
        waypoints += [
            Waypoint(above),
            Waypoint((x, y, z), then),
            Waypoint(above),
        ]
    return Plan(tuple(waypoints))


def _refusal(name: str, target: Target, workspace: Workspace) -> str:
    """Why a target is not acted upon; empty if it is."""
    if target.abstained:
        return f"{name} is not known; the answer abstained"
    if not all(map(math.isfinite, (*target.xyz, target.sigma))) or target.sigma < 0:
        return f"{name} has no finite place"
    if target.sigma > workspace.opening:
        return (
            f"{name} is known to {100 * target.sigma:.1f} cm only; "
            f"the gripper takes {100 * workspace.opening:.1f} cm"
        )
    if not workspace.holds(target.xyz):
        return f"{name} is out of reach, at {_metres(target.xyz)}"
    return ""


def _metres(xyz: Sequence[float]) -> str:
    return "(" + ", ".join(f"{x:.2f}" for x in xyz) + ") m"
