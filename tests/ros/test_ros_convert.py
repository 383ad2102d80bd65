"""Messages of a memory's answers, made with the types of rosbags: no ROS is needed."""

import math

import numpy as np
import pytest
import torch
from ros_packages import ROOT, definitions
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

import vismem as vm
from vismem.detections import Detections
from vismem.geometry import quaternion_of
from vismem.heads.answer import Answer, Moment
from vismem.heads.locate import Located
from vismem.memory.remembered import RememberedObject
from vismem.ros.convert import Messages, camera_at, goal_before, thing_name
from vismem.streams.messages import pose_of

# What vision_msgs 4 defines, as far as it is used.
VISION = {
    "Point2D": "float64 x\nfloat64 y",
    "Pose2D": "vision_msgs/Point2D position\nfloat64 theta",
    "BoundingBox2D": "vision_msgs/Pose2D center\nfloat64 size_x\nfloat64 size_y",
    "BoundingBox3D": "geometry_msgs/Pose center\ngeometry_msgs/Vector3 size",
    "ObjectHypothesis": "string class_id\nfloat64 score",
    "ObjectHypothesisWithPose": "vision_msgs/ObjectHypothesis hypothesis\n"
    "geometry_msgs/PoseWithCovariance pose",
    "Detection2D": "std_msgs/Header header\nvision_msgs/ObjectHypothesisWithPose[] results\n"
    "vision_msgs/BoundingBox2D bbox\nstring id",
    "Detection2DArray": "std_msgs/Header header\nvision_msgs/Detection2D[] detections",
    "Detection3D": "std_msgs/Header header\nvision_msgs/ObjectHypothesisWithPose[] results\n"
    "vision_msgs/BoundingBox3D bbox\nstring id",
    "Detection3DArray": "std_msgs/Header header\nvision_msgs/Detection3D[] detections",
}


@pytest.fixture(scope="module")
def store():
    store = get_typestore(Stores.ROS2_JAZZY)
    types = {}
    for name, text in VISION.items():
        types |= get_types_from_msg(text, f"vision_msgs/msg/{name}")
    for name, text in definitions("msg").items():
        types |= get_types_from_msg(text, f"vismem_msgs/msg/{name}")
    store.register(types)
    return store


@pytest.fixture(params=[False, True], ids=["own", "vision_msgs"])
def vision(request):
    return request.param


@pytest.fixture
def messages(store, vision):
    return Messages(store.types.__getitem__, "map", vision=vision)


def thing(**other):
    given = dict(
        id=7, position=(1.0, 2.0, 0.5), sigma=0.01, extent=(0.06, 0.05, 0.04), first=10.0,
        since=10.0, last=12.25, views=5, established=True, gone=False, told=0,
        color=torch.eye(12)[3], shape=torch.tensor([0.9, 0.1, 0.0]), labels={},
        looks=torch.zeros(1, 2), box=(0.0, 0.0, 1.0, 1.0), places=(),
    )  # fmt: skip
    return RememberedObject(**given | other)


def sent(store, message):
    """What arrives on the other side of the wire."""
    kind = message.__msgtype__
    return store.deserialize_cdr(store.serialize_cdr(message, kind), kind)


def test_times_are_whole_nanoseconds_and_never_refused(messages):
    for seconds, told in ((1.5, (1, 5 * 10**8)), (-0.25, (-1, 75 * 10**7)), (0.0, (0, 0))):
        stamp = messages.time(seconds)
        assert (stamp.sec, stamp.nanosec) == told
    assert messages.time(1e30).sec == 2**31 - 1 and messages.time(-1e30).sec == -(2**31) + 1


@pytest.mark.parametrize("seed", range(8))
def test_a_pose_comes_back(messages, seed):
    generator = np.random.default_rng(seed)
    matrix, _ = np.linalg.qr(generator.normal(size=(3, 3)))
    pose = np.eye(4)
    pose[:3, :3] = matrix * np.sign(np.linalg.det(matrix))
    pose[:3, 3] = generator.normal(size=3)
    assert np.allclose(pose_of(messages.pose_stamped(1.0, pose)), pose)
    assert np.linalg.norm(quaternion_of(pose)) == pytest.approx(1)


def test_half_turns():
    for axis in range(3):
        turn = -np.eye(3)
        turn[axis, axis] = 1
        assert np.abs(quaternion_of(turn)).round(6).tolist() == np.eye(4)[axis].tolist()
    assert quaternion_of(np.eye(4)) == [0, 0, 0, 1]


def test_detections(store, messages, vision):
    boxes = np.array([[10, 20, 30, 60], [0, 0, 4, 2]])
    found = Detections(boxes, np.array([0.9, 0.5]), np.array([1, 1]), np.array([3, -1]), time=2.0)
    header = messages.header(2.0, "camera")
    told = sent(store, messages.detections(found, header, lambda label: f"class {label}"))
    assert told.header.frame_id == "camera" and told.header.stamp.sec == 2
    first = told.detections[0]
    assert [one.id for one in told.detections] == ["3", ""]
    if vision:
        assert (first.bbox.center.position.x, first.bbox.center.position.y) == (20, 40)
        assert (first.bbox.size_x, first.bbox.size_y) == (20, 40)
        hypothesis = first.results[0].hypothesis
        assert (hypothesis.class_id, hypothesis.score) == ("class 1", pytest.approx(0.9))
        assert first.header == told.header
    else:
        assert (first.x, first.y, first.size_x, first.size_y) == (20, 40, 20, 40)
        assert (first.class_id, first.score) == ("class 1", pytest.approx(0.9))
    assert not messages.detections(found[:0], header, str).detections


