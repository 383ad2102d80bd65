"""Scenes for streams of natural pictures, as an encoder sees them.

Photographs that are installed (scikit-image's, scikit-learn's, Debian's opencv-doc, and this
repository's gallery) are cut into square scenes, and each scene is encoded a few times as a camera
would see it: panned, zoomed, brighter, darker, noisy. A scene is taken only if all its views are
clearly nearer to each other than to any other scene. Encoded views are cached by content in the
temporary folder.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from calibrate import CVD, DATA, OPENCV_DOC, OWN, SKI, SKL, origins
from torch import Tensor

from vismem import open_stream
from vismem.encoders.embedded import EmbeddedEncoder

SIDE = 4  # a square picture of the default encoder is a grid of 4x4 tokens
CACHE = Path(tempfile.gettempdir()) / "vismem-retention"
PHOTOGRAPHS = {
    SKI: "astronaut.png brick.png camera.png cell.png chelsea.png coffee.png coins.png grass.png "
    "gravel.png hubble_deep_field.jpg ihc.png moon.png motorcycle_left.png page.png retina.jpg "
    "rocket.jpg text.png",
    SKL: "china.jpg flower.jpg",
    CVD: "aero1.jpg aero3.jpg aloeL.jpg apple.jpg baboon.jpg basketball1.png blox.jpg board.jpg "
    "box_in_scene.png building.jpg butterfly.jpg cards.png chicky_512.png ela_original.jpg "
    "fruits.jpg graf1.png HappyFish.jpg home.jpg left.jpg left03.jpg left12.jpg leuvenA.jpg "
    "licenseplate_motion.jpg messi5.jpg orange.jpg pic1.png pic2.png pic3.png pic5.png "
    "rubberwhale1.png smarties.png squirrel_cls.jpg starry_night.jpg stuff.jpg sudoku.png "
    "tree.avi Megamind.avi vtest.avi",
    OWN: "gallery.mp4",
}
Pictures = Sequence[np.ndarray]


@dataclass(frozen=True)
class Scene:
    """A place or thing and how it was seen.

    Args:
        name: File and crop.
        picture: The crop, ``(H, W, 3)`` uint8 RGB, or `None` of a collage.
        tokens: Its views, ``(V, 16, D)`` float32.
        embeddings: Of the views, ``(V, E)`` float32.
    """

    name: str
    picture: np.ndarray | None
    tokens: Tensor
    embeddings: Tensor

    @property
    def radius(self) -> float:
        """Largest distance of a view from the first."""
        flat = self.tokens.flatten(1)
        return float((flat - flat[0]).norm(dim=1).max())


def photographs(opencv_doc: Path = OPENCV_DOC) -> Iterator[tuple[str, np.ndarray]]:
    """Installed photographs, and the first frame of each shot of installed clips."""
    folders = origins(opencv_doc)
    for origin, names in PHOTOGRAPHS.items():
        for name in names.split():
            path = folders.get(origin, Path("/nonexistent")) / name
            if not path.is_file():
                continue
            if path.suffix in (".mp4", ".avi"):
                with open_stream(path, fps=0.2) as stream:
                    for frame in stream:
                        yield f"{name}@{frame.timestamp:.0f}s", frame.image
            else:
                yield name, cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)


def crops(picture: np.ndarray, halves: bool) -> Iterator[tuple[str, np.ndarray]]:
    """The centre square of a picture, or squares of half its height from all over it."""
    height, width = picture.shape[:2]
    side = min(height, width)
    if not halves:
        top, left = (height - side) // 2, (width - side) // 2
        yield "centre", picture[top : top + side, left : left + side]
        return
    side //= 2
    if side < 180:  # too few pixels to be a picture of its own
        return
    columns = width // side
    for row in range(2):
        for column in range(columns):
            left = column * (width - side) // max(1, columns - 1)
            yield f"{row},{column}", picture[row * side : (row + 1) * side, left : left + side]


def view(picture: np.ndarray, x: float, y: float, zoom: float, gain: float) -> np.ndarray:
    """Part of a picture as a camera sees it: centre and size as fractions, and brightness."""
    side = picture.shape[0]
    size = round(side * zoom)
    left, top = (int(np.clip(c * side - size / 2, 0, side - size)) for c in (x, y))
    part = picture[top : top + size, left : left + size].astype(np.float32) * gain
    return np.clip(part, 0, 255).astype(np.uint8)


def grain(picture: np.ndarray, random: np.random.Generator, size: float = 3.0) -> np.ndarray:
    """Add sensor noise of a standard deviation in grey levels."""
    noise = random.normal(0, size, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


def panned(picture: np.ndarray, count: int, random: np.random.Generator) -> Pictures:
    """Views of a hand-held camera; the first is the middle."""
    rows = [(0.5, 0.5, 0.9, 1.0)]
    rows += [
        (*random.uniform(0.46, 0.54, 2), random.uniform(0.85, 0.95), random.uniform(0.85, 1.15))
        for _ in range(count - 1)
    ]
    return [grain(view(picture, *row), random) for row in rows]


def mounted(picture: np.ndarray, count: int, random: np.random.Generator) -> Pictures:
    """Views of a camera that does not move."""
    gains = [1.0, *random.uniform(0.95, 1.05, count - 1)]
    return [grain(view(picture, 0.5, 0.5, 0.9, gain), random) for gain in gains]


def dusk(picture: np.ndarray, count: int, random: np.random.Generator) -> Pictures:
    """Views of an hour in which it gets dark and the camera sags a little."""
    steps = np.linspace(0, 1, count)
    return [
        grain(view(picture, 0.5, 0.5 + 0.04 * s, 0.9 - 0.1 * s, 1.1 - 0.75 * s), random)
        for s in steps
    ]


def lit(picture: np.ndarray, count: int, random: np.random.Generator) -> Pictures:
    """Views by two lamps in turn: a white one, and a dim and warm one."""
    warm = np.array([0.6, 0.42, 0.28], np.float32)
    pictures = mounted(picture, count, random)
    return [(p * warm).astype(np.uint8) if n % 2 else p for n, p in enumerate(pictures)]


def paste(picture: np.ndarray, thing: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Put a small picture of a thing somewhere into the middle of a picture."""
    side = picture.shape[0]
    size = round(0.3 * side)
    small = cv2.resize(thing, (size, size), interpolation=cv2.INTER_AREA)
    top, left = (int(v * side) for v in random.uniform(0.15, 0.55, 2))
    pasted = picture.copy()
    pasted[top : top + size, left : left + size] = small
    return pasted


