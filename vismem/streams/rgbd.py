"""Frames of an RGB-D recording in the layout of the TUM RGB-D benchmark, and how to write one.

A folder with ``rgb.txt`` and ``depth.txt``, which list a time and a file a line, 16-bit PNGs of
depth, ``groundtruth.txt`` with a pose a line (``time tx ty tz qx qy qz qw``, camera-to-world) and
``intrinsics.txt`` or ``camera.json``.

Source of the layout: Sturm et al., "A Benchmark for the Evaluation of RGB-D SLAM Systems", IROS
2012.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Generator, Iterable
from pathlib import Path

import cv2
import numpy as np

from vismem.errors import SourceError
from vismem.frame import Frame
from vismem.geometry import check_intrinsics, is_pose, quaternion_of, rigid
from vismem.streams.base import Sampler, Stream, sample
from vismem.streams.folder import read_pictures
from vismem.streams.poses import interpolate

__all__ = ["DEPTH_FACTOR", "RgbdStream", "read_intrinsics", "write_rgbd"]

DEPTH_FACTOR = 5000  # of a 16-bit value, for a metre
TOLERANCE = 0.02  # seconds between a picture and its depth or pose
GAP = 0.2  # seconds between two poses, between which one is interpolated
FASTEST = 5.0  # metres a second; a camera that is faster was lost by its tracker


class RgbdStream(Stream):
    """Pictures of an RGB-D recording, each with the depth and the pose of its time.

    Depth is that of the nearest time within 20 ms. A pose is interpolated between two that are at
    most 0.2 s apart, or the nearest within 20 ms; where the camera's path jumps, there is none.
    What is missing or broken is left out of its frame and told in ``stats.problems``.

    Args:
        path: The folder.
        fps: Frames wanted per second, or ``None`` for every picture.
        name: Name of the stream; the folder's name if not given.

    Raises:
        SourceError: If it lists no picture, or none that can be read.
        UsageError: If ``fps`` is not above zero.
    """

    def __init__(self, path: Path, *, fps: float | None = None, name: str | None = None) -> None:
        super().__init__(name or path.resolve().name)
        Sampler(fps)
        self._path = path
        self._pictures = self._listed("rgb.txt")
        if not self._pictures:
            raise SourceError(f"{path}/rgb.txt lists no picture; give a time and a file a line")
        self._depths = self._listed("depth.txt")
        self._depth_times = np.array([time for time, _ in self._depths])
        self._pose_times, self._poses = self._read_poses()
        self._jumps = self._find_jumps()
        self._matrix = self._read_intrinsics()
        self._picks = sample([time for time, _ in self._pictures], fps)
        self.duration = self._pictures[-1][0] - self._pictures[0][0]
        self._start()

    # ------------------------------------------------------------------ what the folder lists

    def _lines(self, name: str) -> list[list[str]]:
        try:
            text = (self._path / name).read_text(errors="replace")
        except OSError as error:
            self.stats.note(f"{name} cannot be read", error.strerror or type(error).__name__)
            return []
        lines = (line.split("#")[0].replace(",", " ").split() for line in text.splitlines())
        return [line for line in lines if line]

    def _listed(self, name: str) -> list[tuple[float, Path]]:
        found = []
        for line in self._lines(name):
            try:
                time, file = float(line[0]), line[1]
                if not math.isfinite(time):
                    raise ValueError
            except (ValueError, IndexError):
                self.stats.note(f"{name} has a line without time and file", " ".join(line))
                continue
            found.append((time, self._path / file))
        return sorted(found, key=lambda pair: pair[0])

    def _read_poses(self) -> tuple[np.ndarray, np.ndarray]:
        """Times ``(n,)`` and poses ``(n, 4, 4)`` in the order of time."""
        rows = []
        for line in self._lines("groundtruth.txt"):
            try:
                time, *row = map(float, line)
                pose = rigid(row[:3], row[3:])
                if len(row) != 7 or not math.isfinite(time):
                    raise ValueError
            except ValueError:
                self.stats.note("groundtruth.txt has a line that is no pose", " ".join(line))
                continue
            rows.append((time, pose))
        rows.sort(key=lambda row: row[0])
        poses = np.array([pose for _, pose in rows]).reshape(-1, 4, 4)
        return np.array([time for time, _ in rows]), poses

    def _find_jumps(self) -> np.ndarray:
        """Whether the camera jumps between each pose and the next, ``(n - 1,)`` bool."""
        apart = np.linalg.norm(np.diff(self._poses[:, :3, 3], axis=0), axis=1)
        jumps = apart > FASTEST * np.maximum(np.diff(self._pose_times), 0.01)
        for at in self._pose_times[1:][jumps]:
            self.stats.note("the camera's pose jumps", f"at {at:.3f} s")
        return jumps

    def _read_intrinsics(self) -> np.ndarray | None:
        try:
            matrix = read_intrinsics(self._path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            self.stats.note("the intrinsics cannot be read", str(error))
            return None
        if matrix is None:
            self.stats.note(
                "no intrinsics; write intrinsics.txt (fx fy cx cy, or the 3x3 matrix) or "
                "camera.json, for without them depth says no place"
            )
        return matrix

    # ------------------------------------------------------------------ frames

    def _read(self) -> Generator[Frame, None, None]:
        for index, time, image in read_pictures(self._pictures, self._picks, self.stats):
            depth = self._depth_at(time, image.shape[:2])
            matrix = self._matrix
            if matrix is not None:
                try:
                    check_intrinsics(matrix, image.shape[1], image.shape[0])
                except ValueError as error:
                    self.stats.note("the intrinsics do not fit", str(error))
                    matrix = None
            yield Frame(image, time, self.name, index, self._pose_at(time), depth, matrix)

    def _depth_at(self, time: float, shape: tuple[int, ...]) -> np.ndarray | None:
        if not len(self._depth_times):
            return None
        nearest = int(np.abs(self._depth_times - time).argmin())
        at, file = self._depths[nearest]
        if abs(at - time) > TOLERANCE:
            self.stats.note("picture without depth within 20 ms", f"{time:.3f} s")
            return None
        try:
            values = cv2.imdecode(np.frombuffer(file.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
        except (OSError, cv2.error) as error:
            self.stats.note("depth cannot be read", f"{file.name}: {error}")
            return None
        if values is None or values.dtype != np.uint16 or values.shape != shape:
            self.stats.note("depth is no 16-bit picture of the colour picture's size", file.name)
            return None
        return values.astype(np.float32) / np.float32(DEPTH_FACTOR)

    def _pose_at(self, time: float) -> np.ndarray | None:
        times = self._pose_times
        if not len(times):
            return None
        after = int(np.searchsorted(times, time))
        if 0 < after < len(times) and times[after] - times[after - 1] <= GAP + 1e-6:
            if self._jumps[after - 1]:
                return None
            span = times[after] - times[after - 1]
            share = (time - times[after - 1]) / span if span else 0.0
            return interpolate(self._poses[after - 1], self._poses[after], share)
        nearest = int(np.abs(times - time).argmin())
        if abs(times[nearest] - time) > TOLERANCE:
            self.stats.note("picture without a pose near its time", f"{time:.3f} s")
            return None
        return self._poses[nearest]


def read_intrinsics(path: Path) -> np.ndarray | None:
    """Read the camera's matrix from a recording.

    Args:
        path: Folder with ``intrinsics.txt``: ``fx fy cx cy`` or nine numbers, row by row; or
            ``camera.json``: an object with these four, or with ``K`` of nine numbers.

    Returns:
        ``(3, 3)`` float64 pixels; ``None`` if there is neither file.

    Raises:
        ValueError: If a file holds something else.
    """
    if (path / "intrinsics.txt").is_file():
        text = (path / "intrinsics.txt").read_text()
        lines = [line.split("#")[0].replace(",", " ") for line in text.splitlines()]
        values = np.array(" ".join(lines).split(), np.float64)
    elif (path / "camera.json").is_file():
        held = json.loads((path / "camera.json").read_text())
        given = held["K"] if "K" in held else [held[key] for key in ("fx", "fy", "cx", "cy")]
        values = np.array(given, np.float64).ravel()
    else:
        return None
    if values.size == 9:
        return values.reshape(3, 3)
    if values.size != 4:
        raise ValueError(f"they are fx fy cx cy or a 3x3 matrix, not {values.size} numbers")
    fx, fy, cx, cy = values
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])


def write_rgbd(path: str | os.PathLike[str], frames: Iterable[Frame]) -> int:
    """Write frames as a recording that `RgbdStream` reads.

    Args:
        path: A folder, made if it is not there.
        frames: In the order of time; depth, pose and intrinsics are written where they are there,
            the intrinsics of the first frame for all.

    Returns:
        How many were written.

    Raises:
        ValueError: If a pose is no rigid transform.
    """
    path = Path(path)
    for folder in ("rgb", "depth"):
        (path / folder).mkdir(parents=True, exist_ok=True)
    lists: dict[str, list[str]] = {"rgb": [], "depth": [], "groundtruth": []}
    matrix, count = None, 0
    for frame in frames:
        stamp = f"{frame.timestamp:.6f}"
        cv2.imwrite(str(path / "rgb" / f"{stamp}.png"), frame.image[:, :, ::-1])
        lists["rgb"].append(f"{stamp} rgb/{stamp}.png")
        if frame.depth is not None:
            known = np.nan_to_num(frame.depth.astype(np.float64), nan=0, posinf=0, neginf=0)
            values = np.rint(known * DEPTH_FACTOR)
            values[(values < 0) | (values > 65535)] = (
                0  # beyond 13 m, where there is no code for it
            )
            cv2.imwrite(str(path / "depth" / f"{stamp}.png"), values.astype(np.uint16))
            lists["depth"].append(f"{stamp} depth/{stamp}.png")
        if frame.pose is not None:
            if not is_pose(frame.pose):
                raise ValueError(f"the pose at {stamp} s is no rigid camera-to-world transform")
            numbers = [*frame.pose[:3, 3], *quaternion_of(frame.pose)]
            lists["groundtruth"].append(" ".join([stamp, *(f"{n:.9f}" for n in numbers)]))
        matrix = frame.intrinsics if matrix is None else matrix
        count += 1
    for name, lines in lists.items():
        (path / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))
    if matrix is not None:
        np.savetxt(path / "intrinsics.txt", matrix, fmt="%.9g")
    return count
