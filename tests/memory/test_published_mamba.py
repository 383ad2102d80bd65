from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from contract import MemoryContract, Observation
from torch import Tensor

from vismem.memory.published.mamba import (
    PublishedMamba,
    PublishedMambaConfig,
    PublishedPixels,
    cells_of_box,
)

# Large enough that the state of the generator, 5 kB, is no more than what is remembered.
SMALL = PublishedMambaConfig(dim=3, max_length=250, key_length=20, max_tokens=4)
LARGE = PublishedMambaConfig(dim=3, max_length=5000, key_length=20, max_tokens=4)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class TestPublishedMamba(MemoryContract):
    small = SMALL.most_bytes
    large = LARGE.most_bytes
    max_tokens = 4
    cannot = {
        "test_the_budget_holds_after_every_write": "its capacity is soft and set in rows: a budget "
        "below it refuses the write that would pass it, as shown below",
    }

    def make(self, budget: int) -> PublishedMamba:
        return PublishedMamba(LARGE if budget > self.small else SMALL, budget)

    def make_other(self, budget: int) -> PublishedMamba:
        return PublishedMamba(PublishedMambaConfig(3, 5000, 21, 4), budget)

    def observation(self, number: int, seed: int = 0) -> Observation:
        return {
            "tokens": noise(3, 3, seed=1000 * seed + number),
            "time": 9.0 + 0.5 * (number - number % 2),
        }

    def query(self) -> Tensor:
        return torch.ones(3)

    def hostile(self, good: Observation) -> Mapping[str, Observation]:
        return {}


def filled(rows: int, **sizes: int) -> PublishedMamba:
    bank = PublishedMamba(PublishedMambaConfig(dim=1, **{"max_length": 6, "key_length": 3} | sizes))
    bank.update(torch.arange(float(rows))[:, None])
    return bank


def test_a_write_past_the_budget_is_refused_and_changes_nothing() -> None:
    config = PublishedMambaConfig(dim=2, max_length=10, max_tokens=4)
    bank = PublishedMamba(config, budget=9 * config.row_bytes)
    for time in range(2):
        bank.write(noise(4, 2), float(time))
    before = bank.rows.clone()
    with pytest.raises(ValueError, match="12 rows .* pass the budget"):
        bank.write(noise(4, 2), 2.0)
    assert torch.equal(bank.rows, before)
    bank.write(noise(1, 2), 2.0)
    assert bank.nbytes == bank.budget.bytes


def test_the_capacity_is_soft_as_published() -> None:
    bank = filled(5)
    bank.update(torch.full((4, 1), 9.0))
    assert len(bank) == 9
    bank.update(torch.full((2, 1), 8.0))
    assert len(bank) == 9 and bank.rows[-2:, 0].tolist() == [8.0, 8.0]


def test_an_update_without_rows_empties_a_full_bank_as_published() -> None:
    bank = filled(6)
    bank.update(torch.empty(0, 1))
    assert len(bank) == 0 and len(bank.sample()) == 0
    bank = filled(5)
    bank.update(torch.empty(0, 1))
    assert len(bank) == 5


def test_no_more_are_sampled_than_asked_for_and_none_twice() -> None:
    assert filled(2).sample()[:, 0].tolist() == [0, 1]
    sampled = filled(6).sample()[:, 0].tolist()
    assert len(sampled) == len(set(sampled)) == 3


def test_a_row_goes_with_its_own_time() -> None:
    """Rows are thrown out at random; what is left still knows when it was seen."""
    bank = PublishedMamba(PublishedMambaConfig(dim=1, max_length=12, key_length=3))
    for number in range(60):
        bank.write(torch.full((5, 1), float(number)), time=0.5 * number)
    recall = bank.read()
    assert torch.equal(recall.tokens[:, 0].double(), 2 * recall.times)
    assert recall.tokens[:, 0].long().equal(recall.sources)


# --------------------------------------------------------------------------- the pixel level


def test_the_cells_of_a_box() -> None:
    assert cells_of_box(torch.tensor([10.0, 10, 22, 22]), 16, (4, 10)).tolist() == [0, 1, 10, 11]
    assert cells_of_box(torch.tensor([40.0, 0, 20, 60]), 16, (4, 10)).tolist() == []
    assert cells_of_box(torch.tensor([0.0, 0, 0, 0]), 16, (1, 1)).tolist() == [0]


