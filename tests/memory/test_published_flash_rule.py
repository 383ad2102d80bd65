from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vismem.memory.published import flash_rule
from vismem.memory.published.flash_rule import (
    PublishedFlashConfig,
    compress,
    kmeans_ordered,
    retrieve_detail,
)

CONFIG = PublishedFlashConfig(token_dim=6, synopsis_slots=10, detail_slots=4)


def draws(seed: int = 0) -> tuple[torch.Generator, random.Random]:
    return torch.Generator().manual_seed(seed), random.Random(seed)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_config_without_sense_is_refused() -> None:
    for wrong in ({"token_dim": 0}, {"pool": 0}, {"synopsis_slots": -1}, {"method": "merge"}):
        with pytest.raises(ValueError):
            PublishedFlashConfig(**wrong)  # type: ignore[arg-type]


# ---------------------------------------------------------------------- clustering


@st.composite
def rows_and_slots(draw: st.DrawFn) -> tuple[Tensor, Tensor, int]:
    """Rows of small whole numbers, where all distances are exact, often repeated."""
    count = draw(st.integers(2, 14))
    values = draw(st.lists(st.integers(-3, 3), min_size=2 * count, max_size=2 * count))
    weights = draw(st.lists(st.integers(1, 9), min_size=count, max_size=count))
    slots = draw(st.integers(1, count - 1))
    return torch.tensor(values).float().reshape(count, 2, 1), torch.tensor(weights).float(), slots


@settings(max_examples=200, derandomize=True)
@given(rows_and_slots(), st.integers(0, 99))
def test_clusters_hold_every_row_once_in_order(
    given_: tuple[Tensor, Tensor, int], seed: int
) -> None:
    x, weights, slots = given_
    try:
        clusters = kmeans_ordered(x, slots, weights, *draws(seed))
    except ValueError:
        return  # the published rule divides by zero
    assert len(clusters.slots) == len(clusters.weights) == len(clusters.timestamps) == slots
    pad, members = clusters.prepended, clusters.members()
    distinct = len(torch.unique(x.flatten(1), dim=0))
    assert pad == max(0, slots - distinct)
    assert members[:pad] == [[row] for row in range(pad)]
    assert torch.equal(clusters.slots[:pad], x[:pad])
    assert clusters.timestamps[:pad].tolist() == list(range(pad))
    assert sorted(sum(members[pad:], [])) == list(range(len(x)))
    ordered = clusters.timestamps[pad:].tolist()
    assert ordered == sorted(ordered)
    assert ordered == [pytest.approx(sum(rows) / len(rows)) for rows in members[pad:]]
    if pad:
        assert clusters.weights.tolist() == [1.0] * slots
        for rows, slot in zip(members, clusters.slots, strict=True):
            assert all(torch.equal(x[row], slot) for row in rows)
    else:
        assert clusters.weights.tolist() == [float(weights[rows].sum()) for rows in members]


def test_of_few_distinct_rows_the_nearest_is_at_no_number() -> None:
    """Far off and almost alike, the square of their distance is computed as less than zero."""
    x = 1000 + 0.05 * torch.rand(40, generator=torch.Generator().manual_seed(0))
    distances = (x[:, None] ** 2 + x**2 - 2 * (x[:, None] * x)).sqrt()
    one, other = x[distances.isnan().nonzero()[0]].sort().values.tolist()
    rows = torch.tensor([one, one, other, other]).reshape(4, 1, 1)
    clusters = kmeans_ordered(rows, 3, torch.ones(4), *draws())
    assert clusters.members() == [[0], [0, 1], [2, 3]]
    assert clusters.slots.flatten().tolist() == [one, other, one]  # each went to the other


