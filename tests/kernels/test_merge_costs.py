"""Ward's cost is its reference, whatever the shape, the type and the chunks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from vismem.kernels.ward import cpu, merge_costs, reference


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def masses(count: int, seed: int = 0) -> Tensor:
    return 0.1 + 50 * torch.rand(count, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=100, derandomize=True)
@given(
    count=st.integers(0, 40),
    width=st.integers(0, 33),
    chunk=st.integers(1, 200),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    offset=st.sampled_from([0.0, 30.0]),
    seed=st.integers(0, 5),
)
def test_is_the_reference(
    count: int, width: int, chunk: int, dtype: torch.dtype, offset: float, seed: int
) -> None:
    keys = (normal(count, width, seed=seed) + offset).to(dtype)
    key = (normal(width, seed=seed + 10) + offset).to(dtype)
    mass, key_mass = masses(count, seed), masses(1, seed + 10)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "CHUNK", chunk)
        costs = merge_costs(keys, mass, key, key_mass)
    expected = reference.merge_costs(keys, mass, key, key_mass)
    assert costs.dtype == expected.dtype == torch.float32 and costs.shape == (count,)
    assert bool((costs >= 0).all())
    torch.testing.assert_close(costs, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("count", [127, 128, 129, 300])
def test_every_row_is_reached_where_the_chunk_ends(count: int) -> None:
    width = cpu.CHUNK // 128
    keys = torch.arange(count).float()[:, None].expand(count, width) / 16
    costs = merge_costs(keys, torch.ones(count), torch.zeros(width), torch.tensor(1.0))
    exact = 0.5 * width * (torch.arange(count).float() / 16).square()
    torch.testing.assert_close(costs, exact, rtol=1e-5, atol=0)


@settings(max_examples=60, derandomize=True)
@given(count=st.integers(2, 20), width=st.integers(1, 20), seed=st.integers(0, 99))
def test_is_symmetric_to_the_bit_and_zero_only_with_itself(
    count: int, width: int, seed: int
) -> None:
    keys, mass = normal(count, width, seed=seed).half(), masses(count, seed)
    matrix = torch.stack([merge_costs(keys, mass, keys[n], mass[n]) for n in range(count)])
    assert torch.equal(matrix, matrix.T)
    assert not matrix.diagonal().any()


@settings(max_examples=60, derandomize=True)
@given(sizes=st.tuples(st.integers(1, 6), st.integers(1, 6)), seed=st.integers(0, 99))
def test_is_how_much_the_squares_inside_grow(sizes: tuple[int, int], seed: int) -> None:
    """What the cost means, computed from the members."""
    one, other = (normal(n, 5, seed=seed + 7 * i) for i, n in enumerate(sizes))

    def inside(members: Tensor) -> Tensor:
        return (members - members.mean(0)).square().sum()

    grown = inside(torch.cat([one, other])) - inside(one) - inside(other)
    cost = merge_costs(
        one.mean(0)[None], torch.tensor([float(len(one))]), other.mean(0), torch.tensor(len(other))
    )
    torch.testing.assert_close(cost[0], grown, rtol=1e-4, atol=1e-4)


def test_close_keys_of_large_norm_do_not_cancel() -> None:
    keys = torch.full((1, 1000), 1000.0)
    cost = merge_costs(keys, torch.ones(1), keys[0] + 0.0625, torch.tensor(1.0))
    assert cost.tolist() == [0.5 * 1000 * 0.0625**2]


def test_half_precision_is_summed_in_full() -> None:
    """Float16 ends at 65504 and loses ones from 2048 on."""
    keys = torch.full((1, 4097), 8.0, dtype=torch.float16)
    cost = merge_costs(keys, torch.ones(1), torch.zeros(4097).half(), torch.tensor(1.0))
    assert cost.tolist() == [0.5 * 4097 * 64]


def test_nothing_is_changed_and_strides_do_not_matter() -> None:
    keys, mass, key = normal(9, 8).half(), masses(9), normal(8, seed=1).half()
    before = keys.clone(), mass.clone(), key.clone()
    costs = merge_costs(keys, mass, key, mass[0])
    assert all(map(torch.equal, before, (keys, mass, key)))
    wide = torch.zeros(9, 16).half()
    wide[:, ::2] = keys
    torch.testing.assert_close(merge_costs(wide[:, ::2], mass, key, mass[0]), costs)
    full = keys.float()
    merge_costs(full, mass, key.float(), mass[0])
    assert torch.equal(full, keys.float())


@pytest.mark.parametrize(
    ("keys", "mass", "key"),
    [
        (torch.ones(3, 4), torch.ones(3), torch.ones(5)),
        (torch.ones(3, 4), torch.ones(2), torch.ones(4)),
        (torch.ones(3, 4), torch.ones(3, 1), torch.ones(4)),
        (torch.ones(3, 4), torch.ones(3), torch.ones(1, 4)),
        (torch.ones(3, 2, 2), torch.ones(3), torch.ones(2, 2)),
        (torch.ones(4), torch.ones(4), torch.tensor(1.0)),
    ],
)
def test_what_does_not_fit_is_refused(keys: Tensor, mass: Tensor, key: Tensor) -> None:
    with pytest.raises(ValueError, match=r"keys \(K, S\), mass \(K,\) and key \(S,\)"):
        merge_costs(keys, mass, key, torch.tensor(1.0))
