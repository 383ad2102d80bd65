"""Poses from /tf, at the time of each picture."""

import pytest

pytest.importorskip(
    "tf2_msgs", reason="needs tf2_msgs: scripts/ros_messages.sh ENVIRONMENT tests/ros/live/tf2_msgs"
)

from geometry_msgs.msg import TransformStamped  # noqa: E402
from rclpy.qos import DurabilityPolicy, QoSProfile  # noqa: E402
from sensor_msgs.msg import Image  # noqa: E402
from tf2_msgs.msg import TFMessage  # noqa: E402
from vismem_msgs.srv import Query  # noqa: E402


def step(peer, parent, child, seconds, x=0.0, z=0.0):
    message = TransformStamped(child_frame_id=child)
    peer.header(message, seconds)
    message.header.frame_id = parent
    message.transform.translation.x, message.transform.translation.z = x, z
    return TFMessage(transforms=[message])


def test_the_pose_of_the_time_of_the_picture(peer, start, frames):
    start(pose_source="tf", fps=0.0, detect="none", patience=1.0)
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    static = peer.publisher(TFMessage, "/tf_static", latched)
    static.publish(step(peer, "base_link", "camera_optical_frame", 0.0, z=1.5))
    moving, images = peer.publisher(TFMessage, "/tf", 100), peer.publisher(Image, "image", 30)
    peer.spin(1.0)
    for number in range(5):
        seconds = 100 + number / 2
        images.publish(peer.raw(frames[number], seconds))
        peer.spin(0.1)
        # A tenth of a second later the robot is elsewhere: the newest is not the picture's.
        for after, x in ((-0.1, 10.0), (0.1, 30.0)):
            moving.publish(step(peer, "map", "base_link", seconds + after, x=number + x))
        peer.spin(0.1)
    peer.until(lambda: peer.health("/vismem", "frames") == 5, "five frames")
    assert peer.health("/vismem", "without pose") == 0
    moment = peer.call(Query, "/vismem/query", question="when does the cat appear?").moments[0]
    assert moment.has_pose and moment.pose.header.frame_id == "map"
    at = moment.pose.pose.position
    assert at.z == pytest.approx(1.5)
    # Half way between two, at the time of one of its pictures; never one of those two.
    assert min(abs(at.x - 20 - number) for number in range(5)) < 1e-3

    images.publish(peer.raw(frames[0], 200.0))  # nothing is known of then
    peer.until(lambda: peer.health("/vismem", "without pose") == 1, "a missing transform is told")
    peer.until(lambda: peer.health("/vismem", "frames") == 6, "remembered without a pose")
