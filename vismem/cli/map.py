"""``vismem map``: rebuild a scene that moves, from depth and poses."""

from __future__ import annotations

import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from vismem.errors import SourceError, StoreError, UsageError

__all__ = ["Map"]


@dataclass
class Map:
    """Rebuild a scene that moves from depth and poses: what stands still, and what does not."""

    source: Positional[str]
    """A bag or an RGB-D folder whose frames have depth, poses and the camera's matrix."""
    out: Path
    """Folder for static.ply, transient.ply, tracks.json and map.png; made if it is not there."""
    voxel: float = 0.04
    """Side of a voxel in metres; the surface is blurred over three of them."""
    farthest: float = 6.0
    """Depth in metres beyond which nothing is used."""
    budget: str = "256MB"
    """Bytes that the map may take; parts out of view for longest are given up."""
    trust_poses: bool = False
    """Take poses as they are, and bring no frame onto the map first."""
    fps: float | None = None
    """Frames a second to look at; every frame by default."""
    seconds: float | None = None
    """Stop after this much time of the stream."""
    rerun: bool = False
    """Also write map.rrd for the Rerun viewer."""

    def __call__(self) -> int:
        """Do it; gives the exit code."""
        if not 0 < self.voxel <= 1:
            raise UsageError(f"--voxel is above 0 and up to 1 metre, not {self.voxel:g}")
        if not 0 < self.farthest <= 30:
            raise UsageError(f"--farthest is above 0 and up to 30 metres, not {self.farthest:g}")

        from PIL import Image

        from vismem.heads.draw_map import draw_map
        from vismem.heads.reconstruct import MapConfig, MovingMap
        from vismem.memory.tsdf.fuse import FuseConfig
        from vismem.memory.tsdf.motion import MotionConfig
        from vismem.streams import open_stream

        signal.signal(signal.SIGTERM, signal.default_int_handler)
        fuse = FuseConfig(self.voxel, 3 * self.voxel, farthest=self.farthest)
        motion = MotionConfig(fuse, register=not self.trust_poses)
        try:
            scene = MovingMap(self.budget, MapConfig(motion))
        except ValueError as error:
            raise UsageError(f"--budget {self.budget}: {error}") from error
        told: Counter[str] = Counter()
        given_up, stopped, began = 0, "", time.monotonic()
        with open_stream(self.source, fps=self.fps) as stream:
            first: float | None = None
            try:
                for frame in stream:
                    first = frame.timestamp if first is None else first
                    if self.seconds is not None and frame.timestamp - first >= self.seconds:
                        break
                    report = scene.write(frame)
                    told[report.note or report.status] += 1
                    given_up += report.given_up + report.refused
            except KeyboardInterrupt:
                stopped = "; stopped"
        used = told.pop("fused", 0) + told["restarted"]
        if not used and not stopped:
            why = ", ".join(f"{note} ({count})" for note, count in told.most_common(3) if count)
            raise SourceError(
                f"{self.source} gave no frame to map: {why or 'it has none'}; "
                "a map needs depth, poses and the camera's matrix"
            )
        written = scene.export(self.out)
        try:
            Image.fromarray(draw_map(scene.at(scene.time), scene.paths(), size=960)).save(
                self.out / "map.png"
            )
        except OSError as error:
            raise StoreError(f"{self.out} cannot be written ({error.strerror})") from error
        if self.rerun:
            scene.export_rerun(self.out / "map.rrd")
        rate = sum(told.values()) + used
        print(
            f"{used} frames, {written['points']} points, {written['tracks']} things that moved, "
            f"{scene.nbytes} bytes; "
            f"{rate / max(time.monotonic() - began, 1e-9):.1f} frames a second{stopped}",
            file=sys.stderr,
        )
        for note, count in told.items():
            if count:
                print(f"note: {count} frames: {note}", file=sys.stderr)
        if given_up:
            print(
                f"note: {given_up} blocks did not fit into {self.budget}; take more --budget",
                file=sys.stderr,
            )
        for problem in stream.stats.problems:
            print(f"note: {problem}", file=sys.stderr)
        return 0
