"""A ROS 2 node with a memory: pictures, depth and poses in; detections, things and answers out.

``from vismem.ros import MemoryNode`` needs rclpy and ``vismem_msgs`` and says how to get them; what
does not touch ROS itself (pairing, conversion, parameters, health) is imported without.
"""

from __future__ import annotations

from typing import Any

__all__ = ["MemoryNode"]


def __getattr__(name: str) -> Any:
    if name != "MemoryNode":
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from vismem.ros.installed import check_ros

    check_ros()
    from vismem.ros.node import MemoryNode

    return MemoryNode
