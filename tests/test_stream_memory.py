"""One stream's moments and bank side by side: as one they write, shrink, forget and come back."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vismem.memory.episodic import EpisodicConfig
from vismem.memory.policies import POLICIES
from vismem.scenes import thumbnail_of
from vismem.stream_memory import LATE, StreamMemory

SIZES = EpisodicConfig(token_dim=4, embedding_dim=3, max_tokens=6, max_labels=2, max_thumbnail=4)
BUDGET = 8_000

every_policy = pytest.mark.parametrize("policy", POLICIES)


def seen(number: int) -> dict[str, Tensor]:
    """A frame as the log holds it, of a scene that changes every eight, of nine in all."""
    draw = torch.Generator().manual_seed(number // 8 % 9)
    look = torch.randn(4, generator=draw)
    own = torch.Generator().manual_seed(1000 + number)
    return {
        "tokens": (look + torch.randn(6, 4, generator=own) / 20).half(),
        "positions": torch.cartesian_prod(torch.arange(2) / 2, torch.arange(3) / 3).flip(1).half(),
        "embedding": look[:3].half(),
        "thumbnail": torch.tensor([number % 256, 1, 2], dtype=torch.uint8),
        "label.id": torch.tensor([number // 8 % 9], dtype=torch.int16),
        "label.score": torch.tensor([0.75]).half(),
        "label.box": torch.rand(1, 4, generator=own).half(),
        "label.color": torch.zeros(1, 11).half(),
        "label.count": torch.ones(1, dtype=torch.int16),
    }


def stream(policy: str, count: int = 0, budget: int = BUDGET) -> StreamMemory:
    made = StreamMemory("door", SIZES, policy)
    made.set_budget(budget)
    for number in range(count):
        made.write(float(number), seen(number))
    return made


def state_of(held: StreamMemory) -> dict[str, tuple]:
    state = held.working_state() | held.moments.state_dict()
    return {name: (value.dtype, value.numpy().tobytes()) for name, value in state.items()}


def restored(held: StreamMemory, policy: str) -> StreamMemory:
    made = stream(policy)
    made.restore(held.moments.segments, held.working_state())
    return made


def test_moments_alone_have_no_bank_and_all_of_the_budget() -> None:
    held = stream("moments", 100)
    assert held.bank is None and held.moments.budget.bytes == BUDGET
    assert not any(name.startswith("bank.") for name in held.working_state())
    assert state_of(restored(held, "moments")) == state_of(held)
    assert held.nbytes == held.moments.nbytes and held.span == (0.0, 99.0)


@every_policy
@pytest.mark.parametrize("budget", [0, 1, 999, 3_001, BUDGET])
def test_the_budget_is_shared_and_holds_after_every_write(policy: str, budget: int) -> None:
    held = stream(policy, budget=budget)
    assert held.bank.budget.bytes == budget // 2
    assert held.moments.budget.bytes == budget - budget // 2
    for number in range(60):
        held.write(float(number), seen(number))
        assert held.bank.nbytes <= budget // 2 and held.moments.nbytes <= budget - budget // 2
        assert held.nbytes == held.bank.nbytes + held.moments.nbytes
    slots = held.bank.snapshot().slots()
    assert len(slots) > 5 if budget == BUDGET else budget > 1 or not slots
    held.set_budget(500)
    assert held.nbytes <= 500


@every_policy
def test_a_frame_is_kept_with_its_grid_its_note_and_its_embedding(policy: str) -> None:
    held = stream(policy, 3)
    slots = held.bank.snapshot().slots()
    for number, slot in enumerate(slots):
        assert (slot.time, slot.grid) == (float(number), (2, 3))
        assert torch.equal(slot.tokens, seen(number)["tokens"])
        assert thumbnail_of(slot, SIZES) == bytes([number, 1, 2])
        assert float(slot.embedding.float() @ seen(number)["embedding"].float()) > 0
    assert len(slots) == 3


@every_policy
def test_it_goes_on_bit_for_bit(policy: str) -> None:
    held = stream(policy, 90)
    again = restored(held, policy)
    assert state_of(again) == state_of(held)
    for number in range(90, 140):
        for one in (held, again):
            one.write(float(number), seen(number))
    assert state_of(again) == state_of(held)


@every_policy
def test_the_state_of_another_policy_is_refused(policy: str) -> None:
    held = stream(policy, 20)
    other = next(name for name in ("pyramid", "flash") if name != policy)
    for wrong in (other, "moments"):
        state = stream(wrong, 20).working_state()
        with pytest.raises(ValueError):
            stream(policy).restore(held.moments.segments, state)


@every_policy
@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        ({"tokens": torch.full((6, 4), torch.nan)}, "NaN"),
        ({"tokens": torch.ones(6, 5)}, "tokens"),
        ({"embedding": torch.full((3,), torch.inf)}, "infinity"),
        ({"positions": torch.zeros(5, 2)}, "positions"),
        ({"thumbnail": torch.zeros(5, dtype=torch.uint8)}, "thumbnail"),
    ],
)
def test_what_is_refused_changes_nothing(policy: str, spoilt: dict, message: str) -> None:
    held = stream(policy, 20)
    before = state_of(held)
    for call in (held.check, held.write):
        with pytest.raises(ValueError, match=message):
            call(20.0, seen(20) | spoilt)
        with pytest.raises(ValueError, match="backwards"):
            call(3.0, seen(20))
    assert state_of(held) == before
    held.check(20.0, seen(20))
    assert state_of(held) == before


@every_policy
def test_forgetting_takes_moments_and_scenes(policy: str) -> None:
    held = stream(policy, 60, budget=100_000)
    slots = held.bank.snapshot().slots()
    touched = [slot for slot in slots if slot.first <= 30 and slot.last >= 20]
    moments = held.moments.snapshot()
    started, ended = moments.column("start"), moments.column("end")
    expected = len(touched) + int(((started <= 30) & (ended >= 20)).sum())
    assert held.forget(20.0, 30.0) == expected and len(touched) > 1
    left = held.bank.snapshot().slots()
    assert len(left) == len(slots) - len(touched)
    assert not any(slot.first <= 30 and slot.last >= 20 for slot in left)
    if policy == "star":
        assert len(held.bank.abstract) == 0, "it sums up the span as well"
    assert held.forget(20.0, 30.0) == 0
    held.forget(-math.inf, math.inf)
    assert held.span is None and held.bank.oldest == math.inf
    assert not len(held.moments.snapshot()) and not held.bank.snapshot().slots()


@every_policy
def test_the_span_is_of_what_either_remembers(policy: str) -> None:
    held = stream(policy)
    assert held.span is None
    held = stream(policy, 40)
    held.moments.set_budget(0)
    assert held.moments.span is None and held.bank.oldest == 0.0
    assert held.span == (0.0, 39.0)
    held = stream(policy, 40)
    assert held.span == (0.0, 39.0) and held.bank.oldest == 0.0
    held.bank.forget(-math.inf, math.inf)
    assert held.span == (0.0, 39.0)
    held = stream(policy, 40)
    held.moments.forget(-math.inf, 10.0)
    assert held.moments.span[0] > 10.0 and held.span == (0.0, 39.0)


@every_policy
def test_what_is_too_old_goes_from_both(policy: str) -> None:
    held = stream(policy, budget=100_000)
    age, forgotten = 20.0, 0
    for number in range(120):
        held.write(float(number), seen(number))
        gone = held.expire(age)
        forgotten += gone > 0
        oldest = min(held.moments.oldest_end, held.bank.oldest)
        assert oldest >= number - LATE * age
        if gone:
            assert held.bank.oldest > number - age and held.moments.span[0] > number - age
    assert 3 < forgotten < 100, "not with every frame"
    assert held.expire(age) == 0 and len(held.bank.snapshot().slots()) > 2
