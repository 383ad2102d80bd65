from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from contract import MemoryContract, Observation, same
from feature_streams import axes, memory_of, noise, scores_of, write
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vismem.memory.feature import FeatureConfig, FeatureMemory

SIZES: dict[str, Any] = {"dim": 6, "max_tokens": 5}
PLENTY = 10**7
POLICIES = ["score", "fifo", "random", "reservoir"]


class FeatureContract(MemoryContract):
    small = 100 * FeatureConfig(**SIZES).row_bytes
    large = PLENTY
    max_tokens = 5
    evict: Any

    def make(self, budget: int) -> FeatureMemory:
        return FeatureMemory(FeatureConfig(**SIZES, evict=self.evict), budget)

    def make_other(self, budget: int) -> FeatureMemory:
        return FeatureMemory(FeatureConfig(**SIZES, evict=self.evict, quota=3), budget)

    def observation(self, number: int, seed: int = 0) -> Observation:
        noise = torch.Generator().manual_seed(1000 * seed + number)
        corner = 0.5 * torch.rand(1, 2, generator=noise)
        return {
            # One row a write: `write_many` takes as many of each, `k` counts rows.
            "tokens": torch.randn(1, 6, generator=noise),
            "time": 7.0 + 0.5 * (number - number % 2),
            "scores": torch.rand(1, generator=noise),
            "boxes": torch.cat([corner, corner + 0.3], 1),
            "labels": torch.tensor([number % 4]),
        }

    def query(self) -> Tensor:
        return torch.ones(6)

    def hostile(self, good: Observation) -> Mapping[str, Observation]:
        return {
            "scores: NaN": good | {"scores": torch.tensor([torch.nan])},
            "scores: logits": good | {"scores": torch.tensor([1.5])},
            "scores: negative": good | {"scores": torch.tensor([-0.1])},
            "scores: too many": good | {"scores": torch.ones(2)},
            "boxes: NaN": good | {"boxes": torch.full((1, 4), torch.nan)},
            "boxes: pixels": good | {"boxes": torch.tensor([[4.0, 4.0, 99.0, 80.0]])},
            "boxes: corners swapped": good | {"boxes": torch.tensor([[0.5, 0.0, 0.4, 1.0]])},
            "boxes: one dimension": good | {"boxes": torch.zeros(4)},
            "labels: fractions": good | {"labels": torch.tensor([1.0])},
            "labels: too many": good | {"labels": torch.tensor([1, 2])},
            "nothing at all": {"tokens": torch.empty(0, 6), "time": good["time"]},
        }


class TestScore(FeatureContract):
    evict = "score"


class TestFifo(FeatureContract):
    evict = "fifo"
    test_fifty_thousand_writes_keep_bytes_and_cost_flat = None  # minutes; the same ring as below


class TestRandom(FeatureContract):
    evict = "random"
    test_fifty_thousand_writes_keep_bytes_and_cost_flat = None  # minutes; the same ring as below


class TestReservoir(FeatureContract):
    evict = "reservoir"


# --------------------------------------------------------------------------- who enters, who stays


def test_the_best_rows_stay() -> None:
    memory = memory_of(3)
    for time, scores in enumerate([[0.5, 0.9], [0.7, 0.2], [0.6], [0.8]]):
        write(memory, time, scores)
    assert scores_of(memory) == [0.9, 0.7, 0.8]
    assert memory.snapshot().times.tolist() == [0, 1, 3]


def test_of_one_frame_the_quota_enters_best_first() -> None:
    memory = memory_of(100, quota=3)
    write(memory, 0.0, [0.1, 0.8, 0.3, 0.9, 0.2])
    write(memory, 1.0, [0.4])
    assert scores_of(memory) == [0.9, 0.8, 0.3, 0.4]


def test_an_old_row_is_worth_less_with_every_half_life() -> None:
    for half_life, stays in ((10.0, 0.3), (40.0, 0.9), (float("inf"), 0.9)):
        memory = memory_of(1, half_life=half_life)
        write(memory, 0.0, [0.9])
        write(memory, 30.0, [0.3])
        assert scores_of(memory) == [stays]


def test_at_wall_clock_times_the_score_still_counts() -> None:
    memory = memory_of(2)
    for number, score in enumerate([0.5, 0.50001, 0.49999]):
        write(memory, 1.8e9 + 1e-3 * number, [score])
    assert memory.snapshot().sources.tolist() == [0, 1]


