from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from contract import copied
from feature_streams import axes, memory_of, noise, write
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vismem.memory.feature import Projections, stack
from vismem.memory.feature_rows import overlaps

POLICIES = ["score", "fifo", "random", "reservoir"]


# --------------------------------------------------------------------------- snapshots


def test_a_snapshot_read_late_shows_what_was_held() -> None:
    memory = memory_of(6, evict="fifo")
    write(memory, 0.0, [0.1, 0.2, 0.3, 0.4])
    expected = memory.snapshot().tokens.clone()
    whole, part = memory.snapshot(), memory.snapshot().keys(2, "recent")
    gc.collect()
    for time in range(1, 9):
        write(memory, time, [0.5, 0.5])
    assert torch.equal(whole.tokens, expected) and torch.equal(part.tokens, expected[-2:])
    assert len(whole) == 4 and whole.times.tolist() == [0.0] * 4


def test_a_part_of_a_snapshot_holds_what_it_shows() -> None:
    memory = memory_of(4, evict="fifo")
    write(memory, 0.0, [0.5] * 4)
    part = memory.snapshot().keys(2, "recent")  # the whole is held by nobody else
    gc.collect()
    write(memory, 1.0, [0.5] * 4)
    assert part.times.tolist() == [0.0, 0.0]


def test_rows_are_copied_only_for_snapshots_in_use() -> None:
    memory = memory_of(6, evict="fifo")
    write(memory, 0.0, [0.5] * 6)
    place = memory._held["tokens"].data_ptr()
    kept = memory.snapshot().tokens  # a copy; its snapshot is gone
    before = kept.clone()
    write(memory, 1.0, [0.5])
    assert memory._held["tokens"].data_ptr() == place and torch.equal(kept, before)
    snapshot = memory.snapshot()
    write(memory, 2.0, [0.5])
    assert (moved := memory._held["tokens"].data_ptr()) != place
    write(memory, 3.0, [0.5])
    assert memory._held["tokens"].data_ptr() == moved  # once is enough
    assert snapshot.times.tolist() == [0, 0, 0, 0, 0, 1]


def test_a_memory_that_is_not_full_is_not_copied() -> None:
    memory = memory_of(100)
    write(memory, 0.0, [0.5] * 8)
    write(memory, 1.0, [0.5] * 2)  # room for 16
    snapshot, place = memory.snapshot(), memory._held["tokens"].data_ptr()
    write(memory, 2.0, [0.5] * 2)
    assert memory._held["tokens"].data_ptr() == place and len(snapshot) == 10


def test_keys() -> None:
    memory = memory_of(20)
    for time, score in enumerate([0.3, 0.9, 0.5, 0.9, 0.1]):
        write(memory, time, [score])
    snapshot = memory.snapshot()
    assert snapshot.keys().times.tolist() == [0, 1, 2, 3, 4]
    assert snapshot.keys(9, "score").times.tolist() == [0, 1, 2, 3, 4]
    assert snapshot.keys(2, "recent").times.tolist() == [3, 4]
    assert snapshot.keys(3, "score").times.tolist() == [1, 2, 3]
    assert snapshot.keys(1, "score").times.tolist() == [3]  # the newer of equals
    assert len(snapshot.keys(0, "score")) == len(snapshot.keys(0, "recent").tokens) == 0
    assert snapshot.keys(2, "score").keys(1, "recent").times.tolist() == [3]
    draws = [
        snapshot.keys(3, "random", torch.Generator().manual_seed(seed)).times.tolist()
        for seed in (0, 0, 1, 2, 3)
    ]
    assert draws[0] == draws[1] and len(set(map(tuple, draws))) > 1
    assert all(draw == sorted(set(draw)) and len(draw) == 3 for draw in draws)
    for k, read in ((2, "all"), (-1, "score"), (2, "best")):
        with pytest.raises(ValueError):
            snapshot.keys(k, read)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="generator"):
        snapshot.keys(2, "random")


def test_reading_by_a_query() -> None:
    memory = memory_of(20)
    for time in range(4):
        memory.write(
            (2.0 + time) * axes(time),
            float(time),
            boxes=torch.tensor([[0.1 * time, 0.0, 0.1 * time + 0.2, 0.5]]),
        )
    recall = memory.read(axes(2, 1).sum(0), k=2)
    assert recall.times.tolist() == [1, 2]
    assert recall.scores.tolist() == pytest.approx([0.5**0.5] * 2, abs=1e-6)
    assert recall.positions is not None
    assert recall.positions.tolist() == [pytest.approx([0.2, 0.25]), pytest.approx([0.3, 0.25])]
    slanted = memory.read(axes(0)[0] + 0.5 * axes(1)[0], k=2)
    assert slanted.times.tolist() == [0, 1] and slanted.scores[0] > slanted.scores[1] > 0
    assert memory.read(axes(2)[0], k=1, before=1.5).times.tolist() != [2]
    assert memory.read(k=2, before=1.5).times.tolist() == [0, 1]
    assert len(memory.read(axes(0)[0], k=0).tokens) == 0
    with pytest.raises(ValueError, match="query"):
        memory.read(torch.ones(5))


