"""`MotionDetector`: what moves in a depth stream, without weights, from free space alone.

Where a camera has looked through for a while there is nothing; a surface that appears there came
from somewhere else. Pixels that hit such voxels are grown to whole things, and what has lain in
its place for some seconds becomes part of the room again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import cv2
import numpy as np
import torch
from torch import Tensor

from vismem.geometry import check_intrinsics, is_pose
from vismem.memory.base import Budget
from vismem.memory.tsdf.blocks import SIDE, BlockPool, unpack
from vismem.memory.tsdf.convex import Parts, jumps, shifted
from vismem.memory.tsdf.evidence import carried, distances, hits
from vismem.memory.tsdf.fuse import MOVING, RESTING, View, fuse, in_view
from vismem.memory.tsdf.motion_config import MotionConfig
from vismem.memory.tsdf.register import LEAST, Fit, PoseNoise, moved, register, stride
from vismem.memory.tsdf.scene_flow import Glance, Glances, slid_and_stood

__all__ = ["Look", "MotionDetector"]

DOUBT = 0.5  # of how wrong poses are, in metres at 3 m, that is left after registration
SETTLED = 0.01  # metres from where the map has a surface, that it lies there
SURELY = 2  # standard deviations, within which a pose is right as it was given
RIM = 0.1  # metres that a mask's rim may lie behind its core
EDGE = 0.06, 0.01  # metres between pixels, and for the square of each metre, that part things


@dataclass(frozen=True)
class Look:
    """What one frame showed.

    Args:
        mask: ``(H, W)`` bool, pixels of what moves, with a rim.
        soft: ``(H, W)`` float32, how likely each pixel moves, above 0.5 inside of the mask.
        core: ``(H, W)`` bool, the mask without its rim and without depth edges.
        pose: ``(4, 4)`` camera-to-map, after registration.
        status: ``"fused"``, ``"lost"`` (the pose disagrees with the map: nothing was fused),
            ``"restarted"`` (a new map was begun) or ``"skipped"`` with a reason.
        fit: How the frame lies on the map.
        refused: Blocks that did not fit into the budget.
        given_up: Blocks that had to go for newer ones.
    """

    mask: np.ndarray
    soft: np.ndarray
    core: np.ndarray
    pose: np.ndarray
    status: str
    fit: Fit | None = None
    refused: int = 0
    given_up: int = 0


class MotionDetector:
    """Finds what moves, frame by frame, and keeps the map that it needs for it.

    Args:
        budget: Bytes of the map, or text such as ``"64MB"``.
        config: What counts as motion.

    Attributes:
        look: What the last frame showed.
        pool: The blocks of the map.

    Example:
        >>> detector = MotionDetector("8MB")
        >>> camera = np.array([[40.0, 0, 31.5], [0, 40, 23.5], [0, 0, 1]])
        >>> wall = np.full((48, 64), 2.0, np.float32)
        >>> mask, soft = detector.step(wall, camera, np.eye(4), 0.0)
        >>> bool(mask.any()), detector.look.status
        (False, 'fused')
    """

    def __init__(self, budget: Budget | int | str = "64MB", config: MotionConfig | None = None):
        self.config = MotionConfig() if config is None else config
        self.pool = BlockPool(budget)
        self.frames = self.lost = 0
        self.poses = PoseNoise()
        self.look: Look | None = None
        self._view: View | None = None
        self._glances = Glances()
        self._belief: np.ndarray = np.zeros((0, 0), np.float32)
        self._mask: np.ndarray = np.zeros((0, 0), bool)
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.restart()
        self.time = -np.inf
        self.look = None

    @property
    def nbytes(self) -> int:
        """Bytes of the map; the last pictures, which it is compared with, are not counted."""
        return self.pool.nbytes

    def step(
        self,
        depth: np.ndarray,
        intrinsics: np.ndarray,
        pose: np.ndarray,
        time: float,
        color: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Compare a frame with the map, and fuse it.

        Args:
            depth: ``(H, W)`` metres; 0, NaN and what is too far is unknown.
            intrinsics: ``(3, 3)`` pixels.
            pose: ``(4, 4)`` camera-to-world.
            time: Seconds, not before the last frame.
            color: ``(H, W, 3)`` uint8 RGB, for the map and for what moves along its own faces.

        Returns:
            ``(H, W)`` bool mask of what moves, and ``(H, W)`` float32 how likely each pixel does.

        Raises:
            ValueError: If the pose or the intrinsics are none, or time goes backwards; nothing
                is changed then.
        """
        height, width = depth.shape
        matrix = check_intrinsics(intrinsics, width, height)
        if matrix[0, 1]:
            raise ValueError("pixels are skewed; rectify the pictures first")
        if not is_pose(pose):
            raise ValueError("a pose is a rigid (4, 4) camera-to-world transform")
        if not self.time <= time < np.inf:
            raise ValueError(f"time goes from {self.time} to {time} seconds")
        view = View.of(depth, matrix, pose, color, self.config.fuse.farthest)
        fit, status, given = None, "fused", view.pose
        if self.config.register and self.frames:
            still = view.depth
            if self._mask.shape == still.shape:
                still = np.where(self._mask, np.float32(0), still)
            fit = register(self.pool.voxels, view, still, self.config.fuse, self.poses)
            own = fit.motion - self.poses.mean
            own[np.abs(own) < SURELY * np.sqrt(fit.variance)] = 0  # or exact poses get worse
            view = replace(view, pose=moved(given, own[:3], own[3:]))
        now = Glance.of(time, view) if view.color.size else None
        weak, strong, rested = self._evidence(view, now)
        if fit is not None and self._disagrees(fit, weak, view):
            self.lost += 1
            if self.lost < self.config.patience:
                return self._refuse(view, time, fit)
            self.restart()
            view, status = replace(view, pose=given), "restarted"
            weak = strong = np.zeros(weak.shape, bool)
        elif fit is not None:
            self.lost = 0
            if fit.known:
                self.poses.learn(fit)
        ticks = self._ticks(time)
        label, soft, core = self._components(view, weak, strong, rested)
        keys = in_view(view, self.config.fuse)
        rows, refused, given_up = self.pool.take(keys, time)
        corners = unpack(self.pool.key[rows]) * SIDE
        fuse(self.pool.voxels, rows, corners, view, label, ticks, self.config.fuse)
        self.frames += 1
        self.time = time
        self._view = view
        if now is not None:
            self._glances.add(replace(now, pose=view.pose))
        mask = self._mask = label == MOVING
        self.look = Look(mask, soft, core, view.pose, status, fit, refused, given_up)
        return mask, soft

    def _disagrees(self, fit: Fit, weak: np.ndarray, view: View) -> bool:
        """Whether so little of a picture lies on the map that its pose must be wrong."""
        through = weak.sum() / stride(view.depth) ** 2  # pixels where the map knows nothing is
        compared = fit.known + through
        return compared >= LEAST and fit.agree * fit.known < self.config.agree * compared

    def _refuse(self, view: View, time: float, fit: Fit) -> tuple[np.ndarray, np.ndarray]:
        """Report a frame that disagrees with the map."""
        mask, soft = np.zeros(view.depth.shape, bool), np.zeros(view.depth.shape, np.float32)
        self.time = time
        self._view = None
        self.look = Look(mask, soft, mask.copy(), view.pose, "lost", fit)
        return mask, soft

    def restart(self) -> None:
        """Begin the map anew, at the time that it is."""
        self.pool.reset()
        self.frames = self.lost = 0
        self.poses = PoseNoise()
        self._view = None
        self._glances = Glances()
        self._belief = np.zeros((0, 0), np.float32)
        self._mask = np.zeros((0, 0), bool)

    def state_dict(self) -> dict[str, Tensor]:
        """All state as tensors; loading it continues bit for bit."""
        state = {f"pool.{name}": column for name, column in self.pool.state_dict().items()}
        counts = [self.frames, self.lost, self.poses.frames]
        state["counts"] = torch.tensor(counts)
        numbers = [self.time, *self.poses.mean, *self.poses.variance]
        state["numbers"] = torch.tensor(numbers, dtype=torch.float64)
        state["sizes"] = self._sizes()
        state |= {f"glances.{name}": held for name, held in self._glances.state_dict().items()}
        if self._view is not None:
            view = self._view
            for name in ("depth", "camera", "pose"):
                state[f"view.{name}"] = torch.from_numpy(getattr(view, name).copy())
        state["belief"] = torch.from_numpy(self._belief.copy())
        state["mask"] = torch.from_numpy(self._mask.copy())
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state_dict` gave; `look` is None until the next frame.

        Raises:
            ValueError: If it is of another configuration, incomplete, or beyond the budget;
                nothing is changed then.
        """
        missing = sorted({"counts", "numbers", "sizes", "belief", "mask"} - set(state))
        if missing:
            raise ValueError(f"the state holds no {missing}; it is incomplete")
        if not torch.equal(state["sizes"], self._sizes()):
            raise ValueError("the state is of another configuration")
        parts: dict[str, dict[str, Tensor]] = {"pool": {}, "glances": {}}
        for name, column in state.items():
            part, _, rest = name.partition(".")
            if part in parts:
                parts[part][rest] = column
        glances = Glances.of_state(parts["glances"])
        self.pool.load_state_dict(parts["pool"])
        self._glances = glances
        self.look, self._view = None, None
        self.frames, self.lost, self.poses.frames = state["counts"].tolist()
        numbers = state["numbers"].numpy()
        self.time = float(numbers[0])
        self.poses.mean, self.poses.variance = numbers[1:7].copy(), numbers[7:9].copy()
        if "view.depth" in state:
            depth, camera, pose = (
                state[f"view.{name}"].numpy().copy() for name in ("depth", "camera", "pose")
            )
            self._view = View(depth, depth, camera, pose, np.zeros((0, 0, 3), np.uint8))
        self._belief = state["belief"].numpy().copy()
        self._mask = state["mask"].numpy().copy()

    def _sizes(self) -> Tensor:
        own = {n: v for n, v in asdict(self.config).items() if n != "fuse"}
        both = [*own.values(), *asdict(self.config.fuse).values()]
        return torch.tensor([float(value) for value in both], dtype=torch.float64)

    def _ticks(self, time: float) -> int:
        """Whole tenths of a second since the last frame, a second at most."""
        if not np.isfinite(self.time):
            return 1
        return int(min(np.floor(time * 10 + 1e-6) - np.floor(self.time * 10 + 1e-6), 10))

    def _evidence(
        self, view: View, now: Glance | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pixels that may move, those that do for certain, and those that rest, ``(H, W)`` each."""
        config, voxels, voxel = self.config, self.pool.voxels, self.config.fuse.voxel
        around, rested = hits(
            voxels,
            view.depth,
            view.camera,
            view.pose,
            voxel,
            config.seen_through,
            config.empty_around,
            int(round(config.fuse.rest * 10)),
        )
        inside = np.repeat(np.repeat(around[::2, ::2] == 2, 2, 0), 2, 1)
        inside = (inside[: around.shape[0], : around.shape[1]] & (around > 0)).astype(np.uint8)
        strong = cv2.morphologyEx(inside, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)) > 0
        shifted, settled = self._shifted(view, rested, now)
        strong |= shifted
        weak = (around > 0) | strong
        height, width = view.depth.shape
        if self._view is not None and self._belief.shape == (height, width):
            relative = np.linalg.inv(self._view.pose) @ view.pose
            belief = config.fade * carried(
                view.depth, view.camera, relative, self._view.depth, self._belief, config.carry
            )
        else:
            belief = np.zeros((height, width), np.float32)
        belief = np.maximum(np.where((rested > 0) | settled, 0, belief), strong)
        self._belief = belief
        return weak | (belief > 0.5), belief > 0.5, rested

    def _shifted(
        self, view: View, rested: np.ndarray, now: Glance | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Surfaces a little before or behind where the map has them, and those that are there.

        Returns:
            ``(H, W)`` bool each.
        """
        config, truncation = self.config, np.float32(self.config.fuse.truncation)
        given = self.pool.voxels, view.depth, view.camera, view.pose, config.fuse.voxel
        distance = distances(*given, config.sure)
        known = (distance < 1.5).astype(np.float32)
        distance *= truncation
        window = (config.window, config.window)
        count = cv2.boxFilter(known, -1, window, normalize=False)
        total = cv2.boxFilter(distance * known, -1, window, normalize=False)
        over = (known > 0) & (count > config.window**2 / 2)
        doubt = DOUBT * float(np.sqrt(self.poses.variance @ (9, 1)))
        over &= np.abs(total) > (config.shift + doubt) * np.maximum(count, 1)
        if over.sum() > config.most_shifted * known.sum():
            over[:] = False  # it is the pose that shifted
        height, width = distance.shape
        sure = distances(*given, config.settled) * truncation
        parts = Parts.of(
            np.ascontiguousarray(view.depth[::2, ::2][:height, :width]), view.camera / 2
        )
        things = shifted(
            parts,
            view.pose,
            np.where(sure < 1.5 * truncation, sure, np.inf),
            rested[::2, ::2][:height, :width] > 0,
            shift=config.thing_shift + doubt,
            resting=config.resting,
        )
        slid = stands = np.zeros(len(parts.area), bool)
        then = None if now is None else self._glances.before(now)
        if now is not None and then is not None:
            moving = np.zeros(parts.depth.shape, bool)
            if self._mask.shape == view.depth.shape:
                moving = self._mask[::2, ::2][:height, :width]
            slid, stands = slid_and_stood(
                now, then, parts, moving, least=config.slide, deviations=config.sure_slide
            )
        over &= ~parts.whole(stands)
        over |= parts.whole((slid | things & ~stands) & parts.things(config.largest))
        there = (np.abs(sure) < SETTLED) | parts.whole(stands)
        size = view.depth.shape[::-1]
        whole = (cv2.resize(part.astype(np.uint8), size, interpolation=0) for part in (over, there))
        one, other = (part > 0 for part in whole)
        return one, other

    def _components(
        self, view: View, weak: np.ndarray, strong: np.ndarray, rested: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What each pixel shows, how likely it moves, and the middle of what moves."""
        config = self.config
        depth = view.depth
        label = np.zeros(depth.shape, np.uint8)
        soft = 0.5 * cv2.blur(weak.astype(np.float32), (5, 5))
        core = np.zeros(depth.shape, bool)
        if not weak.any():
            return label, soft, core
        inner = (weak & ~jumps(depth, EDGE)).astype(np.uint8)
        count, parts, stats, _ = cv2.connectedComponentsWithStats(inner, connectivity=4)
        area = np.maximum(stats[:, cv2.CC_STAT_AREA], 1)
        flat = parts.ravel()
        share = np.bincount(flat[strong.ravel()], minlength=count) / area
        still = np.bincount(flat[rested.ravel() > 0], minlength=count) / area
        least = config.least_pixels * depth.size / 76800
        moves = (share > config.strong) & (area > least)
        moves[0] = False
        rests = moves & (still >= config.rested)
        moves &= ~rests
        core = moves[parts]
        rim = cv2.dilate(np.where(core, depth, np.float32(0)), np.ones((5, 5), np.uint8))
        mask = core | ((depth > 0) & (depth < rim + RIM))
        label[rests[parts]] = RESTING
        label[mask] = MOVING
        self._belief[~core] = 0
        soft = np.where(mask, np.maximum(0.5 + 0.5 * share[parts], 0.6), soft)
        return label, soft.astype(np.float32), core
