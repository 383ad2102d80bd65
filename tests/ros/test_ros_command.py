import subprocess
import sys

import pytest

from vismem.cli import main
from vismem.cli.ros import Node, Replay, parse_ros
from vismem.errors import UsageError
from vismem.ros.installed import check_ros, import_ros, message_type


def test_the_words_of_ros_are_left_alone():
    verb = parse_ros(["node", "--ros-args", "-r", "image:=/camera/image", "-p", "fps:=5.0"])
    assert verb.task == Node(("--ros-args", "-r", "image:=/camera/image", "-p", "fps:=5.0"))
    assert parse_ros(["node"]).task == Node()
    verb = parse_ros(["replay", "bag", "--lockstep", "/vismem", "--remap", "/a:=/b", "/c:=/d"])
    assert isinstance(verb.task, Replay) and verb.task.remap == ("/a:=/b", "/c:=/d")
    with pytest.raises(UsageError, match="goes with: vismem ros node"):
        parse_ros(["replay", "bag", "--ros-args", "-p", "a:=1"])


def test_wrong_words(capsys):
    assert main(["ros", "replay", "bag", "--rate", "0"]) == 2
    assert main(["ros", "replay", "bag", "--remap", "/a=/b"]) == 2
    assert "/camera/image:=/image" in capsys.readouterr().err


def test_what_is_missing_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "meta_path", [])
    for module in ("rclpy", "vismem_msgs.srv", "tf2_msgs.msg"):
        for name in [name for name in sys.modules if name.startswith(module.partition(".")[0])]:
            monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UsageError, match=r"source a ROS 2 installation.*ros-rclpy\[fastrtps\]"):
        check_ros()
    with pytest.raises(UsageError, match=r"colcon build .*vismem_msgs.*scripts/ros_messages\.sh"):
        import_ros("vismem_msgs.srv")
    with pytest.raises(UsageError, match="pip install ros-tf2-msgs"):
        message_type("tf2_msgs/msg/TFMessage")


def test_help_loads_neither_ros_nor_torch():
    code = (
        "import sys; from vismem.cli import main\n"
        "try: main(['ros', '--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('rclpy', 'torch', 'rosbags', 'cv2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