def test_times_of_repeated_rows_follow_the_injected_order() -> None:
    x = torch.tensor([5.0, 1.0, 5.0, 1.0, 3.0]).reshape(5, 1, 1)
    orders = []

    def last_first(values: Tensor, descending: bool) -> Tensor:
        assert not descending
        orders.append(values.sort(stable=True).indices.flip(0))
        return orders[-1]

    clusters = kmeans_ordered(x, 3, torch.ones(5), *draws(), last_first)
    assert clusters.timestamps.tolist() == sorted(clusters.timestamps.tolist(), reverse=True)
    assert len(orders) == 1
    assert {tuple(rows) for rows in clusters.members()} == {(0, 2), (1, 3), (4,)}


def test_rows_that_fit_stay_as_they_are() -> None:
    x, weights = noise(4, 2, 3), torch.tensor([1.0, 5.0, 2.0, 1.0])
    for slots in (4, 5):
        clusters = kmeans_ordered(x, slots, weights, *draws())
        assert torch.equal(clusters.slots, x) and torch.equal(clusters.weights, weights)
        assert clusters.members() == [[0], [1], [2], [3]]
        assert clusters.timestamps.tolist() == [0.0, 1.0, 2.0, 3.0]
    begun_anew = compress(CONFIG, x, weights, *draws())
    assert begun_anew[1].tolist() == [1.0] * 4 and begun_anew[2].tolist() == [0.0, 1.0, 2.0, 3.0]


def test_a_clustering_with_one_left_over_row_merges_one_pair() -> None:
    x = noise(11, 3, 4)
    slots, weights, timestamps = compress(CONFIG, x, torch.ones(11), *draws())
    assert sorted(weights.tolist()) == [1.0] * 9 + [2.0]
    two = int(weights.argmax())
    pairs = [(a, b) for a in range(11) for b in range(a) if (a + b) / 2 == timestamps[two]]
    assert any(torch.allclose(slots[two], (x[a] + x[b]) / 2) for a, b in pairs)


# ---------------------------------------------------------------------- search


@settings(max_examples=50, derandomize=True)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 99))
def test_search_in_blocks_is_search_in_all(patches: int, block: int, seed: int) -> None:
    low, slots = noise(patches, 2, 3, seed=seed), noise(5, 2, 3, seed=seed + 1)
    weights = torch.tensor([2.0, 9.0, 4.0, 4.0, 1.0])
    found = retrieve_detail(low.split(block), slots, weights, weights, 3)
    if patches <= 3:
        assert found.tolist() == list(range(patches))
        return
    distances = (slots[[1, 2, 3], None] - low).square().sum((2, 3))
    assert found.tolist() == distances.argmin(1).tolist()


def test_a_nearest_patch_in_a_later_block_needs_to_be_nearer() -> None:
    low = torch.tensor([3.0, 0.0, 9.0, 0.0, 9.0]).reshape(5, 1, 1)
    slots = torch.tensor([9.0, 0.0]).reshape(2, 1, 1)
    for block in (1, 2, 3, 5):
        found = retrieve_detail(low.split(block), slots, torch.tensor([1.0, 2.0]), slots, 2)
        assert found.tolist() == [1, 2]


def test_of_blocks_the_first_distance_that_is_no_number_wins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not the least square: the published code takes roots first."""
    squares = iter([torch.tensor([0.0, 1.0]), torch.tensor([-1.0, 4.0]), torch.tensor([-2.0, 1.0])])
    monkeypatch.setattr(
        flash_rule, "kmeans_assign", lambda *_, **__: (torch.tensor([1, 0]), next(squares))
    )
    rows, weights = torch.zeros(9, 1, 1), torch.tensor([2.0, 1.0])
    assert retrieve_detail(rows.split(3), rows[:2], weights, weights, 2).tolist() == [4, 0]


def test_other_ways_to_choose() -> None:
    low, slots = torch.zeros(10, 1, 1), torch.zeros(3, 1, 1)
    weights, timestamps = torch.tensor([1.0, 3.0, 2.0]), torch.tensor([0.5, 2.5, 7.4])
    chosen = {
        method: retrieve_detail([low], slots, weights, timestamps, 3, method).tolist()  # type: ignore[arg-type]
        for method in ("nearest", "sample")
    }
    assert chosen == {"nearest": [2, 7, 0], "sample": [0, 4, 9]}  # halves go to even
