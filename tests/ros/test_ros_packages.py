"""The ROS packages hold together: manifests, launch files, parameters, profile."""

import ast
import re
import xml.etree.ElementTree as ElementTree

import pytest
import yaml
from ros_packages import ROOT, definitions
from rosbags.typesys import get_types_from_msg

from vismem.ros.parameters import SETTINGS, defaults

LAUNCH = sorted((ROOT / "vismem_ros/launch").glob("*.launch.py"))


@pytest.mark.parametrize("package", ["vismem_msgs", "vismem_ros"])
def test_manifests(package):
    root = ElementTree.parse(ROOT / package / "package.xml").getroot()
    assert root.get("format") == "3" and root.findtext("name") == package
    assert all(root.findtext(tag) for tag in ("version", "description", "license"))
    email = root.find("maintainer").get("email")
    assert re.fullmatch(r"[\w.]+@[\w.]+\.\w+", email)
    build = {"vismem_msgs": "ament_cmake", "vismem_ros": "ament_python"}[package]
    assert root.findtext("export/build_type") == build


def test_what_messages_use_is_depended_on():
    root = ElementTree.parse(ROOT / "vismem_msgs/package.xml").getroot()
    wanted = {tag.text for tag in root.findall("depend")}
    used = set()
    for kind in ("msg", "srv", "action"):
        for text in definitions(kind).values():
            used |= set(re.findall(r"^(\w+)/\w+", text, re.MULTILINE))
    assert used <= wanted
    build = (ROOT / "vismem_msgs/CMakeLists.txt").read_text()
    assert all(f"find_package({package} REQUIRED)" in build for package in wanted)


def test_definitions_are_read_by_another_parser():
    for name, text in definitions("msg").items():
        assert f"vismem_msgs/msg/{name}" in get_types_from_msg(text, f"vismem_msgs/msg/{name}")
    for kind, parts in (("srv", 2), ("action", 3)):
        for name, text in definitions(kind).items():
            split = re.split(r"^---$", text, flags=re.MULTILINE)
            assert len(split) == parts
            for part in split:
                get_types_from_msg(part, f"vismem_msgs/msg/{name}Part")


def test_params_yaml_holds_every_parameter_with_its_default():
    text = (ROOT / "vismem_ros/config/params.yaml").read_text()
    given = yaml.safe_load(text)["/**"]["ros__parameters"]
    assert given == defaults()
    assert all(type(given[name]) is type(value) for name, value in defaults().items())
    for setting in SETTINGS:
        comment = f"# {'* ' if setting.dynamic else ''}{setting.about}"
        assert f"    {comment}" in text, f"params.yaml does not explain {setting.name}"


@pytest.mark.parametrize("path", LAUNCH, ids=lambda path: path.name)
def test_launch_files_compile(path):
    compile(path.read_text(), str(path), "exec")
    names = {node.name for node in ast.parse(path.read_text()).body if hasattr(node, "name")}
    assert "generate_launch_description" in names


def test_launch_sets_parameters_and_topics_that_exist():
    tree = ast.parse((ROOT / "vismem_ros/launch/memory.launch.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    (node,) = [call for call in calls if getattr(call.func, "id", "") == "LifecycleNode"]
    given = {word.arg: word.value for word in node.keywords}
    (table,) = [value for value in given["parameters"].elts if isinstance(value, ast.Dict)]
    known = {setting.name for setting in SETTINGS} | {"use_sim_time"}
    assert {key.value for key in table.keys} <= known
    assert given["executable"].value == "memory_node"
    setup = (ROOT / "vismem_ros/setup.py").read_text()
    assert "memory_node = vismem_ros.memory_node:main" in setup
    # Typed: launch would otherwise hand over "true" and numbers as it likes.
    pairs = zip(table.keys, table.values, strict=True)
    typed = {key.value for key, value in pairs if isinstance(value, ast.Call)}
    flags = {s.name for s in SETTINGS if isinstance(s.default, bool)} | {"use_sim_time"}
    assert {key.value for key in table.keys} & flags <= typed
    remapped = {topic.value for topic in ast.walk(given["remappings"]) if hasattr(topic, "value")
                and isinstance(topic.value, str)}  # fmt: skip
    assert remapped == {"image", "depth", "odom", "pose"}
    arguments = next(
        ast.literal_eval(part.value)
        for part in tree.body
        if isinstance(part, ast.Assign) and part.targets[0].id == "ARGUMENTS"
    )
    asked = [call for call in calls if getattr(call.func, "id", "") == "LaunchConfiguration"]
    used = {call.args[0].value for call in asked if isinstance(call.args[0], ast.Constant)}
    assert used <= set(arguments)
    two = ast.parse((ROOT / "vismem_ros/launch/two_cameras.launch.py").read_text())
    handed = next(d for d in ast.walk(two) if isinstance(d, ast.Dict))
    assert {key.value for key in handed.keys} <= set(arguments)


def test_the_profile_has_room_for_raw_pictures():
    space = {"dds": "http://www.eprosima.com"}
    root = ElementTree.parse(ROOT / "vismem_ros/config/fastdds_shm.xml").getroot()
    sizes = {
        part.findtext("dds:type", namespaces=space): part.findtext(
            "dds:segment_size", namespaces=space
        )
        for part in root.iter("{http://www.eprosima.com}transport_descriptor")
    }
    assert int(sizes["SHM"]) >= 30 * 640 * 480 * 3 and "UDPv4" in sizes
