"""A bank of visual tokens by its name."""

from __future__ import annotations

import pytest
import torch

from vismem.memory.bank import SlotMemory
from vismem.memory.flash import FlashMemory
from vismem.memory.policies import POLICIES, make_bank
from vismem.memory.pyramid import PyramidMemory
from vismem.memory.star import StarMemory


@pytest.mark.parametrize(
    ("policy", "kind"), [("flash", FlashMemory), ("star", StarMemory), ("pyramid", PyramidMemory)]
)
def test_a_policy_is_a_bank(policy: str, kind: type[SlotMemory]) -> None:
    bank = make_bank(policy, "20KB", token_dim=4, embedding_dim=3, max_tokens=6, max_note=5)
    assert type(bank) is kind and bank.budget.bytes == 20_000
    bank.write(torch.ones(6, 4), 1.5, grid=(2, 3), embedding=torch.ones(3), note=b"12345")
    (slot,) = bank.snapshot().slots()
    assert (slot.time, slot.note, slot.grid) == (1.5, b"12345", (2, 3))
    for refused in (
        {"tokens": torch.ones(7, 4), "embedding": torch.ones(3)},
        {"tokens": torch.ones(6, 4), "embedding": torch.ones(4)},
        {"tokens": torch.ones(6, 4), "embedding": torch.ones(3), "note": b"123456"},
    ):
        with pytest.raises(ValueError):
            bank.write(time=2.0, **refused)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_bank_joins_notes_as_it_was_told(policy: str) -> None:
    def add(note: bytes, weight: int, other: bytes, other_weight: int) -> bytes:
        assert (note[0], other[0]) == (weight, other_weight)
        return bytes([note[0] + other[0]])

    bank = make_bank(policy, 1_000, add, token_dim=4, max_note=1)
    for second in range(60):
        bank.write(torch.eye(4) + second % 3, float(second), note=b"\1")
        assert bank.nbytes <= 1_000
    slots = bank.snapshot().slots()
    assert max(slot.weight for slot in slots) > 1
    assert [slot.note[0] for slot in slots] == [slot.weight for slot in slots]


def test_what_is_no_policy_is_named() -> None:
    for name in ("moments", "Flash", ""):
        with pytest.raises(ValueError, match="there are flash, star, pyramid"):
            make_bank(name, 0, token_dim=4)
    with pytest.raises(ValueError):
        make_bank("flash", 0, token_dim=0)
    with pytest.raises(ValueError, match="size"):
        make_bank("flash", "much", token_dim=4)
