from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from vismem.kernels.kmeans import cpu, kmeans_assign, kmeans_update, reference

_settings = settings(max_examples=60, derandomize=True)
sizes = st.tuples(st.integers(0, 40), st.integers(1, 9), st.integers(0, 7), st.integers(0, 10**6))


def grid(rows: int, dim: int, draws: torch.Generator) -> Tensor:
    """Multiples of a quarter: all forms of a distance are exact, and many are equal."""
    return torch.randint(-4, 5, (rows, dim), generator=draws) / 4


@_settings
@given(sizes, st.booleans(), st.integers(1, 50))
def test_assign_is_the_reference_on_ties_too(
    size: tuple[int, int, int, int], expanded: bool, chunk: int
) -> None:
    rows, clusters, dim, seed = size
    draws = torch.Generator().manual_seed(seed)
    x, centroids = grid(rows, dim, draws), grid(clusters, dim, draws)
    before = cpu.CHUNK
    try:
        cpu.CHUNK = chunk
        labels, squares = kmeans_assign(x, centroids, expanded=expanded)
    finally:
        cpu.CHUNK = before
    expected = reference.kmeans_assign(x, centroids, expanded)
    assert labels.dtype == torch.int64 and squares.dtype == x.dtype
    assert torch.equal(labels, expected[0]) and torch.equal(squares, expected[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("expanded", [False, True])
def test_assign_finds_the_nearest_of_random_rows(dtype: torch.dtype, expanded: bool) -> None:
    draws = torch.Generator().manual_seed(1)
    x = torch.randn(300, 70, generator=draws).to(dtype)
    centroids = torch.randn(23, 70, generator=draws).to(dtype)
    labels, squares = kmeans_assign(x, centroids, expanded=expanded)
    expected = reference.kmeans_assign(x, centroids, expanded)
    assert torch.equal(labels, expected[0])
    torch.testing.assert_close(squares, expected[1])


def test_distances_with_one_root_are_a_tie() -> None:
    far, near = [4000.0, 1.0, 1.0], [4000.0, 1.0, 0.0]
    squares = torch.tensor([far, near]).square().sum(1)
    assert squares.tolist() == [16000002, 16000001] and squares.sqrt().unique().numel() == 1
    for expanded in (False, True):
        label, square = kmeans_assign(
            torch.zeros(1, 3), torch.tensor([far, near]), expanded=expanded
        )
        assert label.tolist() == [0] and square.tolist() == [16000002]


def test_the_expanded_form_cancels_and_nan_is_the_nearest() -> None:
    draws = torch.Generator().manual_seed(0)
    x = 100 + 1e-3 * torch.randn(64, 33, generator=draws)
    squares = cpu._expanded(x, x)
    assert (squares < 0).any()
    labels, chosen = kmeans_assign(x, x, expanded=True)
    negative = (squares < 0).any(1)
    assert torch.equal(labels[negative], (squares < 0).long().argmax(1)[negative])
    assert (chosen[negative] < 0).all()
    assert kmeans_assign(x, x)[0].tolist() == list(range(64))


@_settings
@given(sizes)
def test_update_is_the_reference(size: tuple[int, int, int, int]) -> None:
    rows, clusters, dim, seed = size
    draws = torch.Generator().manual_seed(seed)
    x, labels = grid(rows, dim, draws), torch.randint(clusters, (rows,), generator=draws)
    weights = torch.randint(0, 4, (rows,), generator=draws) / 4
    means, mass = kmeans_update(x, weights, labels, clusters)
    expected = reference.kmeans_update(x, weights, labels, clusters)
    assert means.dtype == mass.dtype == x.dtype
    torch.testing.assert_close(means, expected[0], rtol=1e-6, atol=1e-7)
    assert torch.equal(mass, expected[1])
    # Weight is neither made nor lost, and neither is the weighted sum of the rows.
    assert mass.sum() == weights.sum()
    total = (weights[:, None] * x).sum(0)
    torch.testing.assert_close((mass[:, None] * means).sum(0), total, rtol=1e-5, atol=1e-4)


def test_half_precision_is_summed_in_float32() -> None:
    x = torch.ones(5000, 2, dtype=torch.float16)
    means, mass = kmeans_update(x, x[:, 0], torch.zeros(5000, dtype=torch.int64), 2)
    assert means.tolist() == [[1, 1], [0, 0]] and mass.tolist() == [5000, 0]
    assert means.dtype == torch.float16 and mass.dtype == torch.float32


def test_sums_beyond_half_precision_are_kept() -> None:
    """Float16 ends at 65504; 3000 rows of 40 are 120000."""
    x, labels = torch.full((3000, 1), 40.0).half(), torch.zeros(3000, dtype=torch.int64)
    weights = torch.full((3000,), 2.0**-12)
    for each in (weights, torch.ones(3000), weights.half()):
        means, mass = kmeans_update(x, each, labels, 1)
        assert means.tolist() == [[40.0]] and mass.tolist() == [float(each.float().sum())]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_half_precision_is_measured_in_float32(dtype: torch.dtype, offset: float) -> None:
    """At the offset, products of bfloat16 tell nothing apart."""
    draws = torch.Generator().manual_seed(2)
    x, centroids = ((torch.randn(n, 50, generator=draws) + offset).to(dtype) for n in (400, 120))
    labels, squares = kmeans_assign(x, centroids)
    expected = reference.kmeans_assign(x, centroids)
    assert squares.dtype == torch.float32
    differ = labels != expected[0]
    # Bfloat16 near 30 has eighths: there are ties.
    assert not differ.any() or (offset and dtype == torch.bfloat16 and differ.sum() < 4)
    torch.testing.assert_close(squares, expected[1], rtol=1e-5, atol=1e-5)


def test_products_that_round_their_input_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = torch.Generator().manual_seed(5)
    x, centroids = (torch.randn(n, 600, generator=draws) for n in (300, 200))
    expected = kmeans_assign(x, centroids)

    def rounded(x: Tensor, y: Tensor, bias: Tensor) -> Tensor:
        return (x.bfloat16().float() @ y.bfloat16().float().T) + bias

    assert not torch.equal(
        rounded(x, -2 * centroids, centroids.square().sum(1)).argmin(1), expected[0]
    )
    monkeypatch.setattr(cpu, "products", rounded)
    monkeypatch.setattr(cpu, "rounding", lambda x: 2.0**-8)
    found = kmeans_assign(x, centroids)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_near_ties_are_settled_by_differences(dtype: torch.dtype) -> None:
    """Neighbours that differ in one place, far from zero and from each other's centre."""
    draws = torch.Generator().manual_seed(6)
    centroids = (100 * torch.randn(1, 300, generator=draws)).to(dtype).repeat(40, 1)
    places = torch.arange(40)
    centroids[places, places] += 8 * centroids[places, places].abs().clamp_min(1)
    x = centroids[torch.randperm(40, generator=draws)].repeat(9, 1)
    labels, squares = kmeans_assign(x, centroids)
    assert torch.equal(centroids[labels], x) and not squares.any()


def test_far_rows_tie_by_their_roots() -> None:
    """Whole numbers, whose squares are exact, and hardly count beside 3000."""
    draws = torch.Generator().manual_seed(4)
    x, centroids = (torch.randint(0, 3, (n, 70), generator=draws).float() for n in (30, 50))
    x[:, 0] = 3000
    squares = (x[:, None] - centroids).square().sum(2)
    expected = squares.sqrt().argmin(1)
    assert not torch.equal(expected, squares.argmin(1))
    found = kmeans_assign(x, centroids)
    assert torch.equal(found[0].cpu(), expected)
    assert torch.equal(found[1].cpu(), squares.gather(1, expected[:, None])[:, 0])


def test_close_pairs_far_from_their_centre_are_told_apart() -> None:
    draws = torch.Generator().manual_seed(5)
    one = 1000 * torch.randn(1, 70, generator=draws) + torch.randn(20, 70, generator=draws) / 16
    centroids = torch.cat([one, -one])
    labels, squares = kmeans_assign(centroids, centroids)
    assert labels.tolist() == list(range(40)) and not squares.any()


def test_what_is_not_a_number_is_the_nearest() -> None:
    x, centroids = torch.randn(5, 3, generator=torch.Generator().manual_seed(7)), torch.eye(3)
    expected = kmeans_assign(x, centroids)[0]
    x[2, 1] = torch.nan
    labels, squares = kmeans_assign(x, centroids)
    assert labels.tolist() == [*expected[:2].tolist(), 0, *expected[3:].tolist()]
    assert squares.isnan().tolist() == [False, False, True, False, False]
    centroids[1, 0] = torch.nan
    labels, squares = kmeans_assign(x, centroids)
    assert labels.tolist() == [1, 1, 0, 1, 1] and squares.isnan().all()


def test_distances_without_end_are_a_tie() -> None:
    x = torch.tensor([[torch.inf], [3e38], [0.0]])
    labels, squares = kmeans_assign(x, torch.tensor([[-3e38], [1.0]]))
    assert labels.tolist() == [0, 0, 1] and squares.tolist() == [torch.inf, torch.inf, 1]


@pytest.mark.parametrize("expanded", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiles_whole(expanded: bool, dtype: torch.dtype) -> None:
    draws = torch.Generator().manual_seed(8)
    x, centroids = (torch.randn(n, 20, generator=draws).to(dtype) for n in (30, 5))
    compiled = torch.compile(kmeans_assign, fullgraph=True, backend="aot_eager")
    found = compiled(x, centroids, expanded=expanded)
    expected = kmeans_assign(x, centroids, expanded=expanded)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    assert found[0].dtype == expected[0].dtype and found[1].dtype == expected[1].dtype


def test_custom_op_keeps_its_promises() -> None:
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(9)).half()
    torch.library.opcheck(torch.ops.vismem.kmeans_assign_torch, (x, x[:3].clone()))


def test_the_same_input_gives_the_same_bits() -> None:
    draws = torch.Generator().manual_seed(3)
    x, weights = torch.randn(500, 40, generator=draws), torch.rand(500, generator=draws)
    labels = torch.randint(7, (500,), generator=draws)
    one, other = (kmeans_update(x, weights, labels, 7) for _ in range(2))
    assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def test_the_inputs_are_left_as_they_are() -> None:
    x, labels = torch.arange(6.0).reshape(3, 2), torch.tensor([0, 1, 1])
    kept = x.clone()
    kmeans_assign(x, x[:2])
    kmeans_assign(x, x[:2], expanded=True)
    kmeans_update(x, torch.ones(3), labels, 2)
    assert torch.equal(x, kept)


X = torch.zeros(3, 2)


@pytest.mark.parametrize(
    ("x", "centroids"),
    [(X, X[:, :1]), (X, X[:0]), (X, X.double()), (X[0], X), (X, X[0]), (X.long(), X.long())],
)
def test_assign_refuses_what_does_not_go_together(x: Tensor, centroids: Tensor) -> None:
    with pytest.raises(ValueError, match="kmeans_assign"):
        kmeans_assign(x, centroids)


L = torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("x", "weights", "labels"),
    [
        (X[0], X[:, 0], L),
        (X, X[:2, 0], L),
        (X, X[:, 0], L[:2]),
        (X, X[:, 0], L.int()),
        (X, X[:, 0].double(), L),
        (X.long(), L, L),
    ],
)
def test_update_refuses_what_does_not_go_together(
    x: Tensor, weights: Tensor, labels: Tensor
) -> None:
    with pytest.raises(ValueError):
        kmeans_update(x, weights, labels, 2)
