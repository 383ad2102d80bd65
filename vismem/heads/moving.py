"""`MotionWatch`: which regions of a frame move.

A camera that stands still is compared with a background of many layers: the two-dimensional mode of
the static/dynamic memory, in which what comes and goes in a place (leaves, a lamp) is background
after a while, and so is what came to rest. A camera with depth and pose may move: there it is the
free space that tells, for what stands where the camera saw through before has come there. Of a
camera that moves and knows not where, nothing is claimed.

What is held of a stream is bounded and not saved: after a restart the background is learned anew.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from vismem.clock import REORDER
from vismem.encoders.base import Labels
from vismem.encoders.cells import CELL_DIM, COLUMNS, MOST_CELLS, PIXELS, cell_tokens, shrink
from vismem.encoders.objects import LOOK_DIM, labels_at, look_of
from vismem.encoders.steady import Steady
from vismem.frame import Frame
from vismem.geometry import check_intrinsics, is_pose, unproject
from vismem.memory.static_dynamic.memory import StaticDynamicConfig, StaticDynamicMemory
from vismem.memory.tracks import NO_TRACK, TrackConfig, Tracks
from vismem.memory.tsdf.fuse import FuseConfig
from vismem.memory.tsdf.motion import MotionDetector
from vismem.memory.tsdf.motion_config import MotionConfig

__all__ = ["MOST_REGIONS", "MotionWatch", "Moving"]

MOST_REGIONS = 32
STREAMS = 64
BACKGROUND = 2_000_000  # bytes of a stream's background
SEED, GROW = 0.8, 0.4  # probability that begins a region, and that continues it
LEAST_CELLS = 2
LEARN = 1.0  # seconds, and
LEARN_FRAMES = 3  # frames, before the background is known
FREE_SPACE = 8_000_000  # bytes of the free space that a stream with depth has seen
VOXEL = 0.06  # metres
DEPTH_WIDTH = 160  # pixels that depth is looked at in
LEAST_KNOWN = 0.2  # of a depth picture
FLOOD = 0.5  # share of cells that no thing moves: the light or the camera changed


@dataclass(frozen=True, slots=True)
class Moving:
    """Regions of a frame that move; the arrays are of one length ``K``.

    Args:
        ids: ``(K,)`` int64, the same for one thing while it is followed.
        boxes: ``(K, 4)`` float32 ``x0 y0 x1 y1`` as fractions of the picture.
        scores: ``(K,)`` float32, mean probability of its cells or pixels.
        positions: ``(K, 3)`` float64 metres in the world, NaN where they are not known.
        looks: ``(K, LOOK_DIM)`` float16, its colours.
    """

    ids: Tensor
    boxes: Tensor
    scores: Tensor
    positions: Tensor
    looks: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def tensors(self, labels: Labels | None = None) -> dict[str, Tensor]:
        """What is remembered of it, with what an encoder calls what it saw there."""
        named, sure = labels_at(self.boxes, labels)
        return {
            "look": self.looks,
            "id": self.ids,
            "box": self.boxes,
            "position": self.positions,
            "score": self.scores,
            "label": named,
            "label_score": sure,
        }


class MotionWatch:
    """Finds what moves in the frames of any number of streams; see the module.

    Example:
        >>> watch = MotionWatch()
        >>> still = [Frame(np.zeros((36, 64, 3), np.uint8), timestamp=0.2 * n) for n in range(9)]
        >>> found = [watch.step(frame) for frame in still]
        >>> found[0] is None, len(found[-1])
        (True, 0)
    """

    def __init__(self) -> None:
        # The one unseen for longest first.
        self._streams: dict[str, tuple[_FixedCamera, _DepthCamera]] = {}

    def step(self, frame: Frame) -> Moving | None:
        """Look at the next frame of its stream.

        A frame out of order tells nothing; a clock that was set back further begins anew.

        Returns:
            What moves; ``None`` where that cannot be told.
        """
        held = self._streams.pop(frame.stream, None) or (_FixedCamera(), _DepthCamera())
        self._streams[frame.stream] = held
        if len(self._streams) > STREAMS:
            self._streams.pop(next(iter(self._streams)))
        fixed, depth = held
        return depth.step(frame) if _gives_places(frame) else fixed.step(frame)

    def reset(self, stream: str | None = None) -> None:
        """Forget the background of a stream, or of all."""
        if stream is None:
            self._streams.clear()
        else:
            self._streams.pop(stream, None)


class _FixedCamera:
    """The background of one camera that stands still, and the tracks before it."""

    def __init__(self) -> None:
        config = StaticDynamicConfig(
            token_dim=CELL_DIM, axes=2, voxel=1 / COLUMNS, max_tokens=MOST_CELLS, noise=0.5
        )
        self._background = StaticDynamicMemory(BACKGROUND, config)
        # In fractions of the picture's width.
        self._tracks = Tracks(
            TrackConfig(
                axes=2, apart=1.6 / COLUMNS, match=0.15, rest_speed=0.004, lost_seconds=1.5,
                max_tracks=MOST_REGIONS,
            )
        )  # fmt: skip
        self._forget()
        self._time = -np.inf

    def _forget(self) -> None:
        self._background.reset()
        self._steady = Steady()
        self._rows = self._frames = 0
        self._since = 0.0

    def step(self, frame: Frame) -> Moving | None:
        small, time = shrink(frame.image), float(frame.timestamp)
        rows = len(small) // PIXELS
        if 0 < self._time - time <= REORDER:
            return None
        if time < self._time:
            self._tracks.reset()
        new = time < self._time or rows != self._rows
        moved = not new and not self._steady.step(small, time)
        if new or moved:
            self._forget()
            self._steady.step(small, time)
            self._rows, self._since = rows, time
        self._time = time
        if moved:  # nothing is learned on the way
            return None
        self._background.write(cell_tokens(small), time, positions=_centres(rows))
        self._frames += 1
        motion = self._background.motion.reshape(rows, COLUMNS).numpy()
        if time - self._since < LEARN or self._frames <= LEARN_FRAMES:
            return None
        if (motion > 0.5).mean() > FLOOD:
            self._forget()
            return None
        return self._regions(motion, small, time)

    def _regions(self, motion: np.ndarray, small: np.ndarray, time: float) -> Moving:
        moving = _seeded(motion)
        cells = np.flatnonzero(moving)
        points = _centres(len(motion))[cells]
        ids = self._tracks.step(points, time).numpy()
        first = dict(zip(self._tracks.ids.tolist(), self._tracks.first.tolist(), strict=True))
        found = []
        for number in np.unique(ids[ids != NO_TRACK]).tolist():
            if first[number] >= time:  # one frame alone may be noise
                continue
            own = cells[ids == number]
            y, x = np.divmod(own, COLUMNS)
            box = (
                x.min() / COLUMNS, y.min() / len(motion),
                (x.max() + 1) / COLUMNS, (y.max() + 1) / len(motion),
            )  # fmt: skip
            score, pixels = motion.ravel()[own].mean(), _pixels(small, y, x)
            found.append(_region(first[number], number, box, score, np.full(3, np.nan), pixels))
        return _gather(found)


class _DepthCamera:
    """The free space that one camera with depth and pose has seen, and what came into it."""

    def __init__(self) -> None:
        self._detector = MotionDetector(FREE_SPACE, MotionConfig(fuse=FuseConfig(voxel=VOXEL)))
        self._tracks = Tracks(
            TrackConfig(match=0.9, lost_seconds=1.5, max_tracks=MOST_REGIONS)  # a person's pace
        )

    def step(self, frame: Frame) -> Moving | None:
        assert frame.depth is not None and frame.intrinsics is not None and frame.pose is not None
        time, every = float(frame.timestamp), max(1, round(frame.depth.shape[1] / DEPTH_WIDTH))
        depth = np.ascontiguousarray(frame.depth[::every, ::every], np.float32)
        intrinsics = np.array(frame.intrinsics, np.float64)
        intrinsics[:2] /= every
        if 0 < self._detector.time - time <= REORDER:
            return None
        if time < self._detector.time:
            self._detector.reset()
            self._tracks.reset()
        began = self._detector.frames
        image = np.ascontiguousarray(frame.image[::every, ::every])
        _, soft = self._detector.step(depth, intrinsics, frame.pose, time, image)
        look = self._detector.look
        assert look is not None
        if look.status != "fused" or began < LEARN_FRAMES:
            return None
        places = unproject(depth, intrinsics, look.pose)
        v, u = np.nonzero(look.core & np.isfinite(places[..., 2]))
        points = torch.from_numpy(places[v, u])
        ids = self._tracks.step(points, time).numpy()
        first = dict(zip(self._tracks.ids.tolist(), self._tracks.first.tolist(), strict=True))
        found = []
        height, width = depth.shape
        for number in np.unique(ids[ids != NO_TRACK]).tolist():
            if first[number] >= time:
                continue
            y, x = v[ids == number], u[ids == number]
            box = x.min() / width, y.min() / height, (x.max() + 1) / width, (y.max() + 1) / height
            pixels = image[y, x]
            where = np.median(places[y, x], axis=0)
            found.append(_region(first[number], number, box, soft[y, x].mean(), where, pixels))
        return _gather(found)


def _gives_places(frame: Frame) -> bool:
    """Whether enough of a frame has a known place in the world."""
    if frame.depth is None or frame.intrinsics is None or not is_pose(frame.pose):
        return False
    try:
        camera = check_intrinsics(frame.intrinsics, frame.width, frame.height)
    except ValueError:  # told where things are looked for; motion costs no frame
        return False
    known = np.isfinite(frame.depth) & (frame.depth > 0)
    return bool(camera[0, 1] == 0 and known.mean() > LEAST_KNOWN)


def _region(
    first: float,
    number: int,
    box: tuple[float, float, float, float],
    score: float,
    position: np.ndarray,
    pixels: np.ndarray,
) -> dict:
    """One region. Its number holds when its track began: those of another run are others."""
    return {
        "id": round(1e3 * abs(first)) * MOST_REGIONS + number % MOST_REGIONS,
        "box": box,
        "score": score,
        "position": position,
        "look": look_of(pixels),
    }


def _seeded(motion: np.ndarray) -> np.ndarray:
    """Cells of components of what may move that hold one that surely does, ``(rows, columns)``."""
    count, parts, stats, _ = cv2.connectedComponentsWithStats(
        (motion > GROW).astype(np.uint8), connectivity=8
    )
    seeds = np.zeros(count, bool)
    seeds[np.unique(parts[motion > SEED])] = True
    seeds &= stats[:, cv2.CC_STAT_AREA] >= LEAST_CELLS
    seeds[0] = False
    return seeds[parts]


def _centres(rows: int) -> Tensor:
    """Middles of the cells in fractions of the picture's width, ``(rows * COLUMNS, 2)``."""
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(COLUMNS), indexing="ij")
    return ((torch.stack([x, y], -1) + 0.5) / COLUMNS).reshape(-1, 2).float()


def _pixels(small: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The pixels of some cells, ``(N, 3)``."""
    cells = small.reshape(len(small) // PIXELS, PIXELS, COLUMNS, PIXELS, 3)
    return cells[y, :, x].reshape(-1, 3)


def _gather(found: list[dict]) -> Moving:
    def column(name: str, width: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        values = np.array([region[name] for region in found]).reshape(len(found), *width)
        return torch.from_numpy(values).to(dtype)

    return Moving(
        column("id", (), torch.int64),
        column("box", (4,), torch.float32),
        column("score", (), torch.float32),
        column("position", (3,), torch.float64),
        column("look", (LOOK_DIM,), torch.float16),
    )