def test_of_equals_the_older_leaves() -> None:
    memory = memory_of(3, half_life=float("inf"))
    for time in range(6):
        write(memory, time, [0.5])
    assert memory.snapshot().times.tolist() == [3, 4, 5]
    unsure = memory_of(2)
    for time in range(4):
        write(unsure, time, [0.0])
    assert unsure.snapshot().times.tolist() == [2, 3]


def test_doubles_in_a_frame_enter_once() -> None:
    looks = torch.cat([axes(0, 0, 1), axes(0) + 0.1 * axes(1)])
    here, beside = [0.1, 0.1, 0.3, 0.3], [0.6, 0.1, 0.8, 0.3]
    memory = memory_of(100)
    memory.write(
        looks,
        0.0,
        scores=torch.tensor([0.5, 0.9, 0.4, 0.6]),
        boxes=torch.tensor([here, here, here, beside]),
    )
    assert scores_of(memory) == [0.9, 0.6, 0.4]  # another place, another look
    anywhere = memory_of(100, overlap=0.0)
    anywhere.write(looks, 0.0, scores=torch.tensor([0.5, 0.9, 0.4, 0.6]))
    assert scores_of(anywhere) == [0.9, 0.4]
    nowhere = memory_of(100)
    nowhere.write(looks, 0.0)  # without boxes all is at one place
    assert len(nowhere) == 2


def test_a_row_like_a_better_one_a_moment_ago_does_not_enter() -> None:
    memory = memory_of(100, recent=3)
    for time in range(8):
        memory.write(axes(0), float(time), scores=torch.tensor([0.5]))
    assert memory.snapshot().times.tolist() == [0, 4]  # once in a while it does
    alone = memory_of(9, recent=0)
    for time in range(3):
        alone.write(axes(0), float(time))
    assert len(alone) == 3


def test_what_a_better_row_stands_for_leaves_first() -> None:
    memory = memory_of(3)
    memory.write(axes(0), 0.0, scores=torch.tensor([0.7]))
    memory.write(axes(1), 1.0, scores=torch.tensor([0.3]))
    memory.write(axes(0), 2.0, scores=torch.tensor([0.8]))
    assert scores_of(memory) == [0.7, 0.3, 0.8]
    memory.write(axes(2), 3.0, scores=torch.tensor([0.2]))
    assert scores_of(memory) == [0.3, 0.8, 0.2]


def test_rows_without_length_and_boxes_without_area() -> None:
    """What a detector gives for a picture of one pixel."""
    memory = memory_of(100)
    memory.write(torch.zeros(3, 6), 0.0, boxes=torch.zeros(3, 4))
    assert len(memory) == 3
    assert torch.isfinite(memory.read(torch.zeros(6)).scores).all()


def test_first_in_first_out() -> None:
    memory = memory_of(4, evict="fifo")
    for time in range(5):
        write(memory, time, [0.9 - 0.1 * time, 0.2, 0.1])
    assert memory.snapshot().times.tolist() == [3, 4, 4, 4]
    assert scores_of(memory)[0] == 0.6  # of the oldest frame the best stays longest


def test_random_keeps_what_is_new_and_never_passes_the_capacity() -> None:
    memory = memory_of(10, evict="random")
    for time in range(50):
        write(memory, time, [0.5] * 3)
        assert len(memory) <= 10
        assert memory.snapshot().times.tolist()[-3:] == [time] * 3
    write(memory, 50.0, [n / 100 for n in range(20)])  # more than it holds: the best of them
    assert scores_of(memory) == [n / 100 for n in range(10, 20)]


def test_nothing_detected_wipes_nothing() -> None:
    for evict in POLICIES:
        memory = memory_of(4, evict=evict)
        write(memory, 0.0, [0.5] * 4)
        before = memory.snapshot().tokens
        assert memory.skip(1.0).nbytes == memory.nbytes
        assert torch.equal(memory.snapshot().tokens, before)
        with pytest.raises(ValueError, match="backwards"):
            memory.skip(0.5)
        write(memory, 2.0, [0.9])
        assert memory.snapshot().sources.max() == 2  # a skipped frame counts


def test_the_reservoir_is_fair_and_random_is_not() -> None:
    """How often the first quarter of 40 rows is held: a quarter of the time, or hardly ever."""
    share = {}
    for evict in ("reservoir", "random"):
        early = 0
        for seed in range(60):
            memory = memory_of(10, evict=evict, seed=seed)
            for time in range(40):
                write(memory, time, [0.5], seed=0)
            early += int((memory.snapshot().times < 10).sum())
        share[evict] = early / 600
    assert share["reservoir"] == pytest.approx(0.25, abs=0.06)
    assert share["random"] < 0.1


