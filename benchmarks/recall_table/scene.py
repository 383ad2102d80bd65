"""A table in MuJoCo: slots, coloured things, opaque cups, drawers, a button, a ball, a camera.

Primitives only, no assets, no network. Everything is moved by hand (mocap bodies), unless
`physics=True` gives things and cups free joints, so that a gantry can act on them. Shadows and
multisampling are off: they cost time, and a shadow could tell what is under a cup.

World frame: metres, z up, the table's middle at x = y = 0. Poses are camera-to-world with OpenCV
axes (x right, y down, z forward); pixel centres lie at whole numbers, so the principal point is
`((W - 1) / 2, (H - 1) / 2)`.

    MUJOCO_GL=osmesa python benchmarks/recall_table/scene.py table.png
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Sequence

os.environ.setdefault("MUJOCO_GL", "osmesa")  # read when mujoco is imported

# Mesa and Triton each bring an LLVM of their own, and Triton's crashes if Mesa's was there first;
# `torch.optim` imports Triton by the way.
with contextlib.suppress(ImportError):
    import triton  # noqa: F401
import mujoco
import numpy as np
from mjcf import COLOURS, CUP, SHAPES, Thing, table_mjcf

from vismem import Frame

__all__ = ["COLOURS", "CUP", "PITCH", "SHAPES", "Table", "Thing", "look_at"]

PITCH = 0.18  # metres from a slot's middle to the next
AWAY = (0.0, 0.0, -2.0)  # where a hidden part waits, below the floor
FAR = 10.0  # metres to the side, where it waits if it has weight
RAIL = 0.24  # how far a drawer slides out
_TO_OPENCV = np.diag([1.0, -1.0, -1.0])  # MuJoCo's cameras look along -z, with y up


def look_at(eye: Sequence[float], target: Sequence[float]) -> np.ndarray:
    """Pose of a camera at `eye` that looks at `target` with the horizon level.

    Returns:
        Camera-to-world, `(4, 4)` float64, OpenCV axes.
    """
    forward = np.asarray(target, float) - np.asarray(eye, float)
    forward /= np.linalg.norm(forward)
    up = np.array([0.0, 0.0, 1.0]) if abs(forward[2]) < 0.999 else np.array([0.0, 1.0, 0.0])
    right = np.cross(forward, up)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
    pose[:3, 3] = eye
    return pose


class Table:
    """One MuJoCo model of a table and what stands on it.

    Args:
        slots: Columns (along x) and rows (along y) of places for things.
        objects: The things; all wait out of sight until they are placed.
        size: Width and height of the picture, pixels.
        seed: Shades the table and the floor a little, so that two tables differ.
        fovy: Vertical opening angle of the camera, degrees.
        height: Height of the table's top, metres.
        drawers: How many equal drawers stand along the back edge.
        physics: Whether things and cups have free joints, and gravity.
        extra: MJCF of bodies and actuators to add (a gantry): `(worldbody, root)`.
        rate: Frames a second; each `render` is one frame.

    Call `close` at the end, or use it as a context manager.
    """

    def __init__(
        self,
        *,
        slots: tuple[int, int] = (3, 3),
        objects: Sequence[Thing] = (),
        size: tuple[int, int] = (64, 64),
        seed: int = 0,
        fovy: float = 45.0,
        height: float = 0.4,
        drawers: int = 0,
        physics: bool = False,
        extra: tuple[str, str] = ("", ""),
        rate: float = 10.0,
    ) -> None:
        if len({thing.name for thing in objects}) != len(objects):
            raise ValueError("things need names of their own")
        self.objects = {thing.name: thing for thing in objects}
        self.width, self.height_px = size
        self.top, self.rate, self._drawers = height, rate, drawers
        columns, rows = slots
        self.slots = np.array(
            [
                ((c - (columns - 1) / 2) * PITCH, (r - (rows - 1) / 2) * PITCH, height)
                for r in range(rows)
                for c in range(columns)
            ]
        )
        self._at = {name: AWAY for name in self.objects}
        self.model = mujoco.MjModel.from_xml_string(
            table_mjcf(
                self.slots, objects, size=size, top=height, seed=seed, fovy=fovy, drawers=drawers,
                physics=physics, extra=extra,
            )
        )  # fmt: skip
        self.data = mujoco.MjData(self.model)
        self._physics = physics
        self._gl = mujoco.GLContext(self.width, self.height_px)
        self._gl.make_current()
        self._context = mujoco.MjrContext(self.model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(self.model, maxgeom=self.model.ngeom + 8)
        self._options = mujoco.MjvOption()
        self._eye = mujoco.MjvCamera()
        self._eye.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._eye.fixedcamid = 0
        self._frames = 0
        self.reset()

    def __enter__(self) -> Table:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the renderer."""
        if self._gl is not None:
            self._gl.make_current()
            self._context.free()
            self._gl.free()
            self._gl = None

    def reset(self) -> None:
        """Clear the table, take the cups away, shut the drawers, start the clock anew."""
        mujoco.mj_resetData(self.model, self.data)
        self._frames = 0
        for name in self.objects:
            self.place(name, AWAY)
        for i in range(len(self.slots)):
            self.uncover(i)
        for i in range(self._drawers):
            self.drawer(i, False)
        edge = np.abs(self.slots[:, 1]).max() + 0.12
        self._put("button", (0.0, -edge, self.top))
        self.press(False)
        self.distract(None)
        self.move_camera(look_at((0.0, -0.62, self.top + 0.72), (0.0, 0.0, self.top)))

    def _put(self, name: str, xyz: Sequence[float]) -> None:
        body = self.model.body(name)
        slot = body.mocapid[0]
        if slot >= 0:
            self.data.mocap_pos[slot] = xyz
            self.data.mocap_quat[slot] = (1, 0, 0, 0)
        else:
            start = self.model.joint(body.jntadr[0]).qposadr[0]
            speed = self.model.joint(body.jntadr[0]).dofadr[0]
            # The floor would throw out what is put below it: what is away stands far away.
            xyz = xyz if xyz[2] >= 0 else (FAR + body.id, 0.0, 0.2)
            self.data.qpos[start : start + 7] = (*xyz, 1, 0, 0, 0)
            self.data.qvel[speed : speed + 6] = 0

    def _slot(self, slot: int) -> np.ndarray:
        if not 0 <= slot < len(self.slots):
            raise ValueError(f"the table has slots 0 to {len(self.slots) - 1}, not {slot}")
        return self.slots[slot]

    def place(self, name: str, where: int | Sequence[float]) -> None:
        """Stand a thing on a slot, or put its middle at a place, `(x, y, z)` metres.

        Raises:
            ValueError: If there is no such thing or slot.
        """
        if name not in self.objects:
            raise ValueError(f"no {name!r} here; there are {[*self.objects]}")
        if isinstance(where, (int, np.integer)):
            x, y, z = self._slot(int(where))
            where = (x, y, z + self.objects[name].half)
        self._at[name] = (float(where[0]), float(where[1]), float(where[2]))
        self._put(name, self._at[name])

    def remove(self, name: str) -> None:
        """Take a thing off the table, out of sight."""
        self.place(name, AWAY)

    def cover(self, slot: int) -> None:
        """Stand the slot's opaque cup on it."""
        self._put(f"cup {slot}", self._slot(slot))

    def carry_cup(self, cup: int, xyz: Sequence[float]) -> None:
        """Put a cup's open end anywhere, for a cup that is moved in view."""
        self._put(f"cup {cup}", xyz)

    def uncover(self, slot: int) -> None:
        """Take the slot's cup out of sight."""
        x, y, _ = self._slot(slot)
        self._put(f"cup {slot}", (x, y, AWAY[2] - slot))

    def drawer(self, number: int, is_open: bool) -> None:
        """Slide a drawer of the back edge out or in."""
        self._put(f"drawer {number}", self.drawer_at(number, is_open))

    def drawer_at(self, number: int, is_open: bool) -> tuple[float, float, float]:
        """Middle of a drawer, metres."""
        x = (number - (self._drawers - 1) / 2) * 0.16
        return x, 0.26 - (RAIL if is_open else 0.0), self.top + 0.05

    def press(self, lit: bool) -> None:
        """Light the button or put it out."""
        self.model.geom("button").rgba[:3] = (0.2, 1.0, 0.2) if lit else (0.35, 0.05, 0.05)

    def distract(self, xyz: Sequence[float] | None) -> None:
        """Put the white ball somewhere, or away."""
        self._put("distractor", AWAY if xyz is None else xyz)

    def move_camera(self, pose: np.ndarray) -> None:
        """Put the camera at a pose, `(4, 4)` camera-to-world, OpenCV axes."""
        pose = np.asarray(pose, float)
        if pose.shape != (4, 4):
            raise ValueError(f"a pose is (4, 4), not {pose.shape}")
        slot = self.model.body("eye").mocapid[0]
        self.data.mocap_pos[slot] = pose[:3, 3]
        mujoco.mju_mat2Quat(
            self.data.mocap_quat[slot], np.ascontiguousarray(pose[:3, :3] @ _TO_OPENCV).ravel()
        )

    @property
    def pose(self) -> np.ndarray:
        """Where the camera is, `(4, 4)` float64 camera-to-world, OpenCV axes."""
        slot = self.model.body("eye").mocapid[0]
        turn = np.empty(9)
        mujoco.mju_quat2Mat(turn, self.data.mocap_quat[slot])
        pose = np.eye(4)
        pose[:3, :3] = turn.reshape(3, 3) @ _TO_OPENCV
        pose[:3, 3] = self.data.mocap_pos[slot]
        return pose

    @property
    def intrinsics(self) -> np.ndarray:
        """Pinhole matrix, `(3, 3)` float64 pixels."""
        f = self.height_px / (2 * math.tan(math.radians(float(self.model.cam_fovy[0])) / 2))
        return np.array(
            [[f, 0, (self.width - 1) / 2], [0, f, (self.height_px - 1) / 2], [0, 0, 1.0]]
        )

    def _draw(self, depth: np.ndarray | None) -> np.ndarray:
        if self._gl is None:
            raise RuntimeError("this table is closed")
        self._gl.make_current()
        if not self._physics:
            mujoco.mj_kinematics(self.model, self.data)
            mujoco.mj_camlight(self.model, self.data)
        else:
            mujoco.mj_forward(self.model, self.data)
        mujoco.mjv_updateScene(
            self.model, self.data, self._options, None, self._eye,
            mujoco.mjtCatBit.mjCAT_ALL, self._scene,
        )  # fmt: skip
        window = mujoco.MjrRect(0, 0, self.width, self.height_px)
        mujoco.mjr_render(window, self._scene, self._context)
        image = np.empty((self.height_px, self.width, 3), np.uint8)
        mujoco.mjr_readPixels(image, depth, window, self._context)
        return np.ascontiguousarray(image[::-1])

    def render(self, *, depth: bool = True) -> Frame:
        """Take the next frame: picture, pose, intrinsics and, unless spared, depth in metres."""
        buffer = np.empty((self.height_px, self.width), np.float32) if depth else None
        image = self._draw(buffer)
        if buffer is not None:
            extent = self.model.stat.extent
            near, far = self.model.vis.map.znear * extent, self.model.vis.map.zfar * extent
            buffer = (near / (1 - buffer[::-1] * (1 - near / far))).astype(np.float32)
        index = self._frames
        self._frames += 1
        return Frame(
            image, index / self.rate, index=index, pose=self.pose, depth=buffer,
            intrinsics=self.intrinsics,
        )  # fmt: skip

    def segmentation(self) -> np.ndarray:
        """Which thing each pixel shows: `(H, W)` int, its number in `objects`; -1 for none.

        The truth, never to be given to a memory.
        """
        flags = self._scene.flags
        flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = 1
        image = self._draw(None).astype(np.int64)
        flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = 0
        drawn = image[..., 0] + (image[..., 1] << 8) + (image[..., 2] << 16)
        number = np.full(self._scene.ngeom + 1, -1)
        body_of = {self.model.body(name).id: i for i, name in enumerate(self.objects)}
        for geom in self._scene.geoms[: self._scene.ngeom]:
            if geom.objtype == mujoco.mjtObj.mjOBJ_GEOM and geom.segid >= 0:
                number[geom.segid + 1] = body_of.get(int(self.model.geom_bodyid[geom.objid]), -1)
        return number[drawn]

    def truth(self) -> dict[str, tuple[float, float, float]]:
        """Middle of every thing that is in the scene, metres; covered ones too."""
        if self._physics:
            found = {name: tuple(self.data.body(name).xpos.tolist()) for name in self.objects}
        else:
            found = self._at
        return {name: xyz for name, xyz in found.items() if xyz[2] > 0 and xyz[0] < FAR / 2}


def main() -> None:
    from PIL import Image

    things = [Thing("red"), Thing("blue", "ball"), Thing("yellow", "can"), Thing("green", "egg")]
    with Table(objects=things, size=(320, 320), drawers=4) as table:
        for thing, slot in zip(things, (0, 2, 4, 5), strict=True):
            table.place(thing.name, slot)
        table.cover(1)
        table.drawer(1, True)
        table.distract((0.25, -0.25, table.top + 0.03))
        Image.fromarray(table.render().image).save(sys.argv[1])


if __name__ == "__main__":
    main()
