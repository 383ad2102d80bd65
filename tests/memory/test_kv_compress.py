"""Compression keeps what matters, counts what it merges and is the same in every layer alone."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vismem.memory.kv.compress import Compressed, Compression, Keep, Merge

RULES: list[type[Keep] | type[Merge]] = [Keep, Merge]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def block(
    layers: int = 3,
    heads: int = 2,
    tokens: int = 12,
    width: int = 6,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Keys and values, and the saliency of each token."""
    noise = torch.Generator().manual_seed(seed)
    kv = torch.randn(layers, 2, heads, tokens, width, generator=noise)
    kv[:, 0] += 30 * torch.randn(layers, heads, 1, width, generator=noise)
    return kv.to(dtype), torch.rand(layers, tokens, generator=noise)


def attend(query: Tensor, kv: Tensor) -> Tensor:
    """Attention of ``(L, G, Q, D)`` over a block, heads apart."""
    scores = query @ kv[:, 0].mT / math.sqrt(kv.shape[-1])
    return scores.softmax(-1) @ kv[:, 1]


def same(a: Compressed, b: Compressed) -> bool:
    pairs = (a.kv, b.kv), (a.kept, b.kept), (a.weights, b.weights)
    return all(torch.equal(x, y) for x, y in pairs)


def plain_merge(kv: Tensor, saliency: Tensor, count: int) -> tuple[Tensor, list[int], list[int]]:
    """One layer ``(2, G, M, D)`` merged by the definition, a token at a time, in float64."""
    kv, saliency = kv.double(), saliency.double()
    _, heads, tokens, _ = kv.shape
    keys = kv[0] - kv[0].mean(1, keepdim=True)
    ranked = sorted(range(tokens), key=lambda m: (-float(saliency[m]), m))
    anchors = sorted(ranked[:count])
    groups: dict[int, list[tuple[int, float]]] = {a: [(a, 0.0)] for a in anchors}
    for m in sorted(ranked[count:]):
        cosines = [
            sum(float(torch.cosine_similarity(keys[g, m], keys[g, a], 0)) for g in range(heads))
            for a in anchors
        ]
        best = max(range(count), key=lambda n: cosines[n])
        groups[anchors[best]].append((m, max(0.0, 1 - cosines[best] / heads)))
    mean = sum(d for group in groups.values() for _, d in group) / (tokens - count)
    out = kv[:, :, anchors].clone()
    for n, anchor in enumerate(anchors):
        parts = [
            math.exp(-d / mean) * max(1e-6, float(saliency[m] / saliency.max()))
            for m, d in groups[anchor]
        ]
        values = [part * kv[1, :, m] for part, (m, _) in zip(parts, groups[anchor], strict=True)]
        out[1, :, n] = torch.stack(values).sum(0) / sum(parts)
    return out, anchors, [len(groups[a]) for a in anchors]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=40)
@given(
    layers=st.integers(1, 3),
    heads=st.integers(1, 3),
    tokens=st.integers(1, 12),
    width=st.integers(1, 6),
    seed=st.integers(0, 500),
    share=st.floats(0.01, 1),
    told=st.booleans(),
)
def test_any_block_gives_a_rectangle_of_ascending_tokens(
    rule: type[Keep] | type[Merge], dtype: torch.dtype, share: float, told: bool, **sizes: int
) -> None:
    kv, saliency = block(dtype=dtype, **sizes)
    compression: Compression = rule(share)
    pressed = compression(kv, saliency if told else None)
    count, tokens = compression.tokens(kv.shape[3]), kv.shape[3]
    assert 1 <= count <= tokens and abs(count - share * tokens) < 1
    assert pressed.kv.shape == (*kv.shape[:3], count, kv.shape[4]) and pressed.kv.dtype == dtype
    assert pressed.kept.shape == pressed.weights.shape == (kv.shape[0], count)
    assert pressed.kept.dtype == pressed.weights.dtype == torch.int64
    assert (pressed.kept.diff() > 0).all()
    assert pressed.kept.min() >= 0 and pressed.kept.max() < tokens
    assert (pressed.weights >= 1).all()
    if rule is Merge:
        assert (pressed.weights.sum(1) == tokens).all()
    # A mean lies between what it is of, in each channel; nothing is made up.
    slack = 2 * torch.finfo(dtype).eps * kv.float().abs().amax()
    assert (pressed.kv.amax(3) <= kv.amax(3) + slack).all()
    assert (pressed.kv.amin(3) >= kv.amin(3) - slack).all()
    # Keys are never touched.
    index = pressed.kept[:, None, :, None].expand(-1, kv.shape[2], -1, kv.shape[4])
    assert torch.equal(pressed.kv[:, 0], kv[:, 0].gather(2, index))


