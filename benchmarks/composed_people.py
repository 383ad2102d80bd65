"""Videos in which real people come, cross, go and come back, with known boxes and identities.

The people are cut out of a clip of a camera that does not move, before which they stand one at a
time: what differs from the empty scene. They are pasted over photographs and walk there as they
did, two or three at once, the nearer one in front. The clip's people are told by ``--truth``, as
`detect_clip` takes it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from vismem.streams import open_stream

SIZE = (640, 360)  # width and height of a frame
RATE = 5.0  # frames a second
SECONDS = 30.0
DIFFERS = 36  # gray levels of any channel from the empty scene, from which a pixel is somebody's
VISIBLE = 0.3  # part of a person that is in the picture and not hidden, from which it counts
PHOTOS = (
    ("sklearn", "datasets/images/china.jpg"),
    ("skimage", "data/coffee.png"),
    ("skimage", "data/brick.png"),
    ("sklearn", "datasets/images/flower.jpg"),
    ("skimage", "data/rocket.jpg"),
    ("skimage", "data/gravel.png"),
)

Spans = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Scene:
    """A frame and who is where in it.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        time: Seconds.
        people: Box ``x0 y0 x1 y1`` in pixels, inside the picture, of everybody who can be seen.
    """

    image: np.ndarray
    time: float
    people: dict[str, np.ndarray]


def cut_out(clip: str, spans: Spans) -> dict[str, list[np.ndarray]]:
    """Cut people out of a clip, whole and in order of time.

    Returns:
        Of each person pictures ``(h, w, 4)`` float32, colours and opacity from 0 to 1.
    """
    with open_stream(clip, fps=RATE) as stream:
        frames = [(frame.timestamp, frame.image) for frame in stream]
    empty = [
        image
        for time, image in frames
        if not any(start - 1 <= time <= end + 1 for start, end in spans.values())
    ]
    scene = np.median(np.stack(empty[:: max(1, len(empty) // 24)]), axis=0).astype(np.uint8)
    pictures: dict[str, list[np.ndarray]] = {who: [] for who in spans}
    for time, image in frames:
        for who, (start, end) in spans.items():
            if start <= time <= end and (picture := _cut(image, scene)) is not None:
                pictures[who].append(picture)
    return pictures


def _cut(image: np.ndarray, scene: np.ndarray) -> np.ndarray | None:
    """The largest thing that is not in the empty scene; None where an edge cuts it."""
    mask = (cv2.absdiff(image, scene).max(2) > DIFFERS).astype(np.uint8)
    mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((9, 9), np.uint8))
    mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    _, parts, stats, _ = cv2.connectedComponentsWithStats(mask)
    if len(stats) < 2:
        return None
    part = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    left, top, width, height, area = stats[part].tolist()
    rows, columns = mask.shape
    if left < 2 or left + width > columns - 2 or top + height > rows - 2 or height < rows / 2:
        return None
    around = np.s_[top : top + height, left : left + width]
    opacity = cv2.GaussianBlur((parts[around] == part).astype(np.float32), (3, 3), 0)
    return np.dstack([image[around].astype(np.float32) / 255, opacity])


def _photo(number: int) -> np.ndarray:
    package, name = PHOTOS[number % len(PHOTOS)]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{package} has the photographs: pip install vismem[benchmarks]")
    image = cv2.imread(str(Path(spec.origin).parent / name))
    width, height = SIZE
    scale = max(1.15 * width / image.shape[1], height / image.shape[0])
    large = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return large[:height, :, ::-1].astype(np.float32) / 255


@dataclass(frozen=True)
class _Visit:
    """Somebody enters, stands and leaves; sides are -1 for the left and 1 for the right."""

    start: float
    sides: tuple[int, int]
    stop: float  # where along the picture
    stay: float
    speed: float  # parts of the picture's width a second
    height: float  # parts of the picture's height
    first: int  # picture of the person

    def place(self, time: float) -> float | None:
        """The middle along the picture's width, or None for somebody who is not there."""
        age, margin = time - self.start, 0.15
        outside = [side * (0.5 + margin) + 0.5 for side in self.sides]
        come, go = (abs(self.stop - place) / self.speed for place in outside)
        if age < 0 or age > come + self.stay + go:
            return None
        if age < come:
            return outside[0] + (self.stop - outside[0]) * age / come
        share = max(0.0, (age - come - self.stay) / go)
        return self.stop + (outside[1] - self.stop) * share


def compose(pictures: Mapping[str, Sequence[np.ndarray]], number: int) -> list[Scene]:
    """One video: everybody visits twice, at times of their own, over one photograph."""
    draw = np.random.default_rng(number)
    photo, (width, height) = _photo(number), SIZE
    visits: list[tuple[str, _Visit]] = []
    for who in pictures:
        size, start = draw.uniform(0.6, 0.9), draw.uniform(0, 6)
        for _ in range(2):
            sides = (int(draw.choice([-1, 1])), int(draw.choice([-1, 1])))
            visit = _Visit(
                start,
                sides,
                stop=draw.uniform(0.15, 0.85),
                stay=draw.uniform(1, 4),
                speed=draw.uniform(0.15, 0.35),
                height=size * draw.uniform(0.95, 1.05),
                first=int(draw.integers(len(pictures[who]))),
            )
            visits.append((who, visit))
            start += 9 + draw.uniform(4, 8)
    visits.sort(key=lambda entry: entry[1].height)  # the larger are nearer
    scenes = []
    for n in range(int(SECONDS * RATE)):
        time = n / RATE
        shift = int((photo.shape[1] - width) * n / (SECONDS * RATE))
        image = photo[:, shift : shift + width].copy()
        shares: dict[str, np.ndarray] = {}
        boxes: dict[str, np.ndarray] = {}
        for who, visit in visits:
            middle = visit.place(time)
            if middle is None:
                continue
            choice = visit.first + int((time - visit.start) * RATE)
            cut = pictures[who][choice % len(pictures[who])]
            rows = round(visit.height * height)
            columns = round(cut.shape[1] * rows / cut.shape[0])
            cut = cv2.resize(cut, (columns, rows), interpolation=cv2.INTER_AREA)
            left, top = round(middle * width - columns / 2), height - rows - 4
            low, high = max(0, left), min(width, left + columns)
            if high - low < 2:
                continue
            part = cut[:, low - left : high - left]
            ground = np.s_[top : top + rows, low:high]
            opacity = part[..., 3:]
            for other in shares.values():
                other[ground] *= 1 - opacity[..., 0]
            shares[who] = np.zeros((height, width), np.float32)
            shares[who][ground] = opacity[..., 0]
            whole = cut[..., 3].sum()
            shares[who] /= max(whole, 1.0)
            image[ground] = image[ground] * (1 - opacity) + part[..., :3] * opacity
            boxes[who] = np.array([low, top, high, top + rows], np.float32)
        seen = {who: box for who, box in boxes.items() if shares[who].sum() >= VISIBLE}
        scenes.append(Scene((image * 255).round().clip(0, 255).astype(np.uint8), time, seen))
    return scenes
