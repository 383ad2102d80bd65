"""Films in which something moves: before a camera that stands still, and before one with depth."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
from ray_scene import Thing, World, looking_at

from vismem.frame import Frame

__all__ = ["FPS", "SIZE", "carried", "film", "wall"]

FPS = 5.0
SIZE = (160, 120)


def wall(seed: int = 0) -> np.ndarray:
    draws = np.random.default_rng(seed)
    noise = draws.integers(0, 255, (SIZE[1], SIZE[0], 3)).astype(np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 3)


def film(
    seconds: float = 8.0, *, begin: float = 3.0, end: float = np.inf, seed: int = 0
) -> Iterator[Frame]:
    """A wall in a camera's noise; from a second on, a red square goes from left to right."""
    draws, background = np.random.default_rng(seed), wall()
    for n in range(round(seconds * FPS)):
        time = n / FPS
        picture = background.astype(float)
        if time >= begin:
            x = round(10 + 20 * (min(time, end) - begin))
            picture[50:80, x : x + 20] = (220, 20, 20)
        picture += draws.normal(0, 2, picture.shape)
        yield Frame(np.clip(picture, 0, 255).astype(np.uint8), time, "door")


def carried(seconds: float = 8.0, begin: float = 4.0, pan: float = 0.02) -> Iterator[Frame]:
    """A camera that goes about a floor with a box; from a second on, a ball rolls by."""
    box = Thing("box", "blue", (0.4, 0.3, 0.15), (0.3, 0.3, 0.3))
    for n in range(round(seconds * FPS)):
        time = n / FPS
        things = [box]
        if time >= begin:
            things.append(
                Thing("ball", "red", (-0.8 + 0.3 * (time - begin), -0.2, 0.2), (0.4,) * 3)
            )
        pose = looking_at((pan * n, -2.2, 1.6), (pan * n / 2, 0.0, 0.2))
        yield World(tuple(things)).render(pose, time, noise=0.002, seed=n)
