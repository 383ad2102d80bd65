"""A picture of the table, its depth and its pose tell the same story as the truth."""

from __future__ import annotations

import numpy as np
import pytest


def world(frame):
    """Where each pixel is, `(H, W, 3)` metres."""
    v, u = np.mgrid[0 : frame.height, 0 : frame.width]
    k = frame.intrinsics
    rays = np.stack([(u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1], np.ones_like(u)], axis=-1)
    return (rays * frame.depth[..., None]) @ frame.pose[:3, :3].T + frame.pose[:3, 3]


@pytest.fixture(scope="module")
def table(recall):
    things = [recall.scene.Thing("red"), recall.scene.Thing("blue", "ball")]
    with recall.scene.Table(objects=things, size=(96, 64), drawers=2) as table:
        yield table


@pytest.mark.parametrize("eye", [(0.0, -0.6, 1.1), (0.5, 0.3, 0.9), (0.0, 0.0, 1.3)])
def test_depth_and_pose_lift_a_thing_to_where_it_is(recall, table, eye):
    table.reset()
    table.place("red block", 0)
    table.place("blue ball", 5)
    table.move_camera(recall.scene.look_at(eye, (0.0, 0.0, 0.4)))
    frame, drawn = table.render(), table.segmentation()
    for number, name in enumerate(table.objects):
        seen = world(frame)[drawn == number]
        assert len(seen) > 10
        # The surface that is seen, not the middle, and nothing beyond the thing.
        assert np.abs(seen - table.truth()[name]).max() < 1.8 * 0.035
    np.testing.assert_allclose(frame.pose, table.pose, atol=1e-12)
    # The camera looks at the middle of the table's top.
    np.testing.assert_allclose(world(frame)[31:33, 47:49].mean((0, 1)), (0, 0, 0.4), atol=0.01)


def test_a_cup_hides_what_is_under_it_to_the_last_bit(table):
    table.reset()
    for slot in range(9):
        table.cover(slot)
    empty = table.render()
    table.place("red block", 4)
    table.place("blue ball", 8)
    full = table.render()
    assert (full.image == empty.image).all() and (full.depth == empty.depth).all()
    table.uncover(4)
    assert (table.render().image != empty.image).any()
    assert full.timestamp - empty.timestamp == pytest.approx(0.1)


def test_what_is_out_of_sight_is_not_in_the_truth(table):
    table.reset()
    assert table.truth() == {}
    table.place("red block", 3)
    assert [*table.truth()] == ["red block"]
    assert table.truth()["red block"] == pytest.approx((*table.slots[3][:2], 0.435))
    table.remove("red block")
    assert table.truth() == {} and (table.segmentation() == -1).all()


def test_drawers_the_button_and_the_ball_are_seen(table):
    table.reset()
    still = table.render().image
    for change in (
        lambda: table.drawer(1, True),
        lambda: table.press(True),
        lambda: table.distract((0.2, -0.2, 0.43)),
    ):
        table.reset()
        change()
        assert (table.render().image != still).any()
    table.reset()
    assert (table.render().image == still).all()


@pytest.mark.parametrize(
    "call",
    [
        lambda t: t.place("green block", 0),
        lambda t: t.place("red block", 9),
        lambda t: t.cover(-1),
        lambda t: t.move_camera(np.eye(3)),
    ],
)
def test_what_is_not_there_is_refused(table, call):
    with pytest.raises(ValueError):
        call(table)


def test_a_thing_of_no_known_colour_or_shape_is_refused(recall):
    for colour, shape in (("mauve", "block"), ("red", "torus")):
        with pytest.raises(ValueError, match="a thing has"):
            recall.scene.Thing(colour, shape)
    with pytest.raises(ValueError, match="names"):
        recall.scene.Table(objects=[recall.scene.Thing("red"), recall.scene.Thing("red")])
