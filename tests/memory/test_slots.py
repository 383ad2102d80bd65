"""How slots are read, pooled and placed, and what no bank of slots takes."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vismem.memory.bank import check_observation
from vismem.memory.slots import (
    Slot,
    SlotSnapshot,
    cell_positions,
    pool_grid,
    read_slots,
)

DIM = 3


def slot(number: int, cells: int = 4, coarse: int = 1, **more: Any) -> Slot:
    """A slot whose tokens are its number, and whose synopsis is its number and a half."""
    values: dict[str, Any] = {
        "time": float(number),
        "start": float(number),
        "end": float(number),
        "first": float(number),
        "last": float(number),
        "weight": 1,
        "source": number,
        "tokens": torch.full((cells, DIM), float(number)).half(),
        "grid": (1, cells),
        "embedding": torch.eye(8)[number % 8].half(),
        "note": b"",
        "level": "detail",
        "synopsis": torch.full((coarse, DIM), number + 0.5).half() if coarse else None,
        "synopsis_grid": (coarse, 1),
    }
    return Slot(**(values | more))


def given_of(slots: list[Slot], **how: Any) -> dict[int, tuple[int, bool]]:
    """Source -> how many tokens were read and whether they are the sharp ones."""
    recall = read_slots(slots, how.pop("query", None), DIM, **how)
    return {
        int(recall.sources[recall.times == time][0]): (
            len(tokens),
            float(tokens[0, 0]) == int(tokens[0, 0]),
        )
        for time, _, tokens in recall.frames()
    }


# --------------------------------------------------------------------------- reading


@settings(max_examples=150, derandomize=True)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3)), max_size=12),
    recent=st.integers(0, 4),
    tokens=st.integers(0, 60),
    k=st.one_of(st.none(), st.integers(0, 12)),
    asked=st.booleans(),
    seed=st.integers(0, 9),
)
def test_a_read_is_sorted_and_within_its_numbers(
    shapes: list[tuple[int, int]],
    recent: int,
    tokens: int,
    k: int | None,
    asked: bool,
    seed: int,
) -> None:
    slots = [slot(n, cells, coarse) for n, (cells, coarse) in enumerate(shapes)]
    for n in range(max(0, len(slots) - recent), len(slots)):
        slots[n] = replace(slots[n], level="recent", synopsis=None)
    query = torch.randn(8, generator=torch.Generator().manual_seed(seed)) if asked else None
    recall = read_slots(slots, query, DIM, tokens=tokens, k=k)
    assert len(recall.tokens) <= tokens
    assert recall.times.tolist() == sorted(recall.times.tolist())
    assert recall.positions is not None and recall.positions.shape == (len(recall.tokens), 2)
    groups = list(recall.frames())
    assert len(groups) == len(set(recall.sources.tolist()))
    past = [s for s in slots if s.level != "recent"]
    read = set(recall.sources.tolist())
    assert k is None or len(read & {s.source for s in past}) <= k
    for (time, weight, tokens_read), source in zip(
        groups, recall.sources.unique_consecutive().tolist(), strict=True
    ):
        held = slots[source]
        assert (time, weight) == (held.time, held.weight)
        whole = torch.equal(tokens_read, held.tokens)
        assert whole or (held.synopsis is not None and torch.equal(tokens_read, held.synopsis))
    if k is None:  # what was left out would not have fitted
        left = tokens - len(recall.tokens)
        for s in slots:
            if s.source not in read:
                assert len(s.coarse().tokens) > left


@pytest.mark.parametrize("tokens", range(40))
def test_the_newest_come_first_and_whole(tokens: int) -> None:
    slots = [slot(n) for n in range(6)]
    slots += [replace(slot(n), level="recent", synopsis=None) for n in (6, 7, 8)]
    read = given_of(slots, tokens=tokens)
    newest = [n for n in (8, 7, 6) if n in read]
    assert newest == [8, 7, 6][: min(3, tokens // 4)]
    assert all(read[n] == (4, True) for n in newest)


def test_two_thirds_of_the_past_are_sharp_and_the_best_are() -> None:
    slots = [slot(n, weight=10 - n) for n in range(9)]
    read = given_of(slots, tokens=12)
    assert read == {0: (4, True), 1: (4, True)} | {n: (1, False) for n in (2, 3, 4, 5)}


def test_without_a_limit_all_is_given_sharp() -> None:
    assert given_of([slot(n) for n in range(9)]) == {n: (4, True) for n in range(9)}


def test_what_does_not_fit_sharp_is_given_coarse_and_not_charged_as_sharp() -> None:
    """Slots of many sizes: the sharp share may be larger than what is left."""
    slots = [slot(0, 9, 4, weight=9), slot(1, 9, 4, weight=8), slot(2, 6, 2, weight=7)]
    slots += [slot(3, 2, 1, weight=6)]
    read = given_of(slots, tokens=12)
    assert read == {0: (4, False), 1: (4, False), 2: (2, False), 3: (2, True)}


def test_the_heaviest_without_a_query_and_the_likest_with_one() -> None:
    slots = [slot(n, weight=1 + (n == 2)) for n in range(5)]
    assert set(given_of(slots, k=1)) == {2}
    for number in range(5):
        assert set(given_of(slots, k=1, query=torch.eye(8)[number])) == {number}
    recall = read_slots(slots, 7 * torch.eye(8)[3], DIM, k=1)
    assert recall.scores.tolist() == [1.0] * 4  # a query's length says nothing


def test_k_counts_the_past_alone() -> None:
    slots = [slot(n) for n in range(5)] + [replace(slot(5), level="recent", synopsis=None)]
    assert set(given_of(slots, k=0)) == {5}
    assert set(given_of(slots, k=2)) == {0, 1, 5}


def test_nothing_is_read_of_nothing() -> None:
    recall = read_slots([], torch.ones(8), DIM)
    assert recall.tokens.shape == (0, DIM) and recall.tokens.dtype == torch.float16
    assert recall.positions is not None and recall.positions.shape == (0, 2)
    assert recall.times.dtype == torch.float64 and list(recall.frames()) == []


def test_a_query_that_is_trained_leaves_no_graph_behind() -> None:
    query = torch.ones(8, requires_grad=True)
    assert not read_slots([slot(0)], query, DIM).scores.requires_grad
    assert read_slots([slot(0)], torch.ones(8, dtype=torch.bfloat16), DIM).scores.dtype == (
        torch.float32
    )


def test_a_recall_is_no_view_of_what_is_held() -> None:
    held = slot(1)
    read_slots([held], None, DIM).tokens.zero_()
    assert bool((held.tokens == 1).all())


# --------------------------------------------------------------------------- up to a time


def test_as_of_a_time_only_what_had_been_seen() -> None:
    wide = slot(5, first=1.0, last=9.0, start=4.0, end=8.0, weight=20)
    assert wide.as_of(9.0) is wide and wide.as_of(100.0) is wide
    part = wide.as_of(6.0)
    assert part is not None and part.synopsis is None and part.weight == 1
    assert (part.first, part.last, part.time, part.start, part.end) == (5.0, 5.0, 5.0, 4.0, 6.0)
    assert torch.equal(part.tokens, wide.tokens)
    assert wide.as_of(4.9) is None
    mean = wide.coarse()
    assert mean.as_of(8.9) is None  # the mean holds of what came at 9
    assert mean.as_of(9.0) is mean


@settings(max_examples=60, derandomize=True)
@given(
    spans=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)), max_size=9),
    before=st.integers(-1, 10),
    asked=st.booleans(),
)
def test_nothing_later_is_read(spans: list[tuple[int, int, int]], before: int, asked: bool) -> None:
    slots = []
    for number, span in enumerate(spans):
        first, time, last = map(float, sorted(span))
        slots.append(slot(number, first=first, time=time, last=last, start=time, end=time))
    snapshot = SlotSnapshot(lambda: slots, DIM, 8)
    recall = snapshot.read(torch.ones(8) if asked else None, before=before)
    assert not (recall.times > before).any()
    mixed = recall.tokens[:, 0] != recall.tokens[:, 0].floor()  # of a synopsis
    for source in recall.sources[mixed].tolist():
        assert slots[source].last <= before
    assert set(recall.sources.tolist()) == {s.source for s in slots if s.time <= before}


def test_coarse_is_the_synopsis_alone() -> None:
    held = slot(3, 4, 2)
    coarse = held.coarse()
    assert coarse.level == "synopsis" and coarse.synopsis is None and coarse.grid == (2, 1)
    assert torch.equal(coarse.tokens, torch.full((2, DIM), 3.5).half())
    assert coarse.coarse() is coarse


# --------------------------------------------------------------------------- snapshots


def test_slots_are_made_once_and_sorted_by_time_and_source() -> None:
    calls = itertools.count()

    def make() -> list[Slot]:
        next(calls)
        return [slot(2, time=1.0), slot(1, time=1.0), slot(0, time=0.0), slot(3, time=0.5)]

    snapshot = SlotSnapshot(make, DIM, 8)
    assert next(calls) == 0  # nothing is made before it is asked for
    assert [s.source for s in snapshot.slots()] == [0, 3, 1, 2]
    snapshot.read()
    snapshot.slots()
    assert next(calls) == 2


@pytest.mark.parametrize("query", [torch.ones(7), torch.ones(1, 8), torch.tensor(1.0)])
def test_a_query_of_another_width_is_refused(query: Tensor) -> None:
    with pytest.raises(ValueError, match=r"a query must be \(8,\)"):
        SlotSnapshot(lambda: [slot(0)], DIM, 8).read(query)


# --------------------------------------------------------------------------- grids


@settings(max_examples=80, derandomize=True)
@given(
    grid=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    target=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    batch=st.lists(st.integers(1, 3), max_size=2),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
)
def test_pooling_is_the_mean_of_the_cells_under_each(
    grid: tuple[int, int], target: tuple[int, int], batch: list[int], dtype: torch.dtype
) -> None:
    cells = math.prod(grid)
    tokens = torch.randn(*batch, cells, DIM, generator=torch.Generator().manual_seed(cells))
    tokens = tokens.to(dtype)
    pooled = pool_grid(tokens, grid, target)
    assert pooled.dtype == dtype and pooled.shape == (*batch, math.prod(target), DIM)
    maps = tokens.double().reshape(*batch, *grid, DIM)

    def span(place: int, axis: int) -> slice:
        whole, parts = grid[axis], target[axis]
        return slice(place * whole // parts, -(-(place + 1) * whole // parts))

    expected = torch.stack(
        [
            maps[..., span(r, 0), span(c, 1), :].mean((-3, -2))
            for r, c in itertools.product(range(target[0]), range(target[1]))
        ],
        -2,
    )
    tolerance = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float32: 1e-5}[dtype]
    torch.testing.assert_close(pooled.double(), expected, rtol=tolerance, atol=tolerance)


def test_cells_are_placed_row_by_row() -> None:
    assert cell_positions((2, 4)).tolist() == [
        [x, y] for y in (0.25, 0.75) for x in (0.125, 0.375, 0.625, 0.875)
    ]


# --------------------------------------------------------------------------- the door

SIZES: dict[str, Any] = {
    "token_dim": DIM,
    "max_tokens": 12,
    "embedding_dim": 2,
    "max_note": 5,
    "last": 3.0,
}
GOOD: dict[str, Any] = {
    "tokens": torch.ones(4, DIM),
    "time": 3.0,
    "grid": None,
    "embedding": torch.tensor([3.0, 4.0]),
    "note": b"12345",
}


@pytest.mark.parametrize(
    ("count", "given", "expected"),
    [(9, None, (3, 3)), (7, None, (1, 7)), (12, None, (1, 12)), (12, (3, 4), (3, 4))],
)
def test_the_grid_is_square_a_row_or_as_told(
    count: int, given: tuple[int, int] | None, expected: tuple[int, int]
) -> None:
    observation = GOOD | {"tokens": torch.ones(count, DIM), "grid": given}
    assert check_observation(**observation, **SIZES)[1] == expected


@pytest.mark.parametrize(
    ("what", "match"),
    [
        ({"grid": (3, 2)}, "grid of 3 rows and 2 columns"),
        ({"grid": (-2, -2)}, "grid of -2 rows"),
        ({"grid": (0, 4)}, "grid of 0 rows"),
        ({"tokens": torch.full((4, DIM), 65520.0)}, "range of float16"),
        ({"tokens": torch.ones(13, DIM)}, "1 to 12 tokens"),
        ({"tokens": torch.full((4, DIM), torch.nan)}, "NaN or infinity"),
        ({"time": 2.999}, "time went backwards"),
        ({"embedding": None}, r"embedding of \(2,\) is needed"),
        ({"embedding": torch.ones(3)}, r"embedding must be \(2,\)"),
        ({"embedding": torch.tensor([1.0, torch.inf])}, "embedding holds NaN"),
        ({"note": b"123456"}, "at most 5 bytes"),
    ],
)
def test_what_does_not_fit_is_named(what: dict[str, Any], match: str) -> None:
    check_observation(**GOOD, **SIZES)
    with pytest.raises(ValueError, match=match):
        check_observation(**(GOOD | what), **SIZES)


def test_an_embedding_that_no_bank_compares_is_refused() -> None:
    check_observation(**(GOOD | {"embedding": None}), **(SIZES | {"embedding_dim": 0}))
    with pytest.raises(ValueError, match="embedding must be"):
        check_observation(**GOOD, **(SIZES | {"embedding_dim": 0}))


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30, 1e300])
def test_an_embedding_is_kept_finite_whatever_its_length(scale: float) -> None:
    embedding = torch.tensor([3.0, 4.0], dtype=torch.float64) * scale
    kept = check_observation(**(GOOD | {"embedding": embedding}), **SIZES)[2]
    assert kept.dtype == torch.float16 and bool(torch.isfinite(kept).all())
    if 1e-10 < scale < 1e100:
        torch.testing.assert_close(kept.float(), torch.tensor([0.6, 0.8]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_what_is_kept_is_a_copy_in_half_precision(dtype: torch.dtype) -> None:
    tokens = torch.arange(12, dtype=dtype).reshape(DIM, 4).T.requires_grad_()  # of odd strides
    halves, _, embedding = check_observation(**(GOOD | {"tokens": tokens}), **SIZES)
    assert halves.dtype == embedding.dtype == torch.float16
    assert not halves.requires_grad and halves.data_ptr() != tokens.data_ptr()
    assert halves.tolist() == tokens.tolist()
    expanded = torch.ones(1, DIM).expand(4, DIM)
    assert check_observation(**(GOOD | {"tokens": expanded}), **SIZES)[0].is_contiguous()
