"""Two memory nodes, one a camera: /front/vismem and /rear/vismem.

ros2 launch vismem_ros two_cameras.launch.py front:=/front/image_raw rear:=/rear/image_raw
"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.substitutions import FindPackageShare


def generate_launch_description():
    """Give what ``ros2 launch`` starts."""
    one = PathJoinSubstitution([FindPackageShare("vismem_ros"), "launch", "memory.launch.py"])
    return LaunchDescription(
        [
            *(
                DeclareLaunchArgument(side, default_value=f"/{side}/image_raw")
                for side in ("front", "rear")
            ),
            *(
                IncludeLaunchDescription(
                    PythonLaunchDescriptionSource(one),
                    launch_arguments={
                        "namespace": side,
                        "image": LaunchConfiguration(side),
                        "path": f"{side}.mem",
                    }.items(),
                )
                for side in ("front", "rear")
            ),
        ]
    )
