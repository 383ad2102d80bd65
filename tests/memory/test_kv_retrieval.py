from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cosine_similarity
from torch.nn.functional import normalize as unit

from vismem.memory.kv import retrieval
from vismem.memory.kv.retrieval import Retrieval, choose, detrend, fuse, layer_scores
from vismem.memory.kv.shape import KVShape

PLAIN = {"adaptive": False, "neighbours": 0}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def published_rows(scores: list[float], k: int, chunk: int) -> list[int]:
    """ReKV's rule, one block at a time."""
    if len(scores) <= k:
        return list(range(len(scores)))
    groups = [scores[i : i + chunk] for i in range(0, len(scores), chunk)]
    best = sorted(range(len(groups)), key=lambda g: (-sum(groups[g]) / len(groups[g]), g))
    return [
        row
        for g in sorted(best[: k // chunk])
        for row in range(g * chunk, min((g + 1) * chunk, len(scores)))
    ]


# --- scores


def test_dot_is_the_product_with_every_query_head() -> None:
    shape = KVShape(layers=1, heads=6, kv_heads=2, head_dim=8)
    query, reps = noise(6, 8), noise(11, 2, 8, seed=1)
    expanded = reps.repeat_interleave(3, dim=1).flatten(1) @ query.flatten()
    assert torch.allclose(layer_scores(shape.fold(query), reps, "dot"), expanded, atol=1e-5)


@pytest.mark.parametrize("rule", ["dot", "centred"])
def test_layers_together_equal_layers_apart(rule: retrieval.Rule) -> None:
    query, reps = noise(5, 2, 8), noise(5, 30, 2, 8, seed=1)
    apart = torch.stack([layer_scores(q, r, rule) for q, r in zip(query, reps, strict=True)])
    assert torch.allclose(layer_scores(query, reps, rule), apart, atol=1e-6)
    assert layer_scores(query, reps[:, :0], rule).shape == (5, 0)


def test_scores_are_of_float32_whatever_the_model_computes_in() -> None:
    query, reps = noise(2, 8).half(), (noise(30, 2, 8, seed=1) * 1e4).half()
    for rule in ("dot", "centred"):
        scores = layer_scores(query, reps, rule)
        assert scores.dtype == torch.float32 and scores.isfinite().all()
    # 60,000 twice is beyond float16
    assert layer_scores(torch.ones(2, 1).half(), reps.new_full((1, 2, 1), 6e4), "dot") == 1.2e5


def test_centred_is_the_cosine_with_what_differs_from_the_line_through_all_keys() -> None:
    """By least squares in float64, but for the few blocks that keep the line steady."""
    query, reps = noise(2, 8), noise(4000, 2, 8, seed=1) + 3 * noise(2, 8, seed=2)
    reps += torch.linspace(0, 2, 4000)[:, None, None] * noise(2, 8, seed=3)
    keys = reps.double().flatten(1)
    line = torch.stack([torch.ones(4000), torch.linspace(-1, 1, 4000)], dim=1).double()
    off = keys - line @ torch.linalg.lstsq(line, keys).solution
    expected = cosine_similarity(off, query.double().flatten()[None])
    assert (layer_scores(query, reps) - expected).abs().max() < 5e-3


@settings(max_examples=30, derandomize=True)
@given(st.integers(0, 10**6), st.floats(0.01, 100), st.integers(2, 60))
def test_centred_ignores_bias_and_scale_and_stays_a_cosine(seed: int, scale: float, n: int) -> None:
    query, reps = noise(2, 8, seed=seed), noise(n, 2, 8, seed=seed + 1)
    scores = layer_scores(query, reps)
    assert scores.abs().max() <= 1 + 1e-5
    moved = layer_scores(query * scale, (reps + 20 * noise(2, 8, seed=seed + 2)) * scale)
    assert torch.allclose(moved, scores, atol=2e-4)


@pytest.mark.parametrize("n", [1, 2, 50])
def test_blocks_that_are_all_alike_score_nothing(n: int) -> None:
    """What is left of them after the mean is rounding, and must not be blown up to a cosine."""
    same = (300 * noise(2, 8)).expand(n, 2, 8)
    assert layer_scores(noise(2, 8, seed=1), same).abs().max() < 0.05
    assert not layer_scores(noise(2, 8), torch.zeros(n, 2, 8)).any()


def test_two_blocks_are_told_apart() -> None:
    """A line goes through any two points; they must not be called drift for it."""
    reps = torch.eye(2)[:, None]
    assert layer_scores(reps[1], reps).argmax() == 1
    assert layer_scores(reps[0], reps).argmax() == 0


@settings(max_examples=30, derandomize=True)
@given(st.integers(0, 10**6), st.integers(0, 70), st.integers(1, 40))
def test_detrend_is_the_running_mean_step_by_step(seed: int, n: int, span: int) -> None:
    scores, keep = noise(2, n, seed=seed), 1 - 1 / (1 + span)
    total, weight, expected = torch.zeros(2), 0.0, []
    for column in scores.T:
        total, weight = keep * total + column, keep * weight + 1
        expected.append(column - total / weight)
    if n:
        assert torch.allclose(detrend(scores, span), torch.stack(expected, 1), atol=1e-5)
    assert torch.equal(detrend(scores, 0), scores)


def test_detrend_levels_a_steady_rise() -> None:
    level = detrend(torch.arange(500.0), 16)
    assert (level[300:] - level[-1]).abs().max() < 0.1


# --- joining with outside scores


def test_fuse_is_the_sum_of_reciprocal_ranks() -> None:
    inner, outer = torch.tensor([0.3, 0.1, 0.2]), torch.tensor([5.0, 7.0, 6.0])
    expected = torch.tensor([1 / 61 + 2 / 63, 1 / 63 + 2 / 61, 1 / 62 + 2 / 62])
    assert torch.allclose(fuse(inner, outer, weight=2.0), expected)
    assert torch.allclose(fuse(inner, outer, constant=0)[0], torch.tensor(1 + 1 / 3))


@settings(max_examples=30, derandomize=True)
@given(st.integers(0, 10**6), st.integers(1, 50))
def test_fuse_looks_at_ranks_alone(seed: int, n: int) -> None:
    inner, outer = noise(3, n, seed=seed).double(), noise(n, seed=seed + 1).double()
    joint = fuse(inner, outer)
    assert torch.equal(fuse(inner.exp() * 7, outer**3), joint)
    assert torch.equal(joint[1], fuse(inner[1], outer))


@pytest.mark.parametrize("source", ["external", "fused"])
def test_outside_scores(source: retrieval.Source) -> None:
    inner, outer = noise(3, 40), noise(40, seed=1)
    inner[:, [5, 7, 31]] = torch.tensor([9.0, 8.0, -9.0])
    outer[[31, 7, 5]] = torch.tensor([9.0, 8.0, -9.0])
    how = Retrieval(1, source=source, **PLAIN)
    rows = choose(inner, how, external=outer)
    assert all(r.tolist() == ([31] if source == "external" else [7]) for r in rows)
    for wrong in (None, outer[:-1]):
        with pytest.raises(ValueError, match=rf"{source} needs outside scores \(40,\)"):
            choose(inner, how, external=wrong)


def test_outside_scores_give_all_layers_the_same_rows_and_budget() -> None:
    rows = choose(noise(4, 60), Retrieval(8, source="external"), external=noise(60, seed=1))
    assert all(torch.equal(r, rows[0]) and len(r) == 8 for r in rows)


def test_detrending_is_of_outside_scores_too() -> None:
    rising = torch.arange(200.0)
    rising[50] += 30
    how = {"source": "external", **PLAIN}
    plain = choose(noise(1, 200), Retrieval(1, **how), external=rising)
    level = choose(noise(1, 200), Retrieval(1, detrend=16, **how), external=rising)
    assert plain[0].tolist() == [199] and level[0].tolist() == [50]
    assert choose(rising[None], Retrieval(1, detrend=16, **PLAIN))[0].tolist() == [50]


# --- rows


@settings(max_examples=150, derandomize=True)
@given(st.lists(st.integers(-3, 3), max_size=40), st.integers(0, 12), st.integers(1, 5))
def test_published_rows(scores: list[int], groups: int, chunk: int) -> None:
    """Also ties, remainders and fewer blocks than asked for."""
    floats = [s / chunk for s in scores]
    how = Retrieval.published(groups * chunk, chunk)
    (rows,) = choose(torch.tensor(floats).reshape(1, -1), how)
    exact = [math.fsum([s]) for s in floats]
    if chunk in (1, 2, 4):  # means of these are exact, so that ties are
        assert rows.tolist() == published_rows(exact, groups * chunk, chunk)
    assert rows.dtype == torch.int64 and len(rows) <= max(groups * chunk, 0)


def test_what_remains_of_groups_counts_by_its_mean_as_well() -> None:
    (rows,) = choose(torch.tensor([[1.0, 1, 1, 1, 0.9, 0.9]]), Retrieval.published(4, 4))
    assert rows.tolist() == [0, 1, 2, 3]


def test_published_is_what_it_says() -> None:
    how = Retrieval.published(16, 4)
    assert (how.blocks, how.chunk, how.rule, how.source) == (16, 4, "dot", "internal")
    assert not (how.adaptive or how.neighbours or how.tail or how.detrend)


@settings(max_examples=150, derandomize=True)
@given(
    st.integers(0, 10**6),
    st.integers(1, 5),
    st.integers(0, 50),
    st.integers(0, 12),
    st.integers(1, 3),
    st.booleans(),
    st.integers(0, 3),
    st.lists(st.integers(0, 49), max_size=60),
    st.booleans(),
)
def test_rows_ascend_within_the_budget(
    seed: int,
    layers: int,
    n: int,
    groups: int,
    chunk: int,
    adaptive: bool,
    neighbours: int,
    left_out: list[int],
    coarse: bool,
) -> None:
    scores = noise(layers, n, seed=seed)
    scores = scores.round() if coarse else scores
    how = Retrieval(groups * chunk, chunk=chunk, adaptive=adaptive, neighbours=neighbours)
    gone = sorted({row for row in left_out if row < n})
    rows = choose(scores, how, exclude=torch.tensor(gone, dtype=torch.int64))
    assert len(rows) == layers
    there = n - len(gone)
    for row in rows:
        assert row.dtype == torch.int64
        assert (row.diff() > 0).all() and not set(row.tolist()) & set(gone)
        assert set(row.tolist()) <= set(range(n))
        if there <= how.blocks and groups:
            assert len(row) == there
        elif not adaptive and chunk == 1:
            assert len(row) == how.blocks
        assert len(row) <= 2 * how.blocks
        assert len(row) >= min(there, groups // 2)
    held = sum(map(len, rows))
    assert held <= layers * how.blocks
    if there > how.blocks:  # at most a remainder of each layer is short of it
        assert held > layers * (how.blocks - chunk) or not groups
        assert chunk > 1 or held == layers * how.blocks


def test_nothing_to_choose_from_and_nothing_wanted() -> None:
    for scores, how in ((torch.zeros(3, 0), Retrieval()), (noise(3, 9), Retrieval(0))):
        assert [rows.tolist() for rows in choose(scores, how)] == [[], [], []]
    every = choose(noise(2, 9), Retrieval(4), exclude=torch.arange(9))
    assert [rows.tolist() for rows in every] == [[], []]


def test_ties_go_to_the_oldest() -> None:
    rows = choose(torch.zeros(2, 500), Retrieval(3, **PLAIN))
    assert all(r.tolist() == [0, 1, 2] for r in rows)


@settings(max_examples=60, derandomize=True)
@given(st.integers(0, 10**6), st.integers(20, 60), st.integers(2, 8))
def test_layers_share_out_as_by_bisection(seed: int, n: int, share: int) -> None:
    """The budgets are those at one mass held by all, but for the bounds of a layer."""
    scores = noise(4, n, seed=seed) * torch.tensor([[0.5], [1.0], [2.0], [8.0]])
    scores[1] = scores[1].exp()  # few blocks stand out
    mass = retrieval._mass(scores, 2 * share)
    counts = retrieval._share_out(mass, share)
    assert counts.sum() == 4 * share
    least, most = max(1, share // 2), 2 * share
    assert counts.min() >= least and counts.max() <= most
    free = (counts > least) & (counts < most)
    held = mass.gather(1, counts[:, None] - 1)[:, 0]
    before = mass.gather(1, (counts[:, None] - 2).clamp_min(0))[:, 0]
    for one, other in itertools.permutations(range(4), 2):
        if free[one] and counts[other] < most:  # the last it got came before what others lack
            assert before[one] <= held[other] + 1e-12
    alone = [int(c) for s in scores for c in retrieval._share_out(retrieval._mass(s[None], 9), 2)]
    assert alone == [2, 2, 2, 2]  # one layer at a time gets an even share


def test_a_layer_that_knows_leaves_blocks_to_one_that_does_not() -> None:
    scores = noise(2, 400)
    scores[0, :3] += 30
    sure, unsure = choose(scores, Retrieval(16, neighbours=0))
    assert len(sure) == 8 and len(unsure) == 24
    counts = [len(rows) for rows in choose(scores[[0, 1, 0, 0]], Retrieval(16, neighbours=0))]
    assert counts[1] == 32 and sum(counts) == 64  # no more than twice an even share


def test_outside_scores_move_rows_but_not_budgets() -> None:
    scores, outer = noise(4, 300).exp(), noise(300, seed=1)
    alone = choose(scores, Retrieval(16))
    joint = choose(scores, Retrieval(16, source="fused"), external=outer)
    assert [len(rows) for rows in joint] == [len(rows) for rows in alone]
    assert not torch.equal(joint[0], alone[0])


def test_budgets_do_not_depend_on_the_scale_of_a_rule() -> None:
    scores = noise(4, 300).exp()
    counts = [len(rows) for rows in choose(scores, Retrieval(16))]
    assert counts == [len(rows) for rows in choose(scores * 1000 + 7, Retrieval(16))]
    assert len(set(counts)) > 1


def test_neighbours_take_the_place_of_the_weakest() -> None:
    scores = torch.arange(300.0, 0, -1).repeat(2, 1)  # 0 is the best, then 1 ...
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    scores = scores[:, order]
    best = scores[0].argsort(descending=True).tolist()
    alone = choose(scores, Retrieval(12, **PLAIN))[0].tolist()
    along = choose(scores, Retrieval(12, adaptive=False, neighbours=1))[0].tolist()
    assert alone == sorted(best[:12])
    assert len(along) == 12 and set(best[:8]) <= set(along)
    assert {row for row in (best[0] - 1, best[0] + 1) if 0 <= row < 300} <= set(along)
    wide = choose(scores, Retrieval(20, adaptive=False, neighbours=3))[0].tolist()
    assert {row for row in (best[0] - 2, best[0] + 2) if 0 <= row < 300} <= set(wide)


def test_nearer_neighbours_come_first() -> None:
    scores = torch.zeros(1, 50)
    scores[0, 20] = 1
    (rows,) = choose(scores, Retrieval(6, adaptive=False, neighbours=2))
    assert rows.tolist() == [0, 1, 2, 19, 20, 21]


def test_neighbours_skip_what_is_left_out() -> None:
    scores = torch.zeros(1, 50)
    scores[0, 20] = 1
    gone = torch.tensor([19, 21])
    rows = choose(scores, Retrieval(6, adaptive=False, neighbours=1), exclude=gone)
    assert {18, 20, 22} <= set(rows[0].tolist())


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"blocks": -1}, "no negative"),
        ({"neighbours": -1}, "no negative"),
        ({"detrend": -1}, "no negative"),
        ({"tail": -1}, "no negative"),
        ({"chunk": 0}, "chunk >= 1"),
        ({"blocks": 7, "chunk": 2}, "2 at a time"),
        ({"rule": "cosine"}, "'cosine'"),
        ({"source": "both"}, "'both'"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Retrieval(**wrong)
    with pytest.raises(ValueError, match=r"\(L, N\)"):
        choose(noise(5), Retrieval())


# --- a needle in keys as a language model has them


def found(rule: str, drift: float, kind: str = "needle", seeds: int = 12, **how: object) -> float:
    """Share of needles among the 16 of 600 blocks chosen, over 6 layers.

    Keys share a bias thirty times as long as their content, those of busy blocks are longer, and
    half of the drift is towards the question. The needle is 0.4 of the question in one block.
    """
    hits = []
    for seed in range(seeds):
        draw = torch.Generator().manual_seed(seed)
        layers, n, width = 6, 600, 128

        def noise(*shape: int, draw: torch.Generator = draw) -> Tensor:
            return torch.randn(*shape, generator=draw)

        question, bias = unit(noise(2, layers, width), dim=-1) * width**0.5
        scenes = noise(layers, n // 10, width).repeat_interleave(10, dim=1)
        busy = torch.exp(0.5 * noise(1, n, 1))
        keys = (0.8 * scenes + 0.6 * noise(layers, n, width)) * busy
        at = int(torch.randint(n, (1,), generator=draw))
        if kind == "needle":
            keys[:, at] += 0.4 * question * busy[:, at]
        else:  # a crowd: very much else in the block that has it
            keys[:, at] *= 4 / busy[:, at]
            keys[:, at] += 0.8 * question
        towards = question + unit(noise(layers, width), dim=-1) * width**0.5
        keys += torch.linspace(0, drift, n)[:, None] * 0.7 * towards[:, None]
        keys, query = keys + 30 * bias[:, None], question + 0.5 * noise(layers, width)
        if rule == "cosine":
            scores = cosine_similarity(keys, query[:, None], dim=-1)
        else:
            scores = layer_scores(query[:, None], keys[:, :, None], rule)
        rows = choose(scores, Retrieval(16, **{**PLAIN, **how}))
        hits += [at in r for r in rows]
    return sum(hits) / len(hits)


def test_a_needle_is_found_by_centred_where_others_lose_it() -> None:
    share = {rule: found(rule, 2.0) for rule in ("centred", "dot", "cosine")}
    assert share["centred"] > 0.9
    assert share["dot"] < 0.7 and share["cosine"] < 0.7
    assert found("dot", 2.0, detrend=32) > share["dot"] + 0.1  # it was the drift, in part,
    assert found("dot", 0.0) < found("centred", 0.0) - 0.1  # and the lengths of other keys


def test_adaptive_budgets_and_neighbours_do_not_lose_the_needle() -> None:
    alone = found("centred", 2.0)
    for how in ({"adaptive": True}, {"neighbours": 1}, {"adaptive": True, "neighbours": 1}):
        assert found("centred", 2.0, **how) > alone - 0.05


def test_in_a_crowd_the_plain_product_finds_more() -> None:
    """The price of a cosine: what else a block shows makes less of what is asked for."""
    assert found("dot", 0.0, kind="crowd") > found("centred", 0.0, kind="crowd") + 0.1
