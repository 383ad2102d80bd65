"""Episodes of a family: their frames, their delays, and the proof that covered frames tell nothing.

`twin` draws the same seed with another hidden content and compares every covered frame to the last
bit. Because they agree, covered frames may come from one long clip a family, drawn once: an episode
takes a window of it, as long as its delay, so a delay of 512 frames costs nothing. The camera
trembles and a ball rolls along the table's edge, so no two frames of a window are the same picture.

Answers are dealt in turn, so every answer is asked for equally often.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
from scene import Table, look_at
from tasks import FAMILIES, Content, Family, Step

from vismem import Frame
from vismem.geometry import unproject

__all__ = ["DELAYS", "TRAIN_DELAYS", "Data", "Episode", "Shots", "generate", "twin"]

DELAYS = (0, 8, 32, 128, 512)
TRAIN_DELAYS = (0, 8, 32)
BEFORE = 6  # covered frames before the cue at most; 0 to so many
SIDE, CELLS, PATCH = 32, 8, 4  # a stored picture is 32 x 32 pixels, 8 x 8 patches of 4 x 4
BLOCKS = 16  # a side, of the picture that novelty compares
TREMBLE = 0.0015  # metres, of the camera and of what it looks at
HIDDEN_LABELS = ("event", "before", "rest", "away", "query")  # twins must agree on these
CLIP = 1200  # covered frames that are drawn once


class Shots:
    """Frames as they are kept: small pictures, where their cells lie, poses."""

    def __init__(self) -> None:
        self._rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, frame: Frame) -> int:
        """Keep a frame of 64 x 64 pixels; its number."""
        small = frame.image.reshape(SIDE, 2, SIDE, 2, 3).mean((1, 3)).round().astype(np.uint8)
        points = unproject(frame.depth, frame.intrinsics, frame.pose)
        side = frame.height // CELLS
        cells = points.reshape(CELLS, side, CELLS, side, 3).mean((1, 3)).reshape(-1, 3)
        self._rows.append((small, cells.astype(np.float32), frame.pose))
        return len(self._rows) - 1

    def stacked(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pictures `(F, 32, 32, 3)` uint8, positions `(F, 64, 3)` float32, poses `(F, 4, 4)`."""
        pictures, positions, poses = zip(*self._rows, strict=True)
        return np.stack(pictures), np.stack(positions), np.stack(poses)


@dataclass(frozen=True)
class Episode:
    """A script whose covered frames are still to be taken from a clip.

    Args:
        content: What it is about.
        steps: Label and the numbers of its own frames, or how many of the clip's.
        xyz: Where the answer is, `(3,)` metres.
        seed: Of the windows of the clips.
    """

    content: Content
    steps: tuple[tuple[str, tuple[int, ...] | int], ...]
    xyz: np.ndarray
    seed: tuple[int, ...]


@dataclass
class Data:
    """Episodes of one family and the frames they are made of.

    Args:
        family: Whose they are.
        episodes: In order; answers are dealt in turn.
        clips: Numbers of the covered frames of each label.
        pictures: `(F, 32, 32, 3)` uint8.
        positions: Where each cell lies, `(F, 64, 3)` float32 metres.
        poses: `(F, 4, 4)` float64.
        intrinsics: `(3, 3)` of the 64 x 64 pictures.
    """

    family: Family
    episodes: list[Episode]
    clips: dict[str, np.ndarray]
    pictures: np.ndarray
    positions: np.ndarray
    poses: np.ndarray
    intrinsics: np.ndarray
    signatures: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        frames, k = len(self.pictures), SIDE // BLOCKS
        blocks = self.pictures.reshape(frames, BLOCKS, k, BLOCKS, k, 3).mean((2, 4)) / 255
        self.signatures = blocks.reshape(frames, -1).astype(np.float32)

    def timeline(self, number: int, delay: int) -> tuple[np.ndarray, np.ndarray]:
        """Frame numbers of an episode with a delay, and which of them are cue, `(T,)` each."""
        episode = self.episodes[number]
        rng = np.random.default_rng([*episode.seed, delay])
        frames: list[int] = []
        cue: list[bool] = []
        for label, taken in (*episode.steps, ("rest", delay), ("query", 1)):
            if isinstance(taken, int):
                clip = self.clips[label]
                taken = int(rng.integers(BEFORE + 1)) if label == "before" else taken
                start = int(rng.integers(len(clip) - taken + 1))
                taken = tuple(clip[start : start + taken].tolist())
            frames += taken
            cue += [label == "cue"] * len(taken)
        return np.array(frames), np.array(cue)


