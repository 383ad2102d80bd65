"""``vismem map``: rebuild a scene that moves, from depth and poses."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from vismem.errors import SourceError, StoreError, UsageError

if TYPE_CHECKING:
    from vismem.frame import Frame
    from vismem.heads.reconstruct import MovingMap
    from vismem.heads.saved_map import MapProgress, SavedMap
    from vismem.streams import Stream

__all__ = ["Map"]


@dataclass
class Map:
    """Rebuild a scene that moves from depth and poses: what stands still, and what does not."""

    source: Positional[str]
    """A bag or an RGB-D folder whose frames have depth, poses and the camera's matrix."""
    out: Path
    """Folder for static.ply, transient.ply, tracks.json and map.png; made if it is not there.

    It also holds map.safetensors, saved on the way, that --resume goes on with.
    """
    resume: bool = False
    """Go on with a map that was begun, after its last saved frame; with the same options."""
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

        from vismem.heads.saved_map import digest_of
        from vismem.streams import open_stream

        scene, saved, progress = self._begin()
        before, began = progress.frames, time.monotonic()
        with open_stream(self.source, fps=self.fps) as stream, _stop_between_frames() as stop:
            for frame in self._frames(stream, progress, stop):
                report = scene.write(frame)
                progress.frames += 1
                progress.last = digest_of(frame)
                progress.told[report.note or report.status] += 1
                progress.given_up += report.given_up + report.refused
                if not report.note:
                    saved.save_if_due(scene, progress)
        told = progress.told.copy()
        used = told.pop("fused", 0) + told["restarted"]
        if not used and not stop.is_set():
            why = ", ".join(f"{note} ({count})" for note, count in told.most_common(3) if count)
            raise SourceError(
                f"{self.source} gave no frame to map: {why or 'it has none'}; "
                "a map needs depth, poses and the camera's matrix"
            )
        saved.save(scene, progress)
        written = self._write_out(scene)
        rate = (progress.frames - before) / max(time.monotonic() - began, 1e-9)
        print(
            f"{used} frames, {written['points']} points, {written['tracks']} things that moved, "
            f"{scene.nbytes} bytes; {rate:.1f} frames a second"
            + ("; stopped, run it again with --resume to go on" if stop.is_set() else ""),
            file=sys.stderr,
        )
        for note, count in told.items():
            if count:
                print(f"note: {count} frames: {note}", file=sys.stderr)
        if progress.given_up:
            print(
                f"note: {progress.given_up} blocks did not fit into {self.budget}; "
                "take more --budget",
                file=sys.stderr,
            )
        for problem in stream.stats.problems:
            print(f"note: {problem}", file=sys.stderr)
        return 0

    def _begin(self) -> tuple[MovingMap, SavedMap, MapProgress]:
        """A new map, or the one that is to go on; where it is saved, and how far it has come."""
        from vismem.heads.reconstruct import MapConfig, MovingMap
        from vismem.heads.saved_map import MapProgress, SavedMap
        from vismem.memory.tsdf.fuse import FuseConfig
        from vismem.memory.tsdf.motion_config import MotionConfig

        fuse = FuseConfig(self.voxel, 3 * self.voxel, farthest=self.farthest)
        motion = MotionConfig(fuse, register=not self.trust_poses)
        try:
            scene = MovingMap(self.budget, MapConfig(motion))
        except ValueError as error:
            raise UsageError(f"--budget {self.budget}: {error}") from error
        settings = {
            "--voxel": self.voxel,
            "--farthest": self.farthest,
            "--budget": scene.budget.bytes,
            "--trust-poses": self.trust_poses,
            "--fps": self.fps,
        }
        saved = SavedMap(self.out / "map.safetensors", settings)
        if not saved.path.exists():
            return scene, saved, MapProgress()
        if not self.resume:
            raise UsageError(
                f"{saved.path} exists; add --resume to go on with that map, or give another --out"
            )
        return scene, saved, saved.load(scene)

    def _write_out(self, scene: MovingMap) -> dict[str, Any]:
        """Write what a user looks at; gives the counts of it."""
        from PIL import Image

        from vismem.heads.draw_map import draw_map

        written = scene.export(self.out)
        picture = draw_map(scene.at(scene.time), scene.paths(), size=960)
        try:
            Image.fromarray(picture).save(self.out / "map.png")
        except OSError as error:
            raise StoreError(f"{self.out} cannot be written ({error.strerror})") from error
        if self.rerun:
            scene.export_rerun(self.out / "map.rrd")
        return written

    def _frames(
        self, stream: Stream, progress: MapProgress, stop: threading.Event
    ) -> Iterator[Frame]:
        """The frames after those that the map has seen already, up to `seconds` or to the stop.

        Raises:
            UsageError: If the stream is another one than the map was begun with.
        """
        from vismem.heads.saved_map import digest_of

        seen, last, number, first = progress.frames, progress.last, 0, None
        another = f"{self.source} is not what this map was begun with"
        advice = "resume with that source, or give another --out"
        for number, frame in enumerate(stream, 1):
            if stop.is_set():
                return
            first = frame.timestamp if first is None else first
            if number == seen and digest_of(frame) != last:
                raise UsageError(f"{another}: frame {number} differs; {advice}")
            if number <= seen:
                continue
            if self.seconds is not None and frame.timestamp - first >= self.seconds:
                return
            yield frame
        if number < seen:
            raise UsageError(f"{another}: it ends after {number} of {seen} frames; {advice}")


@contextlib.contextmanager
def _stop_between_frames() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set, so that no frame is left half fused.

    The second one interrupts at once. What they did before is put back at the end.
    """
    stop, numbers = threading.Event(), (signal.SIGINT, signal.SIGTERM)

    def ask(*_: object) -> None:
        stop.set()
        for number in numbers:
            signal.signal(number, signal.default_int_handler)

    before = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