def test_overlaps() -> None:
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.5, 0.0, 1.0, 1.0], [0.2, 0.2, 0.2, 0.2]])
    expected = torch.tensor([[1.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(overlaps(boxes, boxes), expected)
    apart = torch.tensor([[2.0, 2.0, 3.0, 3.0], [-1.0, -1.0, -0.5, -0.5]])
    assert not overlaps(boxes, apart).any()


# --------------------------------------------------------------------------- several streams


def test_streams_side_by_side() -> None:
    memories = [memory_of(9) for _ in range(3)]
    for number, memory in enumerate(memories[:2]):
        for time in range(2 * number + 1):
            write(memory, 10.0 * time + number, [0.5])
    snapshots = [memory.snapshot() for memory in memories]
    batch = stack(snapshots)
    assert batch.tokens.shape == (3, 3, 6) and batch.tokens.dtype == torch.float16
    assert batch.mask.tolist() == [[True, False, False], [True] * 3, [False] * 3]
    for row, snapshot in enumerate(snapshots):
        held = batch.mask[row]
        for name in ("tokens", "times", "scores", "boxes", "labels", "sources"):
            column = getattr(batch, name)[row]
            assert torch.equal(column[held], getattr(snapshot, name)), name
            assert torch.isfinite(column.double()).all()
    assert batch.scores[2].tolist() == [1.0] * 3 and batch.boxes[2, 0].tolist() == [0, 0, 1, 1]
    assert stack([memories[2].snapshot()]).tokens.shape == (1, 0, 6)
    with pytest.raises(ValueError, match="at least one"):
        stack([])
    with pytest.raises(ValueError, match="width"):
        stack([snapshots[0], memory_of(3, dim=5).snapshot()])


# --------------------------------------------------------------------------- projections


class Counted:
    """A projection that counts the rows it was given."""

    def __init__(self, weight: Tensor) -> None:
        self.weight, self.rows = weight, 0

    def __call__(self, tokens: Tensor) -> Tensor:
        self.rows += len(tokens)
        return tokens.float() @ self.weight


@settings(max_examples=30, derandomize=True)
@given(st.sampled_from(POLICIES), st.integers(0, 12), st.integers(0, 100))
def test_projections_are_what_is_computed_anew(evict: Any, capacity: int, seed: int) -> None:
    memory, kept = memory_of(capacity, evict=evict, seed=seed), Projections()
    project = Counted(noise(6, 3, seed=seed).requires_grad_())
    generator, old, written = torch.Generator().manual_seed(seed), memory.snapshot(), 0
    for time in range(12):
        if time == 8 and seed % 2:
            memory.reset()
        write(memory, time, [0.5 + 0.01 * time] * (1 + time % 4))
        written += 1 + time % 4
        for snapshot in (
            memory.snapshot(),
            memory.snapshot().keys(3, "random", generator),
            old,
        ):
            found = kept(snapshot, project, version=0)[snapshot.slots]
            expected = snapshot.tokens.float() @ project.weight
            torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-6)
            assert not found.requires_grad
        if time % 5 == 0:
            old = memory.snapshot()
    assert kept.nbytes <= capacity * (8 + 3 * 4)


def test_each_row_is_projected_once_until_the_weights_change() -> None:
    memory, kept, project = memory_of(50), Projections(), Counted(noise(6, 3))
    for time in range(30):
        write(memory, time, [0.5] * 4)
        kept(memory.snapshot(), project, version=0)
        kept(memory.snapshot().keys(5, "recent"), project, version=0)
    assert project.rows == 120
    project.weight = noise(6, 3, seed=1)
    found = kept(memory.snapshot(), project, version=1)[memory.snapshot().slots]
    assert project.rows == 170
    torch.testing.assert_close(found, memory.snapshot().tokens.float() @ project.weight)


def test_projections_of_another_memory_or_before_a_reset_are_not_mistaken() -> None:
    kept, weight = Projections(), noise(6, 3)
    one, other = memory_of(9), memory_of(9)
    write(one, 0.0, [0.5] * 3)
    write(other, 1.0, [0.5] * 3)
    for memory in (one, other, one):
        found = kept(memory.snapshot(), Counted(weight), version=0)[memory.snapshot().slots]
        torch.testing.assert_close(found, memory.snapshot().tokens.float() @ weight)
    state = copied(other.state_dict())
    one.load_state_dict(state)
    found = kept(one.snapshot(), Counted(weight), version=0)[one.snapshot().slots]
    torch.testing.assert_close(found, other.snapshot().tokens.float() @ weight)
