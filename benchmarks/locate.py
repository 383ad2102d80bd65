"""Where was the red block? Table scenes in MuJoCo, asked through the command line.

Each scene is written as an RGB-D recording, watched by `vismem run FOLDER --out M`, and asked with
`vismem ask M "where was the red block?" --json`. Things are seen from a moving camera and then
hidden: by cups that are put over all places, or because the camera looks away. The truth is the
simulator's; no memory gets it. Prints a table of conditions with the share of right answers and its
95 % interval (Wilson); failures are listed below it.

    MUJOCO_GL=osmesa python benchmarks/locate.py             # held-out seeds, about 15 minutes
    MUJOCO_GL=osmesa python benchmarks/locate.py --tune      # the seeds that thresholds were set on

The same functions as the program `vismem` runs are called, in this process, for its start takes
longer than a scene; the first scene of every condition goes through the program itself as well, and
the two must agree to the letter.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent / "recall_table"))

from report import wilson
from scene import Table, Thing, look_at

from vismem import Frame
from vismem.cli import main as vismem
from vismem.streams.rgbd import write_rgbd

# The colours of the table that have a basic name of their own; cyan has none.
COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "pink", "grey", "black")
SHAPES = ("block", "ball", "can")
NEAR = 0.05  # metres
HELD_OUT, TUNING = 0, 100_000  # first seed
SIZE = (320, 240)


@dataclass
class Episode:
    """A scene on its way: the table, what stands on it and what was taken so far."""

    table: Table
    things: list[Thing]
    generator: np.random.Generator
    frames: list[Frame] = field(default_factory=list)

    def look(self, count: int = 5, at: tuple[float, float] = (0.0, 0.0), spread: float = 0.35):
        """Take frames of the table from places around its front."""
        top = self.table.top
        for _ in range(count):
            side, back, up = self.generator.uniform((-spread, -0.75, 0.55), (spread, -0.5, 0.8))
            self.table.move_camera(look_at((side, back, top + up), (*at, top)))
            self.frames.append(self.table.render())

    def look_away(self, count: int = 3):
        """Take frames of the floor beside the table."""
        for _ in range(count):
            x, y = self.generator.uniform((1.2, -0.3), (1.6, 0.3))
            self.table.move_camera(look_at((0.6, y, self.table.top + 0.5), (x, y, 0.0)))
            self.frames.append(self.table.render())

    def cover(self):
        """Put a cup over every place."""
        for slot in range(len(self.table.slots)):
            self.table.cover(slot)

    def free(self) -> int:
        """A place where nothing stands."""
        taken = [at[:2] for at in self.table.truth().values()]
        clear = [
            slot
            for slot, at in enumerate(self.table.slots)
            if all(math.dist(at[:2], other) > 0.1 for other in taken)
        ]
        return int(self.generator.choice(clear))


@dataclass(frozen=True)
class Asked:
    """A question and what makes its answer right."""

    question: str
    right: Callable[[dict], bool]
    kind: str  # "found", or "refused": nothing may be claimed


def near(place: dict, truth: tuple[float, ...]) -> bool:
    return math.dist(place["position"], truth) <= NEAR


def is_at(truth: tuple[float, ...]) -> Callable[[dict], bool]:
    """The first place named is the right one, to 5 cm."""
    return lambda reply: bool(
        not reply["abstained"] and reply.get("places") and near(reply["places"][0], truth)
    )


def names_all(*truths: tuple[float, ...]) -> Callable[[dict], bool]:
    """Every place is named, no other, and each says that it has rivals."""
    return lambda reply: bool(
        not reply["abstained"]
        and len(reply.get("places", ())) == len(truths)
        and all(any(near(place, truth) for place in reply["places"]) for truth in truths)
        and all(place["rivals"] == len(truths) - 1 for place in reply["places"])
    )


def refuses(reply: dict) -> bool:
    return reply["abstained"]


def no_position(reply: dict) -> bool:
    return not reply.get("places")


def begin(seed: int, twins: bool = False) -> Episode:
    """A table with three to six things at random places, seen by a camera that moves."""
    generator = np.random.default_rng(seed)
    count = int(generator.integers(3, 7))
    colors = generator.choice(COLORS, count, replace=False)
    things = [
        Thing(str(color), str(generator.choice(SHAPES)), float(generator.uniform(0.022, 0.04)))
        for color in colors
    ]
    if twins:
        things[1] = replace(things[0], name="twin")
    table = Table(objects=things, size=SIZE, seed=seed, rate=2.0)
    for thing, slot in zip(things, generator.permutation(len(table.slots)), strict=False):
        x, y, z = table.slots[slot]
        dx, dy = generator.uniform(-0.02, 0.02, 2)
        table.place(thing.name, (x + dx, y + dy, z + thing.half))
    episode = Episode(table, things, generator)
    episode.look()
    return episode


def called(thing: Thing) -> str:
    return f"{thing.colour} {thing.shape}"


def absent(episode: Episode) -> list[Asked]:
    """Two things that are not there: of a colour that is, and of one that is not."""
    there = {called(thing) for thing in episode.things}
    used = {thing.colour for thing in episode.things}
    names = [f"{color} {shape}" for color in COLORS for shape in SHAPES]
    names.remove("grey block")  # the cups are
    near_miss = [n for n in names if n not in there and n.split()[0] in used]
    far = [n for n in names if n.split()[0] not in used]
    picked = [str(episode.generator.choice(group)) for group in (near_miss, far)]
    return [Asked(f"where was the {name}?", refuses, "refused") for name in picked]


def hidden(seed: int, cover: bool) -> tuple[Episode, list[Asked]]:
    episode = begin(seed)
    truth = episode.table.truth()
    if cover:
        episode.cover()
        episode.look(3)
    else:
        episode.look_away()
    picked = episode.generator.permutation(len(episode.things))[:2]
    asked = [
        Asked(f"where was the {called(t)}?", is_at(truth[t.name]), "found")
        for t in (episode.things[n] for n in picked)
    ]
    return episode, asked + absent(episode)


def covered(seed: int) -> tuple[Episode, list[Asked]]:
    return hidden(seed, cover=True)


def away(seed: int) -> tuple[Episode, list[Asked]]:
    return hidden(seed, cover=False)


def shaken(frame: Frame, generator: np.random.Generator) -> Frame:
    """The frame with a pose that is off by 1 cm and half a degree, one standard deviation."""
    turn = generator.normal(0, math.radians(0.5), 3)
    angle = float(np.linalg.norm(turn))
    x, y, z = turn / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    pose = frame.pose.copy()
    pose[:3, :3] @= np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross
    pose[:3, 3] += generator.normal(0, 0.01, 3)
    return replace(frame, pose=pose)


def pose_noise(seed: int) -> tuple[Episode, list[Asked]]:
    episode, asked = hidden(seed, cover=seed % 2 == 0)
    episode.frames = [shaken(frame, episode.generator) for frame in episode.frames]
    return episode, asked


def holes(seed: int) -> tuple[Episode, list[Asked]]:
    """Depth with the noise of a depth camera, and a fifth of it missing in patches."""
    episode, asked = hidden(seed, cover=seed % 2 == 0)
    generator = episode.generator
    noisy = []
    for frame in episode.frames:
        sigma = 0.0012 + 0.0019 * (frame.depth - 0.4) ** 2
        depth = frame.depth + generator.normal(0, 1, frame.depth.shape) * sigma
        patches = generator.random((frame.height // 8, frame.width // 8)) < 0.2
        depth[np.kron(patches, np.ones((8, 8), bool))] = 0
        noisy.append(replace(frame, depth=depth.astype(np.float32)))
    episode.frames = noisy
    return episode, asked


def twins(seed: int) -> tuple[Episode, list[Asked]]:
    episode = begin(seed, twins=True)
    truth = episode.table.truth()
    one = episode.things[0]
    episode.look_away()
    both = names_all(truth[one.name], truth["twin"])
    return episode, [Asked(f"where was the {called(one)}?", both, "found")]


def moved(seed: int, look: str) -> tuple[Episode, list[Asked]]:
    episode = begin(seed)
    table, one = episode.table, episode.things[0]
    before = table.truth()[one.name]
    slot = episode.free()
    if look == "seen":  # carried over the table
        x, y, z = table.slots[slot]
        for share in (0.25, 0.5, 0.75):
            way = np.array(before) * (1 - share) + np.array((x, y, z + one.half)) * share
            table.place(one.name, way + (0, 0, 0.08))
            episode.look(1)
        table.place(one.name, slot)
        episode.look(4)
        episode.cover()
        episode.look(2)
        now = table.truth()[one.name]
        return episode, [
            Asked(f"where is the {called(one)}?", is_at(now), "found"),
            Asked(f"where was the {called(one)} at 0:01?", is_at(before), "found"),
        ]
    episode.look_away(2)
    if look == "gone":
        table.remove(one.name)
        episode.look(4)
        return episode, [
            Asked(f"where is the {called(one)}?", refuses, "refused"),
            Asked(f"where was the {called(one)}?", is_at(before), "found"),
        ]
    table.place(one.name, slot)
    now = table.truth()[one.name]
    if look == "unseen":
        episode.look(4)
        return episode, [Asked(f"where is the {called(one)}?", is_at(now), "found")]
    # Only the new place comes into view: whether it is the same thing cannot be known.
    near_by = look_at((now[0], now[1] - 0.12, table.top + 0.3), now)
    for step in range(4):
        pose = near_by.copy()
        pose[0, 3] += 0.02 * step
        table.move_camera(pose)
        episode.frames.append(table.render())
    if in_view(episode.frames[-4:], before):
        return moved(seed + 7919, look)
    return episode, [Asked(f"where is the {called(one)}?", names_all(before, now), "found")]


def in_view(frames: list[Frame], at: tuple[float, ...]) -> bool:
    """Whether a place is anywhere near a picture."""
    for frame in frames:
        local = (np.array(at) - frame.pose[:3, 3]) @ frame.pose[:3, :3]
        u, v, w = frame.intrinsics @ local
        if w > 0 and -40 < u / w < frame.width + 40 and -40 < v / w < frame.height + 40:
            return True
    return False


def moved_seen(seed: int) -> tuple[Episode, list[Asked]]:
    return moved(seed, "seen")


def moved_unseen(seed: int) -> tuple[Episode, list[Asked]]:
    return moved(seed, "unseen")


def moved_open(seed: int) -> tuple[Episode, list[Asked]]:
    return moved(seed, "open")


def removed(seed: int) -> tuple[Episode, list[Asked]]:
    return moved(seed, "gone")


def spoilt(seed: int, **change: object) -> tuple[Episode, list[Asked]]:
    episode, asked = hidden(seed, cover=False)
    episode.frames = [replace(frame, **change) for frame in episode.frames]
    return episode, [Asked(one.question, no_position, "refused") for one in asked[:2]]


def no_depth(seed: int) -> tuple[Episode, list[Asked]]:
    return spoilt(seed, depth=np.zeros(SIZE[::-1], np.float32))


def no_pose(seed: int) -> tuple[Episode, list[Asked]]:
    return spoilt(seed, pose=None)


def wrong_intrinsics(seed: int) -> tuple[Episode, list[Asked]]:
    return spoilt(seed, intrinsics=np.array([[0, 0, 160], [0, 0, 120], [0, 0, 1.0]]))


CONDITIONS: dict[str, tuple[Callable[[int], tuple[Episode, list[Asked]]], float, str]] = {
    "covered": (covered, 1.0, "hidden under cups, 1.5 s"),
    "away": (away, 1.0, "the camera looks away"),
    "pose noise": (pose_noise, 0.5, "poses off by 1 cm and 0.5 degrees"),
    "depth noise": (holes, 0.5, "noise of a depth camera, a fifth of the depth 0"),
    "twins": (twins, 0.5, "two alike: both named, and that they are two"),
    "moved, seen": (moved_seen, 0.5, "where it is, and where it was at 0:01"),
    "moved, unseen": (moved_unseen, 0.5, "its old place is seen empty"),
    "moved, open": (moved_open, 0.5, "its old place is not: both named"),
    "removed": (removed, 0.5, "where is it: unknown; where was it: there"),
    "depth of zeros": (no_depth, 0.2, "no position in the world"),
    "no pose": (no_pose, 0.2, "no position in the world"),
    "wrong intrinsics": (wrong_intrinsics, 0.2, "focal length 0: no position in the world"),
}


def called_program(arguments: list[str], program: bool) -> str:
    """What `vismem` prints, run here or as a program."""
    if program:
        command = [sys.executable, "-m", "vismem.cli", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        code = vismem(arguments)
    if code:
        raise RuntimeError(f"vismem {' '.join(arguments)} ended with {code}")
    return out.getvalue()


def replies(frames: list[Frame], asked: list[Asked], program: bool = False) -> list[dict]:
    """Write a recording, watch it, ask."""
    with tempfile.TemporaryDirectory() as folder:
        recording, memory = f"{folder}/scene", f"{folder}/memory"
        write_rgbd(recording, frames)
        called_program(["run", recording, "--out", memory, "--budget", "16MB", "--json"], program)
        return [
            json.loads(called_program(["ask", memory, one.question, "--json"], program))
            for one in asked
        ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scenes", type=int, default=40, help="of the first conditions")
    parser.add_argument("--tune", action="store_true", help="the seeds thresholds were set on")
    parser.add_argument("--only", nargs="*", help="conditions")
    parser.add_argument("--json", type=Path, help="where to write the counts")
    options = parser.parse_args()
    first, counts, failures = TUNING if options.tune else HELD_OUT, {}, []
    for place, (name, (make, share, what)) in enumerate(CONDITIONS.items()):
        if options.only and name not in options.only:
            continue
        began, right = time.monotonic(), {"found": [], "refused": []}
        for number in range(max(1, round(share * options.scenes))):
            seed = first + 1000 * place + number
            episode, asked = make(seed)
            told = replies(episode.frames, asked)
            if number == 0 and not options.tune:
                again = replies(episode.frames, asked, program=True)
                if again != told:
                    raise RuntimeError(f"the program answers otherwise in {name}: {again}, {told}")
            for one, reply in zip(asked, told, strict=True):
                good = one.right(reply)
                right[one.kind].append(good)
                if not good:
                    truth = {k: [round(x, 3) for x in v] for k, v in episode.table.truth().items()}
                    failures.append(f"{name} {seed}: {one.question} {reply['answer']} {truth}")
            episode.table.close()
        counts[name] = {kind: (sum(good), len(good)) for kind, good in right.items()}
        cells = []
        for kind in ("found", "refused"):
            k, n = counts[name][kind]
            low, high = wilson(k, n) if n else (0, 0)
            cells.append(f"{k:3}/{n:<3} {k / n:4.0%} [{low:.0%}, {high:.0%}]" if n else "-")
        line = f"{name:17} {cells[0]:26} {cells[1]:26} {what}"
        if place == 0:
            print(f"{'':17} {'right place':26} {'rightly refused':26}")
        print(f"{line}  ({time.monotonic() - began:.0f} s)", flush=True)
    for failure in failures:
        print(f"  {failure}")
    if options.json:
        options.json.write_text(json.dumps(counts))


if __name__ == "__main__":
    main()
