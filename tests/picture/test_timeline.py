"""Axes, round times, lanes and the choice of what to show, apart from any drawing."""

from __future__ import annotations

import itertools
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vismem.memory.slots import Slot
from vismem.picture.timeline import Axis, apart, axes, join, packed, span_of, telling

NOTHING = torch.empty(0, dtype=torch.float16)


def slot(at: float, weight: int = 1, first: float | None = None, last: float | None = None) -> Slot:
    first, last = at if first is None else first, at if last is None else last
    return Slot(at, at, at, first, last, weight, 0, NOTHING, (1, 1), NOTHING, b"", "detail")


@st.composite
def many_slots(draw: st.DrawFn) -> list[Slot]:
    seconds = st.integers(0, 1000).map(float)
    made = []
    for _ in range(draw(st.integers(0, 40))):
        first, at, last = sorted(draw(st.tuples(seconds, seconds, seconds)))
        made.append(slot(at, draw(st.integers(1, 500)), first, last))
    return made


AXIS = Axis(0.0, 1000.0, left=0, right=1000)


class TestAxis:
    def test_ends_lie_at_the_ends(self):
        axis = Axis(-5.0, 15.0, left=40, right=140)
        assert [axis(second) for second in (-5.0, 0.0, 15.0)] == [40, 65, 140]

    @given(start=st.floats(-1e6, 1e6), length=st.floats(1, 1e9))
    def test_ticks_are_few_round_and_inside(self, start: float, length: float):
        axis = Axis(start, start + length, 0, 1)
        ticks, step = axis.ticks()
        assert 1 <= len(ticks) <= 10
        for tick in ticks:
            assert start - 1e-3 <= tick <= start + length + 1e-3
            assert abs(tick / step - round(tick / step)) < 1e-3

    @pytest.mark.parametrize(
        ("length", "step"),
        [(1, 0.2), (46, 10), (60, 10), (600, 120), (7200, 900), (86400, 10800), (864000, 172800)],
    )
    def test_steps_are_those_of_a_clock(self, length: float, step: float):
        assert Axis(0.0, length, 0, 1).ticks()[1] == step

    def test_ticks_below_a_second_are_exact(self):
        ticks, _ = Axis(1e6 + 0.2, 1e6 + 1.1, 0, 1).ticks()
        assert ticks == [1000000.2, 1000000.4, 1000000.6, 1000000.8, 1000001.0]

    def test_ticks_are_round_by_the_local_clock(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("TZ", "XXX-5:45")  # a zone that is no whole hours from Greenwich
        time.tzset()
        try:
            ticks, step = Axis(1.75e9, 1.75e9 + 86400, 0, 1).ticks()
            assert step == 3 * 3600
            clocks = [time.localtime(tick) for tick in ticks]
            assert all(c.tm_hour % 3 == 0 and c.tm_min == c.tm_sec == 0 for c in clocks)
        finally:
            monkeypatch.undo()
            time.tzset()

    def test_times_of_a_recording_have_no_zone(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("TZ", "XXX-5:45")
        time.tzset()
        try:
            assert Axis(0.0, 86400.0, 0, 1).ticks()[0][:2] == [0, 10800]
        finally:
            monkeypatch.undo()
            time.tzset()


class TestAxes:
    def test_streams_of_one_time_share_an_axis(self):
        assert axes([(0, 60), (30, 100)], 0, 1) == [Axis(0, 100, 0, 1)] * 2

    def test_streams_of_other_clocks_have_their_own(self):
        both = axes([(0, 60), (1.7e9, 1.7e9 + 60)], 0, 1)
        assert both == [Axis(0, 60, 0, 1), Axis(1.7e9, 1.7e9 + 60, 0, 1)]

    @pytest.mark.parametrize("at", [0.0, -7.5, 12.5, 1.7e9])
    def test_an_instant_lies_in_the_middle_of_a_second(self, at: float):
        (axis,) = axes([(at, at)], 0, 100)
        assert axis.end - axis.start == 1
        assert axis(at) == 50

    def test_no_stream_has_no_axis(self):
        assert axes([], 0, 1) == []

    def test_a_span_holds_all_that_is_drawn(self):
        odd = Slot(5.0, 3.0, 9.0, 4.0, 8.0, 1, 0, NOTHING, (1, 1), NOTHING, b"", "detail")
        assert span_of(odd) == (3.0, 9.0)
        assert span_of(slot(5.0, first=1.0, last=7.0)) == (1.0, 7.0)
        assert join([(3, 9), (1, 2)]) == (1, 9)


class TestLanes:
    @given(slots=many_slots(), lanes=st.integers(0, 6))
    def test_none_overlaps_and_only_what_has_no_place_is_missing(
        self, slots: list[Slot], lanes: int
    ):
        def reach(one: Slot) -> tuple[float, float]:
            first, last = span_of(one)
            return min(first - 2, one.time - 5.5), max(last + 2, one.time + 5.5)

        placed = packed(slots, AXIS, lanes, lambda _: 4.0)
        for (one, lane), (other, same) in itertools.combinations(placed, 2):
            (a, b), (c, d) = reach(one), reach(other)
            assert lane != same or b <= c or d <= a
        assert all(0 <= lane < lanes for _, lane in placed)
        there = {id(one) for one, _ in placed}
        for missing in (one for one in slots if id(one) not in there):
            a, b = reach(missing)
            for number in range(lanes):  # something at least as heavy is in the way everywhere
                assert any(
                    lane == number
                    and other.weight >= missing.weight
                    and a < reach(other)[1]
                    and reach(other)[0] < b
                    for other, lane in placed
                )

    def test_the_heaviest_is_on_top(self):
        light, heavy = slot(500, 1, 0, 1000), slot(500, 9, 0, 1000)
        assert packed([light, heavy], AXIS, 2, lambda _: 1.0) == [(heavy, 0), (light, 1)]

    def test_slots_after_each_other_share_a_lane(self):
        row = [slot(float(n)) for n in range(0, 1000, 20)]
        assert {lane for _, lane in packed(row, AXIS, 9, lambda _: 4.0)} == {0}

    @pytest.mark.parametrize(("gap", "lanes"), [(3, {0, 1}), (5, {0})])
    def test_lines_that_follow_each_other_can_be_told_apart(self, gap: int, lanes: set[int]):
        pair = [slot(250.0, 1, 0.0, 500.0), slot(750.0, 1, 500.0 + gap, 1000.0)]
        assert {number for _, number in packed(pair, AXIS, 2, lambda _: 4.0)} == lanes

    def test_large_dots_keep_more_room(self):
        pair = [slot(100.0), slot(112.0)]
        lanes = [{n for _, n in packed(pair, AXIS, 2, lambda _, r=r: r)} for r in (4.0, 6.0)]
        assert lanes == [{0}, {0, 1}]


class TestTelling:
    @given(slots=many_slots(), most=st.integers(0, 9))
    def test_some_of_them_in_order_with_the_heaviest(self, slots: list[Slot], most: int):
        shown = telling(slots, AXIS, most, 150.0)
        assert len(shown) <= most
        assert len({id(one) for one in shown}) == len(shown)
        assert [one.time for one in shown] == sorted(one.time for one in shown)
        if slots and most:
            assert max(one.weight for one in shown) == max(one.weight for one in slots)

    def test_equals_are_spread(self):
        shown = telling([slot(float(n)) for n in range(0, 1000, 5)], AXIS, 5, 150.0)
        gaps = [b.time - a.time for a, b in itertools.pairwise(shown)]
        assert len(shown) == 5
        assert min(gaps) >= 150

    def test_a_heavy_one_is_not_lost_beside_a_heavier(self):
        slots = [slot(990.0, 1000), slot(995.0, 900), *(slot(float(n)) for n in range(0, 900, 90))]
        assert {one.weight for one in telling(slots, AXIS, 3, 150.0)} >= {900, 1000}

    def test_no_more_than_tell_the_story(self):
        slots = [slot(100.0, 500), slot(900.0, 495), *(slot(float(n)) for n in range(300, 305))]
        assert [one.weight for one in telling(slots, AXIS, 9, 150.0)] == [500, 495]

    def test_of_equals_the_earlier_is_shown(self):
        assert telling([slot(900.0), slot(10.0)], AXIS, 1, 150.0)[0].time == 10


class TestApart:
    @given(
        st.lists(st.floats(0, 1000), max_size=8).map(sorted), st.floats(1, 100), st.floats(0, 300)
    )
    def test_order_distance_and_bounds_hold(self, wanted: list[float], width: float, start: float):
        end = start + 900
        moved = apart(wanted, width, start, end)
        assert len(moved) == len(wanted)
        assert all(b - a >= width - 1e-6 for a, b in itertools.pairwise(moved))
        assert all(start - 1e-6 <= x <= end + 1e-6 for x in moved)

    @given(st.lists(st.floats(200, 800), min_size=1, max_size=6).map(sorted), st.data())
    def test_nothing_closer_can_be_found(self, wanted: list[float], data: st.DataObject):
        def cost(centres: list[float]) -> float:
            return sum((x - y) ** 2 for x, y in zip(centres, wanted, strict=True))

        moved = apart(wanted, 30, 0, 1000)
        extra = data.draw(st.lists(st.floats(0, 60), min_size=len(wanted), max_size=len(wanted)))
        shift = data.draw(st.floats(0, 600))
        other = [shift + sum(extra[: n + 1]) + 30 * n for n in range(len(wanted))]
        assert cost(moved) <= cost(other) + 1e-6

    def test_what_is_apart_stays(self):
        assert apart([10, 50, 90], 30, 0, 100) == [10, 50, 90]