@pytest.mark.parametrize("rule", RULES)
def test_a_share_of_one_changes_nothing(rule: type[Keep] | type[Merge]) -> None:
    kv, saliency = block(dtype=torch.float16)
    pressed = rule(1.0)(kv, saliency)
    assert torch.equal(pressed.kv, kv)
    assert pressed.kept.tolist() == [list(range(12))] * 3
    assert pressed.weights.tolist() == [[1] * 12] * 3


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_layers_do_not_mix(rule: type[Keep] | type[Merge], told: bool) -> None:
    kv, saliency = block()
    together = rule(0.4)(kv, saliency if told else None)
    for n in range(3):
        one = slice(n, n + 1)
        apart = rule(0.4)(kv[one], saliency[one] if told else None)
        assert torch.equal(together.kept[one], apart.kept)
        assert torch.equal(together.weights[one], apart.weights)
        torch.testing.assert_close(together.kv[one], apart.kv)
    assert len({tuple(row) for row in together.kept.tolist()}) > 1  # each layer has its own choice


@pytest.mark.parametrize("rule", RULES)
def test_the_same_block_twice_gives_the_same(rule: type[Keep] | type[Merge]) -> None:
    kv, saliency = block()
    before = kv.clone(), saliency.clone()
    assert same(rule(0.4)(kv, saliency), rule(0.4)(kv.clone(), saliency.clone()))
    assert torch.equal(kv, before[0]) and torch.equal(saliency, before[1])


def test_kept_tokens_are_the_most_salient_in_their_order() -> None:
    kv, _ = block(layers=1, tokens=6)
    saliency = torch.tensor([[0.1, 5.0, 0.2, 0.3, 4.0, 9.0]])
    pressed = Keep(0.5, pool=1)(kv, saliency)
    assert pressed.kept.tolist() == [[1, 4, 5]]
    assert torch.equal(pressed.kv, kv[:, :, :, [1, 4, 5]])
    assert pressed.weights.tolist() == [[1, 1, 1]]
    # Averaged over three, what stands beside a salient token stays with it, and the border of a
    # block is averaged over what there is: (9 + 4) / 2 is more than (9 + 4 + 0.3) / 3.
    assert Keep(1 / 6, pool=3)(kv, saliency).kept.tolist() == [[5]]
    saliency = torch.tensor([[0.0, 0.0, 0.0, 9.0, 0.0, 0.0]])
    assert Keep(0.5, pool=3)(kv, saliency).kept.tolist() == [[2, 3, 4]]


def test_of_equally_salient_tokens_the_first_are_kept() -> None:
    kv, _ = block(layers=1, tokens=2000)  # few would be in order with any sort
    assert Keep(0.5)(kv, torch.ones(1, 2000)).kept.tolist() == [list(range(1000))]


def test_without_saliency_large_values_are_kept_whatever_the_size_of_their_head() -> None:
    kv = torch.ones(1, 2, 2, 6, 4)
    kv[0, 0, :, 0] = 1000  # a large key is no reason
    kv[0, 1, 0] *= 500  # a loud head: it has no more of a say
    kv[0, 1, 0, 2] *= 1.5
    kv[0, 1, 1, 4] *= 3
    kv[0, 1, 1, 5] *= 2
    keep = Keep(0.5, pool=1)
    assert keep(kv).kept.tolist() == [[2, 4, 5]]
    assert Keep(1 / 3, pool=1)(kv).kept.tolist() == [[4, 5]]
    assert Keep(1 / 6, pool=1)(kv).kept.tolist() == [[4]]
    told = torch.tensor([[9.0, 8.0, 7.0, 0.0, 0.0, 0.0]])
    assert keep(kv, told).kept.tolist() == [[0, 1, 2]]
    assert same(Keep(0.5, "value_norm", 1)(kv, told), keep(kv))
    assert Keep(0.5)(torch.zeros_like(kv)).kept.tolist() == [[0, 1, 2]]  # nothing to divide by