class Studio:
    """Encodes the views of scenes, each once.

    Args:
        encoder: What encodes; one for all.
        views: How many views a scene has.
        cache: Folder that encoded views are kept in.
    """

    def __init__(self, encoder: EmbeddedEncoder, views: int, cache: Path = CACHE):
        self.encoder, self.views, self.cache = encoder, views, cache
        self._salt = json.dumps(encoder.identity, sort_keys=True).encode()
        cache.mkdir(parents=True, exist_ok=True)

    def encode(self, pictures: Pictures) -> tuple[Tensor, Tensor]:
        """Tokens ``(n, N, D)`` and embeddings ``(n, E)`` of pictures of one shape."""
        digest = hashlib.sha256(self._salt)
        for picture in pictures:
            digest.update(np.ascontiguousarray(picture).tobytes())
        path = self.cache / f"{digest.hexdigest()}.npz"
        if not path.is_file():
            encodings = self.encoder.encode(pictures)
            held = {
                "tokens": torch.stack([e.tokens for e in encodings]).numpy(),
                "embeddings": torch.stack([e.embedding for e in encodings]).numpy(),
            }
            with tempfile.NamedTemporaryFile(dir=self.cache, delete=False) as file:
                np.savez(file, **held)
            Path(file.name).replace(path)  # whole or not at all
        with np.load(path) as arrays:
            return (
                torch.from_numpy(arrays["tokens"]).float(),
                torch.from_numpy(arrays["embeddings"]).float(),
            )

    def scene(
        self,
        name: str,
        picture: np.ndarray,
        see: Callable[[np.ndarray, int, np.random.Generator], Pictures],
    ) -> Scene:
        """Look at a picture in one of the ways above; the same again for the same picture."""
        seed = list(hashlib.sha256(picture.tobytes()).digest())
        pictures = see(picture, self.views, np.random.default_rng(seed))
        return Scene(name, picture, *self.encode(pictures))

    def frame_noise(self) -> float:
        """Standard deviation of a token's features between consecutive frames of a real clip."""
        with open_stream(DATA / "gallery.mp4", fps=12) as clip:
            images = [frame.image for _, frame in zip(range(36), clip, strict=False)]
        tokens, _ = self.encode(images)
        change = (tokens[1:] - tokens[:-1]).square().mean((1, 2)).sqrt()
        return float(change.median()) / 2**0.5  # the difference of two frames holds it twice


def apart(new: Scene, taken: Sequence[Scene]) -> bool:
    """Whether every view of every scene stays below half the way to another scene."""
    flat = new.tokens.flatten(1)
    for scene in taken:
        nearest = float(torch.cdist(flat, scene.tokens.flatten(1)).min())
        if 2 * max(new.radius, scene.radius) >= nearest:
            return False
    return True


def library(studio: Studio, most: int, opencv_doc: Path = OPENCV_DOC) -> list[Scene]:
    """Take scenes that are clearly apart from each other, whole pictures first."""
    taken: list[Scene] = []
    held = list(photographs(opencv_doc))
    for halves in (False, True):
        for name, photograph in held:
            for where, crop in crops(photograph, halves):
                if len(taken) == most:
                    return taken
                scene = studio.scene(f"{name} {where}", np.ascontiguousarray(crop), panned)
                if apart(scene, taken):
                    taken.append(scene)
    return taken


def collages(scenes: Sequence[Scene], count: int, random: np.random.Generator) -> list[Scene]:
    """Scenes that never were: each quarter of the grid from another scene, two views of each."""
    half = SIDE // 2
    made = []
    for number in range(count):
        parts = [scenes[i] for i in random.choice(len(scenes), 4, replace=False)]
        grid = parts[0].tokens[:2].unflatten(1, (SIDE, SIDE)).clone()
        for part, (row, column) in zip(parts, np.ndindex(2, 2), strict=True):
            rows = slice(row * half, (row + 1) * half)
            columns = slice(column * half, (column + 1) * half)
            whole = part.tokens[:2].unflatten(1, (SIDE, SIDE))
            grid[:, rows, columns] = whole[:, rows, columns]
        embedding = F.normalize(sum(part.embeddings[:2] for part in parts), dim=-1)
        made.append(Scene(f"collage {number}", None, grid.flatten(1, 2), embedding))
    return made
