"""Nodes of their own, in processes of their own, over real DDS on this machine alone.

Runs where rclpy is installed: `scripts/ros_env.sh FOLDER`, then FOLDER/bin/python -m pytest -m ros.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).parents[3]
PROFILE = ROOT / "apps/ros2/vismem_ros/config/fastdds_shm.xml"
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
os.environ["ROS_DOMAIN_ID"] = str(random.SystemRandom().randint(1, 100))
os.environ["FASTDDS_DEFAULT_PROFILES_FILE"] = str(PROFILE)
os.environ["OMP_NUM_THREADS"] = "1"

rclpy = pytest.importorskip("rclpy", reason="needs ROS 2: see docs/ros.md")
pytest.importorskip("vismem_msgs", reason="needs vismem_msgs: run scripts/ros_messages.sh")

# ruff: noqa: E402
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.node import Node
from sensor_msgs.msg import CompressedImage, Image

PATIENCE = 60.0  # seconds; a busy machine discovers slowly


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.ros)


@pytest.fixture(scope="session")
def frames() -> list[np.ndarray]:
    """Every tenth picture of the gallery, 640x480 RGB; the first twelve show a cat."""
    video = cv2.VideoCapture(str(ROOT / "data/gallery.mp4"))
    pictures = []
    while video.grab():
        if int(video.get(cv2.CAP_PROP_POS_FRAMES)) % 10 == 1:
            pictures.append(cv2.resize(video.retrieve()[1], (640, 480))[..., ::-1].copy())
    return pictures


class Peer:
    """The test's own node, and what it hears."""

    def __init__(self) -> None:
        self.node = Node("peer")
        self.status: dict[str, Any] = {}  # newest diagnostics by name
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._hear, 50)

    def _hear(self, array: Any) -> None:
        for status in array.status:
            self.status[status.name] = status

    def spin(self, seconds: float = 0.01) -> None:
        rclpy.spin_once(self.node, timeout_sec=seconds)

    def until(self, ready: Callable[[], Any], what: str = "", patience: float = PATIENCE) -> Any:
        """Spin until something is so; its value."""
        end = time.monotonic() + patience
        while not (value := ready()):
            assert time.monotonic() < end, f"not within {patience} s: {what}"
            self.spin(0.02)
        return value

    def collect(self, kind: Any, topic: str, qos: Any = 10) -> list[Any]:
        """Everything heard of a topic from now on."""
        heard: list[Any] = []
        self.node.create_subscription(kind, topic, heard.append, qos)
        return heard

    def publisher(self, kind: Any, topic: str, qos: Any = 10) -> Any:
        """One that somebody listens to."""
        made = self.node.create_publisher(kind, topic, qos)
        self.until(made.get_subscription_count, f"nobody listens to {topic}")
        return made

    def call(self, kind: Any, service: str, /, *, again: float = PATIENCE, **fields: Any) -> Any:
        """Ask a service; once more after ``again`` seconds without an answer."""
        client = self.node.create_client(kind, service)
        self.until(client.service_is_ready, f"no service {service}")
        end = time.monotonic() + PATIENCE
        while True:
            future = client.call_async(kind.Request(**fields))
            until = time.monotonic() + again
            while not future.done() and time.monotonic() < until:
                self.spin(0.02)
            if future.done():
                self.node.destroy_client(client)
                return future.result()
            assert time.monotonic() < end, f"no answer of {service}"

    def state(self, name: str) -> str:
        # The first answer may be lost: its way back is discovered after the service.
        return self.call(GetState, f"{name}/get_state", again=2.0).current_state.label

    def ready(self, name: str = "/vismem") -> None:
        """Wait until a node is active."""
        self.until(lambda: self.state(name) == "active", f"{name} is not active")

    def change(self, name: str, transition: str) -> bool:
        number = getattr(Transition, f"TRANSITION_{transition.upper()}")
        request = Transition(id=number)
        return self.call(ChangeState, f"{name}/change_state", transition=request).success

    def health(self, name: str, key: str) -> int:
        """A number of a node's newest diagnostics; 0 before there is one."""
        status = self.status.get(f"{name}: memory")
        values = {v.key: v.value for v in status.values} if status else {}
        return int(float(values.get(key, "0")))

    def header(self, message: Any, stamp: float | None = None) -> Any:
        """Set a header: now, or at a second."""
        if stamp is None:
            message.header.stamp = self.node.get_clock().now().to_msg()
        else:
            message.header.stamp.sec, rest = divmod(round(stamp * 1e9), 10**9)
            message.header.stamp.nanosec = rest
        message.header.frame_id = "camera_optical_frame"
        return message

    def raw(self, image: np.ndarray, stamp: float | None = None) -> Any:
        height, width = image.shape[:2]
        fields = {"height": height, "width": width, "encoding": "rgb8", "step": 3 * width}
        return self.header(Image(**fields, data=image.tobytes()), stamp)

    def jpeg(self, image: np.ndarray, stamp: float | None = None) -> Any:
        data = cv2.imencode(".jpg", image[..., ::-1])[1].tobytes()
        return self.header(CompressedImage(format="jpeg", data=data), stamp)

    def arrive(self, publisher: Any, message: Any, name: str = "/vismem") -> int:
        """Publish until the first arrives, for each side discovers the other on its own."""

        def received() -> int:
            publisher.publish(message)
            self.spin(0.5)
            return self.health(name, "received")

        self.until(received, "nothing arrives")
        count = 0
        while (now := self.health(name, "received")) != count:  # the others are under way
            count = now
            for _ in range(30):
                self.spin(0.1)
        return count

    def send(self, publisher: Any, messages: Any, rate: float = 30.0) -> None:
        """Publish at a rate, and listen meanwhile."""
        began = time.monotonic()
        for number, message in enumerate(messages):
            while (left := began + number / rate - time.monotonic()) > 0:
                self.spin(min(left, 0.005))
            publisher.publish(message)


@pytest.fixture(scope="session")
def ros() -> Iterator[None]:
    rclpy.init()
    yield
    rclpy.try_shutdown()


@pytest.fixture
def peer(ros: None) -> Iterator[Peer]:
    peer = Peer()
    yield peer
    peer.node.destroy_node()


class Process:
    """A node in a process of its own."""

    def __init__(self, log: Path, words: list[str], env: dict[str, str]):
        self.log = log
        self._file = log.open("w")
        command = [sys.executable, "-m", "vismem.cli", "ros", *words]
        self.process = subprocess.Popen(
            command, stdout=self._file, stderr=subprocess.STDOUT, env=os.environ | env
        )

    @property
    def said(self) -> str:
        return self.log.read_text()

    def stop(self, with_signal: int = signal.SIGINT) -> int:
        if self.process.poll() is None:
            self.process.send_signal(with_signal)
        try:
            code = self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self._file.close()
        return code


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Starts nodes and ends them."""
    made: list[Process] = []

    def start(
        *remaps: str, name: str = "vismem", env: dict[str, str] | None = None, **parameters: Any
    ) -> Process:
        # Reliable, or a first picture is lost where the node has not discovered its sender yet.
        given = {"image_transport": "raw", "image_reliability": "reliable", **parameters}
        words = [word for remap in (f"__node:={name}", *remaps) for word in ("-r", remap)]
        for key, value in given.items():
            shown = str(value).lower() if isinstance(value, bool) else str(value)
            words += ["-p", f"{key}:={shown}"]
        log = tmp_path / f"{name}{len(made)}.log"
        made.append(Process(log, ["node", "--ros-args", *words], env or {}))
        return made[-1]

    yield start
    for process in made:
        process.stop()