@settings(max_examples=40)
@given(
    heads=st.integers(1, 3),
    tokens=st.integers(2, 12),
    seed=st.integers(0, 500),
    share=st.floats(0.05, 0.95),
)
def test_merging_follows_its_definition(heads: int, tokens: int, seed: int, share: float) -> None:
    kv, saliency = block(2, heads, tokens, 6, seed)
    count = Merge(share).tokens(tokens)
    if count == tokens:
        return
    pressed = Merge(share)(kv, saliency)
    for n in range(2):
        wanted, anchors, weights = plain_merge(kv[n], saliency[n], count)
        assert pressed.kept[n].tolist() == anchors
        assert pressed.weights[n].tolist() == weights
        torch.testing.assert_close(pressed.kv[n].double(), wanted, rtol=1e-4, atol=1e-4)


def test_merging_sees_through_the_bias_of_channels() -> None:
    """Two scenes that differ by little beside the bias are still two."""
    scene = torch.tensor([0, 1, 0, 1, 0, 1, 0, 1])
    kv = torch.eye(4)[scene].expand(1, 2, 1, 8, 4).clone()
    kv[:, 0] += 200 * torch.tensor([1.0, -1.0, 2.0, 0.5])
    saliency = torch.tensor([[9.0, 8.0, *([1.0] * 6)]])
    pressed = Merge(0.25)(kv, saliency)
    assert pressed.weights.tolist() == [[4, 4]]
    torch.testing.assert_close(pressed.kv[0, 1, 0], torch.eye(4)[:2])


def test_twins_of_an_anchor_go_to_one_of_them_and_each_anchor_keeps_itself() -> None:
    kv = torch.ones(1, 2, 1, 6, 4)
    pressed = Merge(0.5)(kv, torch.tensor([[3.0, 3.0, 3.0, 0.0, 0.0, 0.0]]))
    assert pressed.weights.sum() == 6 and (pressed.weights >= 1).all()
    assert torch.equal(pressed.kv, kv[:, :, :, :3])
    assert Merge(0.5)(kv, torch.zeros(1, 6)).kv.isfinite().all()
    assert Merge(0.5)(torch.zeros_like(kv)).kv.isfinite().all()


def test_what_attention_finds_survives_and_beats_a_choice_at_random() -> None:
    """With the saliency of the query itself, its answer changes little."""
    noise = torch.Generator().manual_seed(3)
    worst: dict[str, float] = {}
    for seed in range(5):
        kv, _ = block(2, 2, 64, 16, seed)
        kv[:, 0] -= kv[:, 0].mean(2, keepdim=True)
        query = 3 * kv[:, 0, :, 10:14] + torch.randn(2, 2, 4, 16, generator=noise)
        saliency = (query @ kv[:, 0].mT / 4).softmax(-1).mean((1, 2))
        whole = attend(query, kv)
        blind = torch.rand(2, 64, generator=noise)
        for name, pressed in {
            "keep": Keep(0.25, pool=1)(kv, saliency),
            "merge": Merge(0.25)(kv, saliency),
            "blind": Keep(0.25, pool=1)(kv, blind),
        }.items():
            error = float((attend(query, pressed.kv) - whole).norm() / whole.norm())
            worst[name] = max(worst.get(name, 0.0), error)
    assert worst["keep"] < 0.1 and worst["merge"] < 0.1 < 0.5 < worst["blind"]


@pytest.mark.parametrize("share", [0.0, -0.5, 1.01, float("nan")])
@pytest.mark.parametrize("rule", RULES)
def test_impossible_shares_are_refused(rule: type[Keep] | type[Merge], share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        rule(share)


@pytest.mark.parametrize("rule", RULES)
def test_wrong_forms_are_refused(rule: type[Keep] | type[Merge]) -> None:
    kv, saliency = block()
    for wrong in (kv[0], kv[:, :1], kv[:, :, :, :0]):
        with pytest.raises(ValueError, match="a block is"):
            rule(0.5)(wrong)
    for wrong in (saliency[0], saliency[:, :-1], saliency[:2]):
        with pytest.raises(ValueError, match="saliency is"):
            rule(0.5)(kv, wrong)
    for pool in (0, -1, 2):
        with pytest.raises(ValueError, match="odd"):
            Keep(0.5, pool=pool)
    with pytest.raises(ValueError, match="value_norm"):
        Keep(0.5, by="values")  # type: ignore[arg-type]
