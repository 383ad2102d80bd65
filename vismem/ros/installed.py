"""ROS 2 itself, where it is installed, and what to do where it is not."""

from __future__ import annotations

import importlib
from typing import Any

from vismem.errors import UsageError

__all__ = ["check_ros", "import_ros", "message_type"]

NEEDED = (
    "rclpy",
    "sensor_msgs.msg",
    "geometry_msgs.msg",
    "nav_msgs.msg",
    "diagnostic_msgs.msg",
    "visualization_msgs.msg",
    "std_srvs.srv",
)


def import_ros(module: str) -> Any:
    """Import a module of ROS 2, or say how to get it.

    Args:
        module: ``"rclpy"``, ``"vismem_msgs.srv"``.

    Raises:
        UsageError: If it is not there.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        if package == "vismem_msgs":
            fix = (
                "build it: colcon build --packages-select vismem_msgs and source the workspace, "
                "or scripts/ros_messages.sh ENVIRONMENT for an environment of wheels"
            )
        elif package == "rclpy":
            fix = "source a ROS 2 installation, or run: pip install 'ros-rclpy[fastrtps]'"
        else:
            wheel = f"ros-{package.replace('_', '-')}"
            fix = f"install it in your ROS 2 workspace, or run: pip install {wheel}"
        raise UsageError(f"{package} cannot be imported ({error}); {fix}") from error


def check_ros(*, messages: bool = True) -> None:
    """Say what is missing before the node is imported.

    Args:
        messages: Whether ``vismem_msgs`` is needed as well.

    Raises:
        UsageError: If something is.
    """
    for module in (*NEEDED, *(["vismem_msgs.srv"] if messages else [])):
        import_ros(module)


def message_type(kind: str) -> Any:
    """The class of ``"geometry_msgs/msg/Pose"``.

    Raises:
        UsageError: If its package is not there, or it has no such type.
    """
    package, _, name = kind.partition("/msg/")
    module = import_ros(f"{package}.msg")
    if not hasattr(module, name):
        raise UsageError(f"{package} has no message {name}; it is of another version")
    return getattr(module, name)
