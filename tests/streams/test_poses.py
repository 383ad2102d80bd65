import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vismem.streams.poses import PoseTrack, TransformTree, interpolate


def at(x=0.0, y=0.0, z=0.0, yaw=0.0):
    pose = np.eye(4)
    pose[:2, :2] = [[math.cos(yaw), -math.sin(yaw)], [math.sin(yaw), math.cos(yaw)]]
    pose[:3, 3] = x, y, z
    return pose


def test_turns_evenly_and_stays_rigid():
    middle = interpolate(at(), at(2.0, yaw=2.0), 0.25)
    assert np.allclose(middle, at(0.5, yaw=0.5))
    assert np.allclose(interpolate(at(1.0), at(1.0, yaw=3.1), 1.0), at(1.0, yaw=3.1))


def test_a_pose_is_of_its_time():
    track = PoseTrack(gap=0.5, hold=0.05)
    for time, x in ((1.0, 0.0), (1.4, 4.0), (3.0, 9.0)):
        track.add(time, at(x))
    assert track.at(1.4)[0, 3] == 4.0  # exactly that one
    assert track.at(1.1)[0, 3] == pytest.approx(1.0)
    assert track.at(0.96)[0, 3] == 0.0 and track.at(0.94) is None  # held before the first
    assert track.at(3.04)[0, 3] == 9.0 and track.at(3.06) is None  # and after the last
    assert track.at(1.44)[0, 3] == 4.0 and track.at(2.0) is None and track.at(2.97)[0, 3] == 9.0
    assert track.passed(3.0) and not track.passed(3.001)


def test_out_of_order_twice_and_set_back():
    track = PoseTrack()
    for time, x in ((1.0, 0.0), (1.4, 4.0), (1.2, 9.0), (1.4, 5.0)):
        track.add(time, at(x))
    assert [track.at(time)[0, 3] for time in (1.0, 1.2, 1.4)] == [0.0, 9.0, 5.0]
    assert len(track) == 3
    track.add(0.2, at(7.0))  # 1.2 s back: the clock was set
    assert len(track) == 1 and track.at(1.2) is None and not track.passed(0.3)


def test_only_so_many_are_kept():
    track = PoseTrack(most=10)
    for number in range(1000):
        track.add(number / 10, at(number))
    assert len(track) == 10 and track.at(10.0) is None and track.at(99.85) is not None


def test_mount():
    track = PoseTrack(mount=at(0.5, z=1.5))  # the camera is half a metre ahead
    track.add(1.0, at(2.0, yaw=math.pi / 2))
    assert np.allclose(track.at(1.0), at(2.0, 0.5, 1.5, yaw=math.pi / 2))


@given(
    st.lists(st.tuples(st.floats(0, 9), st.floats(-5, 5)), min_size=2, max_size=12), st.randoms()
)
def test_the_order_of_poses_within_a_second_does_not_matter(poses, random):
    poses = list({round(time / 10, 3): x for time, x in poses}.items())
    shuffled = random.sample(poses, len(poses))
    one, other = PoseTrack(), PoseTrack()
    for track, rows in ((one, poses), (other, shuffled)):
        for time, x in rows:
            track.add(time, at(x))
    for time in np.linspace(-0.1, 1.0, 23):
        a, b = one.at(time), other.at(time)
        assert (a is None) == (b is None) and (a is None or np.array_equal(a, b))


class TestTransformTree:
    def robot(self):
        tree = TransformTree("map")
        tree.add("base", "camera", 0.0, at(z=1.5), static=True)
        for time in (1.0, 1.2):
            tree.add("map", "odom", time, at(10.0))
            tree.add("odom", "base", time, at(time, yaw=time))
        return tree

    def test_goes_up_the_chain_at_one_time(self):
        tree = self.robot()
        assert np.allclose(tree.at(1.1, "camera"), at(11.1, z=1.5, yaw=1.1))
        assert np.allclose(tree.at(1.1, "/base"), at(11.1, yaw=1.1))
        assert np.allclose(tree.at(1.1, "map"), np.eye(4))
        assert tree.passed(1.2, "camera") and not tree.passed(1.21, "camera")

    def test_what_is_not_known_is_none(self):
        tree = self.robot()
        assert tree.at(1.1, "gripper") is None and not tree.passed(1.1, "gripper")
        assert tree.at(5.0, "camera") is None and tree.at(0.5, "camera") is None
        assert TransformTree("moon").at(1.0, "camera") is None

    def test_the_slowest_transform_decides(self):
        tree = self.robot()
        tree.add("odom", "base", 2.0, at(2.0))
        assert not tree.passed(1.5, "camera")  # map to odom is still of 1.2
        assert tree.at(2.0, "camera") is None

    def test_a_world_below_the_root_and_beside(self):
        tree = TransformTree("map")
        tree.add("earth", "map", 0.0, at(100.0), static=True)
        tree.add("earth", "camera", 0.0, at(103.0, 4.0), static=True)
        assert np.allclose(tree.at(1.0, "camera"), at(3.0, 4.0))

    def test_a_circle_ends(self):
        tree = TransformTree("map")
        tree.add("b", "a", 1.0, at())
        tree.add("a", "b", 1.0, at())
        assert tree.at(1.0, "a") is None

    def test_new_parent_and_set_back(self):
        tree = self.robot()
        tree.add("map", "base", 1.2, at(5.0))
        assert np.allclose(tree.at(1.2, "camera"), at(5.0, z=1.5))
        tree.clear()
        assert tree.at(1.2, "camera") is None
        tree.add("map", "base", 0.1, at(6.0))
        assert np.allclose(tree.at(0.1, "camera"), at(6.0, z=1.5))  # the mount stays
