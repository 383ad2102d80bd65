"""Does a map that knows what moves stay clean where one layer keeps ghosts, and what does it cost?

    python benchmarks/map4d.py             # 3 seeds, exact poses and noisy ones: about 8 minutes
    python benchmarks/map4d.py --quick     # one seed, 15 seconds of it
    python benchmarks/map4d.py --picture docs/map4d.png

A room of boxes with a ball, a shuttling box, a person who walks off after 10 s and a slow box that
parks after 12 s, 320 by 240 at 10 Hz, voxels of 4 cm. Against one layer of the same voxels and
kernels that fuses whatever it sees, of which a voxel is the mean of 60 looks or of 8. A ghost is
surface farther than 6 cm from all that stands and from all movers where they are now; complete is
the share of the seen standing surface that has a point within 6 cm. Noisy poses are wrong by 1 cm
and 0.5 degrees, each by itself; "registered" is one layer with the poses that ours found. "Depth
alone" is the detector without colour.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
from moving_room.scene import MovingRoom, Shot

from vismem.geometry import project
from vismem.heads.draw_map import draw_map
from vismem.heads.reconstruct import MovingMap
from vismem.memory.tsdf import motion
from vismem.memory.tsdf.blocks import SIDE, BlockPool, unpack
from vismem.memory.tsdf.fuse import FuseConfig, View, fuse, in_view
from vismem.memory.tsdf.motion import MotionDetector
from vismem.memory.tsdf.surface import extract

NEAR = 0.06  # metres
NOISE = (0.01, 0.5)
SAMPLES = 6000
STAGES = ("register", "hits", "distances", "slid_and_stood", "carried", "in_view", "fuse")


class OneLayer:
    """The same voxels and kernels, which fuse whatever they see."""

    def __init__(self, looks: int) -> None:
        self.config = FuseConfig(most_weight=looks, carved_weight=looks)
        self.pool = BlockPool("64MB")
        self.ms: list[float] = []

    def write(self, shot: Shot, pose: np.ndarray) -> None:
        """Fuse a shot, taken from a pose."""
        began = time.process_time()
        frame = shot.frame
        view = View.of(frame.depth, frame.intrinsics, pose, frame.image, self.config.farthest)
        rows, _, _ = self.pool.take(in_view(view, self.config), frame.timestamp)
        corners = unpack(self.pool.key[rows]) * SIDE
        still = np.zeros(frame.depth.shape, np.uint8)
        fuse(self.pool.voxels, rows, corners, view, still, 1, self.config)
        self.ms.append(1000 * (time.process_time() - began))


class Stages:
    """CPU milliseconds of the detector's parts, a list each; put in for as long as it is open."""

    def __init__(self) -> None:
        self.ms: dict[str, list[float]] = defaultdict(list)
        self.kept = {name: getattr(motion, name) for name in STAGES}

    def __enter__(self) -> Stages:
        for name, function in self.kept.items():
            setattr(motion, name, self._timed(name, function))
        return self

    def __exit__(self, *_: object) -> None:
        for name, function in self.kept.items():
            setattr(motion, name, function)

    def _timed(self, name: str, function: Callable) -> Callable:
        def run(*arguments: Any, **named: Any) -> Any:
            began = time.process_time()
            try:
                return function(*arguments, **named)
            finally:
                self.ms[name].append(1000 * (time.process_time() - began))

        return run


def seen_of(samples: np.ndarray, shot: Shot, seen: np.ndarray) -> None:
    """Mark the samples that this shot shows."""
    pixels, depth = project(samples, shot.frame.intrinsics, shot.true_pose)
    height, width = shot.true_depth.shape
    u, v = (np.nan_to_num(pixels.T, nan=-9) + 0.5).astype(int)
    inside = (depth > 0) & (u >= 0) & (v >= 0) & (u < width) & (v < height)
    seen[inside] |= np.abs(shot.true_depth[v[inside], u[inside]] - depth[inside]) < 0.03


