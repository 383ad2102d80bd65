"""Sources by hand, and patience."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator

import numpy as np

from vismem.frame import Frame
from vismem.streams import Stream


class Scripted(Stream):
    """Frames of given times; the first pixel says what the tiny encoder sees."""

    def __init__(self, times: list[float], seen: int = 1, name: str = "script") -> None:
        super().__init__(name)
        self.times, self.seen = times, seen

    def _read(self) -> Generator[Frame, None, None]:
        for index, at in enumerate(self.times):
            image = np.full((36, 64, 3), 30 + index % 50, np.uint8)
            image[0, 0] = self.seen, 1, 0
            yield Frame(image, at, self.name, index)


def every(seconds: float, count: int) -> list[float]:
    return [seconds * number for number in range(count)]


def until(what: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait for something to come true."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.01)
