from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from vismem.kernels import best
from vismem.kernels.topk_search import cpu, reference, topk_search


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=60, derandomize=True)
@given(
    rows=st.integers(0, 40),
    width=st.integers(1, 33),
    queries=st.one_of(st.none(), st.integers(0, 5)),
    k=st.integers(1, 50),
    chunk=st.integers(1, 17),
    group=st.integers(1, 3),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
)
def test_is_the_reference(
    rows: int, width: int, queries: int | None, k: int, chunk: int, group: int, dtype: torch.dtype
) -> None:
    bank = normal(rows, width).to(dtype)
    query = normal(width, seed=1) if queries is None else normal(queries, width, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "CHUNK", chunk * width)
        patch.setattr(cpu, "SCORES", 5 * chunk)
        patch.setattr(cpu, "GROUP", group)
        patch.setattr(best, "GROUP", group)
        scores, numbers = topk_search(bank, query, k)
    expected, places = reference.topk_search(bank, query, k)
    assert scores.shape == numbers.shape == (*query.shape[:-1], min(k, rows))
    assert scores.dtype == torch.float32 and numbers.dtype == torch.int64
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)
    # Rows whose products differ by rounding alone may change places.
    clear = (expected.diff(dim=-1).abs() > 1e-4).all(-1)
    assert torch.equal(numbers[clear], places[clear])