def test_another_seed_is_another_choice() -> None:
    held = []
    for seed in (0, 0, 1):
        memory = memory_of(10, evict="reservoir", seed=seed)
        for time in range(40):
            write(memory, time, [0.5])
        held.append(memory.snapshot().times.tolist())
    assert held[0] == held[1] != held[2]


@settings(max_examples=30, derandomize=True)
@given(
    st.sampled_from(POLICIES),
    st.integers(0, 9),
    st.integers(1, 5),
    st.lists(st.lists(st.integers(0, 100), min_size=0, max_size=12), min_size=1, max_size=15),
)
def test_rows_stay_true_and_within_bounds(
    evict: Any, capacity: int, quota: int, frames: list[list[int]]
) -> None:
    memory = memory_of(capacity, evict=evict, quota=quota)
    looks, lost, entered = {}, 0, 0
    for time, scores in enumerate(frames):
        if not scores:
            memory.skip(float(time))
            continue
        given = noise(len(scores), 6, seed=time).half()
        looks[time] = given
        before = len(memory)
        report = memory.write(given, float(time), scores=torch.tensor(scores) / 100)
        lost += report.dropped
        entered = len(memory) + lost
        most = quota if evict == "score" else len(scores)
        assert before <= len(memory) <= min(capacity, before + most)
    snapshot = memory.snapshot()
    assert entered <= sum(map(len, frames))
    for token, time, score, source in zip(
        snapshot.tokens, snapshot.times, snapshot.scores, snapshot.sources, strict=True
    ):
        place = (looks[int(time)] == token).all(1).nonzero()  # a row goes with what belongs to it
        assert len(place) and source == int(time)
        assert score.item() == pytest.approx(frames[int(time)][int(place[0])] / 100)


def test_ten_thousand_boxes_are_refused_or_held_to_the_quota() -> None:
    looks = noise(10_000, 6)
    with pytest.raises(ValueError, match="1 to 300 tokens, not 10000"):
        FeatureMemory(FeatureConfig(dim=6), "1MB").write(looks, 0.0)
    memory = FeatureMemory(FeatureConfig(dim=6, max_tokens=10_000), "1MB")
    memory.write(looks, 0.0, scores=torch.linspace(0, 1, 10_000))
    assert len(memory) == 8 and memory.snapshot().scores.min() > 0.99


def test_another_stream_begins_with_a_reset() -> None:
    memory = memory_of(20)
    write(memory, 100.0, [0.9])
    with pytest.raises(ValueError, match="backwards"):
        write(memory, 0.0, [0.9])
    memory.reset()
    write(memory, 0.0, [0.9])
    assert memory.snapshot().times.tolist() == [0.0] and memory.snapshot().sources.tolist() == [0]


def test_what_was_not_said_is_neutral() -> None:
    memory = memory_of(5)
    memory.write(axes(0), 0.0)
    row = memory.snapshot()
    assert row.scores.tolist() == [1.0] and row.labels.tolist() == [-1]
    assert row.boxes.tolist() == [[0.0, 0.0, 1.0, 1.0]]


def test_gradients_and_other_types_stay_outside() -> None:
    memory = memory_of(5)
    tokens = axes(0, 1).double().requires_grad_()
    scores = torch.tensor([0.5, 0.25], dtype=torch.bfloat16)
    labels = torch.tensor([1, 2], dtype=torch.int32)
    memory.write(tokens, 0.0, scores=scores, boxes=torch.zeros(2, 4).double(), labels=labels)
    row = memory.snapshot()
    assert row.tokens.dtype == torch.float16 and not row.tokens.requires_grad
    assert row.scores.tolist() == [0.5, 0.25] and row.labels.tolist() == [1, 2]


@pytest.mark.parametrize(
    "wrong",
    [{"dim": 0}, {"max_tokens": 0}, {"quota": 0}, {"recent": -1}, {"half_life": 0.0}]
    + [{"evict": "oldest"}, {"half_life": float("nan")}],
)
def test_sizes_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        FeatureConfig(**{"dim": 3} | wrong)


def test_a_state_that_does_not_fit_is_refused() -> None:
    memory = memory_of(8)
    write(memory, 0.0, [0.5] * 8)
    state = memory.state_dict()
    with pytest.raises(ValueError, match="8 rows, the budget 7"):
        memory_of(7).load_state_dict(state)
    for name in ("boxes", "worth"):
        for broken in (state[name][1:], state[name].long()):
            with pytest.raises(ValueError, match=name):
                memory.load_state_dict(state | {name: broken})
    assert same(memory.state_dict(), state)
