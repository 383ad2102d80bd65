"""The table as MuJoCo's XML: primitives only, no assets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["COLOURS", "CUP", "SHAPES", "Thing", "table_mjcf"]

COLOURS: Mapping[str, tuple[float, float, float]] = {
    "red": (0.85, 0.10, 0.10),
    "green": (0.10, 0.65, 0.15),
    "blue": (0.10, 0.20, 0.85),
    "yellow": (0.92, 0.85, 0.08),
    "purple": (0.55, 0.10, 0.65),
    "cyan": (0.05, 0.75, 0.80),
    "orange": (0.95, 0.50, 0.05),
    "pink": (0.98, 0.55, 0.75),
    "grey": (0.45, 0.45, 0.45),
    "black": (0.06, 0.06, 0.06),
}
SHAPES: Mapping[str, str] = {
    "block": "box",
    "ball": "sphere",
    "can": "cylinder",
    "egg": "ellipsoid",
}

CUP = (0.065, 0.12)  # half width and height of a cup, metres


@dataclass(frozen=True, slots=True)
class Thing:
    """An object on the table.

    Args:
        colour: A key of `COLOURS`.
        shape: A key of `SHAPES`.
        half: Half its width, metres.
        name: Its name; colour and shape where none is given.
    """

    colour: str
    shape: str = "block"
    half: float = 0.035
    name: str = ""

    def __post_init__(self) -> None:
        if self.colour not in COLOURS or self.shape not in SHAPES:
            raise ValueError(f"a thing has one of {[*COLOURS]} and one of {[*SHAPES]}")
        if not self.name:
            object.__setattr__(self, "name", f"{self.colour} {self.shape}")


def table_mjcf(
    slots: np.ndarray,
    things: Iterable[Thing],
    *,
    size: tuple[int, int],
    top: float,
    seed: int,
    fovy: float,
    drawers: int,
    physics: bool,
    extra: tuple[str, str],
) -> str:
    """The table of `scene.Table`, whose arguments these are; `slots` `(S, 3)` in metres."""
    rng = np.random.default_rng(seed)
    wood = np.array([0.62, 0.50, 0.38]) + rng.uniform(-0.03, 0.03, 3)
    floor = np.array([0.30, 0.32, 0.35]) + rng.uniform(-0.03, 0.03, 3)
    half = np.abs(slots[:, :2]).max(axis=0) + 0.16
    # Contacts cost time and move nothing where everything is placed by hand.
    touch = "" if physics else 'contype="0" conaffinity="0"'

    def rgb(colour: Sequence[float]) -> str:
        return " ".join(f"{c:.4f}" for c in colour) + " 1"

    def body(name: str, geoms: str, free: bool = False) -> str:
        kind = "<freejoint/>" if free else ""
        mocap = "" if free else ' mocap="true"'
        return f'<body name="{name}"{mocap} pos="0 0 -2">{kind}{geoms}</body>'

    parts = [
        f'<geom type="plane" size="3 3 .1" rgba="{rgb(floor)}" {touch}/>',
        f'<geom name="top" type="box" size="{half[0]} {half[1]} .02" '
        f'pos="0 0 {top - 0.02}" rgba="{rgb(wood)}" {touch}/>',
    ]
    for x, y, _ in slots:
        parts.append(
            f'<geom type="cylinder" size=".055 .0004" pos="{x} {y} {top}" '
            f'rgba="{rgb(wood * 0.8)}" contype="0" conaffinity="0"/>'
        )
    for thing in things:
        h = thing.half
        shaped = {"box": f"{h} {h} {h}", "sphere": f"{h}", "cylinder": f"{h} {h}",
                "ellipsoid": f"{h} {0.7 * h} {h}"}[SHAPES[thing.shape]]  # fmt: skip
        colour = rgb(COLOURS[thing.colour])
        geom = (
            f'<geom type="{SHAPES[thing.shape]}" size="{shaped}" rgba="{colour}" mass=".05" '
            f'condim="6" friction="1 .02 .02" {touch}/>'
        )
        parts.append(body(thing.name, geom, physics))
    w, tall = CUP
    wall = 0.003
    for i in range(len(slots)):
        sides = [
            (f"{w} {w} {wall}", f"0 0 {tall - wall}"),
            (f"{wall} {w} {tall / 2}", f"{w - wall} 0 {tall / 2}"),
            (f"{wall} {w} {tall / 2}", f"{wall - w} 0 {tall / 2}"),
            (f"{w} {wall} {tall / 2}", f"0 {w - wall} {tall / 2}"),
            (f"{w} {wall} {tall / 2}", f"0 {wall - w} {tall / 2}"),
        ]
        geoms = "".join(
            f'<geom type="box" size="{size}" pos="{pos}" rgba=".80 .78 .74 1" mass=".02" {touch}/>'
            for size, pos in sides
        )
        parts.append(body(f"cup {i}", geoms, physics))
    for i in range(drawers):
        parts.append(
            body(
                f"drawer {i}",
                f'<geom type="box" size=".07 .12 .05" rgba="{rgb(wood * 0.6)}" {touch}/>'
                f'<geom type="box" size=".03 .012 .01" pos="0 -.13 0" rgba=".85 .85 .85 1" '
                f"{touch}/>",
            )
        )
    parts.append(body("button", f'<geom name="button" type="cylinder" size=".03 .015" '
                                f'rgba=".35 .05 .05 1" {touch}/>'))  # fmt: skip
    parts.append(body("distractor", f'<geom type="sphere" size=".03" rgba="1 1 1 1" {touch}/>'))
    parts.append(f'<body name="eye" mocap="true"><camera name="eye" fovy="{fovy}"/></body>')
    return f"""<mujoco>
      <option timestep=".004"/>
      <statistic extent="1" center="0 0 {top}"/>
      <visual>
        <global offwidth="{size[0]}" offheight="{size[1]}"/>
        <quality shadowsize="0" offsamples="0"/>
        <map znear=".02" zfar="8"/>
        <headlight ambient=".55 .55 .55" diffuse=".45 .45 .45" specular="0 0 0"/>
      </visual>
      <worldbody>{"".join(parts)}{extra[0]}</worldbody>{extra[1]}
    </mujoco>"""
