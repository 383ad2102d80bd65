"""Frames of all kinds: late, without a time or picture, from a clock that was set back."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from tiny_memory import PATIENCE, STEP, crash, fill, frame, picture, state_of

import vismem as vm
from vismem.encoders.base import Encoding
from vismem.encoders.embedded import EmbeddedEncoder
from vismem.errors import UsageError
from vismem.frame import Frame


def test_a_live_source_drops_what_is_too_much(make, tiny, monkeypatch) -> None:
    gate, busy, real = threading.Event(), threading.Event(), tiny.encode

    def slow(images: list) -> list[Encoding]:
        busy.set()
        assert gate.wait(PATIENCE)
        return real(images)

    monkeypatch.setattr(tiny, "encode", slow)
    memory = make(queue=3)
    memory.write(frame(0), block=False)
    assert busy.wait(PATIENCE)
    taken = [memory.write(frame(number), block=False) for number in range(1, 8)]
    assert taken == [True, True] + [False] * 5
    gate.set()
    memory.flush()
    assert (memory.stats.written, memory.stats.dropped) == (3, 5)
    assert memory.write(frame(8), block=False)
    memory.flush()
    assert memory.describe()["frames"] == 4


def test_late_frames_are_left_out_and_counted(make) -> None:
    memory = make()
    for at in (0.0, 1.0, 0.5, 0.0, 1.5, 1.5):
        memory.write(frame(int(2 * at), timestamp=at))
    memory.flush()
    assert (memory.stats.written, memory.stats.late) == (4, 2)
    assert memory.describe()["span"] == [0.0, 1.5]


def test_a_clock_set_back_an_hour_carries_on_and_survives_a_restart(make, path: Path, tiny) -> None:
    for end in ("crash", "close"):
        here = path.with_name(end)
        memory = make(path=here)
        for at in (7200.0, 7200.5, 3600.0, 3600.5):
            memory.write(frame(0, timestamp=at))
        memory.flush()
        assert memory.stats.clock_jumps == 1 and memory.stats.late == 0
        assert "the clock was set back; time was carried on at 7201.0 s" in memory.stats.problems[0]
        crash(memory) if end == "crash" else memory.close()
        with vm.VisualMemory.open(here, encoder=tiny) as again:
            assert again.last_timestamp("camera") == 3600.5
            assert again.last_timestamp("door") is None
            again.write(frame(0, timestamp=3601.5))
            again.flush()
            assert again.describe()["span"] == [7200.0, 7202.5]
            assert again.stats.clock_jumps == 0 and again.stats.written == 1


@pytest.mark.parametrize("at", [math.nan, math.inf, -math.inf, None, "noon"])
def test_a_frame_without_a_time_is_refused(at: object, make) -> None:
    memory = fill(make(), range(3))
    with pytest.raises(ValueError, match="timestamp must be finite seconds"):
        memory.write(frame(3, timestamp=at))
    fill(memory, range(4, 6))
    assert (memory.stats.written, memory.stats.refused) == (5, 1)


@pytest.mark.parametrize("number", [int, np.float32, np.float64, np.int64, torch.tensor])
def test_any_number_is_a_time(number: Callable, make, path: Path, tiny) -> None:
    """Also for the log, which holds JSON."""
    memory = make(path=path)
    for at in (1, 2, 3):
        memory.write(frame(0, timestamp=number(at)))
    memory.flush()
    crash(memory)
    with vm.VisualMemory.open(path, encoder=tiny) as again:
        assert again.describe()["span"] == [1.0, 3.0]


@pytest.mark.parametrize(
    "image",
    [np.full((4, 4, 3), np.nan), np.zeros((0, 4, 3)), np.zeros((4, 4, 3), np.int32), None],
)
def test_a_frame_without_a_picture_is_refused(image: np.ndarray, make) -> None:
    memory = fill(make(), range(3))
    with pytest.raises(ValueError, match="picture"):
        memory.write(Frame(image, timestamp=5.0))
    fill(memory, range(11, 13))
    assert (memory.stats.written, memory.stats.refused) == (5, 1)


def test_pictures_of_all_kinds_are_taken(make, embedded: EmbeddedEncoder) -> None:
    random = np.random.default_rng(0)
    pictures = [
        random.integers(0, 255, (1, 1, 3), np.uint8),
        random.integers(0, 255, (40, 60), np.uint8),
        random.integers(0, 255, (40, 60, 4), np.uint8),
        random.integers(0, 65535, (40, 60, 3), np.uint16),
        random.random((60, 40, 3), np.float32),
        random.random((40, 60)) > 0.5,
        random.integers(0, 255, (2, 900, 3), np.uint8),
    ]
    memory = make(encoder=embedded, moments={})
    for number, image in enumerate(pictures):
        memory.write(Frame(image, timestamp=10.0 * number))
    memory.flush()
    assert memory.stats.written == len(pictures) and memory.stats.problems == []
    snapshot = memory.snapshots()["camera"]
    sizes = [
        cv2.imdecode(np.frombuffer(snapshot.thumbnail(n), np.uint8), cv2.IMREAD_COLOR).shape[:2]
        for n in range(len(snapshot))
    ]
    expected = [(1, 1), (40, 60), (40, 60), (40, 60), (60, 40), (40, 60), (1, 192)]
    assert sizes == expected


def test_what_a_source_does_with_its_buffer_afterwards_is_its_own_affair(make) -> None:
    memory, careful = make(queue=64), fill(make(), range(30))
    image, pose = np.zeros((12, 16, 3), np.uint8), np.eye(4)
    for number in range(30):
        image[:] = picture(number)
        memory.write(Frame(image, number * STEP, pose=pose if number == 99 else None))
        image[:] = 0
    memory.flush()
    assert state_of(memory) == state_of(careful)


def test_poses_are_kept_and_checked(make) -> None:
    memory = make()
    pose = np.eye(4)
    pose[0, 3] = 2.5
    memory.write(frame(0, seen=1, pose=pose))
    pose[0, 3] = 99.0  # the caller's own again
    memory.write(frame(50, seen=2, pose=np.full((4, 4), np.nan)))  # lost, as trackers say it
    memory.flush()
    assert memory.ask("a cat").moments[0].pose[0][3] == 2.5
    assert memory.ask("a dog").moments[0].pose is None
    with pytest.raises(ValueError, match=r"pose is \(4, 4\)"):
        memory.write(frame(60, pose=np.eye(3)))
    assert (memory.stats.written, memory.stats.refused) == (2, 1)


def test_a_picture_that_breaks_the_encoder_is_left_out(make) -> None:
    memory = make()
    for number in range(10):
        memory.write(frame(number, seen=13 if number == 4 else 1))
    memory.flush()
    assert (memory.stats.written, memory.stats.refused) == (9, 1)
    assert memory.stats.problems == ["a frame was left out: RuntimeError: this picture breaks me"]
    assert not memory.ask("a cat").abstained


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize(
    ("hostile", "problem"),
    [
        ({"seen": 14}, "tokens hold NaN"),
        ({"seen": 1, "pose": np.eye(4) * 1e300}, "the pose holds NaN or infinity"),
    ],
)
def test_what_the_memory_refuses_never_gets_into_the_log(
    hostile: dict, problem: str, make, path: Path, tiny
) -> None:
    """Else the memory could not be opened again."""
    memory = fill(make(path=path), range(4))
    memory.write(frame(4, **hostile))
    fill(memory, range(5, 9))
    assert (memory.stats.written, memory.stats.refused) == (8, 1)
    assert problem in memory.stats.problems[0]
    crash(memory)
    with vm.VisualMemory.open(path, encoder=tiny) as again:
        assert again.describe()["frames"] == 8 and state_of(again) == state_of(memory)


def test_a_closed_memory_takes_nothing(make) -> None:
    memory = fill(make(), range(3))
    memory.close()
    memory.close()
    with pytest.raises(UsageError, match="closed"):
        memory.write(frame(3))
    with pytest.raises(ValueError, match="ask something"):
        make().ask(" ")
