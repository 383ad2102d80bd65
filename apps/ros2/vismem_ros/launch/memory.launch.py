"""One memory node for one camera.

ros2 launch vismem_ros memory.launch.py image:=/camera/color/image_raw path:=robot.mem
"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, SetEnvironmentVariable
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import LifecycleNode
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

ARGUMENTS = {
    "name": ("vismem", "Name of the node."),
    "namespace": ("", "Namespace of the node."),
    "image": ("image", "Picture's base topic, without /compressed."),
    "depth": ("depth", "Depth topic, aligned with the picture."),
    "odom": ("odom", "Odometry topic, for pose_source:=odom."),
    "pose": ("pose", "Pose topic, for pose_source:=pose or pose_with_covariance."),
    "path": ("", "Directory of the memory; empty: in RAM."),
    "image_transport": ("compressed", "compressed or raw."),
    "use_depth": ("false", "Wait for depth."),
    "pose_source": ("none", "none, pose, pose_with_covariance, odom or tf."),
    "use_sim_time": ("false", "Follow /clock."),
    "autostart": ("true", "Configure and activate at once."),
}


def generate_launch_description():
    """Give what ``ros2 launch`` starts."""
    config = PathJoinSubstitution([FindPackageShare("vismem_ros"), "config"])
    profile = PathJoinSubstitution([config, "fastdds_shm.xml"])
    value = {name: LaunchConfiguration(name) for name in ARGUMENTS}
    node = LifecycleNode(
        package="vismem_ros",
        executable="memory_node",
        name=value["name"],
        namespace=value["namespace"],
        output="screen",
        parameters=[
            PathJoinSubstitution([config, "params.yaml"]),
            {
                "path": ParameterValue(value["path"], value_type=str),
                "image_transport": value["image_transport"],
                "depth": ParameterValue(value["use_depth"], value_type=bool),
                "pose_source": value["pose_source"],
                "use_sim_time": ParameterValue(value["use_sim_time"], value_type=bool),
                "autostart": ParameterValue(value["autostart"], value_type=bool),
            },
        ],
        remappings=[(topic, value[topic]) for topic in ("image", "depth", "odom", "pose")],
    )
    return LaunchDescription(
        [
            *(
                DeclareLaunchArgument(name, default_value=default, description=about)
                for name, (default, about) in ARGUMENTS.items()
            ),
            # Raw pictures get lost in Fast DDS without a segment that holds several of them.
            # The variable is named after Fast DDS from Kilted on, and after Fast RTPS before.
            *(
                SetEnvironmentVariable(f"{product}_DEFAULT_PROFILES_FILE", profile)
                for product in ("FASTDDS", "FASTRTPS")
            ),
            node,
        ]
    )
