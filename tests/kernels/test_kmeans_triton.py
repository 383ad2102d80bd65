"""K-means in Triton is its reference, and works under torch.compile."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from vismem.kernels.kmeans import kmeans_assign, kmeans_update, reference
from vismem.kernels.registry import using

pytestmark = pytest.mark.usefixtures("in_triton")
HALF = [torch.float16, torch.bfloat16]


def normal(*shape: int, device: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    draws = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=draws).to(device, dtype)


def forget(patch: pytest.MonkeyPatch) -> None:
    """Fill what is allocated with what no kernel may leave there."""
    empty = torch.empty

    def poisoned(*shape: int, **options: object) -> Tensor:
        made = empty(*shape, **options)
        return made.fill_(torch.nan if made.is_floating_point() else -7)

    patch.setattr(torch, "empty", poisoned)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize(
    ("rows", "clusters", "width"),
    [(0, 3, 5), (1, 1, 1), (7, 3, 17), (33, 65, 70), (70, 130, 129), (5, 4, 0), (3, 300, 520)],
)
def test_assign_is_the_reference(
    rows: int,
    clusters: int,
    width: int,
    dtype: torch.dtype,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = normal(rows, width, device=device, dtype=dtype)
    centroids = normal(clusters, width, device=device, dtype=dtype, seed=1)
    with monkeypatch.context() as patch:
        forget(patch)
        labels, squares = kmeans_assign(x, centroids)
    expected = reference.kmeans_assign(x, centroids)
    assert labels.dtype == torch.int64 and squares.dtype == torch.float32
    # In one dimension bfloat16 makes ties of which float64 knows nothing.
    assert torch.equal(labels, expected[0])
    torch.testing.assert_close(squares, expected[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_ties_go_to_the_first(dtype: torch.dtype, device: str) -> None:
    draws = torch.Generator().manual_seed(0)
    x = (torch.randint(-4, 5, (50, 3), generator=draws) / 4).to(device, dtype)
    centroids = (torch.randint(-4, 5, (290, 3), generator=draws) / 4).to(device, dtype)
    labels, squares = kmeans_assign(x, centroids)
    expected = reference.kmeans_assign(x, centroids)
    assert torch.equal(labels, expected[0]) and torch.equal(squares, expected[1])


def test_distances_with_one_root_are_a_tie(device: str) -> None:
    centroids = torch.tensor([[4000.0, 1.0, 1.0], [4000.0, 1.0, 0.0]], device=device)
    label, square = kmeans_assign(torch.zeros(1, 3, device=device), centroids)
    assert label.tolist() == [0] and square.tolist() == [16000002]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_near_ties_are_settled_by_differences(dtype: torch.dtype, device: str) -> None:
    base = (100 * normal(1, 70, device=device)).to(dtype)
    centroids, places = base.repeat(40, 1), torch.arange(40, device=device)
    centroids[places, places] += centroids[places, places].abs() / 64
    order = torch.randperm(40, generator=torch.Generator().manual_seed(6)).to(device)
    labels, squares = kmeans_assign(centroids[order], centroids)
    assert torch.equal(labels, order) and not squares.any()


def test_far_rows_tie_by_their_roots(device: str) -> None:
    """Whole numbers, whose squares are exact, and hardly count beside 3000."""
    draws = torch.Generator().manual_seed(4)
    x, centroids = (torch.randint(0, 3, (n, 70), generator=draws).float() for n in (30, 50))
    x[:, 0] = 3000
    squares = (x[:, None] - centroids).square().sum(2)
    expected = squares.sqrt().argmin(1)
    assert not torch.equal(expected, squares.argmin(1))
    found = kmeans_assign(x.to(device), centroids.to(device))
    assert torch.equal(found[0].cpu(), expected)
    assert torch.equal(found[1].cpu(), squares.gather(1, expected[:, None])[:, 0])


def test_close_pairs_far_from_their_centre_are_told_apart(device: str) -> None:
    draws = torch.Generator().manual_seed(5)
    one = 1000 * torch.randn(1, 70, generator=draws) + torch.randn(20, 70, generator=draws) / 16
    centroids = torch.cat([one, -one])
    labels, squares = kmeans_assign(centroids.to(device), centroids.to(device))
    assert labels.tolist() == list(range(40)) and not squares.any()


def test_what_is_not_a_number_is_the_nearest(device: str) -> None:
    x, centroids = normal(5, 3, device=device), torch.eye(3, device=device)
    expected = kmeans_assign(x, centroids)[0].tolist()
    x[2, 1] = torch.nan
    labels, squares = kmeans_assign(x, centroids)
    assert labels.tolist() == [*expected[:2], 0, *expected[3:]]
    assert squares.isnan().tolist() == [False, False, True, False, False]
    centroids[1, 0] = torch.nan
    labels, squares = kmeans_assign(x, centroids)
    assert labels.tolist() == [1, 1, 0, 1, 1] and bool(squares.isnan().all())


def test_distances_without_end_are_a_tie(device: str) -> None:
    x = torch.tensor([[torch.inf], [3e38], [0.0]], device=device)
    labels, squares = kmeans_assign(x, torch.tensor([[-3e38], [1.0]], device=device))
    assert labels.tolist() == [0, 0, 1] and squares.tolist() == [torch.inf, torch.inf, 1]


def test_rows_are_taken_in_several_passes(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from vismem.kernels.kmeans import triton

    monkeypatch.setattr(triton, "SCORES", 1)  # as few rows at a time as a tile has
    x, centroids = normal(300, 4, device=device), normal(3, 4, device=device, seed=1)
    labels, squares = kmeans_assign(x, centroids)
    expected = reference.kmeans_assign(x, centroids)
    assert torch.equal(labels, expected[0])
    torch.testing.assert_close(squares, expected[1])


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize(
    ("rows", "clusters", "width"), [(0, 3, 5), (1, 1, 1), (70, 5, 130), (40, 60, 17), (6, 2, 0)]
)
def test_update_is_the_reference(
    rows: int,
    clusters: int,
    width: int,
    dtype: torch.dtype,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = normal(rows, width, device=device, dtype=dtype)
    draws = torch.Generator().manual_seed(rows)
    labels = torch.randint(clusters, (rows,), generator=draws).to(device)
    weights = torch.randint(0, 50, (rows,), generator=draws).to(device) / 8
    for given in (weights, weights.to(dtype)):
        with monkeypatch.context() as patch:
            forget(patch)
            means, mass = kmeans_update(x, given, labels, clusters)
        expected = reference.kmeans_update(x, given, labels, clusters)
        assert means.dtype == dtype and mass.dtype == torch.float32
        rtol = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
        torch.testing.assert_close(means, expected[0], rtol=rtol, atol=1e-6)
        torch.testing.assert_close(mass, expected[1], rtol=1e-6, atol=0)


def test_half_precision_is_summed_in_float32(device: str) -> None:
    x = torch.full((3000, 1), 40.0, device=device).half()
    means, mass = kmeans_update(x, x[:, 0] / 40, torch.zeros_like(x[:, 0]).long(), 1)
    assert means.tolist() == [[40.0]] and mass.tolist() == [3000.0]


def test_strides_do_not_matter(device: str) -> None:
    x, centroids = normal(9, 24, device=device), normal(4, 24, device=device, seed=1)
    wide = torch.stack([x, x], 2)[..., 0]
    assert not wide.is_contiguous()
    labels, squares = kmeans_assign(x, centroids)
    again = kmeans_assign(wide, centroids.T.contiguous().T)
    assert torch.equal(again[0], labels) and torch.equal(again[1], squares)
    weights = torch.rand(18, generator=torch.Generator().manual_seed(0)).to(device)[::2]
    means, mass = kmeans_update(x, weights.contiguous(), labels, 4)
    again = kmeans_update(wide, weights, labels, 4)
    assert torch.equal(again[0], means) and torch.equal(again[1], mass)


def test_the_same_input_gives_the_same_bits(device: str) -> None:
    x, centroids = normal(60, 40, device=device), normal(7, 40, device=device)
    one, other = (kmeans_assign(x, centroids) for _ in range(2))
    assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
    updates = [kmeans_update(x, x[:, 0].abs(), one[0], 7) for _ in range(2)]
    assert torch.equal(updates[0][0], updates[1][0]) and torch.equal(updates[0][1], updates[1][1])


def test_what_triton_cannot_do_is_refused_by_name_and_falls_back(device: str) -> None:
    x, labels = normal(3, 4, device=device), torch.arange(3, device=device)
    calls = {
        "expanded": lambda: kmeans_assign(x, x, expanded=True),
        "float64": lambda: kmeans_assign(x.double(), x.double()),
        "float64 ": lambda: kmeans_update(x.double(), x[:, 0].double(), labels, 3),
    }
    for obstacle, call in calls.items():
        with pytest.raises(RuntimeError, match=obstacle.strip()):
            call()
        with using("auto"):
            call()


def test_compiles_whole(device: str) -> None:
    x, centroids = normal(6, 20, device=device), normal(3, 20, device=device)

    def step(x: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
        labels, squares = kmeans_assign(x, centroids)
        return kmeans_update(x, 1 / (1 + squares), labels, len(centroids))

    expected = step(x, centroids)
    for mode in ("torch", "triton"):
        with using(mode):
            found = torch.compile(step, fullgraph=True, backend="aot_eager")(x, centroids)
        torch.testing.assert_close(found, expected)


def test_custom_ops_keep_their_promises(device: str) -> None:
    x, centroids = normal(9, 4, device=device), normal(3, 4, device=device)
    torch.library.opcheck(torch.ops.vismem.kmeans_assign, (x, centroids))
    labels = torch.arange(9, device=device) % 3
    torch.library.opcheck(torch.ops.vismem.kmeans_update, (x, x[:, 0].abs(), labels, 3))
