"""A bag over the wire, and the same bag read without ROS: one memory, bit for bit."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from ray_scene import Thing, World, looking_at
from vismem_msgs.msg import RememberedObjectArray
from vismem_msgs.srv import Query

import vismem as vm
from vismem.ros.record import record_bag

FRAMES, RATE = 40, 10.0
RED = Thing("box", "red", (0.1, 0.0, 0.03), (0.06, 0.06, 0.06))
BLUE = Thing("ball", "blue", (-0.15, 0.1, 0.04), (0.08, 0.08, 0.08))


def held(path):
    """All that a stored memory holds, bit for bit."""
    with vm.VisualMemory.open(path, read_only=True) as memory:
        segments, state, meta = memory._streams.contents()
        columns = {
            f"{name} {key}": value
            for name, segment in segments.items()
            for key, value in segment.columns.items()
        }
        pictures = [segment.thumbnails for segment in segments.values()]
    return {
        name: (str(value.dtype), tuple(value.shape), value.numpy().tobytes())
        for name, value in (state | columns).items()
    } | {"meta": meta, "pictures": pictures}


@pytest.fixture
def bag(tmp_path):
    """A camera that goes around two things; stamps as a robot's clock has them."""
    path = tmp_path / "robot"
    world = World((RED, BLUE))
    with record_bag(path) as write:
        for number in range(FRAMES):
            angle = number / FRAMES
            pose = looking_at((0.7 * np.sin(angle), -0.7 * np.cos(angle), 0.6), (0, 0, 0))
            seconds = 1_700_000_000 + number / RATE
            frame = world.render(pose, seconds, size=(320, 240), focal=300.0)
            write(dataclasses.replace(frame, timestamp=seconds))
    return path


def test_a_bag_gives_the_same_memory_with_and_without_ros(peer, start, bag, tmp_path):
    def vismem(*words):
        command = [sys.executable, "-m", "vismem.cli", *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        return done.stdout

    start(
        "image:=/camera/image",
        "depth:=/camera/depth",
        "pose:=/pose",
        path=tmp_path / "wire.mem",
        stream="robot",
        every_frame=True,
        fps=5.0,
        depth=True,
        pose_source="pose",
        detect="frame",
    )
    told = vismem("run", bag, "--out", tmp_path / "read.mem", "--fps", "5")
    assert "20 frames" in told
    peer.ready()
    objects = peer.collect(RememberedObjectArray, "/vismem/objects")
    replayed = vismem("ros", "replay", bag, "--lockstep", "/vismem")
    assert f"/camera/image: {FRAMES}" in replayed and f"/pose: {FRAMES}" in replayed
    assert f"/camera/camera_info: {FRAMES}" in replayed
    peer.until(lambda: peer.health("/vismem", "frames") == 20, "all remembered")
    assert peer.health("/vismem", "without_pose") == peer.health("/vismem", "without pose") == 0
    assert peer.health("/vismem", "dropped") == 0

    # Things are told by topic and by answer.
    named = {thing.label: thing for thing in peer.until(lambda: objects and objects[-1]).objects}
    assert "red block" in named, named
    found = peer.call(Query, "/vismem/query", question="where is the red block?").objects[0]
    at = found.pose.pose.position
    assert np.linalg.norm(np.array([at.x, at.y, at.z]) - RED.at) < 0.05
    assert found.header.frame_id == "map" and found.pose.covariance[0] > 0

    assert peer.change("/vismem", "deactivate") and peer.change("/vismem", "cleanup")
    assert held(tmp_path / "wire.mem") == held(tmp_path / "read.mem")


def test_a_replay_that_nobody_hears_says_so(bag):
    command = [sys.executable, "-c", "from vismem.ros.replay import replay; from pathlib import "
               f"Path; replay(Path({str(bag)!r}), lockstep='/nobody', patience=2)"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert "/nobody listens to none of" in done.stderr
