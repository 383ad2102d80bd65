"""`StarMemory` keeps the contract; its abstract memory does not collapse."""

from __future__ import annotations

import math
from typing import Any

import pytest
import test_flash
import torch
from contract import copied, same
from test_flash import DIM, SIZES, noise
from torch import Tensor

from vismem.memory.flash import FlashConfig, FlashMemory
from vismem.memory.slots import JoinNotes
from vismem.memory.star import ABSTRACT_SHARE, StarConfig, StarMemory


class TestStarMemory(test_flash.TestFlashMemory):
    def bank(self, budget: int, join_notes: JoinNotes | None = None, **sizes: Any) -> StarMemory:
        return StarMemory(StarConfig(**SIZES | sizes), budget, join_notes)

    def make_other(self, budget: int) -> StarMemory:
        return self.bank(budget, token_dim=DIM + 1)

    # ------------------------------------------------------------------ the abstract memory

    def test_the_abstract_memory_is_counted_and_has_its_share_at_most(self) -> None:
        for budget in (0, 500, 1000, 2000, 12_000, 400_000):
            memory = self.write(self.bank(budget), range(150))
            assert isinstance(memory, StarMemory)
            assert memory.abstract.nbytes <= ABSTRACT_SHARE * budget
            assert len(memory.abstract) <= memory.config.abstract
            without = FlashMemory.nbytes.fget(memory) if memory.nbytes else 0  # type: ignore[attr-defined]
            assert memory.nbytes == without + memory.abstract.nbytes

    def test_a_lower_budget_cuts_the_abstract_memory(self) -> None:
        memory = self.write(self.bank(400_000), range(150))
        assert isinstance(memory, StarMemory)
        before = memory.abstract
        memory.set_budget(2000)
        assert len(memory.abstract) == 2000 // 16 // (4 * DIM) == 3
        assert torch.equal(memory.abstract, before[:3])

    def check_oldest(self, memory: FlashMemory, first: float) -> None:
        assert memory.oldest <= first  # the abstract memory sums up what was dropped, too

    def test_forgetting_takes_the_abstract_memory_with_it(self) -> None:
        memory = self.bank(self.large)
        for number in range(20):
            memory.write(**self.observation(number))
        memory.forget(100.0, 200.0)
        memory.forget(-50.0, -1.0)
        assert len(memory.abstract) > 1  # nothing of it was in those spans
        memory.forget(3.0, 3.1)
        assert len(memory.abstract) == 0
        memory.write(**self.observation(20))
        memory.forget(3.0, 3.1)
        assert len(memory.abstract) == 1  # it begins after what is forgotten now
        memory.forget(-math.inf, 10.0)
        assert len(memory.abstract) == 0

    def test_what_was_dropped_is_forgotten_of_the_abstract_memory_too(self) -> None:
        memory = self.bank(600, embedding_dim=0, max_tokens=64, gist=(8, 8))
        assert memory.write(noise(64, DIM, seed=1), 0.0).dropped == 1
        assert len(memory.abstract) == 1
        assert memory.forget(0.0, 0.0) == 0
        assert len(memory.abstract) == 0

    def test_when_the_abstract_memory_began_is_kept_with_the_state(self) -> None:
        memory = self.write(self.bank(self.large), range(10, 20))
        after = self.bank(self.large)
        after.load_state_dict(copied(memory.state_dict()))
        after.forget(0.0, 4.9)
        assert len(after.abstract) == len(memory.abstract) > 0  # type: ignore[attr-defined]
        after.forget(0.0, 5.0)
        assert len(after.abstract) == 0

    def test_what_is_given_out_is_a_copy(self) -> None:
        memory = self.write(self.bank(self.large), range(30))
        assert isinstance(memory, StarMemory)
        state = memory.state_dict()
        before = copied(state)
        memory.abstract.zero_()
        assert same(memory.state_dict(), before)
        self.write(memory, range(30, 60))
        assert same(state, before)

    @pytest.mark.parametrize(
        "sizes", [{"abstract": -1}, {"update_ratio": 1.1}, {"update_ratio": -0.1}]
    )
    def test_sizes_of_the_abstract_memory_that_make_no_sense(self, sizes: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="abstract"):
            self.bank(1000, **sizes)


def scene(number: int, likeness: float, width: int = 64) -> Tensor:
    """A token; any two of different numbers have about this cosine."""
    common = noise(width, seed=999)
    return common * math.sqrt(likeness) + noise(width, seed=number) * math.sqrt(1 - likeness)


def star(width: int = 64, **sizes: Any) -> StarMemory:
    return StarMemory(StarConfig(token_dim=width, max_tokens=1, **sizes), "4MB")


