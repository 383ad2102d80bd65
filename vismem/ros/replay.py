"""`replay`: publish a ROS 2 bag, message by message as it was recorded; needs no ``ros2 bag``.

The recorded bytes go out as they are. By the clock they keep their distances; in lockstep with a
memory node nothing is lost, however slow it is: no more than a few pictures are under way.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rclpy
from builtin_interfaces.msg import Time
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_typestore
from rosgraph_msgs.msg import Clock
from std_msgs.msg import Header

from vismem.errors import SourceError, UsageError, VismemError
from vismem.ros.installed import message_type

__all__ = ["Replayed", "replay"]

IMAGES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")


@dataclass
class Replayed:
    """What became of a bag.

    Args:
        published: Messages by topic.
        left_out: Topics whose type is not installed, with the reason.
        seconds: That it took.
    """

    published: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


def replay(
    bag: Path,
    *,
    rate: float = 1.0,
    clock: bool = False,
    lockstep: str | None = None,
    under_way: int = 24,
    remap: Mapping[str, str] | None = None,
    patience: float = 20.0,
) -> Replayed:
    """Publish a bag.

    Args:
        bag: Folder of a ROS 2 bag, or one of its files.
        rate: How many times as fast as it was recorded; of no matter in lockstep.
        clock: Whether to publish ``/clock``.
        lockstep: Full name of a memory node in every-frame mode, ``"/vismem"``, to wait for.
        under_way: Pictures that may be under way in lockstep.
        remap: Other names for topics, by the recorded ones.
        patience: Seconds to wait for subscribers, and in lockstep for the node's next sign.

    Raises:
        SourceError: If the bag cannot be read.
        UsageError: If it is a ROS 1 bag, or nobody listens.
    """
    try:
        reader = AnyReader([bag], default_typestore=get_typestore(Stores.LATEST))
        reader.open()
    except Exception as error:  # A damaged bag fails in any of a dozen libraries below.
        raise SourceError(
            f"cannot read {bag} as a ROS bag: {' '.join(str(error).split())}"
        ) from error
    rclpy.init()
    node = Node("vismem_replay")
    try:
        if not all(isinstance(part, Reader) for part in reader.readers):
            raise UsageError(f"{bag} is of ROS 1; run: rosbags-convert --src {bag} --dst NEW")
        return _Player(node, reader, remap or {}, patience).play(rate, clock, lockstep, under_way)
    finally:
        reader.close()
        node.destroy_node()
        rclpy.try_shutdown()


class _Player:
    """A bag on its way out."""

    def __init__(self, node: Node, reader: AnyReader, remap: Mapping[str, str], patience: float):
        self._node, self._reader, self._patience = node, reader, patience
        self.done = Replayed()
        self._settled = 0
        self._publishers: dict[str, Any] = {}
        for topic, info in reader.topics.items():
            if info.msgtype is None:
                continue
            try:
                kind = message_type(info.msgtype)
            except VismemError as error:
                self.done.left_out[topic] = str(error)
                continue
            qos = QoSProfile(depth=1000)
            if topic.endswith("tf_static"):
                qos.durability = DurabilityPolicy.TRANSIENT_LOCAL
            self._publishers[topic] = node.create_publisher(kind, remap.get(topic, topic), qos)

    def play(self, rate: float, clock: bool, lockstep: str | None, under_way: int) -> Replayed:
        """Publish everything."""
        began = time.monotonic()
        clocks = self._node.create_publisher(Clock, "/clock", 10) if clock else None
        if lockstep:
            self._node.create_subscription(
                Header, f"{lockstep}/settled", self._count, QoSProfile(depth=1000)
            )
        self._wait_for_listeners(lockstep)
        images = self._pictures(lockstep)
        links = [link for link in self._reader.connections if link.topic in self._publishers]
        start: int | None = None
        sent = 0
        clock_began = time.monotonic()
        for link, recorded, data in self._reader.messages(links):
            start = recorded if start is None else start
            if lockstep is None:
                due = clock_began + (recorded - start) / 1e9 / rate
                time.sleep(max(0.0, due - time.monotonic()))
            elif link.topic in images:
                self._wait(lambda sent=sent: sent - self._settled < under_way, "settled no picture")
                sent += 1
            if clocks:
                stamp = Time(sec=recorded // 10**9, nanosec=recorded % 10**9)
                clocks.publish(Clock(clock=stamp))
            self._publishers[link.topic].publish(bytes(data))
            self.done.published[link.topic] = self.done.published.get(link.topic, 0) + 1
        if lockstep:
            self._wait(lambda: self._settled >= sent, "settled no picture")
        for publisher in self._publishers.values():
            publisher.wait_for_all_acked()
        self.done.seconds = time.monotonic() - began
        return self.done

    def _count(self, header: Header) -> None:
        self._settled += 1

    def _wait(self, ready: Any, trouble: str) -> None:
        """Spin until it is so; whoever is waited for must give a sign within the patience."""
        sign, until = self._settled, time.monotonic() + self._patience
        while not ready():
            rclpy.spin_once(self._node, timeout_sec=0.1)
            if self._settled != sign:
                sign, until = self._settled, time.monotonic() + self._patience
            if time.monotonic() > until:
                raise UsageError(f"{trouble} for {self._patience:g} s; is the node active?")

    def _listened(self, lockstep: str | None) -> list[str]:
        """Topics that must be listened to before anything goes out."""
        if lockstep is None:
            return [t for t in self._publishers if self._reader.topics[t].msgtype in IMAGES][:1]
        space, _, name = lockstep.rpartition("/")
        try:
            heard = self._node.get_subscriber_names_and_types_by_node(name, space or "/")
        except rclpy.node.NodeNameNonExistentError:
            return []
        names = {topic for topic, _ in heard}
        return [t for t, publisher in self._publishers.items() if publisher.topic_name in names]

    def _pictures(self, lockstep: str | None) -> set[str]:
        """Picture topics that the node counts: the ones that are not depth."""
        return {
            topic
            for topic in self._listened(lockstep)
            if self._reader.topics[topic].msgtype in IMAGES and "depth" not in topic.lower()
        }

    def _wait_for_listeners(self, lockstep: str | None) -> None:
        until = time.monotonic() + self._patience
        while time.monotonic() < until:
            rclpy.spin_once(self._node, timeout_sec=0.05)
            topics = self._listened(lockstep)
            counts = [self._publishers[topic].get_subscription_count() for topic in topics]
            signs = lockstep is None or self._node.count_publishers(f"{lockstep}/settled") > 0
            if topics and all(counts) and signs:
                return
        who = lockstep or "any node"
        raise UsageError(
            f"{who} listens to none of {', '.join(self._publishers)} after {self._patience:g} s; "
            "start it first, and remap its topics"
        )