@pytest.mark.parametrize("rows", [8191, 8192, 8193, 20_000])
def test_rows_are_found_in_every_chunk(rows: int) -> None:
    bank = torch.zeros(rows, 3)
    planted = torch.tensor([0, rows // 2, rows - 1])
    bank[planted, 0] = torch.tensor([1.0, 3.0, 2.0])
    scores, numbers = topk_search(bank, torch.tensor([1.0, 0.0, 0.0]), 3)
    assert scores.tolist() == [3.0, 2.0, 1.0]
    assert numbers.tolist() == planted[[1, 2, 0]].tolist()


@pytest.mark.parametrize("rows", [20, 3001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int8])
def test_ties_go_to_the_lowest_row(rows: int, dtype: torch.dtype, monkeypatch) -> None:
    """Also at the boundary, across groups and parts, and where proposals cannot settle it."""
    draws = torch.Generator().manual_seed(rows)
    bank = torch.randint(-1, 2, (rows, 3), generator=draws).to(dtype)
    query = torch.tensor([[1.0, 2.0, -1.0], [0.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    scale = torch.ones(rows) if dtype == torch.int8 else None
    for scores in (cpu.SCORES, 2000):
        monkeypatch.setattr(cpu, "SCORES", scores)
        for asked in (query, query.to(torch.bfloat16)):
            found = topk_search(bank, asked, 7, scale=scale)
            expected = reference.topk_search(bank, query, 7, scale)
            assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


def quantised(rows: Tensor) -> tuple[Tensor, Tensor]:
    scale = rows.abs().amax(1).clamp_min(1e-9) / 127
    return (rows / scale[:, None]).round().to(torch.int8), scale


@settings(max_examples=60, derandomize=True)
@given(
    rows=st.integers(0, 400),
    width=st.integers(1, 33),
    queries=st.integers(0, 5),
    k=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_int8_is_the_reference(rows: int, width: int, queries: int, k: int, seed: int) -> None:
    bank, scale = quantised(normal(rows, width, seed=seed))
    query = normal(queries, width, seed=seed + 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "GROUP", 3)
        patch.setattr(best, "GROUP", 3)
        scores, numbers = topk_search(bank, query, k, scale=scale)
    expected, places = reference.topk_search(bank, query, k, scale)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)
    clear = (expected.diff(dim=-1).abs() > 1e-4).all(-1)
    assert torch.equal(numbers[clear], places[clear])


@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
def test_rough_scores_alone_would_be_wrong(kind: str) -> None:
    """Thousands of rows that are nearly as good as the best."""
    draws = torch.Generator().manual_seed(3)
    query = torch.randn(4, 300, generator=draws)
    bank = torch.randn(5000, 300, generator=draws)
    if kind == "int8":  # all rows have one sum
        orders = bank.argsort(1)
        bank = torch.randint(-127, 128, (300,), generator=draws).to(torch.int8)[orders]
        query, scale = 1 + 1e-4 * query, torch.full((5000,), 2.0)
    else:
        bank, scale = (3 * query[1] + 0.02 * bank).bfloat16(), None
        query = query.bfloat16()
    expected, places = reference.topk_search(bank, query, 9, scale)
    proposed = cpu._propose(bank, query, scale)
    if proposed is None:
        pytest.skip("no faster products here")
    assert not torch.equal(proposed[0].topk(9, 1).indices, places)
    error = (
        proposed[0].double() - query.double() @ bank.double().T * (1 if scale is None else scale)
    ).abs()
    assert bool((error <= proposed[1](proposed[0].T).T).all())
    scores, numbers = topk_search(bank, query, 9, scale=scale)
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-4)
    clear = expected.diff(dim=-1).abs().amin(-1) > 1e-3
    assert clear.any() and torch.equal(numbers[clear], places[clear])


def test_what_was_not_proposed_can_be_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    bank, query = normal(900, 8).bfloat16(), normal(3, 8, seed=1).bfloat16()
    expected = reference.topk_search(bank, query, 4)

    def wrong(bank: Tensor, query: Tensor, scale: Tensor | None):
        return -(query.float() @ bank.float().T), lambda scores: 1e3 * scores.abs()

    monkeypatch.setattr(cpu, "_propose", wrong)
    found = topk_search(bank, query, 4)
    assert torch.equal(found[1], expected[1])
    torch.testing.assert_close(found[0], expected[0])


def test_a_doubt_is_as_large_as_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    bank = torch.zeros(200, 1)
    bank[:9, 0] = 10 - torch.arange(9) / 8
    bank[50] = 11

    def wrong(bank: Tensor, query: Tensor, scale: Tensor | None):
        return torch.where(bank[:, 0] == 11, 8.5, bank[:, 0])[None], lambda scores: 0 * scores + 3

    monkeypatch.setattr(cpu, "_propose", wrong)
    assert topk_search(bank, torch.ones(1), 1)[1].tolist() == [50]


def test_the_error_of_whole_numbers_is_bounded() -> None:
    bank, scale = quantised(normal(500, 300))
    query = normal(3, 300, seed=1)
    proposed = cpu._propose(bank, query, scale)
    if proposed is None:
        pytest.skip("no faster products here")
    error = (proposed[0] - query.double() @ bank.double().T * scale).abs()
    assert bool((error <= proposed[1](proposed[0].T).T).all())


def test_zero_has_no_sign() -> None:
    bank, scale = torch.ones(300, 2).to(torch.int8), torch.ones(300)
    scale[::2] = -1
    assert topk_search(bank, torch.zeros(2), 5, scale=scale)[1].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("rows", [6, 3000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_a_number_is_the_largest(rows: int, dtype: torch.dtype) -> None:
    bank = torch.zeros(rows, 2, dtype=dtype)
    bank[[1, 3, 4, 5], 0] = torch.tensor([torch.inf, torch.nan, -torch.inf, 1.0], dtype=dtype)
    scores, numbers = topk_search(bank, torch.tensor([1.0, 1.0]).to(dtype), 4)
    assert numbers.tolist() == [3, 1, 5, 0]
    assert scores[1:].tolist() == [torch.inf, 1.0, 0.0] and scores[0].isnan()
    # Inf - inf is a NaN with the other sign on some machines.
    scores, numbers = topk_search(bank, torch.tensor([1.0, torch.inf]).to(dtype), 2)
    assert numbers.tolist() == [0, 1] and bool(scores.isnan().all())


@settings(max_examples=100, derandomize=True)
@given(st.lists(st.floats(width=32), min_size=1, max_size=20))
def test_keys_sort_as_scores_do(values: list[float]) -> None:
    scores, where = torch.tensor(values), torch.arange(len(values))
    made = best.keys(scores, where)
    order = made.sort(descending=True).values
    expected = torch.sort(scores.nan_to_num(nan=torch.inf), descending=True, stable=True)
    places, found = best.places(order), best.scores(order)
    assert torch.equal(found.nan_to_num(nan=torch.inf) + 0, expected.values + 0)
    numbers = ~scores.isnan()[places]
    assert not numbers.any() or not (~numbers[numbers.nonzero()[0, 0] :]).any()  # NaN come first
    pairs = list(zip(found.tolist(), places.tolist(), strict=True))
    assert all(a != b or p < q for (a, p), (b, q) in zip(pairs, pairs[1:], strict=False))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_compiles_whole(dtype: torch.dtype) -> None:
    bank, query = normal(300, 8).to(dtype), normal(8, seed=1).to(dtype)
    compiled = torch.compile(topk_search, fullgraph=True, backend="aot_eager")
    found, expected = compiled(bank, query, 3), topk_search(bank, query, 3)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


def test_custom_op_keeps_its_promises() -> None:
    bank, scale = quantised(normal(60, 8))
    operator = torch.ops.vismem.topk_search_torch
    torch.library.opcheck(operator, (bank, normal(2, 8), 3, scale))
    torch.library.opcheck(operator, (normal(60, 8), normal(2, 8), 3, None))


def test_half_precision_rows_are_summed_in_full() -> None:
    """4096 ones and a small rest, which float16 would lose."""
    bank = torch.ones(2, 4097, dtype=torch.float16)
    bank[1, -1] = 1.5
    scores, numbers = topk_search(bank, torch.ones(4097), 2)
    assert scores.tolist() == [4097.5, 4097.0] and numbers.tolist() == [1, 0]


def test_an_empty_bank_gives_nothing() -> None:
    scores, numbers = topk_search(torch.empty(0, 4, dtype=torch.float16), torch.ones(4), 3)
    assert scores.shape == numbers.shape == (0,) and numbers.dtype == torch.int64


def test_nothing_is_changed() -> None:
    bank, query = normal(9, 4), normal(4, seed=1)
    before = bank.clone(), query.clone()
    topk_search(bank, query, 3)
    assert torch.equal(bank, before[0]) and torch.equal(query, before[1])


@pytest.mark.parametrize(
    ("bank", "query", "k"),
    [
        (torch.ones(3, 4), torch.ones(5), 1),
        (torch.ones(3, 4), torch.ones(4), 0),
        (torch.ones(3, 4), torch.ones(4), -1),
        (torch.ones(4), torch.ones(4), 1),
        (torch.ones(1, 3, 4), torch.ones(4), 1),
        (torch.ones(3, 4), torch.tensor(1.0), 1),
    ],
)
def test_what_does_not_fit_is_refused(bank: Tensor, query: Tensor, k: int) -> None:
    with pytest.raises(ValueError, match=r"bank \(M, D\), query \(..., D\) and k >= 1"):
        topk_search(bank, query, k)


@pytest.mark.parametrize(
    ("bank", "scale", "message"),
    [
        (torch.ones(3, 4).to(torch.int8), None, "scale"),
        (torch.ones(3, 4).to(torch.int8), torch.ones(4), "scale"),
        (torch.ones(3, 4).to(torch.int8), torch.ones(3, 1), "scale"),
        (torch.ones(3, 4), torch.ones(3), "scale"),
        (torch.ones(3, 4).long(), None, "int64"),
    ],
)
def test_a_scale_belongs_to_int8(bank: Tensor, scale: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        topk_search(bank, torch.ones(4), 1, scale=scale)
    with pytest.raises(ValueError, match="int64"):
        topk_search(torch.ones(3, 4), torch.ones(4).long(), 1)
