"""InfiniteVGGT's cache, and the causal one that it bounds, against the published code's numbers."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from arrays import Case, golden
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vismem.memory.published.infinitevggt import (
    PublishedInfiniteVGGT,
    layer_budgets,
    least_alike,
)

CLOSE = {"rtol": 0.0, "atol": 1e-5}


def turned(x: Tensor, positions: Tensor) -> Tensor:
    """Rotate the first half of ``(1, H, P, D)`` by the rows, the second by the columns."""
    parts = []
    for part, at in zip(x.chunk(2, 3), positions.unbind(2), strict=True):
        width = part.shape[3]
        angle = at[..., None] * 100.0 ** -(torch.arange(0, width, 2) / width)
        angle = angle.repeat(1, 1, 2)[:, None]
        one, two = part.chunk(2, 3)
        parts.append(part * angle.cos() + torch.cat([-two, one], 3) * angle.sin())
    return torch.cat(parts, 3)


def project(case: Case, frame: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of a frame, ``(1, H, P, D)`` each."""
    x, weights = case.tensor("in_x")[frame], {n: case.tensor(n) for n in case.arrays if "w." in n}
    mixed = F.linear(x, weights["w.qkv.weight"], weights["w.qkv.bias"])
    q, k, v = mixed.unflatten(2, (3, case.value("cfg_heads"), -1)).permute(2, 0, 3, 1, 4)
    width, positions = (k.shape[3],), case.tensor("in_pos")
    normed = [
        F.layer_norm(part, width, weights[f"w.{name}_norm.weight"], weights[f"w.{name}_norm.bias"])
        for name, part in (("q", q), ("k", k))
    ]
    return turned(normed[0], positions), turned(normed[1], positions), v


def follow(case: Case, budgets: list[int]) -> None:
    cache = PublishedInfiniteVGGT()
    states = []
    for frame, budget in enumerate(budgets):
        query, key, value = project(case, frame)
        score = cache.write(key, value, budget)
        seen = F.scaled_dot_product_attention(query, cache.keys, cache.values)
        seen = seen.transpose(1, 2).flatten(2)
        out = F.linear(seen, case.tensor("w.proj.weight"), case.tensor("w.proj.bias"))
        torch.testing.assert_close(out, case.tensor("out")[frame], **CLOSE)
        if "out_score" in case:
            published = float(case.array("out_score")[frame])
            assert (score is None) == math.isnan(published)
            assert score is None or score == pytest.approx(published, abs=1e-5)
            assert cache.keys.shape[2] == case.array("out_num_tokens")[frame]
            if frame in case.array("in_state_frames"):
                states.append(cache.keys.flatten())
    if states:
        torch.testing.assert_close(torch.cat(states), case.tensor("out_state_k"), **CLOSE)


@pytest.mark.parametrize("case", golden("streamvggt", "causal_cache*.npz"))
def test_golden_streamvggt_without_a_limit(case: Case) -> None:
    follow(case, [10**9] * len(case.array("in_x")))


@pytest.mark.parametrize("case", golden("streamvggt", "infinite_cache*.npz"))
def test_golden_streamvggt_within_a_budget(case: Case) -> None:
    follow(case, case.array("in_budget").tolist())


@pytest.mark.parametrize("case", golden("streamvggt", "infinite_eviction*.npz"))
def test_golden_streamvggt_eviction(case: Case) -> None:
    anchors, budget = case.value("cfg_anchors"), case.value("cfg_budget")
    keys, values = case.tensor("in_k"), case.tensor("in_v")
    cache = PublishedInfiniteVGGT()
    cache.write(keys[:, :, :anchors], values[:, :, :anchors], budget)
    score = cache.write(keys[:, :, anchors:], values[:, :, anchors:], budget)
    assert torch.equal(cache.keys, case.tensor("out_k"))
    assert torch.equal(cache.values, case.tensor("out_v"))
    assert score == pytest.approx(case.value("out_mean_score"), abs=1e-6)
    budgets = layer_budgets(case.tensor("in_last_scores"), case.value("cfg_total_budget"))
    assert torch.equal(budgets, case.tensor("out_layer_budgets").long())


def test_golden_streamvggt_first_frame_must_fit_and_stays() -> None:
    draws = torch.Generator().manual_seed(0)
    cache = PublishedInfiniteVGGT()
    first = torch.ones(1, 2, 4, 8)  # all alike: the first to go, if they could
    with pytest.raises(ValueError, match="no room for the first frame's 4"):
        cache.write(first, first, 3)
    cache.write(first, first, 4)
    assert cache.write(torch.randn(1, 2, 4, 8, generator=draws), first, 4) is not None
    assert torch.equal(cache.keys, first)
    with pytest.raises(ValueError, match="no room"):
        cache.write(first, first, 3)


@given(st.integers(1, 30), st.data())
def test_golden_streamvggt_keeps_the_least_alike_in_order(count: int, data: st.DataObject) -> None:
    seed, kept = data.draw(st.integers(0, 99)), data.draw(st.integers(0, count))
    keys = torch.randn(2, 3, count, 5, generator=torch.Generator().manual_seed(seed)).double()
    index, score = least_alike(keys, kept)
    unit = keys / keys.norm(dim=3, keepdim=True)
    alike = torch.einsum("bhnd,bhd->bhn", unit, unit.mean(2))
    assert score == pytest.approx(float(alike.mean()))
    assert (index.diff(dim=2) > 0).all()
    gone = torch.ones_like(alike, dtype=torch.bool).scatter(2, index, False)
    if 0 < kept < count:  # two keys are equally like their mean, but for rounding
        most = alike.gather(2, index).amax(2)
        assert (most <= alike.masked_fill(~gone, math.inf).amin(2) + 1e-12).all()
