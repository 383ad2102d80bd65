"""`Sensors`: the subscriptions of an active memory node; each callback only hands over."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from geometry_msgs.msg import Point, Pose, PoseStamped, Quaternion
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import JumpThreshold
from rclpy.duration import Duration
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from vismem.ros.installed import message_type
from vismem.ros.intake import Intake
from vismem.streams.messages import pose_of, seconds_of
from vismem.streams.poses import PoseTrack, TransformTree

if TYPE_CHECKING:
    from vismem.ros.node import MemoryNode

__all__ = ["Sensors", "poses_for"]

POSE_TOPICS = {
    "pose": ("pose", "geometry_msgs/msg/PoseStamped"),
    "pose_with_covariance": ("pose", "geometry_msgs/msg/PoseWithCovarianceStamped"),
    "odom": ("odom", "nav_msgs/msg/Odometry"),
}


def poses_for(node: MemoryNode) -> PoseTrack | TransformTree | None:
    """What holds the poses of the camera, by the node's parameters."""
    source = node.value("pose_source")
    gap, hold = node.value("pose_gap"), node.value("pose_hold")
    if source == "none":
        return None
    if source == "tf":
        return TransformTree(node.value("map_frame"), gap=gap, hold=hold)
    x, y, z, *turn = node.value("mount")
    mount = Pose(
        position=Point(x=x, y=y, z=z),
        orientation=Quaternion(**dict(zip("xyzw", turn, strict=True))),
    )
    return PoseTrack(gap=gap, hold=hold, mount=pose_of(PoseStamped(pose=mount)))


class Sensors:
    """Subscriptions, from their making to `destroy`.

    Args:
        node: Whose.
        intake: Where messages go.
        poses: From `poses_for`, as the intake's pairing has it.
    """

    def __init__(self, node: MemoryNode, intake: Intake, poses: PoseTrack | TransformTree | None):
        self._node, self._intake, self._poses = node, intake, poses
        self._group = MutuallyExclusiveCallbackGroup()
        self._made: list[Any] = []
        every = node.value("every_frame")
        reliable = every or node.value("image_reliability") == "reliable"
        kind = ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT
        depth = max(node.value("queue"), 100) if every else node.value("queue")
        self._listen_to_camera(QoSProfile(depth=depth, reliability=kind))
        self._listen_to_poses(node.value("pose_source"))
        self._jump = node.get_clock().create_jump_callback(
            JumpThreshold(
                min_forward=None, min_backward=Duration(nanoseconds=-1), on_clock_change=False
            ),
            post_callback=lambda jump: intake.begin_anew(),
        )

    @property
    def image_topic(self) -> str:
        """Resolved name of the picture's topic."""
        return str(self._made[0].topic_name)

    def destroy(self) -> None:
        """Listen no more."""
        self._jump.unregister()
        for subscription in self._made:
            self._node.destroy_subscription(subscription)
        self._made.clear()

    def _listen(
        self, kind: Any, topic: str, callback: Callable[[Any], None], qos: QoSProfile
    ) -> None:
        self._made.append(
            self._node.create_subscription(
                kind,
                topic,
                callback,
                qos,
                callback_group=self._group,
                qos_overriding_options=QoSOverridingOptions.with_default_policies(),
            )
        )

    def _listen_to_camera(self, qos: QoSProfile) -> None:
        # As image_transport has it: a transport's topic lies under the remapped base topic, and
        # camera_info beside it, unless that is remapped by itself.
        node = self._node
        image = node.resolve_topic_name("image")
        if node.value("image_transport") == "compressed":
            self._listen(CompressedImage, f"{image}/compressed", self._take_image, qos)
        else:
            self._listen(Image, image, self._take_image, qos)
        if node.value("depth"):
            info = node.resolve_topic_name("camera_info")
            if info == f"{node.get_namespace().rstrip('/')}/camera_info":
                info = f"{image.rpartition('/')[0]}/camera_info"
            self._listen(Image, "depth", self._take_depth, qos)
            self._listen(CameraInfo, info, self._take_info, qos)

    def _listen_to_poses(self, source: str) -> None:
        reliable = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE)
        if source == "tf":
            static = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
            transforms = message_type("tf2_msgs/msg/TFMessage")
            self._listen(transforms, "/tf", self._take_transforms, reliable)
            self._listen(transforms, "/tf_static", self._take_static, static)
        elif source != "none":
            topic, kind = POSE_TOPICS[source]
            self._listen(message_type(kind), topic, self._take_pose, reliable)

    # ------------------------------------------------------------------ callbacks

    def _time(self, message: Any) -> float:
        """Of its header, or now where that holds none; seconds."""
        now = float(self._node.get_clock().now().nanoseconds) / 1e9
        return seconds_of(message.header.stamp) or now

    def _give(self, what: str, add: Callable[[], None]) -> None:
        try:
            self._intake.take(add)
        except ValueError as error:
            self._node.health.note(f"bad {what}", str(error))

    def _take_image(self, message: Any) -> None:
        seconds = self._time(message)
        now = float(self._node.get_clock().now().nanoseconds) / 1e9
        self._node.health.arrived(now - seconds, time.monotonic())
        self._intake.take_image(message, seconds)

    def _take_depth(self, message: Any) -> None:
        seconds = self._time(message)
        self._give("depth", lambda: self._intake.pairing.add_depth(message, seconds))

    def _take_info(self, message: Any) -> None:
        self._give("camera_info", lambda: self._intake.pairing.add_info(message))

    def _take_pose(self, message: Any) -> None:
        frame, wanted = message.header.frame_id.lstrip("/"), self._node.value("map_frame")
        if frame != wanted:
            told = f"{frame!r}, while map_frame is {wanted!r}"
            self._node.health.note("poses of another frame", told)
            return
        seconds, track = self._time(message), self._poses
        assert isinstance(track, PoseTrack)
        self._give("pose", lambda: track.add(seconds, pose_of(message)))

    def _take_transforms(self, message: Any, *, static: bool = False) -> None:
        tree = self._poses
        assert isinstance(tree, TransformTree)
        self._give("transform", lambda: tree.take(message, static=static))

    def _take_static(self, message: Any) -> None:
        self._take_transforms(message, static=True)
