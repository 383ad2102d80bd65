"""Top-k search in Triton is its reference, and works under torch.compile."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from vismem.kernels.registry import using
from vismem.kernels.topk_search import reference, topk_search

pytestmark = pytest.mark.usefixtures("in_triton")
HALF = [torch.float16, torch.bfloat16]


def normal(*shape: int, device: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    draws = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=draws).to(device, dtype)


def quantised(rows: Tensor) -> tuple[Tensor, Tensor]:
    scale = rows.abs().amax(1) / 127
    return (rows / scale[:, None]).round().to(torch.int8), scale


def forget(patch: pytest.MonkeyPatch) -> None:
    """Fill what is allocated with what no kernel may leave there."""
    empty = torch.empty
    patch.setattr(torch, "empty", lambda *shape, **options: empty(*shape, **options).fill_(2**62))


@pytest.mark.parametrize("dtype", [torch.float32, *HALF, torch.int8])
@pytest.mark.parametrize(
    ("rows", "width", "queries", "k"),
    [
        (0, 5, 2, 3),
        (1, 1, 1, 1),
        (5, 3, 2, 9),
        (64, 17, 1, 3),
        (200, 33, 3, 7),
        (130, 130, 17, 2),
        (700, 70, 2, 2),
    ],
)
def test_is_the_reference(
    rows: int,
    width: int,
    queries: int,
    k: int,
    dtype: torch.dtype,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bank, scale = normal(rows, width, device=device), None
    query = normal(queries, width, device=device, seed=1)
    if dtype == torch.int8:
        bank, scale = quantised(bank)
    else:
        bank, query = bank.to(dtype), query.to(dtype)
    with monkeypatch.context() as patch:
        forget(patch)
        scores, numbers = topk_search(bank, query, k, scale=scale)
    expected, places = reference.topk_search(bank, query, k, scale)
    assert scores.shape == numbers.shape == (queries, min(k, rows))
    assert scores.dtype == torch.float32 and numbers.dtype == torch.int64
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)
    clear = (expected.diff(dim=-1).abs() > 1e-5).all(-1)
    assert torch.equal(numbers[clear], places[clear]) and (not rows or bool(clear.any()))


@pytest.mark.parametrize("dtype", [*HALF, torch.int8])
def test_a_query_is_not_rounded_to_the_type_of_the_bank(dtype: torch.dtype, device: str) -> None:
    bank, scale = normal(150, 20, device=device), None
    query = normal(20, device=device, seed=1)
    bank, scale = quantised(bank) if dtype == torch.int8 else (bank.to(dtype), None)
    scores, numbers = topk_search(bank, query, 5, scale=scale)
    expected, places = reference.topk_search(bank, query, 5, scale)
    torch.testing.assert_close(scores, expected, rtol=2e-6, atol=1e-6)
    assert torch.equal(numbers, places)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_ties_go_to_the_lowest_row(dtype: torch.dtype, device: str) -> None:
    draws = torch.Generator().manual_seed(0)
    bank = torch.randint(-1, 2, (300, 3), generator=draws).to(device, dtype)
    query = torch.tensor([[1.0, 2.0, -1.0], [0.0, 0.0, 0.0], [0.0, -1.0, 0.0]], device=device)
    scale = torch.ones(300, device=device) if dtype == torch.int8 else None
    found = topk_search(bank, query, 7, scale=scale)
    expected = reference.topk_search(bank, query, 7, scale)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


def test_the_best_rows_may_all_be_in_one_group_or_each_in_its_own(device: str) -> None:
    bank = torch.zeros(1000, 2, device=device)
    bank[100:110, 0] = torch.arange(10.0, device=device) + 1
    bank[::100, 1] = torch.arange(10.0, device=device) + 1
    scores, numbers = topk_search(bank, torch.eye(2, device=device), 10)
    assert scores.tolist() == [list(range(10, 0, -1))] * 2
    assert numbers.tolist() == [list(range(109, 99, -1)), list(range(900, -1, -100))]


def test_negative_scores_are_above_rows_that_are_not_there(device: str) -> None:
    bank = -1 - torch.arange(70.0, device=device)[:, None]
    scores, numbers = topk_search(bank, torch.ones(1, device=device), 70)
    assert numbers.tolist() == list(range(70)) and scores.tolist() == bank[:, 0].tolist()
    bank = torch.full((130, 1), -5.0, device=device)
    bank[[0, 64], 0] = torch.tensor([-1.0, -2.0], device=device)
    assert topk_search(bank, torch.ones(1, device=device), 2)[1].tolist() == [0, 64]
    bank[:] = -torch.inf
    assert topk_search(bank, torch.ones(1, device=device), 70)[1].tolist() == list(range(70))


def test_zero_has_no_sign(device: str) -> None:
    bank, scale = torch.ones(300, 2, device=device).to(torch.int8), torch.ones(300, device=device)
    scale[::2] = -1
    _, numbers = topk_search(bank, torch.zeros(2, device=device), 5, scale=scale)
    assert numbers.tolist() == [0, 1, 2, 3, 4]


def test_what_is_not_a_number_is_the_largest(device: str) -> None:
    bank = torch.zeros(200, 1, device=device)
    bank[[1, 3, 4, 170], 0] = torch.tensor([torch.inf, torch.nan, -torch.inf, 1.0], device=device)
    scores, numbers = topk_search(bank, torch.ones(1, device=device), 4)
    assert numbers.tolist() == [3, 1, 170, 0]
    assert scores[1:].tolist() == [torch.inf, 1.0, 0.0] and bool(scores[0].isnan())
    # Inf - inf is one that is below zero by its bits on some machines.
    bank = torch.zeros(200, 2, device=device)
    bank[170] = torch.tensor([torch.inf, -torch.inf], device=device)
    assert topk_search(bank, torch.ones(2, device=device), 2)[1].tolist() == [170, 0]


def test_strides_do_not_matter(device: str) -> None:
    bank, query = normal(90, 24, device=device), normal(3, 24, device=device, seed=1)
    expected = topk_search(bank, query, 4)
    found = topk_search(torch.stack([bank, -bank], 2)[..., 0], query.T.contiguous().T, 4)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    whole, scale = quantised(bank)
    expected = topk_search(whole, query, 4, scale=scale)
    wide = torch.stack([scale, -scale], 1)[:, 0]
    found = topk_search(whole, query, 4, scale=wide)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


def test_float64_is_refused_by_name_and_falls_back_by_default(device: str) -> None:
    bank, query = normal(9, 4, device=device).double(), normal(4, device=device)
    with pytest.raises(RuntimeError, match="float64"):
        topk_search(bank, query, 2)
    with pytest.raises(RuntimeError, match="float64"):
        topk_search(bank.float(), query.double(), 2)
    with using("auto"):
        found = topk_search(bank, query, 2)[1]
    assert torch.equal(found, reference.topk_search(bank, query, 2)[1])


@pytest.mark.parametrize("mode", ["torch", "triton"])
def test_compiles_whole(mode: str, device: str) -> None:
    bank, query = normal(100, 20, device=device), normal(20, device=device, seed=1)
    with using(mode):
        compiled = torch.compile(topk_search, fullgraph=True, backend="aot_eager")
        scores, numbers = compiled(bank, query, 3)
    expected, places = reference.topk_search(bank, query, 3)
    torch.testing.assert_close(scores, expected)
    assert torch.equal(numbers, places)


def test_custom_op_keeps_its_promises(device: str) -> None:
    bank, query = normal(90, 8, device=device), normal(2, 8, device=device)
    torch.library.opcheck(torch.ops.vismem.topk_search, (bank, query, 3, None))
    torch.library.opcheck(
        torch.ops.vismem.topk_search, (*quantised(bank)[:1], query, 3, quantised(bank)[1])
    )
