"""`MemoryNode`: a lifecycle node that remembers a camera's topics and answers about them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import PoseStamped
from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import ParameterException
from rclpy.executors import ExternalShutdownException, MultiThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from std_msgs.msg import Header
from visualization_msgs.msg import Marker, MarkerArray

from vismem.detections import Detections
from vismem.errors import UsageError, VismemError
from vismem.frame import Frame
from vismem.heads.detect import PERSON, DetectConfig, Detector
from vismem.pipeline import VisualMemory
from vismem.ros.convert import Messages, thing_name
from vismem.ros.health import Health
from vismem.ros.installed import message_type
from vismem.ros.intake import Intake
from vismem.ros.parameters import SETTINGS, problem_of
from vismem.ros.sensors import Sensors, poses_for
from vismem.ros.services import MOST_ASKS, Services
from vismem.streams.pairing import Paired, Pairing

__all__ = ["MemoryNode", "run_node"]

LATCHED = QoSProfile(
    depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
)
SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


class MemoryNode(LifecycleNode):
    """The node; see docs/ros.md for its topics, services, action and parameters.

    Configured, it holds a memory and answers; active, it takes pictures as well.

    Args:
        name: Of the node.
        arguments: As of ``rclpy.node.Node``: ``cli_args``, ``namespace``, ``parameter_overrides``.
    """

    def __init__(self, name: str = "vismem", **arguments: Any):
        super().__init__(name, **arguments)
        self.memory: VisualMemory | None = None
        self.intake: Intake | None = None
        self._answering: Services | None = None
        self._detector: Detector | None = None
        self._made: list[Any] = []  # publishers
        self.health = Health()
        self.questions = ReentrantCallbackGroup()
        self._timers_group = MutuallyExclusiveCallbackGroup()
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        for setting in SETTINGS:
            self.declare_parameter(setting.name, setting.default, _describe(setting))
        self.add_on_set_parameters_callback(self._check)
        self.add_post_set_parameters_callback(self._apply)
        # What was given at the start was declared before anybody could check it.
        given = {name: value.value for name, value in self.get_parameters_by_prefix("").items()}
        if problem := problem_of(given, configured=False):
            raise UsageError(problem)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self.create_timer(1.0, self._diagnose, self._timers_group, self._steady)

    def value(self, name: str) -> Any:
        """A parameter's value."""
        return self.get_parameter(name).value

    # ------------------------------------------------------------------ lifecycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Open or begin the memory, load weights, and answer from then on."""
        try:
            self.memory = self.open_memory(Path(self.value("path")) if self.value("path") else None)
            self._detector = None
            if self.value("detect") != "none":
                config = DetectConfig(threshold=self.value("detect_threshold"))
                self._detector = Detector(memory=self.value("detect") == "memory", config=config)
        except (VismemError, ValueError, OSError) as error:
            self.get_logger().error(f"cannot be configured: {error}")
            self._let_go()
            return FAILURE
        self._advertise()
        self._answering = Services(self)
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Take pictures."""
        if self.value("pose_source") == "tf":
            try:
                message_type("tf2_msgs/msg/TFMessage")
            except VismemError as error:
                self.get_logger().error(f"cannot be activated: {error}")
                return FAILURE
        result = super().on_activate(state)  # publishers first
        every = self.value("every_frame")
        rates = {"memory": self.value("fps") or None}
        if self._detector:
            rates["detect"] = self.value("detect_rate") or None
        self.health.max_age, self.health.min_rate = self.value("max_age"), self.value("min_rate")
        waits, poses = self.value("depth"), poses_for(self)
        pairing = Pairing(
            rates=rates, poses=poses, depth=waits, intrinsics=waits, slop=self.value("slop")
        )
        assert self.memory is not None
        self.intake = Intake(
            self.memory,
            pairing,
            self.health,
            stream=self.value("stream"),
            detect=self._detect if self._detector else None,
            settled=self._settled.publish if every else None,
            every_frame=every,
            patience=self.value("patience"),
        )
        self._sensors = Sensors(self, self.intake, poses)
        period = 1 / self.value("objects_rate")
        self._objects_timer = self.create_timer(
            period, self._publish_things, self._timers_group, self._steady
        )
        self.get_logger().info(f"remembers {self._sensors.image_topic}")
        return result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Take no more pictures; go on answering."""
        self._stop()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Seal the memory and let go of it."""
        self._let_go()
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Likewise, from any state."""
        self._stop()
        self._let_go()
        return super().on_shutdown(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Let go of everything; the node can be configured again."""
        self.get_logger().error(f"failed in {state.label}; back to unconfigured")
        self._stop()
        self._let_go()
        super().on_error(state)
        return SUCCESS

    def open_memory(self, path: Path | None) -> VisualMemory:
        """Go on with the memory at a path, or begin it with the node's parameters.

        Raises:
            VismemError: If it is damaged, in use, or its encoder cannot be had.
        """
        if path is not None and (path / "manifest.json").exists():
            return VisualMemory.open(path)
        return VisualMemory(
            self.value("budget"),
            path=path,
            policy=self.value("policy"),
            encoder=self.value("encoder"),
            retain=self.value("retain") or None,
        )

    def _stop(self) -> None:
        if self.intake is None:
            return
        self._sensors.destroy()
        self.destroy_timer(self._objects_timer)
        self.intake.close()
        self.intake = None

    def _let_go(self) -> None:
        if self._answering:
            self._answering.destroy()
            self._answering = None
        for publisher in self._made:
            self.destroy_lifecycle_publisher(publisher)
        self._made.clear()
        if self.memory is not None:
            try:
                self.memory.close()
            except VismemError as error:
                self.get_logger().error(f"{error}; frames that were acknowledged are safe")
            self.memory = None

    # ------------------------------------------------------------------ topics

    def _advertise(self) -> None:
        try:
            message_type("vision_msgs/msg/Detection2DArray")
            vision = True
        except VismemError:
            vision = False
        self.messages = Messages(message_type, self.value("map_frame"), vision=vision)
        package, objects = (
            ("vision_msgs", "Detection3DArray")
            if vision
            else ("vismem_msgs", "RememberedObjectArray")
        )
        boxes = "Detection2DArray" if vision else "DetectionArray"
        newest = QoSProfile(depth=10)
        made = [
            self.create_lifecycle_publisher(kind, f"~/{topic}", qos)
            for kind, topic, qos in (
                (message_type(f"{package}/msg/{boxes}"), "detections", newest),
                (message_type(f"{package}/msg/{objects}"), "objects", LATCHED),
                (MarkerArray, "markers", LATCHED),
                (PoseStamped, "recall_pose", LATCHED),
                (PoseStamped, "goal_pose", LATCHED),
                (Header, "settled", QoSProfile(depth=1000)),
            )
        ]
        self._made = made
        self._boxes, self._things, self._markers, self.recall_pose, self.goal_pose = made[:5]
        self._settled = made[5]
        self._shown: set[int] = set()

    # ------------------------------------------------------------------ out

    def _detect(self, frame: Frame, paired: Paired) -> None:
        detector = self._detector
        assert detector is not None
        try:
            found = detector.step(frame)
        except ValueError:  # its time goes backwards: the ids begin anew
            detector.reset(frame.stream)
            found = detector.step(frame)
        self._publish_boxes(found, paired.message.header)
        self.health.count("detected")
        self.health.latency.add(time.monotonic() - paired.received)

    def forget_people(self) -> None:
        """Let the ids of people begin anew."""
        if self._detector:
            self._detector.reset()

    def _publish_boxes(self, found: Detections, header: Any) -> None:
        self._boxes.publish(self.messages.detections(found, header, _class_name))

    def _publish_things(self) -> None:
        held = self.memory.things() if self.memory else None
        if held is None or self.memory is None:
            return
        things = [thing for thing in held.objects() if thing.established]
        names = [thing_name(thing, self.memory.encoder) for thing in things]
        self._things.publish(self.messages.objects(things, names, held.time))
        retired = sorted(self._shown - {thing.id for thing in things})
        rows = self.messages.markers(things, names, retired)
        self._markers.publish(MarkerArray(markers=[Marker(**row) for row in rows]))
        self._shown = {thing.id for thing in things}

    def _diagnose(self) -> None:
        facts: dict[str, float | int | str] = {}
        if memory := self.memory:
            facts = {**memory.describe(), **memory.counts()}
            facts["span"] = str(facts["span"])
            stats = memory.stats
            facts |= {"writer dropped": stats.dropped, "refused": stats.refused}
            facts |= {"problems": "; ".join(stats.problems[-3:])}
        active = self.intake is not None and not self.intake.paused
        level, line, values = self.health.report(time.monotonic(), facts, active=active)
        status = DiagnosticStatus(
            level=bytes([level]),
            name=f"{self.get_fully_qualified_name()}: memory",
            message=line if self.intake else "not active",
            hardware_id=self.get_name(),
            values=[KeyValue(key=key, value=value) for key, value in values.items()],
        )
        array = DiagnosticArray(status=[status])
        array.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(array)

    # ------------------------------------------------------------------ parameters

    def _check(self, parameters: list[Parameter]) -> SetParametersResult:
        changes = {parameter.name: parameter.value for parameter in parameters}
        problem = problem_of(changes, configured=self.memory is not None)
        return SetParametersResult(successful=not problem, reason=problem)

    def _apply(self, parameters: list[Parameter]) -> None:
        for parameter in parameters:
            name, value = parameter.name, parameter.value
            if name == "budget" and self.memory:
                try:
                    self.memory.change(budget=value)
                except VismemError as error:
                    self.health.note("failed", str(error))
            if name in ("max_age", "min_rate"):
                setattr(self.health, name, value)
            reader = {"fps": "memory", "detect_rate": "detect"}.get(name)
            if reader and self.intake:
                self.intake.set_rate(reader, value or None)


def _class_name(label: int) -> str:
    return "person" if label == PERSON else str(label)


def _describe(setting: Any) -> ParameterDescriptor:
    about = ParameterDescriptor(description=setting.about)
    if setting.choices:
        about.additional_constraints = f"one of {', '.join(setting.choices)}"
    if setting.low is not None and isinstance(setting.default, float):
        about.floating_point_range = [
            FloatingPointRange(from_value=float(setting.low), to_value=float(setting.high))
        ]
    elif setting.low is not None:
        about.integer_range = [IntegerRange(from_value=setting.low, to_value=setting.high)]
    return about


def run_node(arguments: Sequence[str] | None = None) -> int:
    """Run one memory node until it is told to stop.

    Args:
        arguments: Of ROS: ``--ros-args -r image:=/camera/image_raw -p path:=robot.mem``.

    Returns:
        The exit code.

    Raises:
        UsageError: If a parameter is wrong.
    """
    rclpy.init(args=list(arguments or ()))
    node = None
    try:
        node = MemoryNode()
        executor = MultiThreadedExecutor(num_threads=MOST_ASKS + 4)
        executor.add_node(node)
        if node.value("autostart"):
            if node.trigger_configure() != SUCCESS or node.trigger_activate() != SUCCESS:
                return 1
        executor.spin()
    except ParameterException as error:
        raise UsageError(str(error)) from error
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        if node is not None:
            node._stop()
            node._let_go()
            node.destroy_node()
        rclpy.try_shutdown()
    return 0