def test_a_box_at_the_border_stops_as_published_or_is_clipped() -> None:
    border = torch.tensor([100.0, 30.0, 160.0, 64.0])
    with pytest.raises(ValueError, match="clip=True"):
        cells_of_box(border, 16, (4, 10))
    clipped = cells_of_box(border, 16, (4, 10), clip=True)
    assert clipped.tolist() == [x + 10 * y for y in (1, 2, 3) for x in (6, 7, 8, 9)]
    corner = torch.tensor([-40.0, -20.0, 20.0, 20.0])
    assert cells_of_box(corner, 16, (4, 10), clip=True).tolist() == [0, 1, 10, 11]
    beside = torch.tensor([140.0, 0.0, 160.0, 10.0])  # a column too many: the next row as published
    assert cells_of_box(beside, 16, (4, 10)).tolist() == [8, 9, 10]
    assert cells_of_box(beside, 16, (4, 10), clip=True).tolist() == [8, 9]


PICTURE = noise(2, 4, 10)
PICTURE[:, 1, 3] = 9.0  # the one cell of the background that stands out


def pixels(clip: bool = False) -> PublishedPixels:
    return PublishedPixels(PublishedMambaConfig(dim=2, max_length=50), clip=clip, cells=5)


def test_sure_boxes_stay_and_the_others_are_replaced() -> None:
    memory = pixels()
    assert len(memory.keys()) == 0 and memory.others is None
    boxes = torch.tensor([[0.0, 0, 20, 20], [64, 0, 79, 20], [0, 0, 200, 200]])
    memory.write(PICTURE, boxes, torch.tensor([0.9, 0.6, 0.4]))
    rows = PICTURE.flatten(1).T
    assert torch.equal(memory.objects.rows, rows[[0, 1, 10, 11]])
    assert memory.others is not None and torch.equal(memory.others, rows[[4, 14, 13]])
    assert torch.equal(memory.keys(), torch.cat([memory.objects.rows, memory.others]))
    memory.write(PICTURE, boxes[:1], torch.tensor([0.8]))
    assert len(memory.objects) == 8 and torch.equal(memory.others, rows[[13]])
    for scores in (torch.tensor([0.79]), torch.empty(0)):
        memory.write(PICTURE, boxes[: len(scores)], scores)
        assert len(memory.objects) == 8 and len(memory.others) == 1
    memory.reset()
    assert len(memory.keys()) == 0 and memory.others is None


def test_no_more_cells_of_a_box_than_allowed_and_none_twice() -> None:
    memory = pixels()
    memory.write(PICTURE, torch.tensor([[0.0, 0, 100, 60]]), torch.tensor([0.9]))
    held = memory.objects.rows
    assert len(held) == len(held.unique(dim=0)) == 5
    memory.reset()
    memory.write(PICTURE, torch.tensor([[16.0, 0, 90, 10]]), torch.tensor([0.9]))
    cells = PICTURE.flatten(1).T[[1, 2, 3, 4, 5]]
    assert torch.equal(memory.objects.rows, cells)  # as many as allowed: nothing is drawn


def test_a_box_that_stops_the_published_code_writes_nothing() -> None:
    boxes, scores = torch.tensor([[0.0, 0, 20, 20], [0, 0, 90, 64]]), torch.tensor([0.9, 0.6])
    memory = pixels()
    with pytest.raises(ValueError, match="clip=True"):
        memory.write(PICTURE, boxes, scores)
    assert len(memory.keys()) == 0
    clipped = pixels(clip=True)
    clipped.write(PICTURE, boxes, scores)
    assert clipped.others is not None and len(clipped.others) == 6


def test_pixels_use_their_own_random_numbers() -> None:
    kept = []
    for seed in (1, 2):
        np.random.seed(seed)
        torch.manual_seed(seed)
        memory = pixels()
        for _ in range(20):
            memory.write(PICTURE, torch.tensor([[0.0, 0, 100, 60]]), torch.tensor([0.9]))
        kept.append(memory.keys())
    assert torch.equal(*kept)
