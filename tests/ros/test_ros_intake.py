"""The way of a picture from a callback to the memory, without ROS."""

import threading
import time

import numpy as np
import pytest
from recorded import Messages

import vismem as vm
from vismem.errors import StoreError, UsageError
from vismem.ros.health import Health
from vismem.ros.intake import BACKLOG, Intake
from vismem.streams.pairing import Pairing
from vismem.streams.poses import PoseTrack

MAKE = Messages()
PATIENCE = 20.0


class Held:
    """A memory that can be made to wait or fail."""

    def __init__(self):
        self.frames, self.gate, self.error = [], threading.Event(), None
        self.gate.set()

    def write(self, frame, *, block):
        self.gate.wait(PATIENCE)
        if self.error:
            raise self.error
        self.frames.append((frame.timestamp, frame.stream, block))
        return True

    def flush(self):
        pass


def image(seconds):
    return MAKE.image(np.full((4, 6, 3), 7, np.uint8), "rgb8", seconds)


def until(ready):
    end = time.monotonic() + PATIENCE
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.fixture
def make():
    made = []

    def make(memory=None, rates=None, **given):
        pairing = given.pop("pairing", None) or Pairing(rates=rates or {"memory": None})
        made.append(Intake(memory or Held(), pairing, Health(), **given))
        return made[-1]

    yield make
    for intake in made:
        gate = getattr(intake.memory, "gate", None)
        if gate:
            gate.set()
        intake.close()


def test_pictures_go_to_the_memory_in_order(make):
    intake = make(stream="front")
    for number in range(20):
        intake.take_image(image(number), float(number))
    until(lambda: len(intake.memory.frames) == 20)
    assert intake.memory.frames == [(float(n), "front", False) for n in range(20)]
    assert intake.health.counts["remembered"] == 20


def test_a_slow_memory_never_holds_up_the_callback(make):
    intake = make()
    intake.memory.gate.clear()
    began = time.monotonic()
    for number in range(200):
        intake.take_image(image(number), float(number))
    assert time.monotonic() - began < 2.0
    assert intake.pairing.waiting <= BACKLOG[False]
    assert intake.health.counts["dropped"] >= 200 - 2 * BACKLOG[False] - 20
    intake.memory.gate.set()
    until(lambda: not intake.pairing.waiting)


def test_what_is_settled_is_told_in_every_frame_mode(make):
    told = []
    intake = make(
        rates={"memory": 1.0}, every_frame=True, settled=lambda h: told.append(h.stamp.sec)
    )
    intake.memory.gate.clear()
    for number in range(6):
        intake.take_image(image(number / 2), number / 2)
    time.sleep(0.05)
    assert len(told) == 3  # those that are not wanted, at once
    intake.memory.gate.set()
    until(lambda: len(told) == 6)
    assert [row[2] for row in intake.memory.frames] == [True] * 3


def test_failures_are_counted_and_the_next_picture_goes_on(make):
    intake = make()
    for error in (StoreError("disk full"), UsageError("closed"), ValueError("no picture")):
        intake.memory.error = error
        failed = intake.health.counts.get("failed", 0)
        at = float(failed)
        intake.take_image(image(at), at)
        until(lambda n=failed: intake.health.counts.get("failed", 0) == n + 1)
    intake.memory.error = None
    intake.take_image(image(9), 9.0)
    until(lambda: intake.memory.frames)
    broken = image(10)
    broken.encoding = "smell"
    intake.take_image(broken, 10.0)
    until(lambda: intake.health.counts.get("undecodable") == 1)


def test_a_picture_waits_for_its_pose_only_so_long(make):
    pairing = Pairing(rates={"memory": None}, poses=PoseTrack())
    intake = make(pairing=pairing, patience=0.1)
    intake.take_image(image(1), 1.0)
    until(lambda: intake.memory.frames)
    assert intake.health.counts["without pose"] == 1
    intake.take(lambda: pairing.poses.add(2.0, np.eye(4)))
    intake.take_image(image(2), 2.0)
    until(lambda: len(intake.memory.frames) == 2)
    assert intake.health.counts["without pose"] == 1


def test_detection_has_the_newest_and_its_failure_ends_nothing(make):
    seen, gate = [], threading.Event()

    def detect(frame, paired):
        gate.wait(PATIENCE)
        seen.append(frame.timestamp)
        if len(seen) == 1:
            raise RuntimeError("this picture breaks me")

    intake = make(rates={"memory": None, "detect": None}, detect=detect)
    for number in range(10):
        intake.take_image(image(number), float(number))
    until(lambda: len(intake.memory.frames) == 10)
    gate.set()
    until(lambda: seen and seen[-1] == 9.0)
    assert len(seen) <= 3 and intake.health.counts["not detected in"] >= 7
    assert "breaks me" in intake.health.notes["failed"]


def test_pause_jump_and_rate(make):
    intake = make(rates={"memory": 1.0})
    intake.paused = True
    intake.take_image(image(1), 1.0)
    assert intake.health.counts["paused"] == 1
    intake.paused = False
    intake.take_image(image(50), 50.0)
    intake.begin_anew()
    intake.take_image(image(10), 10.0)
    until(lambda: len(intake.memory.frames) == 2)
    intake.set_rate("memory", None)
    for number in range(3):
        intake.take_image(image(11 + number / 10), 11 + number / 10)
    until(lambda: len(intake.memory.frames) == 5)


def test_closing_hands_over_what_waits(make, tiny):
    with vm.VisualMemory("1MB", encoder=tiny) as memory:
        pairing = Pairing(rates={"memory": None}, poses=PoseTrack())
        intake = make(memory, pairing=pairing, every_frame=True)
        for number in range(5):
            intake.take_image(image(number), float(number))
        intake.close()
        assert memory.stats.written == 5
