"""The memory of movements: the contract, what is one movement, and what goes when room is short."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from contract import MemoryContract, Observation, copied, same
from hypothesis import given, settings
from hypothesis import strategies as st
from moving_regions import CONFIG, DIM, NOWHERE, ROOM, box_at, frame, look, region
from torch import Tensor

from vismem.memory.movements import Movement, MovementConfig, MovementMemory


def memory_of(
    *frames: tuple[float, dict[str, Tensor]], rows: int = 100, config: MovementConfig = CONFIG
) -> MovementMemory:
    memory = MovementMemory(rows * config.row_bytes, config)
    for time, seen in frames:
        memory.write(time=time, **seen)
    return memory


def told(memory: MovementMemory) -> tuple[Movement, ...]:
    return memory.snapshot().movements()


def lasting(start: float, frames: int, track: int, **rest) -> list[tuple[float, dict[str, Tensor]]]:
    """A movement of a tenth of a second a frame."""
    return [(start + n / 10, region(track, **rest)) for n in range(frames)]


class TestMovementMemory(MemoryContract):
    small = 20 * ROOM + 7
    large = 400 * ROOM
    max_tokens = CONFIG.max_regions
    axes = 3

    def make(self, budget: int) -> MovementMemory:
        return MovementMemory(budget, CONFIG)

    def make_other(self, budget: int) -> MovementMemory:
        return MovementMemory(budget, MovementConfig(look_dim=DIM + 1))

    def observation(self, number: int, seed: int = 0) -> Observation:
        track = number // 3
        place = (0.1 * number, float(seed), 1.0) if track % 2 else NOWHERE
        seen = region(
            track % 50,
            kind=track // 2 + seed,  # neighbours are alike, two by two
            box=box_at(0.1 + number % 8 / 10),
            position=place,
            score=0.5 + track % 5 / 10,
            labels={number % 4: 0.8, 7: 0.4},
        )
        return {"time": number * 0.9, **seen}

    def query(self) -> Tensor:
        return look(3)

    def hostile(self, good: Observation) -> Mapping[str, Observation]:
        fields = set(good) - {"tokens", "time"}
        part = torch.tensor([[0.0, math.nan, 1.0]], dtype=torch.float64)
        regions = {name: value for name, value in good.items() if name != "time"}
        twice = {name: value.repeat_interleave(2, 0) for name, value in regions.items()}
        return (
            {f"no {name}": {k: v for k, v in good.items() if k != name} for name in fields}
            | {f"two {name}": good | {name: good[name].repeat(2, 1)} for name in ("box", "label")}
            | {f"NaN in {n}": good | {n: good[n] * math.nan} for n in ("box", "score")}
            | {f"{n} of 2": good | {n: good[n] * 0 + 2} for n in ("score", "label_score")}
            | {f"{n} below 0": good | {n: good[n] * 0 - 2} for n in ("id", "score", "label")}
            | {f"{n} as a fraction": good | {n: good[n] + 0.5} for n in ("id", "label")}
            | {
                "a box from right to left": good | {"box": good["box"].flip(1)},
                "a label beyond int16": good | {"label": good["label"].int() + 2**15},
                "a part of a position": good | {"position": part},
                "an infinite position": good | {"position": part.nan_to_num() / 0},
                "strange": good | {"mood": torch.zeros(1)},
                "one number twice": {"time": good["time"], **twice},
            }
        )


# ------------------------------------------------------------------ what is one movement


def test_a_movement_from_its_start_to_its_end() -> None:
    frames = [
        (n / 10, region(3, box=box_at(0.2 + n / 20), position=(0.1 * n, 0, 1), score=score))
        for n, score in enumerate((0.5, 0.9, 0.7))
    ]
    (one,) = told(memory_of(*frames))
    assert (one.start, one.end, one.frames, one.count, one.track) == (0, 0.2, 3, 1, 3)
    assert one.score == pytest.approx(0.9) and one.best.time == 0.1
    assert one.first.box == pytest.approx(box_at(0.2)) and one.last.box == pytest.approx(
        box_at(0.3)
    )
    assert one.box == pytest.approx((0.15, 0.4, 0.35, 0.6))
    assert one.first.position == (0, 0, 1) and one.last.position == pytest.approx((0.2, 0, 1))
    assert one.path == pytest.approx(0.2)
    assert [point.time for point in one.way] == [0, 0.1, 0.2]


def test_within_the_gap_it_goes_on_and_beyond_it_is_another() -> None:
    memory = memory_of((0.0, region(1)), (2.0, region(1)), (4.5, region(1)))
    assert [(m.start, m.end, m.track) for m in told(memory)] == [(0, 2, 1), (4.5, 4.5, 1)]
    assert [m.id for m in told(memory)] == [0, 1]


def test_other_numbers_are_other_movements_in_any_order() -> None:
    one, other = region(4, kind=1), region(2, kind=2)
    memory = memory_of((0.0, frame(one, other)), (0.1, frame(other, one)), (0.2, other))
    first, second = told(memory)
    assert (first.track, first.frames, second.track, second.frames) == (4, 2, 2, 3)
    assert torch.equal(first.look.float(), look(1)) and torch.equal(second.look.float(), look(2))


def test_a_write_tells_whether_a_movement_began() -> None:
    memory = memory_of((0.0, region(1)))
    assert not memory.write(time=0.1, **region(1)).boundary
    assert memory.write(time=0.2, **frame(region(1), region(2))).boundary


def test_standing_still_makes_no_way_however_noisy() -> None:
    noise = torch.Generator().manual_seed(0)
    jitter = (0.01 * torch.randn(200, 3, generator=noise, dtype=torch.float64)).tolist()
    (one,) = told(memory_of(*((n / 10, region(position=p)) for n, p in enumerate(jitter))))
    assert one.path < 0.3  # the sum of all steps is over 3 m


def test_an_unknown_place_interrupts_no_way() -> None:
    places = [(0.0, 0.0, 1.0), NOWHERE, (0.3, 0.0, 1.0)]
    (one,) = told(memory_of(*((n / 10, region(position=p)) for n, p in enumerate(places))))
    assert one.path == pytest.approx(0.3)
    assert one.way[1].position is None and one.last.position == pytest.approx((0.3, 0, 1))
    (late,) = told(memory_of((0.0, region()), (0.1, region(position=(1, 2, 3)))))
    assert late.path == 0 and late.first.position is None


@settings(max_examples=30, derandomize=True)
@given(st.integers(1, 150), st.integers(2, 9))
def test_waypoints_are_few_and_even(frames: int, room: int) -> None:
    config = MovementConfig(look_dim=DIM, waypoints=room)
    memory = memory_of(
        *((n / 10, region(box=box_at(n / 1000))) for n in range(frames)), config=config
    )
    (one,) = told(memory)
    assert one.way[0].time == one.start == 0 and one.way[-1].time == one.end
    assert len(one.way) >= min(frames, room // 2)
    assert len(one.way) <= room + 1  # the last sighting is told as well
    steps = [b.time - a.time for a, b in zip(one.way[:-1], one.way[1:], strict=True)]
    assert all(step <= 2 * steps[0] + 1e-9 for step in steps[:-1])
    assert all(p.box == pytest.approx(box_at(p.time / 100), abs=1e-6) for p in one.way)


def test_labels_are_voted_over_all_frames() -> None:
    frames = [
        region(labels={5: 0.9}), region(labels={5: 0.3, 6: 0.4}), region(labels={6: 0.4}), region(),
    ]  # fmt: skip
    (one,) = told(memory_of(*((n / 10, seen) for n, seen in enumerate(frames))))
    assert list(one.labels) == [5, 6]
    assert one.labels[5] == pytest.approx(math.sqrt(0.9 * 1.2 / 4))
    assert one.labels[6] == pytest.approx(math.sqrt(0.4 * 0.8 / 4))


def test_a_label_given_twice_in_one_frame_counts_once() -> None:
    seen = region(labels={5: 0.6, 6: 0.5})
    seen["label"][0, 1] = 5
    (one,) = told(memory_of((0.0, seen)))
    assert one.labels == pytest.approx({5: 0.6})


def test_the_labels_of_the_largest_sums_are_kept() -> None:
    often = [
        region(labels={1: 0.5, 2: 0.2 + number / 100, 10 + number: 0.1}) for number in range(9)
    ]
    (one,) = told(memory_of(*((n / 10, seen) for n, seen in enumerate(often))))
    assert len(one.labels) == CONFIG.votes and list(one.labels)[:2] == [1, 2]
    assert one.labels[1] == pytest.approx(0.5)


# ------------------------------------------------------------------ where room is short


def test_what_was_seen_once_goes_first() -> None:
    flicker = (9.0, region(9, kind=5, score=1.0))  # 1 and 2 are alike and might be joined
    kept = [*lasting(0, 5, 1, score=0.1), *lasting(6, 5, 2), flicker, *lasting(12, 5, 3)]
    assert [m.track for m in told(memory_of(*kept, rows=3))] == [1, 2, 3]


def test_what_has_no_score_at_all_was_somewhere_all_the_same() -> None:
    (one,) = told(memory_of(*lasting(1, 3, 1, score=0.0)))
    assert one.best == one.first and one.score == 0


def test_the_two_most_alike_in_a_row_are_told_as_one() -> None:
    frames = [
        *lasting(0, 5, 1, kind=1, score=0.6, labels={4: 0.5}, box=box_at(0.2)),
        *lasting(5, 10, 2, kind=1, score=0.9, labels={4: 0.8}, box=box_at(0.8)),
        *lasting(12, 5, 3, kind=2),
        *lasting(20, 5, 4, kind=3),
    ]
    memory = memory_of(*frames, rows=3)
    one, _, _ = told(memory)
    assert (one.id, one.count, one.frames) == (0, 2, 15)
    assert (one.start, one.end, one.best.time) == (0, 5.9, 5)
    assert one.score == pytest.approx(0.9) and one.labels[4] == pytest.approx(math.sqrt(0.56))
    assert one.box == pytest.approx((0.15, 0.4, 0.85, 0.6))
    assert one.first.box == pytest.approx(box_at(0.2)) and one.last.box == pytest.approx(
        box_at(0.8)
    )
    assert len(one.way) == CONFIG.waypoints + 1  # the last sighting is told as well
    assert one.way[0].time == 0 and one.way[-1].time == 5.9
    assert [p.time for p in one.way] == sorted(p.time for p in one.way)


@pytest.mark.parametrize("apart", ["look", "pause", "both at once", "length"])
def test_what_is_not_alike_or_not_in_a_row_stays_apart(apart: str) -> None:
    kind = 2 if apart == "look" else 1
    begin = {"pause": 20.0, "both at once": 1.0, "length": 60.0}.get(apart, 8.0)
    before = [(n * 1.5, region(1, kind=1)) for n in range(37)] if apart == "length" else []
    first = before or lasting(0, 20, 1, kind=1)
    frames = sorted(
        [*first, *lasting(begin, 20, 2, kind=kind, score=0.8), *lasting(90, 3, 3, kind=4)],
        key=lambda seen: seen[0],
    )
    memory = memory_of(rows=2)
    for time, seen in frames:
        report = memory.write(time=time, **seen)
        assert not report.merged
    assert [m.count for m in told(memory)] == [1, 1]
    assert [m.track for m in told(memory)] == [1, 3]  # the weaker one went


def test_what_goes_on_is_kept_unless_it_is_all_there_is() -> None:
    strong, weak = lasting(0, 20, 1, score=1.0), lasting(9, 3, 2, kind=1, score=0.1)
    assert [m.track for m in told(memory_of(*strong, *weak, rows=1))] == [2]
    both = [(n / 10, frame(region(1, score=0.2), region(2, kind=1))) for n in range(5)]
    assert [m.track for m in told(memory_of(*both, rows=1))] == [2]


def test_another_budget_is_taken_at_once() -> None:
    memory = memory_of(*lasting(0, 5, 1, kind=1), *lasting(5, 5, 2, kind=1), *lasting(30, 5, 3))
    snapshot = memory.snapshot()
    report = memory.set_budget(2 * ROOM)
    assert (report.merged, report.dropped, report.nbytes) == (1, 0, 2 * ROOM)
    report = memory.set_budget(ROOM)
    assert (report.merged, report.dropped) == (0, 1) and [m.track for m in told(memory)] == [3]
    assert [m.frames for m in snapshot.movements()] == [5, 5, 5]


# ------------------------------------------------------------------ forgetting


def test_forgetting_a_span_takes_all_that_touches_it() -> None:
    memory = memory_of(*lasting(0, 11, 1), *lasting(5, 11, 2))
    assert memory.oldest == 0 and memory.last_time == 6
    assert memory.forget(1.01, 4.9) == 0
    assert memory.forget(0.9, 4) == 1 and [m.track for m in told(memory)] == [2]
    assert memory.forget(6, 7) == 1 and memory.oldest == math.inf


def test_what_is_old_expires_and_the_rest_knows_nothing_of_that_time() -> None:
    long = [(n / 10, region(2, box=box_at(n / 100), score=1 - n / 100)) for n in range(60)]
    memory = memory_of(*lasting(0, 1, 1), *long[1:])
    snapshot = memory.snapshot()
    assert memory.expire(3.05) == 2
    (one,) = told(memory)
    assert one.start == 3.05 and memory.oldest == 3.05 and one.end == 5.9
    assert all(point.time >= 3.05 for point in one.way) and one.best.time == 5.9
    assert one.first.box == one.way[0].box
    assert len(snapshot.movements()) == 2 and snapshot.movements()[1].start == 0.1
    memory.write(time=6.0, **region(2))  # goes on
    assert told(memory)[0].end == 6.0
    assert memory.expire(0.0) == 0


def test_what_expires_but_for_its_last_sighting_begins_there() -> None:
    memory = memory_of(*lasting(0, 12, 1))
    memory.expire(1.05)
    (one,) = told(memory)
    assert (one.start, one.end, one.best.time) == (1.05, pytest.approx(1.1), pytest.approx(1.1))
    assert [point.time for point in one.way] == [pytest.approx(1.1)]


# ------------------------------------------------------------------ reading and state


def test_the_most_alike_are_read_in_order_of_time() -> None:
    memory = memory_of(
        *lasting(0, 2, 1, kind=1), *lasting(3, 3, 2, kind=2), *lasting(6, 1, 3, kind=1)
    )
    recall = memory.read(look(1), k=2)
    assert recall.times.tolist() == [0.1, 6] and recall.weights.tolist() == [2, 1]
    assert recall.scores.tolist() == pytest.approx([1, 1]) and recall.sources.tolist() == [1, 5]
    assert memory.read(k=1).times.tolist() == [6]


def test_states_go_on_where_movements_are_joined_and_given_up() -> None:
    frames = [
        seen
        for n in range(8)
        for seen in lasting(5.0 * n, 1 + n % 3, n % 2, kind=n // 2, score=0.8)
    ]
    whole = memory_of(*frames, rows=3)
    for cut in range(len(frames)):
        memory = memory_of(rows=3)
        memory.load_state_dict(copied(memory_of(*frames[:cut], rows=3).state_dict()))
        for time, seen in frames[cut:]:
            memory.write(time=time, **seen)
        assert same(memory.state_dict(), whole.state_dict())


@pytest.mark.parametrize("wrong", [{"look_dim": 0}, {"waypoints": 1}, {"gap": -1.0}, {"votes": 0}])
def test_a_config_out_of_range_is_refused(wrong: dict) -> None:
    with pytest.raises(ValueError):
        MovementConfig(**{"look_dim": DIM, **wrong})
