"""A plan stays where the gripper may go, does what was asked in order, and refuses a guess."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vismem.heads.act import Plan, Target, Waypoint, Workspace, plan

SPACE = Workspace((-0.4, -0.4, 0.4), (0.4, 0.4, 0.9), opening=0.04, clearance=0.15)
HERE, THERE = Target((0.1, -0.2, 0.45), 0.01), Target((-0.2, 0.3, 0.47), 0.02)


def test_a_pick_and_place_is_six_moves_in_order():
    assert plan(HERE, THERE, SPACE) == Plan(
        (
            Waypoint((0.1, -0.2, 0.6)),
            Waypoint((0.1, -0.2, 0.45), "grasp"),
            Waypoint((0.1, -0.2, 0.6)),
            Waypoint((-0.2, 0.3, 0.62)),
            Waypoint((-0.2, 0.3, 0.47), "release"),
            Waypoint((-0.2, 0.3, 0.62)),
        )
    )


def test_without_a_goal_the_thing_is_held_up():
    moves = plan(HERE, None, SPACE).waypoints
    assert [move.then for move in moves] == ["", "grasp", ""]
    assert moves[-1].xyz[2] - moves[1].xyz[2] == pytest.approx(SPACE.clearance)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (Target((0.1, 0.1, 0.5), abstained=True), "abstained"),
        (Target((0.1, 0.1, 0.5), sigma=0.041), "4.1 cm only"),
        (Target((0.1, 0.1, 0.5), sigma=math.nan), "no finite place"),
        (Target((0.1, 0.1, 0.5), sigma=-0.01), "no finite place"),
        (Target((math.nan, 0.1, 0.5)), "no finite place"),
        (Target((0.1, 0.41, 0.5)), "out of reach"),
        (Target((0.1, 0.1, 0.39)), "out of reach"),
        (Target((0.1, 0.1, 0.80)), "no room above"),
    ],
)
def test_what_cannot_be_acted_upon_is_refused_with_the_reason(bad, why):
    refused = plan(bad, None, SPACE)
    assert refused.waypoints == () and why in refused.refused and "pick" in refused.refused
    # Nothing is picked up for a goal that is refused.
    refused = plan(HERE, bad, SPACE)
    assert refused.waypoints == () and why in refused.refused and "place" in refused.refused


def test_an_answer_as_sure_as_the_gripper_is_wide_is_taken():
    assert not plan(Target((0.1, 0.1, 0.5), sigma=0.04), None, SPACE).refused


coordinate = st.floats(-1, 1)
targets = st.builds(
    Target, st.tuples(coordinate, coordinate, coordinate), st.floats(0, 0.1), st.booleans()
)


@given(targets, st.none() | targets)
def test_a_plan_never_leaves_the_workspace_and_never_holds_a_guess(pick, place):
    made = plan(pick, place, SPACE)
    assert bool(made.waypoints) != bool(made.refused)
    assert all(SPACE.holds(move.xyz) for move in made.waypoints)
    if made.waypoints:
        used = [pick] if place is None else [pick, place]
        assert all(t.sigma <= SPACE.opening and not t.abstained for t in used)
        # Sideways only with room below.
        for a, b in zip(made.waypoints, made.waypoints[1:], strict=False):
            if a.xyz[:2] != b.xyz[:2]:
                low = min(a.xyz[2], b.xyz[2])
                assert low >= min(t.xyz[2] for t in used) + SPACE.clearance - 1e-6


@pytest.mark.parametrize(
    "settings",
    [
        {"low": (0.4, 0, 0), "high": (0.4, 1, 1)},
        {"low": (0, 0, 0), "high": (1, 1, 1), "opening": 0.0},
        {"low": (0, 0, 0), "high": (1, 1, 1), "clearance": -0.1},
    ],
)
def test_a_workspace_that_is_none_is_refused(settings):
    with pytest.raises(ValueError):
        Workspace(**settings)
