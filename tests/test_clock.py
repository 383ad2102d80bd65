from __future__ import annotations

from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vismem.clock import REORDER, StreamClock


def run(clock: StreamClock, raws: list[float]) -> list[float | None]:
    """Times of all frames; every frame that did not come late is accepted."""
    times = []
    for raw in raws:
        at = clock.time_of(raw)
        times.append(at)
        if at is not None:
            clock.accept(raw, at)
    return times


@pytest.mark.parametrize(
    ("raws", "times"),
    [
        ([5.0, 5.5, 5.5, 6.0], [5.0, 5.5, 5.5, 6.0]),
        ([0.0, 100.0, 1e6], [0.0, 100.0, 1e6]),  # pauses
        ([-3.0, 0.0], [-3.0, 0.0]),
        ([10.0, 9.5, 9.0, 10.5], [10.0, None, None, 10.5]),  # out of order
        ([10.0, 10.5, 2.0, 2.5, 4.0], [10.0, 10.5, 11.0, 11.5, 13.0]),  # set back
        ([10.0, 2.0, 2.5], [10.0, 10.0, 10.5]),  # set back before a step is known
        ([50.0, 50.5, 10.0, 10.5, 0.0], [50.0, 50.5, 51.0, 51.5, 52.0]),  # twice
        ([50.0, 50.5, 10.0, 9.5], [50.0, 50.5, 51.0, None]),  # late, by the new clock
        ([0.0, 600.0, 100.0], [0.0, 600.0, 601.0]),  # a pause is no usual step
    ],
)
def test_times(raws: list[float], times: list[float | None]) -> None:
    assert run(StreamClock(), raws) == times


def test_one_second_back_is_late_and_more_is_a_clock_set_back() -> None:
    assert run(StreamClock(), [10.0, 10.0 - REORDER])[1] is None
    assert run(StreamClock(), [10.0, 9.9 - REORDER])[1] is not None


def test_only_a_clock_set_back_is_told() -> None:
    clock = StreamClock()
    told = []
    for raw in (10.0, 10.5, 700.0, 3.0, 3.5):
        at = clock.time_of(raw)
        assert at is not None
        told.append(clock.accept(raw, at))
    assert told == [False, False, False, True, False]


def test_asking_changes_nothing() -> None:
    clock = StreamClock()
    run(clock, [7.0, 7.5, 2.0])
    before = asdict(clock)
    for raw in (0.0, 2.1, 99.0):
        clock.time_of(raw)
    assert asdict(clock) == before


times = st.floats(-1e7, 1e7, allow_nan=False)


@settings(max_examples=200, derandomize=True)
@given(st.lists(times, max_size=40), st.integers(0, 40))
def test_time_never_runs_backwards_and_survives_a_restart(raws: list[float], cut: int) -> None:
    whole = run(StreamClock(), raws)
    given_out = [at for at in whole if at is not None]
    assert given_out == sorted(given_out)
    first = StreamClock()
    before = run(first, raws[:cut])
    assert before + run(StreamClock(**asdict(first)), raws[cut:]) == whole


@settings(max_examples=100, derandomize=True)
@given(st.lists(st.floats(0.04, 5.0), min_size=2, max_size=20), st.floats(10.0, 1e5))
def test_after_a_clock_set_back_steps_are_kept(steps: list[float], back: float) -> None:
    raws = [1e5]
    for step in steps:
        raws.append(raws[-1] + step)
    moved = [raw - back - sum(steps) for raw in raws]
    at = run(StreamClock(), raws + moved)[len(raws) :]
    assert [b - a for a, b in zip(at, at[1:], strict=False)] == pytest.approx(steps, abs=1e-6)
