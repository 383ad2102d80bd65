"""A visual memory small enough to be filled, crashed and compared bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import vismem as vm
from vismem.frame import Frame
from vismem.memory.policies import POLICIES
from vismem.observation import thumbnail

MOMENTS = {"max_labels": 4, "max_thumbnail": 1500}
STEP = 0.5  # seconds between frames
PATIENCE = 30.0
QUESTIONS = ("a cat", "dogs", "how many people?", "a unicorn", "what happened?", "the first dog")


def picture(number: int, seen: int | None = None, count: int = 1) -> np.ndarray:
    """One of many scenes of six pictures each, with noise of its own; see `TinyEncoder`."""
    scene = np.random.default_rng(number // 6).integers(0, 255, (2, 1, 3))
    image = np.repeat(np.repeat(scene, 6, axis=0), 16, axis=1).astype(np.uint8)
    image[:, 8:] ^= np.random.default_rng(1000 + number).integers(0, 16, (12, 8, 3), np.uint8)
    image[0, 0, :2] = (number // 6 % 5 if seen is None else seen), count
    return image


def frame(number: int, seen: int | None = None, **other: object) -> Frame:
    given = {"timestamp": number * STEP, "index": number} | other
    return Frame(picture(number, seen), **given)  # type: ignore[arg-type]


def fill(memory: vm.VisualMemory, numbers: range, **other: object) -> vm.VisualMemory:
    for number in numbers:
        assert memory.write(frame(number, **other))  # type: ignore[arg-type]
    memory.flush()
    return memory


def state_of(memory: vm.VisualMemory) -> dict[str, tuple]:
    """All that is held, bit for bit."""
    return {
        f"{name}: {key}": (value.dtype, tuple(value.shape), value.numpy().tobytes())
        for name, stream in memory._streams.items()
        for key, value in (stream.working_state() | stream.moments.state_dict()).items()
    } | {f"{name}: clock": (stream.clock,) for name, stream in memory._streams.items()}


def crash(memory: vm.VisualMemory) -> None:
    """Let go of the directory as the death of the process would: nothing is sealed."""
    assert memory._journal is not None
    memory._journal.store.close()


def replies(memory: vm.VisualMemory) -> list[dict]:
    return [memory.ask(question).to_dict() for question in QUESTIONS]


def bytes_on_disk(path: Path) -> bytes:
    return b"".join(file.read_bytes() for file in path.rglob("*") if file.is_file())


def thumbnails(numbers: range) -> list[bytes]:
    found = [thumbnail(picture(number), MOMENTS["max_thumbnail"]) for number in numbers]
    assert len(set(found)) == len(found)
    return found


every_policy = pytest.mark.parametrize("policy", POLICIES)


def slots_of(memory: vm.VisualMemory, stream: str = "camera") -> list:
    return list(memory.visual()[stream].slots())