def away(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Whether each point has another within `NEAR`."""
    from scipy.spatial import cKDTree

    return cKDTree(others).query(points, distance_upper_bound=NEAR)[0] < NEAR


def quality(
    room: MovingRoom, points: np.ndarray, samples: np.ndarray, at: float
) -> dict[str, float]:
    points = points.astype(np.float64)
    static = room.static_distance(points)
    ghost = np.minimum(static, room.mover_distance(points, at)) > NEAR
    return {
        "ghosts %": 100 * ghost.mean(),
        "complete": away(samples, points).mean(),
        "error mm": 1000 * np.median(static[static < NEAR]),
    }


def run(seed: int, noisy: bool, seconds: float) -> tuple[dict, dict, dict]:
    """Quality by map and moment, detection counts, and milliseconds."""
    room = MovingRoom(seed, seconds=seconds, pose_noise=NOISE if noisy else (0.0, 0.0))
    ours, blind = MovingMap("64MB"), MotionDetector("64MB")
    layers = {"one layer, 60 looks": OneLayer(60), "one layer, 8 looks": OneLayer(8)}
    if noisy:
        layers["one layer, 60, registered"] = OneLayer(60)
    samples = room.static_samples(SAMPLES)
    seen = np.zeros(len(samples), bool)
    moments = {round(x * room.frames) - 1: x for x in (0.5, 1.0)}
    table: dict = {}
    found: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(3))
    whole = []
    with Stages() as stages:
        for number in range(room.frames):
            shot = room.frame(number)
            began = time.process_time()
            ours.write(shot.frame)
            whole.append(1000 * (time.process_time() - began))
            look = ours.detector.look
            for name, layer in layers.items():
                layer.write(shot, look.pose if "registered" in name else shot.frame.pose)
            if number % 3 == 0:
                seen_of(samples, shot, seen)
            frame, known = shot.frame, shot.frame.depth > 0
            alone, _ = blind.step(frame.depth, frame.intrinsics, frame.pose, frame.timestamp)
            truth = shot.moving & known
            for mask, note in ((look.mask & known, ""), (alone & known, ", depth alone")):
                counts = [(mask & truth).sum(), (mask & ~truth).sum(), (~mask & truth).sum()]
                found[f"all{note}"] += counts
                for n in np.unique(shot.instance[truth]):
                    own = truth & (shot.instance == n)
                    counts = [(mask & own).sum(), 0, (~mask & own).sum()]
                    found[room.instances[n] + note] += counts
            if number in moments:
                now, at = shot.frame.timestamp, f"{(number + 1) / room.fps:.0f} s"
                for name, layer in layers.items():
                    surface = extract(layer.pool, layer.config)
                    table[name, at] = quality(room, surface.points, samples[seen], now)
                table["static + transient", at] = quality(
                    room, ours.surface().points, samples[seen], now
                )
    ms = {name: float(np.median(values)) for name, values in stages.ms.items()}
    ms |= {name: float(np.median(layer.ms)) for name, layer in layers.items()}
    return table, found, ms | {"static + transient": float(np.median(whole))}


def report(seeds: int, seconds: float) -> Iterator[str]:
    for noisy in (False, True):
        runs = [run(seed, noisy, seconds) for seed in range(seeds)]
        yield f"\n{'Noisy' if noisy else 'Exact'} poses, {seeds} seeds: mean (and by seed)\n"
        yield "| map | at | ghosts % | complete | error mm | CPU ms a frame |"
        yield "|---|---|---|---|---|---|"
        for name, at in runs[0][0]:
            cells = []
            for column, digits in (("ghosts %", 1), ("complete", 3), ("error mm", 1)):
                values = [table[name, at][column] for table, _, _ in runs]
                each = ", ".join(f"{value:.{digits}f}" for value in values)
                cells.append(f"{np.mean(values):.{digits}f} ({each})")
            ms = np.median([ms[name] for _, _, ms in runs])
            yield f"| {name} | {at} | {' | '.join(cells)} | {ms:.0f} |"
        yield "\n| detector | IoU | precision | recall |\n|---|---|---|---|"
        for name in sorted({name for _, found, _ in runs for name in found}):
            counts = np.array([found[name] for _, found, _ in runs if name in found])
            hit, wrong, missed = counts.T
            columns = [hit / (hit + wrong + missed), hit / (hit + wrong), hit / (hit + missed)]
            cells = [
                f"{np.mean(column):.3f} ({', '.join(f'{value:.2f}' for value in column)})"
                for column in columns
            ]
            if not name.startswith("all"):
                cells[:2] = "", ""
            yield f"| {name} | {' | '.join(cells)} |"
        parts = [f"{n} {np.median([ms[n] for _, _, ms in runs]):.1f}" for n in STAGES]
        yield f"\nCPU ms a frame, medians: {', '.join(parts)}"


def picture(out: str) -> None:
    """Draw one layer above, ours below, at four moments."""
    room, ours, one = MovingRoom(1), MovingMap("64MB"), OneLayer(60)
    low, high = np.array([-2.5, -2.5, 0.0]), np.array([2.5, 2.5, 2.5])
    columns = []
    for number in range(room.frames):
        shot = room.frame(number)
        ours.write(shot.frame)
        one.write(shot, shot.frame.pose)
        if number in (69, 139, 199, 299):
            now = ours.at(shot.frame.timestamp)
            nothing = np.zeros((0, 3), np.float32)
            alone = replace(now, surface=extract(one.pool, one.config), points=nothing)
            alone = replace(alone, colors=nothing.astype(np.uint8), ids=np.zeros(0, np.int64))
            alone = replace(alone, tracks={})
            both = []
            for moment, paths in ((alone, []), (now, ours.paths())):
                drawn = draw_map(moment, paths, size=440, bounds=(low, high))
                both.append(np.pad(drawn, ((6, 6), (6, 6), (0, 0)), constant_values=255))
            strip = np.full((30, both[0].shape[1], 3), 255, np.uint8)
            text = f"{(number + 1) / room.fps:.0f} s"
            cv2.putText(strip, text, (8, 22), 0, 0.6, (60, 60, 60), 1, cv2.LINE_AA)
            columns.append(np.concatenate([strip, *both]))
    rows = np.concatenate(columns, 1)
    side = np.full((len(rows), 40, 3), 255, np.uint8)
    for text, middle in (("one layer", 0.28), ("static + transient", 0.76)):
        label = np.full((40, 260, 3), 255, np.uint8)
        (wide, _), _ = cv2.getTextSize(text, 0, 0.6, 1)
        cv2.putText(label, text, ((260 - wide) // 2, 26), 0, 0.6, (60, 60, 60), 1, cv2.LINE_AA)
        upright = cv2.rotate(label, cv2.ROTATE_90_COUNTERCLOCKWISE)
        top = int(middle * len(rows)) - 130
        side[top : top + 260] = upright
    cv2.imwrite(out, np.concatenate([side, rows], 1)[:, :, ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, 15 seconds")
    parser.add_argument("--picture", help="draw this file instead")
    options = parser.parse_args()
    if options.picture:
        picture(options.picture)
        return
    for line in report(1 if options.quick else 3, 15.0 if options.quick else 30.0):
        print(line, flush=True)


if __name__ == "__main__":
    main()
