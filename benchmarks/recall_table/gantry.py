"""A gantry over the table: three slides and a sucking finger, driven by MuJoCo's actuators.

It carries out the waypoints of `vismem.heads.act.plan` in the simulator, where things and cups have
weight and joints of their own; whether it did what was asked is read from the simulator's state.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scene import CUP, Table, mujoco  # it chooses the renderer before it imports mujoco
from tasks import HUES, Content, Family

from vismem.heads.act import Plan, Target, Workspace, plan

__all__ = ["WORKSPACE", "Gantry", "act"]

WORKSPACE = Workspace((-0.6, -0.4, 0.40), (0.6, 0.4, 0.85), opening=0.045, clearance=0.16)
ASIDE = (0.52, 0.0, 0.60)  # beside the table, where a cup may fall
AXES = ("x", "y", "z")


def _mjcf(bodies: Sequence[str]) -> tuple[str, str]:
    """Bodies and the rest of a gantry that can suck at any of the bodies."""
    slides = "".join(
        f'<joint name="slide {a}" type="slide" axis="{i == 0:d} {i == 1:d} {i == 2:d}" '
        f'damping="20"/>'
        for i, a in enumerate(AXES)
    )
    hand = (
        f'<body name="tip" pos="0 0 0" gravcomp="1">{slides}'
        '<geom type="cylinder" size=".012 .08" pos="0 0 .08" rgba=".2 .2 .25 1" mass=".5" '
        'contype="0" conaffinity="0"/></body>'
    )
    drives = "".join(
        f'<position joint="slide {a}" kp="400" dampratio="1" forcerange="-60 60"/>' for a in AXES
    )
    welds = "".join(
        f'<weld body1="tip" body2="{name}" active="false" solref=".01 1"/>' for name in bodies
    )
    return hand, f"<actuator>{drives}</actuator><equality>{welds}</equality>"


class Gantry:
    """A family's table with weight, and a gantry over it.

    Args:
        family: Of `tasks.FAMILIES`.
        size: Of the picture, if one is looked at.
    """

    def __init__(self, family: Family, size: tuple[int, int] = (64, 64)):
        self.bodies = [*(thing.name for thing in family.things), *(f"cup {i}" for i in range(9))]
        self.table = Table(objects=family.things, size=size, physics=True, extra=_mjcf(self.bodies))
        self.model, self.data = self.table.model, self.table.data

    def __enter__(self) -> Gantry:
        return self

    def __exit__(self, *_: object) -> None:
        self.table.close()

    @property
    def tip(self) -> np.ndarray:
        """Where the finger's tip is, metres."""
        return self.data.body("tip").xpos

    def reset(self) -> None:
        """Clear the table and lift the hand."""
        self.table.reset()
        self.data.eq_active[:] = 0
        for i, height in enumerate((0.0, 0.0, 0.75)):
            self.data.qpos[self.model.joint(f"slide {AXES[i]}").qposadr[0]] = height
            self.data.ctrl[i] = height
        mujoco.mj_forward(self.model, self.data)

    def settle(self, seconds: float) -> None:
        """Let time pass."""
        for _ in range(round(seconds / self.model.opt.timestep)):
            mujoco.mj_step(self.model, self.data)

    def _top(self, name: str) -> np.ndarray:
        """Middle of a body's top."""
        up = CUP[1] if name.startswith("cup") else self.table.objects[name].half
        return self.data.body(name).xpos + (0.0, 0.0, up)

    def grasp(self) -> str | None:
        """Suck at the body whose top is under the tip; its name, if there is one in reach."""
        away = {name: self._top(name) - self.tip for name in self.bodies}
        near = {
            name: float(np.linalg.norm(gap))
            for name, gap in away.items()
            if np.linalg.norm(gap[:2]) <= WORKSPACE.opening and abs(gap[2]) <= 0.03
        }
        if not near:
            return None
        name = min(near, key=near.__getitem__)
        weld = self.bodies.index(name)
        body = self.data.body(name)
        self.model.eq_data[weld, 3:6] = body.xpos - self.tip
        self.model.eq_data[weld, 6:10] = body.xquat
        self.data.eq_active[weld] = 1
        return name

    def carry_out(self, orders: Plan) -> None:
        """Visit the waypoints one after the other."""
        for waypoint in orders.waypoints:
            start, end = self.data.ctrl.copy(), np.array(waypoint.xyz)
            steps = max(40, round(float(np.linalg.norm(end - start)) / 0.5 / 0.004))
            for i in range(steps):
                self.data.ctrl[:] = start + (end - start) * (i + 1) / steps
                mujoco.mj_step(self.model, self.data)
            self.settle(0.25)
            if waypoint.then == "grasp":
                self.grasp()
            elif waypoint.then == "release":
                self.data.eq_active[:] = 0
        self.settle(0.4)


def act(gantry: Gantry, family: Family, content: Content, target: Target) -> tuple[bool, str]:
    """Act on the answer to an episode of put_back or find_hidden.

    Args:
        gantry: On the family's table.
        family: `put_back`: bring the block from the middle to where it was. `find_hidden`: take
            the cup away and lift the thing that was asked for.
        content: The episode's truth, to set the scene and to judge.
        target: What the memory answered: the thing's middle.

    Returns:
        Whether the simulator's state says that it was done; and why it was refused, if it was.
    """
    table, half = gantry.table, family.half
    gantry.reset()
    x, y, z = target.xyz
    if family.name == "put_back":
        block = family.things[0].name
        table.place(block, 4)
        middle = Target((0.0, 0.0, table.top + 2 * half))  # in full view
        goal = Target((x, y, max(z, table.top + half) + half), target.sigma, target.abstained)
        orders = plan(middle, goal, WORKSPACE)
        gantry.carry_out(orders)
        found = gantry.data.body(block).xpos
        wanted = family.answer_at(table, content.answer)
        off = np.abs(found - wanted)
        return bool(np.hypot(*off[:2]) < 0.05 and off[2] < 0.01), orders.refused
    for number, slot in zip(content.public["shown"], content.hidden["slots"], strict=True):
        table.place(HUES[number], slot)
    for slot in range(9):
        table.cover(slot)
    gantry.settle(0.1)
    cup = Target((x, y, table.top + CUP[1]), target.sigma, target.abstained)
    orders = plan(cup, Target(ASIDE), WORKSPACE)
    if not orders.refused:
        gantry.carry_out(orders)
        orders = plan(
            Target((x, y, table.top + 2 * half), target.sigma, target.abstained), None, WORKSPACE
        )
        gantry.carry_out(orders)
    lifted = gantry.data.body(HUES[content.query]).xpos[2] - (table.top + half)
    return bool(lifted > 0.05), orders.refused
