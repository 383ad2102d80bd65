"""Scores of blocks and the choice of the best are their references, ties included."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pages import draws, error, normal
from torch import Tensor
from vismem.kernels.block_topk import block_scores, block_topk, cpu, reference


def blocks(
    count: int, heads: int, width: int, rule: str, *batch: int, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """A query and what stands for blocks; small whole numbers, so that scores tie and are exact."""
    query = (2 * normal(*batch, heads, width, seed=seed)).round()
    reps = (2 * normal(*batch, count, heads, width, seed=seed + 1)).round()
    if rule == "minmax":
        spread = (2 * normal(*batch, count, heads, width, seed=seed + 2)).round().abs()
        reps = torch.stack([reps - spread, reps + spread], -3)
    return query, reps


@settings(max_examples=80, derandomize=True)
@given(
    count=st.integers(0, 50),
    heads=st.integers(1, 3),
    width=st.integers(1, 6),
    rule=st.sampled_from(["mean", "minmax"]),
    k=st.integers(1, 60),
    share=st.sampled_from([None, 0.0, 0.5]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    chunk=st.integers(1, 100),
    seed=st.integers(0, 9),
)
def test_is_the_reference(count, heads, width, rule, k, share, dtype, chunk, seed) -> None:
    query, reps = (part.to(dtype) for part in blocks(count, heads, width, rule, seed=seed))
    valid = None if share is None else torch.rand(count, generator=draws(seed)) < share
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "CHUNK", chunk)
        scores = block_scores(query, reps, rule)
        values, rows = block_topk(query, reps, k, rule, valid=valid)
    assert scores.dtype == values.dtype == torch.float32 and rows.dtype == torch.int64
    assert torch.equal(scores, reference.block_scores(query, reps, rule).float())
    wanted = reference.block_topk(query, reps, k, rule, valid)
    assert torch.equal(rows, wanted[1]) and torch.equal(values, wanted[0].float())


@pytest.mark.parametrize("rule", ["mean", "minmax"])
def test_layers_are_scored_at_once(rule: str) -> None:
    query, reps = blocks(7, 2, 5, rule, 3, 2)
    found = block_scores(query + 0.3, reps, rule)
    assert found.shape == (3, 2, 7)
    assert error(found, reference.block_scores(query + 0.3, reps, rule)) < 1e-6


@settings(max_examples=30, derandomize=True)
@given(seed=st.integers(0, 99))
def test_bounds_are_never_below_a_key_of_the_block(seed: int) -> None:
    keys, query = normal(9, 4, 2, 5, seed=seed), normal(2, 5, seed=seed + 1)
    bounds = torch.stack([keys.amin(1), keys.amax(1)], 1)
    best = (keys * query).sum((-2, -1)).amax(1)
    assert bool((block_scores(query, bounds, "minmax") >= best - 1e-4).all())
    same = torch.stack([keys[:, 0]] * 2, 1)
    torch.testing.assert_close(
        block_scores(query, same, "minmax"), block_scores(query, keys[:, 0]), rtol=0, atol=1e-5
    )


def test_both_zeros_are_one_score() -> None:
    reps = torch.tensor([-1.0, 1.0, 0.0, -3.0])[:, None, None]
    values, rows = block_topk(torch.tensor([[-0.0]]), reps, 4)
    assert rows.tolist() == [0, 1, 2, 3] and not values.any()


def test_what_does_not_fit_is_refused() -> None:
    query, reps = torch.ones(2, 3), torch.ones(4, 2, 3)
    for bad in [(torch.ones(3), reps), (query, torch.ones(4, 3, 2)), (torch.ones(1, 2, 3), reps)]:
        with pytest.raises(ValueError, match="blocks take query"):
            block_scores(*bad)
    with pytest.raises(ValueError, match=r"2, G, D"):
        block_scores(query, reps, "minmax")
    with pytest.raises(ValueError, match="rule is one of"):
        block_scores(query, reps, "most")
    with pytest.raises(ValueError, match="k >= 1"):
        block_topk(query, reps, 0)
    with pytest.raises(ValueError, match=r"query \(G, D\)"):
        block_topk(query[None], reps[None], 1)
    with pytest.raises(ValueError, match="valid is"):
        block_topk(query, reps, 1, valid=torch.ones(4))


def test_zeros_of_both_signs_are_a_tie() -> None:
    reps = torch.tensor([-0.0, 0.0, -1.0])[:, None, None]
    assert block_topk(torch.ones(1, 1), reps, 2)[1].tolist() == [0, 1]
