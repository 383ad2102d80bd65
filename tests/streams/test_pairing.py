import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded import Messages

from vismem.errors import UsageError
from vismem.streams.messages import pose_of
from vismem.streams.pairing import Pairing
from vismem.streams.poses import PoseTrack

MAKE = Messages()
RED = np.zeros((4, 6, 3), np.uint8)


def image(seconds):
    return MAKE.image(RED, "rgb8", seconds)


def depth(seconds, value=1.0):
    return MAKE.image(np.full((4, 6), value, np.float32), "32FC1", seconds)


def pose(x):
    return pose_of(MAKE.pose(0, (float(x), 0.0, 0.0)))


def paired(rows):
    return [(p.time, p.pose is not None, p.depth is not None) for p in rows]


def test_goes_at_once_where_nothing_is_waited_for():
    pairing = Pairing(rates={"all": None})
    assert pairing.add_image(image(1.0), 1.0)
    (done,) = pairing.ready()
    assert (done.time, done.index, done.pose, done.depth, done.intrinsics) == (
        1,
        0,
        None,
        None,
        None,
    )
    assert not pairing.ready() and not pairing.waiting


def test_waits_for_depth_and_pose_that_cannot_change_any_more():
    pairing = Pairing(rates={"all": None}, poses=PoseTrack(), depth=True)
    pairing.add_image(image(1.0), 1.0)
    pairing.add_depth(depth(0.98), 0.98)
    pairing.poses.add(0.9, pose(0))
    assert not pairing.ready()
    pairing.add_depth(depth(1.01, 2.0), 1.01)
    assert not pairing.ready()
    pairing.poses.add(1.1, pose(2))
    (done,) = pairing.ready()
    assert done.pose[0, 3] == pytest.approx(1.0)
    frame = done.frame("front", lambda *note: None)
    assert frame.depth[0, 0] == 2.0 and frame.stream == "front"  # the nearer in time


def test_the_order_of_pictures_is_kept():
    pairing = Pairing(rates={"all": None}, depth=True)
    for time in (1.0, 2.0):
        pairing.add_image(image(time), time)
    pairing.add_depth(depth(2.0), 2.0)
    assert paired(pairing.ready()) == [(1.0, False, False), (2.0, False, True)]
    assert pairing.without_depth == 1


def test_too_many_and_too_long():
    pairing = Pairing(rates={"all": None}, depth=True, most=3)
    for number in range(4):
        pairing.add_image(image(number), float(number), received=10.0 + number)
    assert paired(pairing.ready()) == [(0.0, False, False)]
    assert paired(pairing.ready(received_before=12.0)) == [(1.0, False, False)]
    assert len(pairing.rest()) == 2 and pairing.without_depth == 4


def test_intrinsics_of_the_size():
    pairing = Pairing(rates={"all": None}, intrinsics=True)
    pairing.add_image(image(1.0), 1.0)
    assert not pairing.ready()
    other = MAKE.info(0, 900.0)
    other.width, other.height = 1280, 720
    pairing.add_info(other)
    pairing.add_info(MAKE.info(0, 500.0))
    pairing.add_info(MAKE.info(0, 700.0))  # of one size the first counts
    assert pairing.ready()[0].intrinsics[0, 0] == 500.0
    small = MAKE.compressed(RED, 2.0)  # does not tell its size: the first there was
    pairing.add_image(small, 2.0)
    assert pairing.ready()[0].intrinsics[0, 0] == 900.0


def test_late_and_set_back():
    pairing = Pairing(rates={"all": 2.0}, depth=True)
    assert [pairing.add_image(image(t), t) for t in (5.0, 5.4, 5.5, 5.2)] == [
        True,
        False,
        True,
        False,
    ]
    assert (pairing.received, pairing.skipped, pairing.late) == (4, 1, 1)
    assert pairing.add_image(image(1.0), 1.0)  # the clock was set back
    assert pairing.jumps == 1 and paired(pairing.ready()) == [
        (5.0, False, False),
        (5.5, False, False),
    ]
    pairing.add_depth(depth(9.0), 9.0)
    pairing.add_depth(depth(1.0), 1.0)
    assert paired(pairing.ready()) == [(1.0, False, True)]
    assert pairing.add_image(image(1.6), 1.6) and not pairing.add_image(image(1.7), 1.7)


def test_readers_of_their_own_rates():
    pairing = Pairing(rates={"memory": 1.0, "detect": 2.0})
    for number in range(5):
        pairing.add_image(image(number / 4), number / 4)
    assert [sorted(p.wanted) for p in pairing.ready()] == [
        ["detect", "memory"], ["detect"], ["detect", "memory"]
    ]  # fmt: skip
    pairing.set_rate("memory", None)
    pairing.add_image(image(1.1), 1.1)
    assert [sorted(p.wanted) for p in pairing.ready()] == [["memory"]]
    with pytest.raises(UsageError):
        pairing.set_rate("memory", -1.0)


def test_depth_that_does_not_fit_is_left_out_and_told():
    pairing = Pairing(rates={"all": None}, depth=True)
    pairing.add_image(image(1.0), 1.0)
    pairing.add_depth(MAKE.image(np.ones((2, 2), np.float32), "32FC1", 1.0), 1.0)
    notes = []
    frame = pairing.ready()[0].frame("x", lambda *note: notes.append(note))
    assert frame.depth is None and "(2, 2), not the picture's size" in notes[0][1]


@settings(max_examples=40)
@given(st.integers(0, 10**6))
def test_the_order_in_which_topics_come_does_not_matter(seed):
    """Each topic in its own order, mixed any way: the same pairs."""
    generator = random.Random(seed)
    stamps = {
        "image": [n / 10 for n in range(12)],
        "depth": [n / 10 + 0.02 for n in range(12) if n % 5],
        "pose": [n / 7 for n in range(-1, 11)],
        "info": [0.0],
    }
    results = []
    for mixed in (False, True):
        left = {topic: list(times) for topic, times in stamps.items()}
        pairing = Pairing(
            rates={"all": 5.0}, poses=PoseTrack(), depth=True, intrinsics=True, most=50
        )
        done = []
        while any(left.values()):
            topics = [topic for topic, times in left.items() if times]
            topic = generator.choice(topics) if mixed else topics[-1]
            time = left[topic].pop(0)
            if topic == "image":
                pairing.add_image(image(time), time)
            elif topic == "depth":
                pairing.add_depth(depth(time, 1 + time), time)
            elif topic == "pose":
                pairing.poses.add(time, pose(time))
            else:
                pairing.add_info(MAKE.info(0, 500.0))
            done += pairing.ready()
        done += pairing.rest()
        results.append(
            [
                (p.time, p.index, p.pose.tobytes(), p.depth and p.depth.header.stamp.nanosec,
                 p.intrinsics.tobytes())
                for p in done
            ]
        )  # fmt: skip
    assert results[0] == results[1] and len(results[0]) == 6
