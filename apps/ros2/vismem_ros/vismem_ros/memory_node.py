"""``ros2 run vismem_ros memory_node``."""

import sys

from vismem.cli import main as vismem


def main() -> None:
    """Run ``vismem ros node`` with the arguments of ROS."""
    words = sys.argv[1:]
    sys.exit(vismem(["ros", "node", *([] if "--ros-args" in words else ["--ros-args"]), *words]))
