"""What SAM 2 selects, for any bank: in the window, in order, never the frame itself."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vismem.memory.published.sam2 import nearest_prompted, select_memories

BANKS = st.lists(st.sampled_from("pt."), min_size=1, max_size=30)


@settings(max_examples=200, derandomize=True)
@given(BANKS, st.integers(0, 29), st.integers(1, 5), st.booleans(), st.integers(2, 8))
def test_backwards_is_forwards_in_a_mirror(
    bank: list[str], frame: int, stride: int, reverse: bool, memories: int
) -> None:
    """But for multiples of a stride, which are counted from the first frame."""
    frames = len(bank)
    frame %= frames
    prompted = [t for t, kind in enumerate(bank) if kind == "p" and t != frame]
    tracked = [t for t, kind in enumerate(bank) if kind == "t" and t != frame]
    found = select_memories(
        frame, prompted, tracked, frames=frames, memories=memories, stride=stride, reverse=reverse
    )
    rows = [row for t, row in found.maps if t in tracked]
    assert rows == sorted(rows, reverse=True), "the oldest come first"
    assert len(set(found.maps)) == len(found.maps) <= len(prompted) + memories - 1
    for t, row in found.maps:
        assert (row == memories - 1) == (t in prompted)
        if t in tracked:
            assert t > frame if reverse else t < frame
    for t, ago in found.pointers:
        assert ago == (t - frame if reverse else frame - t) and ago >= 0
    if stride == 1:
        back = [frames - 1 - t for t in prompted], [frames - 1 - t for t in tracked]
        mirrored = select_memories(
            frames - 1 - frame, *back, frames=frames, memories=memories, reverse=not reverse
        )
        assert [(frames - 1 - t, row) for t, row in mirrored.maps] == list(found.maps)
        assert [(frames - 1 - t, ago) for t, ago in mirrored.pointers] == list(found.pointers)


def test_a_stride_takes_the_last_frame_and_then_multiples() -> None:
    maps = select_memories(20, [0], range(1, 20), frames=30, memories=5, stride=4).maps
    assert maps == ((0, 4), (8, 3), (12, 2), (16, 1), (19, 0))


def test_a_prompted_frame_left_out_comes_back_as_a_recent_one() -> None:
    found = select_memories(6, [0, 3, 5, 9], [1, 2, 4], frames=10, most_prompted=2)
    assert found.maps == ((5, 6), (9, 6), (0, 5), (1, 4), (2, 3), (3, 2), (4, 1))
    assert [t for t, _ in found.pointers] == [5, 4, 3, 2, 1, 0]


def test_pointers_are_not_looked_for_beyond_the_video() -> None:
    found = select_memories(3, [0], [4, 5, 6], frames=5, reverse=True, past_only=False)
    assert found.pointers == ((0, -3), (4, 1)) and found.reach == 4
    assert [t for t, _ in found.maps] == [0, 6, 5, 4], "of maps there is no such end"


def test_refuses_what_the_rule_does_not_allow() -> None:
    with pytest.raises(ValueError, match="2 prompted frames or more"):
        nearest_prompted(3, [0, 1], 1)
    with pytest.raises(ValueError, match="frame 1 is prompted and tracked"):
        select_memories(3, [0, 1], [1, 2], frames=5)
    for wrong in ({"memories": 0}, {"pointers": 0}, {"stride": 0}):
        with pytest.raises(ValueError, match="a window takes 1 or more"):
            select_memories(3, [0], [1], frames=5, **wrong)