def _take(
    family: Family, table: Table, content: Content, label: str, number: int, seed: Sequence[int]
) -> Frame:
    """Take one frame: where the camera trembles to and the ball rolls depends on the seed alone."""
    rng = np.random.default_rng([*seed, number])
    eye, target = family.eye(table, label, number, content) + rng.normal(0, TREMBLE, (2, 3))
    table.move_camera(look_at(eye, target))
    along = 0.3 * math.sin(0.37 * number + float(np.random.default_rng(seed).uniform(0, 6.28)))
    table.distract((along, -0.30, table.top + 0.03))
    return table.render()


def _clip(family: Family, table: Table, label: str, seed: Sequence[int], shots: Shots, n: int):
    """Draw one long covered clip of a label, with some content hidden."""
    content = family.draw(seed, seed[-1] % family.answers)
    table.reset()
    for step in family.play(table, content):
        if step.label == label:
            break  # a query frame is of the table as the script leaves it
    return np.array([shots.add(_take(family, table, content, label, i, seed)) for i in range(n)])


def generate(family: Family, count: int, seed: int, clip: int = CLIP) -> Data:
    """Draw `count` episodes; the same numbers give the same bytes.

    Args:
        family: Of `FAMILIES`.
        count: Episodes; answers are dealt in turn.
        seed: Of everything; train and test take different ones.
        clip: Covered frames of each label that are drawn once; at least the longest delay asked of
            `Data.timeline`.
    """
    shots, episodes = Shots(), []
    number = [*FAMILIES].index(family.name)
    with family.table() as table:
        clips = {
            label: _clip(family, table, label, [seed, number, 7, i], shots,
                         clip if label == "rest" else min(clip, 64))
            for i, label in enumerate(family.labels)
        }  # fmt: skip
        for i in range(count):
            key = [seed, number, i]
            content = family.draw(key, i % family.answers)
            table.reset()
            steps: list[tuple[str, tuple[int, ...] | int]] = []
            taken = dict.fromkeys(("cue", "event"), 0)
            for step in family.play(table, content):
                if step.label in clips:
                    steps.append((step.label, step.frames))
                    continue
                first = taken[step.label]
                taken[step.label] += step.frames
                own = [
                    shots.add(_take(family, table, content, step.label, n, [*key, 3]))
                    for n in range(first, first + step.frames)
                ]
                steps.append((step.label, tuple(own)))
            xyz = family.answer_at(table, content.answer)
            episodes.append(Episode(content, tuple(steps), xyz, (*key, 4)))
        intrinsics = table.intrinsics
    return Data(family, episodes, clips, *shots.stacked(), intrinsics)


def twin(family: Family, seed: int, delay: int = 3) -> tuple[int, int]:
    """Play two episodes that differ in nothing but what is hidden, every frame drawn for real.

    Returns:
        How many covered and event frames were compared, and how many of them differ in a single
        bit of picture or depth. Anything but 0 is a leak.
    """
    key = [seed, 11]
    first = int(np.random.default_rng(key).integers(family.answers))
    taken: list[list[bytes]] = []
    with family.table() as table:
        for answer in (first, (first + 1) % family.answers):
            content = family.draw(key, answer)
            table.reset()
            frames: list[bytes] = []
            number = 0
            # Chained, so that each step is drawn before the next one changes the table.
            script = chain(family.play(table, content), [Step("rest", delay), Step("query")])
            for step in script:
                for _ in range(step.frames):
                    frame = _take(family, table, content, step.label, number, key)
                    number += 1
                    if step.label in HIDDEN_LABELS:
                        frames.append(frame.image.tobytes() + frame.depth.tobytes())
            taken.append(frames)
    return len(taken[0]), sum(a != b for a, b in zip(*taken, strict=True))
