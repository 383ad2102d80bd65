"""`PyramidMemory` keeps the contract, the newest frames sharp, and something of everything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from contract import Observation, copied, same
from hypothesis import given, settings
from hypothesis import strategies as st
from slot_contract import DIM, EMBEDDING, SlotContract, noise
from torch import Tensor

from vismem.memory.base import Recall
from vismem.memory.observations import OVERHEAD as KEPT_OVERHEAD
from vismem.memory.published.pyramid import PublishedPyramid, PublishedPyramidConfig
from vismem.memory.pyramid import OVERHEAD, PyramidConfig, PyramidMemory, _Entry
from vismem.memory.slots import pool_grid

TOKENS = 12
GRIDS = [(3, 4), (4, 3), (2, 6), (1, 12)]


class TestPyramidMemory(SlotContract):
    small, large, max_tokens = 4_000, 400_000, TOKENS

    def make(self, budget: int) -> PyramidMemory:
        return PyramidMemory(PyramidConfig(DIM, TOKENS, 3, EMBEDDING, max_note=40), budget)

    def make_other(self, budget: int) -> PyramidMemory:
        return PyramidMemory(PyramidConfig(DIM, TOKENS, 4, EMBEDDING, max_note=40), budget)

    def observation(self, number: int, seed: int = 0) -> Observation:
        return super().observation(number, seed) | {
            "time": 0.5 * (number - number % 2),  # two frames at a time
            "grid": GRIDS[number // 3 % len(GRIDS)],
        }


# ---------------------------------------------------------------------------- building streams

X, Y, Z = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]
WIDTH = 30
FRAME = 16 * WIDTH * 2 + OVERHEAD + KEPT_OVERHEAD  # bytes of 4 x 4 tokens in float16
QUARTER = WIDTH * 2 + OVERHEAD + KEPT_OVERHEAD  # of one token


def color(mean: Sequence[float]) -> Tensor:
    return torch.tensor(mean).repeat(WIDTH // 3).expand(16, WIDTH)


def write(memory: PyramidMemory, means: Sequence[Sequence[float]], start: int = 0) -> PyramidMemory:
    for number, mean in enumerate(means, start):
        memory.write(color(mean), time=float(number))
    return memory


def levels(memory: PyramidMemory) -> list[list[int]]:
    """Numbers of the writes on each level."""
    sides = {4: 0, 2: 1, 1: 2}
    found: list[list[int]] = [[] for _ in range(memory.config.levels)]
    for slot in memory.snapshot().slots():
        found[sides[slot.grid[0]]].append(slot.source)
    return found


def make(budget: int, **more: object) -> PyramidMemory:
    return PyramidMemory(PyramidConfig(token_dim=WIDTH, **more), budget)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------- the rule


def test_all_is_sharp_until_the_budget_is_full() -> None:
    memory = write(make(10 * FRAME), [X, Y] * 5)
    assert levels(memory) == [list(range(10)), [], []] and memory.nbytes == 10 * FRAME
    write(memory, [Z], 10)
    assert levels(memory)[1] and memory.nbytes <= 10 * FRAME


def test_the_earlier_of_the_most_similar_neighbours_goes_down() -> None:
    memory = write(make(4 * FRAME), [X, Y, Z, Z, X])  # 2 and 3 are alike
    # One is not enough; 0, 1, 3 and 4 are all as different, so that the first goes next.
    assert levels(memory) == [[1, 3, 4], [0, 2], []]


def test_what_comes_down_late_is_put_where_it_belongs_in_time() -> None:
    """The published bank puts it behind later frames and compares it with those."""
    memory = write(make(6 * FRAME, shares=(1, 9, 1)), [X, Y, Z, Z, Y, X, X, Y, Z, X, Y, Z])
    for _ in range(3):
        sources = [entry.kept.source for entry in memory._entries]
        assert sources == sorted(sources)
        write(memory, [X, Y], memory._writes)
    assert sum(slot.weight for slot in memory.snapshot().slots()) == 18


def test_on_the_coarsest_level_neighbours_are_merged_and_add_up() -> None:
    memory = PyramidMemory(PyramidConfig(token_dim=WIDTH, levels=1, embedding_dim=2), 3 * FRAME - 1)
    like_x = [1.0, 0.375, 0.0]
    for number, mean in enumerate([X, like_x, like_x]):
        embedding = torch.tensor([1.0, 0.0] if mean == X else [0.0, 1.0])
        memory.write(color(mean), time=float(number), embedding=embedding)
    first, newest = memory.snapshot().slots()
    # Though 1 and 2 are alike: the newest is not merged while there is another pair.
    assert (first.weight, first.first, first.last, first.time) == (2, 0.0, 1.0, 0.0)
    assert first.tokens[0, :3].tolist() == [1.0, 0.1875, 0.0]
    assert first.embedding.float().norm() == pytest.approx(1.0, abs=1e-3)
    assert first.embedding[0] == first.embedding[1]
    assert newest.weight == 1 and newest.tokens[0, :3].tolist() == like_x
    report = memory.write(color(Z), time=3.0, embedding=torch.tensor([0.0, 1.0]))
    first, newest = memory.snapshot().slots()
    assert report.merged == 1 and report.dropped == 0
    assert (first.weight, first.last) == (3, 2.0) and newest.tokens[0, :3].tolist() == Z
    torch.testing.assert_close(
        first.tokens[0, :3].float(), torch.tensor([1.0, 0.25, 0.0]), atol=1e-3, rtol=0
    )


def test_the_mean_of_two_scenes_that_are_not_alike_would_be_neither() -> None:
    memory = PyramidMemory(PyramidConfig(token_dim=WIDTH, levels=1), 3 * FRAME - 1)
    write(memory, [X, Y, Y, Z])
    first, newest = memory.snapshot().slots()
    assert first.tokens[0, :3].tolist() == X  # its own, not a mixture
    assert (first.weight, first.first, first.last) == (3, 0.0, 2.0)
    assert newest.tokens[0, :3].tolist() == Z


def test_the_heavier_stands_for_both() -> None:
    memory = PyramidMemory(PyramidConfig(token_dim=WIDTH, levels=1, max_note=4), 2 * (FRAME + 1))
    for number, mean in enumerate([X, Y, Y]):
        memory.write(color(mean), time=float(number), note=bytes([number]))
    assert memory.snapshot().slots()[0].note == b"\0"
    memory.write(color(Y), time=3.0, note=b"\3")
    first = memory.snapshot().slots()[0]
    assert (first.weight, first.source, first.time, first.note) == (3, 0, 0.0, b"\0")


def test_notes_are_joined_by_what_was_given() -> None:
    calls = []

    def join(note: bytes, weight: int, other: bytes, others: int) -> bytes:
        calls.append((note, weight, other, others))
        return note + other

    config = PyramidConfig(token_dim=WIDTH, levels=1, max_note=4)
    memory = PyramidMemory(config, 2 * (FRAME + 4), join)
    for number in range(4):
        memory.write(color(X), time=float(number), note=bytes([65 + number]))
    assert calls == [(b"A", 1, b"B", 1), (b"AB", 2, b"C", 1)]
    assert [slot.note for slot in memory.snapshot().slots()] == [b"ABC", b"D"]


def test_frames_of_other_grids_are_merged_on_the_coarser_of_both() -> None:
    memory = PyramidMemory(PyramidConfig(token_dim=WIDTH, levels=1, max_tokens=15), 1500)
    memory.write((noise(15, WIDTH, seed=1) + 9), time=0.0, grid=(5, 3))
    memory.write((noise(8, WIDTH, seed=2) + 9), time=1.0, grid=(2, 4))
    memory.write(noise(1, WIDTH, seed=3), time=2.0, grid=(1, 1))
    first = memory.snapshot().slots()[0]
    assert first.grid == (2, 3) and first.weight == 2
    means = [
        pool_grid((noise(15, WIDTH, seed=1) + 9).half().float(), (5, 3), (2, 3)),
        pool_grid((noise(8, WIDTH, seed=2) + 9).half().float(), (2, 4), (2, 3)),
    ]
    torch.testing.assert_close(first.tokens.float(), sum(means) / 2, atol=1e-2, rtol=0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("grid", "expected"), [((5, 3), (3, 2)), ((1, 7), (1, 4)), ((4, 4), (2, 2)), ((1, 1), (1, 1))]
)
def test_a_frame_goes_down_to_half_of_its_sides(
    grid: tuple[int, int], expected: tuple[int, int]
) -> None:
    count = grid[0] * grid[1]
    config = PyramidConfig(token_dim=WIDTH, max_tokens=count, levels=2)
    frame = count * 2 * WIDTH + OVERHEAD + KEPT_OVERHEAD
    memory = PyramidMemory(config, 2 * frame - (count > 1))
    memory.write(noise(count, WIDTH, seed=1), time=0.0, grid=grid)
    memory.write(noise(count, WIDTH, seed=2), time=1.0, grid=grid)
    first, newest = memory.snapshot().slots()
    if count == 1:
        assert first.grid == (1, 1)
        return
    assert newest.grid == grid and newest.tokens.equal(noise(count, WIDTH, seed=2).half())
    assert first.grid == expected
    pooled = pool_grid(noise(count, WIDTH, seed=1).half(), grid, expected)
    assert torch.equal(first.tokens, pooled)


def test_the_sharper_then_heavier_then_earlier_stands_for_both(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every merge of a long stream with pauses, looked at as it happens."""
    merged, seen = _Entry.merged, []

    def watched(one: _Entry, other: _Entry, *rest: Any) -> _Entry:
        both = merged(one, other, *rest)
        seen.append((one, other, both))
        return both

    monkeypatch.setattr(_Entry, "merged", watched)
    bank = TestPyramidMemory()
    memory = bank.make(4_000)
    for number in range(300):
        given = bank.observation(number)
        memory.write(**given | {"time": given["time"] + 20.0 * (number // 30)})
    for one, other, both in seen:
        assert 2 in (one.level, other.level)
        best = min(one, other, key=lambda e: (e.level, -e.weight, e.kept.source))
        assert (both.level, both.kept.source, both.kept.note) == (
            best.level,
            best.kept.source,
            best.kept.note,
        )
        if one.level != other.level:
            assert both.kept.tokens is best.kept.tokens
        assert both.weight == one.weight + other.weight
        assert (both.first, both.last) == (
            min(one.first, other.first),
            max(one.last, other.last),
        )
        runs = sorted([(one.kept.start, one.kept.end), (other.kept.start, other.kept.end)])
        joined = runs[1][0] - runs[0][1] <= memory.config.max_gap
        whole = runs[0][0], max(runs[0][1], runs[1][1])
        expected = whole if joined else (best.kept.start, best.kept.end)
        assert (both.kept.start, both.kept.end) == expected
    assert {one.level == other.level for one, other, _ in seen} == {True, False}
    gaps = [abs(one.kept.time - other.kept.time) > 5.0 for one, other, _ in seen]
    assert any(gaps) and not all(gaps)


def test_frames_above_the_coarsest_level_are_never_merged_with_each_other() -> None:
    half = FRAME - 12 * WIDTH * 2  # bytes of a frame on the coarsest of two levels
    memory = write(make(10 * FRAME, levels=2, shares=(1, 0)), [X, Y, Z])
    memory.set_budget(FRAME + 2 * half)
    memory.set_budget(10 * FRAME)
    write(memory, [Z, Z, Z], 3)  # alike, and sharp
    memory.set_budget(4 * FRAME + 2 * half - 1)
    assert [(s.source, s.weight) for s in memory.snapshot().slots()] == [
        (0, 2),
        *((number, 1) for number in range(2, 6)),
    ]


def test_the_newest_is_coarsened_before_it_is_merged() -> None:
    memory = write(make(FRAME + 100), [X, Y])
    assert [slot.grid for slot in memory.snapshot().slots()] == [(1, 1), (2, 2)]


def test_what_was_merged_is_not_recent() -> None:
    memory = write(make(QUARTER), [X, Y])
    (slot,) = memory.snapshot().slots()
    assert (slot.weight, slot.level) == (2, "level 2")


# ---------------------------------------------------------------------------- what always holds


@settings(max_examples=60, derandomize=True)
@given(
    st.integers(0, 10**6),
    st.integers(1, 4),
    st.integers(0, 3000),
    st.sampled_from([None, (0, 1), (1, 0), (1, 1)]),
)
def test_weights_spans_and_order_are_true_whatever_the_room(
    seed: int, depth: int, budget: int, ends: tuple[int, int] | None
) -> None:
    """Also where a level has room for one frame or none."""
    shares = None if ends is None or depth < 2 else (ends[0], *[1] * (depth - 2), ends[1])
    if shares is not None and not sum(shares):
        shares = None
    memory = PyramidMemory(PyramidConfig(4, 30, depth, shares=shares), budget)
    random = torch.Generator().manual_seed(seed)
    dropped = 0
    for number in range(40):
        rows, columns = (torch.randint(1, 6, (2,), generator=random)).tolist()
        tokens = torch.randn(rows * columns, 4, generator=random)
        time = 10.0 + number // 2
        report = memory.write(tokens, time=time, grid=(rows, columns))
        assert report.nbytes == memory.nbytes <= budget
        dropped += report.dropped
        slots = memory.snapshot().slots()
        sources = [slot.source for slot in slots]
        assert sources == sorted(set(sources))
        for before, after in zip(slots, slots[1:], strict=False):
            assert before.last <= after.first  # spans never overlap
        for slot in slots:
            assert 10.0 <= slot.first <= slot.time <= slot.last <= time
            assert slot.start <= slot.time <= slot.end
            assert slot.time == 10.0 + slot.source // 2
            assert slot.grid[0] * slot.grid[1] == len(slot.tokens) <= 25
        restarted = PyramidMemory(memory.config, budget)
        restarted.load_state_dict(memory.state_dict())
        assert restarted._similarities == memory._similarities  # the cached are the true ones
        assert restarted._level_bytes == memory._level_bytes
        if not dropped:
            assert sum(slot.weight for slot in slots) == number + 1
        if len(slots) > 1:
            newest = slots[-1]
            assert newest.source == number and newest.weight == 1
            if len(newest.tokens) < len(tokens):  # only where nothing else could give
                assert len(slots) == 2 and memory._entries[0].level == depth - 1
    if budget >= 25 * 8 + KEPT_OVERHEAD + OVERHEAD:
        assert not dropped


@settings(max_examples=8, derandomize=True)
@given(st.integers(0, 10**6), st.integers(4 * FRAME, 40 * FRAME))
def test_shares_are_kept_when_the_budget_is_full(seed: int, budget: int) -> None:
    memory = make(budget)
    for number in range(300):
        memory.write(noise(16, WIDTH, seed=seed + number), time=float(number))
    held = memory._level_bytes
    for nbytes, share in zip(held, memory.config.fractions, strict=True):
        assert abs(nbytes - share * budget) <= 2 * FRAME
    assert sum(held) > budget - FRAME


def test_levels_without_frames_lend_their_room() -> None:
    memory = write(make(20 * FRAME, shares=(1, 1, 98)), [X] * 20)
    assert levels(memory)[0] == list(range(20))


def test_a_level_without_a_share_passes_on() -> None:
    memory = make(20 * FRAME, shares=(1, 0, 1))
    for number in range(200):
        memory.write(noise(16, WIDTH, seed=number), time=float(number))
    fine, middle, coarse = levels(memory)
    assert fine and coarse and len(middle) <= 1


def test_bytes_are_those_of_the_state() -> None:
    memory = TestPyramidMemory().write(TestPyramidMemory().make(4_000), range(100))
    state = memory.state_dict()
    fixed = {"config", "writes", "last"}
    held = sum(tensor.nbytes for name, tensor in state.items() if name not in fixed)
    assert memory.nbytes == held + 8 * len(state["spans"])  # similarities are computed anew


# ---------------------------------------------------------------------------- reading


def test_the_newest_are_read_first_within_the_tokens() -> None:
    memory = make(10**6, embedding_dim=2)
    for number in range(10):
        direction = torch.tensor([1.0, 0.0] if number == 2 else [0.0, 1.0])
        memory.write(noise(16, WIDTH, seed=number), time=float(number), embedding=direction)
    recall = memory.read(torch.tensor([1.0, 0.0]), tokens=5 * 16)
    assert recall.sources.unique_consecutive().tolist() == [2, 6, 7, 8, 9]
    assert memory.read(tokens=3 * 16).times.unique_consecutive().tolist() == [7, 8, 9]
    assert memory.read(tokens=40).times.unique_consecutive().tolist() == [8, 9]
    assert len(memory.read(tokens=0).tokens) == 0
    past = memory.read(torch.tensor([1.0, 0.0]), k=1).sources.unique_consecutive().tolist()
    assert past == [2, 6, 7, 8, 9]
    assert memory.read(before=3.5).times.unique_consecutive().tolist() == [0, 1, 2, 3]


def test_nothing_later_than_asked_is_read() -> None:
    memory = write(make(4 * FRAME), [X, Y, Z] * 30)
    slots = memory.snapshot().slots()
    for before in (0.0, 10.0, 50.5, 89.0):
        expected = [slot.source for slot in slots if slot.last <= before]
        assert memory.read(before=before).sources.unique_consecutive().tolist() == expected


def test_the_parts_of_the_memory_have_names() -> None:
    memory = write(make(16 * FRAME, shares=(8, 1, 1)), [X, Y, Z] * 30)
    names = [slot.level for slot in memory.snapshot().slots()]
    assert set(names) == {"recent", "level 0", "level 1", "level 2"}
    assert names[-1] == "recent" and names.count("recent") <= 4
    sides = {"level 0": 4, "level 1": 2, "level 2": 1}
    for slot in memory.snapshot().slots():
        assert slot.grid[0] == sides.get(slot.level, slot.grid[0])


# ---------------------------------------------------------------------------- changing its size


def test_another_budget_is_taken_at_once() -> None:
    memory = write(make(20 * FRAME), [X, Y, Z] * 20)
    report = memory.set_budget(5 * FRAME)
    assert report.nbytes == memory.nbytes <= 5 * FRAME and report.merged and not report.dropped
    assert sum(slot.weight for slot in memory.snapshot().slots()) == 60
    assert memory.snapshot().slots()[-1].grid == (4, 4)
    assert memory.set_budget(QUARTER).merged and len(memory.snapshot().slots()) == 1
    assert memory.snapshot().slots()[0].weight == 60
    assert memory.set_budget(QUARTER - 1).dropped == 1 and memory.nbytes == 0
    assert memory.oldest == float("inf")


def test_a_state_is_fitted_to_a_smaller_budget() -> None:
    memory = write(make(20 * FRAME), [X, Y, Z] * 20)
    smaller = make(5 * FRAME)
    smaller.load_state_dict(memory.state_dict())
    memory.set_budget(5 * FRAME)
    assert same(smaller.state_dict(), memory.state_dict())


def test_what_may_hold_a_span_is_forgotten() -> None:
    memory = write(make(4 * FRAME), [X, X, Y, Y] * 20)
    assert memory.oldest == 0.0
    touched = [s for s in memory.snapshot().slots() if s.first <= 40.0 and s.last >= 20.0]
    left = [s.source for s in memory.snapshot().slots() if s.first > 40.0 or s.last < 20.0]
    assert touched and left and memory.forget(20.0, 40.0) == len(touched)
    assert [slot.source for slot in memory.snapshot().slots()] == left
    assert memory.forget(20.0, 40.0) == 0
    write(memory, [X, Y] * 20, 80)
    assert memory.nbytes <= 4 * FRAME
    assert memory.forget(float("-inf"), 1e9) and memory.nbytes == 0


def test_check_refuses_and_changes_nothing() -> None:
    memory = write(make(4 * FRAME), [X, Y])
    before = copied(memory.state_dict())
    memory.check(color(X), time=5.0)
    with pytest.raises(ValueError, match="backwards"):
        memory.check(color(X), time=0.5)
    assert same(memory.state_dict(), before)


@pytest.mark.parametrize(
    "wrong",
    [
        {"levels": 0},
        {"max_note": -1},
        {"shares": (1, 2)},
        {"shares": (0, 0, 0)},
        {"shares": (1, -1, 1)},
        {"shares": (1, float("inf"), 1)},
    ],
)
def test_sizes_that_are_none_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError):
        PyramidConfig(token_dim=WIDTH, **wrong)


def test_shares_follow_for_any_number_of_levels() -> None:
    assert PyramidConfig(token_dim=3, levels=1).fractions == (1.0,)
    assert PyramidConfig(token_dim=3, levels=2).fractions == (0.2, 0.8)
    for count in range(2, 6):
        fractions = PyramidConfig(token_dim=3, levels=count).fractions
        assert sum(fractions) == pytest.approx(1)
        assert fractions[-1] == pytest.approx(4 * sum(fractions[:-1]))
        assert len(set(fractions[:-1])) == 1


# ---------------------------------------------------------------------------- against published


def scenes_left(recall: Recall, scenes: Tensor) -> int:
    """How many scenes some entry shows: nearer to it than half way to the next scene."""
    held = torch.stack([tokens.float().mean(0) for _, _, tokens in recall.frames()])
    between = torch.cdist(scenes, scenes).fill_diagonal_(torch.inf)
    distance, nearest = torch.cdist(held, scenes).min(1)
    return len(nearest[distance < between.amin(1)[nearest] / 2].unique())


@pytest.mark.parametrize("seed", range(3))
def test_more_scenes_are_left_than_in_the_published_bank_of_equal_bytes(seed: int) -> None:
    """Sixty scenes of 12 frames; the bytes of the published bank are its half-precision tokens."""
    scenes = noise(60, 16, 64, seed=seed)
    config = PublishedPyramidConfig(64, (8, 8, 48), (16, 4, 1))
    published = PublishedPyramid(config)
    tokens = 8 * 16 + 8 * 4 + 48 * 1
    ours = PyramidMemory(PyramidConfig(64), budget=2 * 64 * tokens)
    for number in range(60 * 12):
        frame = scenes[number // 12] + 0.3 * noise(16, 64, seed=10_000 * seed + number)
        published.write(frame, time=float(number))
        ours.write(frame, time=float(number))
    found = [scenes_left(memory.read(), scenes.mean(1)) for memory in (ours, published)]
    assert found[0] == 60 and found[1] < 45