def spread(memory: StarMemory) -> float:
    """The mean deviation of a number over the tokens of the abstract memory."""
    return float(memory.abstract.std(0).mean())


def published(frames: Tensor, slots: int = 25, ratio: float = 0.2) -> Tensor:
    """The published abstract memory where one frame comes at a time: attention of weight 1."""
    memory = frames[:slots].clone()
    for frame in frames[slots:]:
        memory = (1 - ratio) * memory + ratio * frame
    return memory


def test_the_abstract_memory_does_not_collapse_as_the_published_one_does() -> None:
    frames = noise(100, 64, seed=3)
    memory = star()
    for second, frame in enumerate(frames):
        memory.write(frame[None], float(second))
    assert len(memory.abstract) == 25
    assert float(published(frames).std(0).mean()) < 1e-6
    assert spread(memory) > 0.5


@pytest.mark.parametrize("likeness", [0.0, 0.3, 0.5, 0.7, 0.8])
def test_a_static_hour_leaves_the_other_tokens_where_they_are(likeness: float) -> None:
    memory = star(recent=0, max_slots=8)
    for second in range(100):
        memory.write(scene(second // 5, likeness)[None], float(second))
    before = memory.abstract
    assert len(before) == 20
    for second in range(100, 1300):
        frame = scene(3, likeness) + 0.05 * noise(64, seed=5000 + second)
        memory.write(frame[None], float(second))
    moved = (memory.abstract - before).norm(dim=1) > 1e-6
    assert moved.nonzero()[:, 0].tolist() == [3]
    assert spread(memory) == pytest.approx(spread_of(before), rel=0.05)


def spread_of(tokens: Tensor) -> float:
    return float(tokens.std(0).mean())


def test_a_frame_moves_the_token_most_like_it_by_the_ratio() -> None:
    memory = star(width=2, novelty=0.5, update_ratio=0.25, recent=0)
    for second, token in enumerate([[4.0, 0.0], [0.0, 4.0], [8.0, 0.0]]):
        memory.write(torch.tensor([token]), float(second))
    assert memory.abstract.tolist() == [[5.0, 0.0], [0.0, 4.0]]


def test_frames_of_zeros_begin_no_token() -> None:
    memory = star(width=4)
    for second in range(50):
        memory.write(torch.zeros(1, 4), float(second))
    assert len(memory.abstract) == 0


def test_no_token_keeps_a_graph() -> None:
    memory = star(width=4)
    for second in range(5):
        memory.write(torch.eye(4)[second % 4][None].requires_grad_() * 1.0, float(second))
    assert not memory.abstract.requires_grad


def test_a_full_abstract_memory_takes_what_is_new_into_the_likest() -> None:
    memory = star(width=3, abstract=2, update_ratio=0.5)
    for second, token in enumerate([[1.0, 0, 0], [0, 1.0, 0], [0, 0.2, 1.0]]):
        memory.write(torch.tensor([token]), float(second))
    expected = torch.tensor([[1.0, 0, 0], [0, 0.6, 0.5]])
    torch.testing.assert_close(memory.abstract, expected, atol=1e-3, rtol=0)


# --------------------------------------------------------------------------- what stays sharp


def test_star_keeps_the_heaviest_scenes_sharp_and_flash_the_most_different() -> None:
    """Six long scenes that are alike, then twelve short ones that are like nothing."""

    def sharp(cls: type[FlashMemory], config: type[FlashConfig]) -> tuple[float, float]:
        sizes = {"detail": 0.1, "recent": 0, "max_slots": 18, "abstract": 0}
        if config is FlashConfig:
            del sizes["abstract"]
        memory = cls(config(token_dim=8, max_tokens=16, synopsis=(1, 1), **sizes), 4600)
        seconds = 0
        for place, frames in [(n, 30) for n in range(6)] + [(n, 1) for n in range(6, 18)]:
            base = noise(8, seed=place) * (1.0 if place < 6 else 6.0)
            for _ in range(frames):
                memory.write(base + 0.05 * noise(16, 8, seed=seconds), float(seconds))
                seconds += 1
        slots = memory.snapshot().slots()
        assert sorted(slot.weight for slot in slots) == [1] * 12 + [30] * 6
        kept = [slot.weight for slot in slots if slot.level == "detail"]
        return sum(w == 30 for w in kept) / 6, sum(w == 1 for w in kept) / 12

    heavy, light = sharp(StarMemory, StarConfig)
    assert heavy == 1 and light < 0.5
    heavy, light = sharp(FlashMemory, FlashConfig)
    assert heavy < 0.5 and light > 0.5
