"""What pytest leaves out where ROS 2 is not installed: modules that cannot be imported there."""

import importlib.util

collect_ignore = (
    []
    if importlib.util.find_spec("rclpy")
    else [f"vismem/ros/{name}.py" for name in ("node", "replay", "sensors", "services")]
)
