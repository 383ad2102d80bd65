"""A bank of visual tokens takes over what another holds."""

from __future__ import annotations

import itertools

import pytest
import torch
from contract import copied, same
from hypothesis import given, settings
from hypothesis import strategies as st

from vismem.memory.bank import SlotMemory
from vismem.memory.policies import POLICIES, make_bank
from vismem.memory.slots import Slot

DIM, EMBEDDING, FRAMES, AMPLE, TIGHT = 8, 6, 90, 400_000, 7_000
pairs = pytest.mark.parametrize(("policy", "other"), list(itertools.permutations(POLICIES, 2)))


def add(note: bytes, weight: int, other: bytes, other_weight: int) -> bytes:
    return (int.from_bytes(note, "big") + int.from_bytes(other, "big")).to_bytes(2, "big")


def bank(policy: str, budget: int) -> SlotMemory:
    sizes = {"token_dim": DIM, "max_tokens": 12, "embedding_dim": EMBEDDING, "max_note": 2}
    return make_bank(policy, budget, add, **sizes)


def write(memory: SlotMemory, numbers: range) -> SlotMemory:
    for number in numbers:
        noise = torch.randn(12, DIM, generator=torch.Generator().manual_seed(number))
        scene = torch.randn(12, DIM, generator=torch.Generator().manual_seed(9000 + number // 5))
        tokens = scene + 0.2 * noise
        memory.write(
            tokens, 0.5 * number, grid=(3, 4), embedding=tokens[0, :EMBEDDING], note=b"\0\1"
        )
    return memory


def facts(slot: Slot) -> tuple:
    span = (slot.time, slot.start, slot.end, slot.first, slot.last)
    return (*span, slot.weight, slot.source, slot.note, tuple(slot.embedding.tolist()))


@pairs
@pytest.mark.parametrize("budget", [AMPLE, TIGHT])
def test_every_scene_stays_with_its_times_and_weight(policy: str, other: str, budget: int) -> None:
    held = write(bank(policy, budget), range(FRAMES))
    before = held.state_dict()
    taker = bank(other, AMPLE)
    report = taker.take_over(held)
    assert same(held.state_dict(), before), "the other stays as it is"
    assert (report.merged, report.dropped, report.nbytes) == (0, 0, taker.nbytes)
    assert taker.count == held.count == len(held.snapshot().slots()) > 5
    old, new = held.snapshot().slots(), taker.snapshot().slots()
    assert [facts(slot) for slot in new] == [facts(slot) for slot in old]
    assert sum(slot.weight for slot in new) == FRAMES
    assert taker.oldest == held.oldest == 0.0
    for one, two in zip(old, new, strict=True):
        assert two.grid == one.grid and torch.equal(two.tokens, one.tokens)


@pytest.mark.parametrize(("policy", "other"), [("flash", "star"), ("star", "flash")])
def test_banks_of_one_form_give_each_other_their_means(policy: str, other: str) -> None:
    held = write(bank(policy, TIGHT), range(FRAMES))
    taker = bank(other, AMPLE)
    taker.take_over(held)
    old, new = held.snapshot().slots(), taker.snapshot().slots()
    assert {slot.level for slot in old} >= {"recent", "gist"} and len({s.level for s in old}) > 2
    for one, two in zip(old, new, strict=True):
        assert two.level == one.level and two.synopsis_grid == one.synopsis_grid
        assert (one.synopsis is None) == (two.synopsis is None)
        assert one.synopsis is None or torch.equal(one.synopsis, two.synopsis)


@pairs
@given(budget=st.one_of(st.integers(0, 3), st.integers(0, 20_000)), count=st.integers(0, 60))
@settings(max_examples=15, derandomize=True)
def test_the_budget_holds_and_nothing_is_lost_unsaid(
    policy: str, other: str, budget: int, count: int
) -> None:
    held = write(bank(policy, 15_000), range(count))
    scenes = held.count
    taker = bank(other, budget)
    report = taker.take_over(held)
    assert report.nbytes == taker.nbytes <= budget
    assert taker.count == scenes - report.merged - report.dropped
    slots = taker.snapshot().slots()
    total = sum(slot.weight for slot in slots)
    assert total == sum(int.from_bytes(slot.note, "big") for slot in slots)
    assert total == count or report.dropped
    assert all(slot.first <= slot.time <= slot.last for slot in slots)


@pairs
def test_it_goes_on_and_comes_back_bit_for_bit(policy: str, other: str) -> None:
    held = write(bank(policy, 15_000), range(FRAMES))
    taker, twin = bank(other, TIGHT), bank(other, TIGHT)
    taker.take_over(held)
    twin.load_state_dict(copied(taker.state_dict()))
    for memory in (taker, twin):
        write(memory, range(FRAMES, 2 * FRAMES))
        assert memory.nbytes <= TIGHT
        slots = memory.snapshot().slots()
        assert sum(slot.weight for slot in slots) == 2 * FRAMES
        assert slots[-1].time == 0.5 * (2 * FRAMES - 1) and slots[-1].source == 2 * FRAMES - 1
    assert same(taker.state_dict(), twin.state_dict())
    with pytest.raises(ValueError, match="backwards"):
        taker.write(torch.ones(12, DIM), 1.0, grid=(3, 4), embedding=torch.ones(EMBEDDING))


@pairs
def test_what_was_taken_over_can_be_forgotten(policy: str, other: str) -> None:
    taker = bank(other, AMPLE)
    taker.take_over(write(bank(policy, TIGHT), range(FRAMES)))
    slots = taker.snapshot().slots()
    touched = [slot for slot in slots if slot.first <= 20.0 and slot.last >= 10.0]
    assert taker.forget(10.0, 20.0) == len(touched) > 0
    left = taker.snapshot().slots()
    assert len(left) == len(slots) - len(touched)
    assert taker.oldest == min(slot.first for slot in left)


def test_the_abstract_memory_is_summed_up_from_the_scenes() -> None:
    taker = bank("star", AMPLE)
    taker.take_over(write(bank("pyramid", TIGHT), range(FRAMES)))
    assert len(taker.abstract) > 3 and taker.forget(-1.0, 0.0) > 0
    assert len(taker.abstract) == 0, "it may hold something of the first second"


def test_only_an_empty_bank_takes_over() -> None:
    held = write(bank("flash", AMPLE), range(3))
    taker = write(bank("star", AMPLE), range(1))
    before = taker.state_dict()
    with pytest.raises(ValueError, match="empty"):
        taker.take_over(held)
    assert same(taker.state_dict(), before)


def test_what_is_taken_over_is_its_own() -> None:
    held = write(bank("flash", TIGHT), range(FRAMES))
    taker = bank("pyramid", AMPLE)
    taker.take_over(held)
    before = copied(taker.state_dict())
    write(held, range(FRAMES, 3 * FRAMES))
    assert same(taker.state_dict(), before)