def test_objects(store, messages, vision):
    told = sent(
        store, messages.objects([thing(), thing(id=8, gone=True)], ["red block", "can"], 13.0)
    )
    assert told.header.frame_id == "map" and told.header.stamp.sec == 13
    first, gone = told.detections if vision else told.objects
    assert (first.id, first.header.stamp.sec, first.header.frame_id) == ("7", 12, "map")
    held = first.results[0].pose if vision else first.pose
    at = held.pose.position
    assert (at.x, at.y, at.z) == (1.0, 2.0, 0.5) and held.pose.orientation.w == 1
    covariance = np.asarray(held.covariance).reshape(6, 6)
    assert np.allclose(np.diag(covariance), [1e-4] * 3 + [math.pi**2] * 3)
    size = first.bbox.size if vision else first.size
    assert (size.x, size.y, size.z) == (0.06, 0.05, 0.04)
    if vision:
        assert first.results[0].hypothesis.class_id == "red block"
        assert gone.results[0].hypothesis.score == 0
    else:
        assert (first.label, gone.state, gone.score) == ("red block", "gone", 0)


def test_markers_retire_what_is_gone(messages):
    rows = messages.markers([thing()], ["red block"], [4])
    assert [(row["ns"], row["id"], row["action"]) for row in rows] == [
        ("things", 7, 0), ("names", 7, 0), ("things", 4, 2), ("names", 4, 2)
    ]  # fmt: skip
    assert rows[0]["color"].r > 0.5 > rows[0]["color"].b and rows[1]["text"] == "red block"


def test_an_answer_fills_a_response(store):
    messages = Messages(store.types.__getitem__, "map", vision=False)
    pose = np.eye(4)
    pose[0, 3] = 3.0
    moment = Moment(1.0, 2.5, 0.8, "cat", (0.1, 0.2, 0.3, 0.4), pose.tolist(), "front", 1.5, 2)
    place = Located("red block", (1.0, 2.0, 0.5), 0.02, "occluded", 1.0, 2.0, 9, 0.7, 1, 7)
    answer = Answer("where?", "There.", (moment, moment), False, places=(place,))
    reply = messages.fill(type("Reply", (), {})(), answer)
    assert (reply.success, reply.answer, reply.abstained) == (True, "There.", False)
    assert len(reply.moments) == 2 and len(messages.fill(reply, answer, 1).moments) == 1
    told = reply.moments[0]
    assert (told.start.sec, told.end.nanosec, told.stamp.nanosec) == (1, 5 * 10**8, 5 * 10**8)
    assert told.has_pose and told.pose.pose.position.x == 3.0 and told.count == 2
    where = reply.objects[0]
    assert (where.id, where.state, where.rivals, where.views) == ("7", "occluded", 1, 9)
    blind = messages.moment(Moment(1.0, 2.0, 0.5, "cat"))
    assert not blind.has_pose and blind.box == []


def test_a_goal_stands_before_the_thing_and_faces_it():
    goal = goal_before((2.0, 2.0, 0.7), (2.0, 0.0, 1.5), 0.5)
    assert np.allclose(goal[:3, 3], (2.0, 1.5, 0.0)) and np.allclose(goal[:3, 0], (0, 1, 0))
    assert np.allclose(goal[:3, :3] @ goal[:3, :3].T, np.eye(3))
    assert np.linalg.det(goal[:3, :3]) == pytest.approx(1) and goal[2, 2] == 1
    above = goal_before((2.0, 2.0, 0.7), (2.0, 2.0, 3.0), 0.5)  # seen from right above
    assert np.isfinite(above).all() and np.linalg.norm(above[:2, 3] - 2) == pytest.approx(0.5)


def test_names(tiny):
    assert thing_name(thing(), tiny) == "red block"
    assert thing_name(thing(labels={1: 0.9}), tiny) == "red block"
    odd = torch.tensor([0.4, 0.3, 0.3])
    assert thing_name(thing(labels={1: 0.9}, shape=odd), tiny) == "red dog"
    assert (
        thing_name(thing(labels={1: 0.3}, shape=odd, color=torch.full((12,), 1 / 12)), tiny)
        == "block"
    )


def test_the_definitions_are_in_the_build(store):
    build = (ROOT / "vismem_msgs/CMakeLists.txt").read_text()
    files = [
        p for kind in ("msg", "srv", "action") for p in (ROOT / "vismem_msgs" / kind).iterdir()
    ]
    assert len(files) == 10
    assert all(f'"{path.parent.name}/{path.name}"' in build for path in files)


def test_where_the_camera_was(tiny):
    with vm.VisualMemory("1MB", encoder=tiny) as memory:
        for number in range(4):
            pose = np.eye(4)
            pose[0, 3] = number
            image = np.full((12, 16, 3), 60 * number, np.uint8)
            memory.write(vm.Frame(image, 10.0 * number, pose=pose if number else None))
        memory.flush()
        streams = memory.snapshots()
    assert camera_at(streams.values(), 21.0)[0, 3] == 2
    assert camera_at(streams.values(), 0.0)[0, 3] == 1  # the first has none
    assert camera_at([], 0.0) is None
