"""Enhancement by memory: the published forms written out, and what ours promises."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vismem.models.enhancement import (
    GeneralizedEnhancement,
    GroupedValueAttention,
    RowAttention,
    SelsaAttention,
    enhance_map,
)
from vismem.models.geometry_bias import cell_boxes, pair_features

SIZES = settings(max_examples=30)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_weights(module: nn.Module, seed: int = 0) -> nn.Module:
    """Draw all parameters anew, also those that begin at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in module.parameters():
            part.normal_(0, 0.4, generator=generator)
    return module


def boxes(*shape: int, seed: int = 0) -> Tensor:
    low, size = torch.rand(2, *shape, 2, generator=torch.Generator().manual_seed(seed))
    return torch.cat([low, low + 0.05 + size], -1)


def context(queries: int, keys: int, batch: int | None = None, seed: int = 0) -> dict[str, Tensor]:
    """All that the default enhancement takes beside features and rows."""
    head = () if batch is None else (batch,)
    draw = torch.Generator().manual_seed(seed)
    return {
        "boxes": boxes(*head, queries, seed=seed + 1),
        "key_boxes": boxes(*head, keys, seed=seed + 2),
        "key_scores": torch.rand(*head, keys, generator=draw),
        "ages": 20 * torch.rand(*head, keys, generator=draw),
    }


def where(mask: Tensor) -> Tensor:
    """Numbers of the rows for which it is true, -1 for the others."""
    return torch.where(mask, torch.arange(mask.shape[-1]), -1)


# --------------------------------------------------------------------------- the published forms


def geo_as_coded(module: RowAttention, x: Tensor, keys: Tensor) -> Tensor:
    """Per-head averages of the raw keys, then a grouped convolution; head by head."""
    width, parts = module.dim // module.heads, []
    q, k = module.query(x), module.key(keys)
    for head in range(module.heads):
        own = slice(head * width, (head + 1) * width)
        weights = (q[:, own] @ k[:, own].T / width**0.5).softmax(-1)
        parts.append(weights @ keys @ module.value.weight[own].T)
    return torch.cat(parts, -1) + module.value.bias


@pytest.mark.parametrize("heads", [1, 2, 8])
def test_a_grouped_value_convolution_is_attention(heads: int) -> None:
    geo = random_weights(GroupedValueAttention(16, heads))
    x, keys = noise(7, 16), noise(11, 16, seed=1)
    assert torch.allclose(geo(x, keys), x + geo_as_coded(geo, x, keys), atol=1e-5)


def test_four_linear_layers_are_pytorchs_attention() -> None:
    selsa, reference = random_weights(SelsaAttention(16, 4)), nn.MultiheadAttention(16, 4)
    parts = (selsa.query, selsa.key, selsa.value)
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        reference.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        reference.out_proj.load_state_dict(selsa.output.state_dict())
    x, keys = noise(7, 16), noise(11, 16, seed=1)
    assert torch.allclose(selsa(x, keys), reference(x, keys, keys)[0], atol=1e-5)


def test_alignment_keeps_a_share_in_evaluation_alone() -> None:
    geo = random_weights(GroupedValueAttention(16, 4, keep=0.7))
    x, keys = noise(7, 16), noise(11, 16, seed=1)
    y = geo_as_coded(geo, x, keys)
    assert torch.allclose(geo.train()(x, keys), y, atol=1e-5)
    assert torch.allclose(geo.eval()(x, keys), 0.7 * x + 0.3 * y, atol=1e-5)


def test_published_initialisation() -> None:
    plain, aligned = GroupedValueAttention(64, 4), GroupedValueAttention(64, 4, keep=0.7)
    assert torch.equal(aligned.value.weight, torch.eye(64))
    assert 0.008 < plain.value.weight.std() < 0.012
    bound = (3 / 64) ** 0.5  # of a uniform Kaiming draw with slope 1
    assert 0.9 * bound < plain.query.weight.abs().max() <= bound
    assert not any(part.bias.any() for part in (plain.query, plain.key, plain.value))


def test_without_keys_the_published_forms_say_nothing() -> None:
    selsa, geo = random_weights(SelsaAttention(16, 4)), random_weights(GroupedValueAttention(16, 4))
    x, keys = noise(7, 16), noise(3, 16, seed=1)
    for some, index in (
        (keys[:0], None),
        (keys, torch.full((3,), -1)),
        (keys[:0], torch.tensor([-1])),
    ):
        assert torch.equal(selsa(x, some, index=index), torch.zeros(7, 16))
        assert torch.equal(geo(x, some, index=index), x)


@pytest.mark.parametrize("prefix", ["", "aggregator.1."])
def test_published_names_load(prefix: str) -> None:
    selsa = random_weights(SelsaAttention(8, 2))
    names = {"query": "fc_embed", "key": "ref_fc_embed", "value": "ref_fc", "output": "fc"}
    state = {
        f"{prefix}{names[name.split('.')[0]]}.{name.split('.')[1]}": part
        for name, part in selsa.state_dict().items()
    }
    blank: nn.Module = SelsaAttention(8, 2)
    if prefix:
        blank = nn.ModuleDict({"aggregator": nn.ModuleList([nn.Identity(), blank])})
    before = dict(state)
    blank.load_state_dict(state)
    assert state.keys() == before.keys()  # what was handed over stays as it was
    loaded = blank.state_dict()
    assert all(torch.equal(loaded[prefix + k], v) for k, v in selsa.state_dict().items())


def test_published_convolution_loads_and_foreign_names_do_not() -> None:
    geo = random_weights(GroupedValueAttention(8, 2))
    names = {"query": "wq", "key": "wk", "value": "wv"}
    state = {f"{names[k.split('.')[0]]}.{k.split('.')[1]}": v for k, v in geo.state_dict().items()}
    state["wv.weight"] = state["wv.weight"][:, :, None, None]  # of a 1x1 convolution
    blank = GroupedValueAttention(8, 2)
    blank.load_state_dict(state)
    assert torch.equal(blank.value.weight, geo.value.weight)
    assert torch.equal(blank.query.bias, geo.query.bias)
    for broken in (
        {k: v for k, v in state.items() if k != "wk.bias"},
        state | {"wx.bias": torch.zeros(8)},
        state | {"wq.weight": torch.zeros(9, 8)},
    ):
        with pytest.raises(RuntimeError):
            GroupedValueAttention(8, 2).load_state_dict(broken)


# --------------------------------------------------------------------------- ours


@SIZES
@given(
    st.integers(0, 9), st.integers(0, 9), st.sampled_from([None, 1, 3]), st.booleans(),
    st.booleans(), st.booleans(),
)  # fmt: skip
def test_it_begins_as_the_identity(
    queries: int, keys: int, batch: int | None, score: bool, geometry: bool, masked: bool
) -> None:
    enhance = GeneralizedEnhancement(8, 2, score_bias=score, geometry_bias=geometry)
    head = () if batch is None else (batch,)
    x, rows = noise(*head, queries, 8), noise(*head, keys, 8, seed=1)
    index = where(noise(*head, keys, seed=2) > 0) if masked else None
    assert torch.equal(enhance(x, rows, **context(queries, keys, batch), index=index), x)


def test_without_keys_it_is_the_identity_whatever_it_learned() -> None:
    enhance = random_weights(GeneralizedEnhancement(8, 2))
    x = noise(2, 5, 8)
    assert torch.equal(enhance(x, noise(2, 0, 8), **context(5, 0, 2)), x)
    index = where(torch.tensor([[False] * 4, [True] * 4]))
    enhanced = enhance(x, noise(2, 4, 8, seed=1), **context(5, 4, 2), index=index)
    assert torch.equal(enhanced[0], x[0]) and not torch.allclose(enhanced[1], x[1])
    assert enhanced.isfinite().all()


@pytest.mark.parametrize("form", [GeneralizedEnhancement, SelsaAttention, GroupedValueAttention])
def test_streams_together_are_as_streams_apart(form: type[RowAttention]) -> None:
    enhance = random_weights(form(8, 2)).eval()
    lengths, x = (4, 1, 6), noise(3, 5, 8)
    rows = noise(3, 6, 8, seed=1)
    more = context(5, 6, 3) if form is GeneralizedEnhancement else {}
    index = where(torch.arange(6) < torch.tensor(lengths)[:, None])
    together = enhance(x, rows, index=index, **more)
    for n, length in enumerate(lengths):
        own = {
            name: part[n] if name == "boxes" else part[n, :length] for name, part in more.items()
        }
        assert torch.allclose(together[n], enhance(x[n], rows[n, :length], **own), atol=1e-5)


def test_a_set_of_keys_may_serve_a_whole_batch() -> None:
    enhance = random_weights(GeneralizedEnhancement(8, 2))
    x, rows, own = noise(3, 5, 8), noise(6, 8, seed=1), context(5, 6)
    more = own | {"boxes": boxes(3, 5, seed=9)}
    index = where(torch.tensor([True, False, True, True, False, True]))
    together = enhance(x, rows, **more, index=index)
    for n in range(3):
        one = enhance(x[n], rows, **own | {"boxes": more["boxes"][n]}, index=index)
        assert torch.allclose(together[n], one, atol=1e-5)


@SIZES
@given(st.integers(1, 8), st.integers(0, 10_000))
def test_the_order_of_keys_says_nothing(keys: int, seed: int) -> None:
    enhance = random_weights(GeneralizedEnhancement(8, 2), seed)
    x, rows, more = (
        noise(5, 8, seed=seed),
        noise(keys, 8, seed=seed + 1),
        context(5, keys, seed=seed),
    )
    order = torch.randperm(keys, generator=torch.Generator().manual_seed(seed))
    turned = {name: part if name == "boxes" else part[order] for name, part in more.items()}
    assert torch.allclose(enhance(x, rows, **more), enhance(x, rows[order], **turned), atol=1e-4)


def test_a_row_counts_as_much_as_its_score() -> None:
    """Twice with half the score is once with all of it; with none it is not there."""
    enhance = random_weights(GeneralizedEnhancement(8, 2, geometry_bias=False))
    x, rows = noise(5, 8), noise(3, 8, seed=1)
    once = enhance(x, rows, key_scores=torch.tensor([0.8, 0.3, 0.6]))
    halves = torch.tensor([0.4, 0.4, 0.3, 0.6])
    assert torch.allclose(enhance(x, rows[[0, 0, 1, 2]], key_scores=halves), once, atol=1e-5)
    none = enhance(x, rows[[0, 1, 2, 1]], key_scores=torch.tensor([0.8, 0.3, 0.6, 0.0]))
    assert torch.allclose(none, once, atol=1e-4)
    flat = GeneralizedEnhancement(8, 2, score_bias=False, geometry_bias=False)
    flat.load_state_dict(enhance.state_dict())
    same = enhance(x, rows, key_scores=torch.full((3,), 0.5))
    assert torch.allclose(flat(x, rows), same, atol=1e-5)


def test_where_and_when_a_row_was_seen_counts() -> None:
    enhance = random_weights(GeneralizedEnhancement(8, 2))
    x, rows, more = noise(5, 8), noise(6, 8, seed=1), context(5, 6)
    plain = enhance(x, rows, **more)
    for name in more:
        changed = enhance(x, rows, **more | {name: more[name].flip(0)})
        assert not torch.allclose(changed, plain, atol=1e-4), name


def test_a_bias_is_added_to_scaled_products() -> None:
    enhance = random_weights(GeneralizedEnhancement(8, 2))
    x, rows, more = noise(5, 8), noise(6, 8, seed=1), context(5, 6)
    q, k, v = enhance.query(x), *enhance.project(rows)
    pairs = pair_features(
        more["boxes"][None], more["key_boxes"][None], more["ages"][None].clamp(max=12)
    )
    bias = enhance.geometry
    near = bias.bias(bias.hidden(pairs[0].permute(1, 2, 0)).relu())  # (Q, K, H)
    parts = []
    for head, own in enumerate((slice(0, 4), slice(4, 8))):
        logits = q[:, own] @ k[:, own].T / 2 + more["key_scores"].log() + near[..., head]
        parts.append(logits.softmax(-1) @ v[:, own])
    expected = x + enhance.output(torch.cat(parts, -1))
    assert torch.allclose(enhance(x, rows, **more), expected, atol=1e-5)


def test_all_of_it_learns() -> None:
    """From the second step on: at first the output layer alone has a gradient."""
    enhance = GeneralizedEnhancement(8, 2)
    x, rows, more = noise(5, 8), noise(6, 8, seed=1), context(5, 6)
    optimizer = torch.optim.SGD(enhance.parameters(), 0.1)
    for step in range(2):
        optimizer.zero_grad()
        (enhance(x, rows, **more) - noise(5, 8, seed=5)).square().sum().backward()
        moved = {
            n.split(".")[0]
            for n, part in enhance.named_parameters()
            if part.grad.abs().max() > 1e-7
        }
        assert moved == ({"query", "key", "value", "output", "geometry"} if step else {"output"})
        optimizer.step()


# --------------------------------------------------------------------------- projected once


def test_projected_rows_serve_as_rows() -> None:
    enhance = random_weights(GeneralizedEnhancement(8, 2))
    x, rows, more = noise(3, 5, 8), noise(3, 6, 8, seed=1), context(5, 6, 3)
    assert torch.equal(enhance(x, enhance.project(rows), **more), enhance(x, rows, **more))


def test_the_version_tells_when_projections_are_stale() -> None:
    enhance = random_weights(GeneralizedEnhancement(8, 2))
    version = enhance.version
    enhance(noise(5, 8), noise(6, 8), **context(5, 6)).sum().backward()
    assert enhance.version == version
    optimizer = torch.optim.AdamW(enhance.parameters())
    optimizer.step()
    stepped = enhance.version
    enhance.load_state_dict(GeneralizedEnhancement(8, 2).state_dict())
    assert len({version, stepped, enhance.version}) == 3
    loaded = enhance.version
    enhance.double()
    assert enhance.version != loaded


# --------------------------------------------------------------------------- maps


@pytest.mark.parametrize("form", [SelsaAttention, GroupedValueAttention])
def test_a_map_is_its_cells_row_by_row(form: type[RowAttention]) -> None:
    module, features, keys = random_weights(form(8, 2)), noise(2, 8, 3, 5), noise(4, 8, seed=1)
    enhanced = enhance_map(module, features, keys)
    for y in range(3):
        for x in range(5):
            cell = module(features[:, :, y, x], keys)
            assert torch.allclose(enhanced[:, :, y, x], cell, atol=1e-5)


def test_a_map_may_know_where_its_cells_are() -> None:
    enhance = random_weights(GeneralizedEnhancement(8, 2))
    features, keys = noise(1, 8, 3, 5), noise(1, 4, 8, seed=1)
    more = context(15, 4, 1) | {"boxes": cell_boxes(3, 5)[None]}
    enhanced = enhance_map(enhance, features, keys, **more)
    rows = enhance(features.flatten(2).transpose(1, 2), keys, **more)
    assert torch.equal(enhanced, rows.transpose(1, 2).reshape(1, 8, 3, 5))
    assert enhance_map(enhance, features[..., :1, :1], keys[:, :0]).shape == (1, 8, 1, 1)


# --------------------------------------------------------------------------- the door


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.ones(5, 7)}, r"x must be \(Q, 8\)"),
        ({"x": torch.ones(8)}, "x must be"),
        ({"keys": torch.ones(3, 9)}, "keys must be"),
        ({"keys": torch.ones(2, 3, 8)}, "not of the batch"),
        ({"x": torch.ones(2, 5, 8), "keys": torch.ones(3, 3, 8)}, "not of the batch"),
        ({"index": torch.zeros(2, 3).long()}, "index .* not of the batch"),
        ({"index": torch.tensor(0)}, "index .* not of the batch"),
        ({"index": torch.zeros(2).long()}, "needs key_scores"),
        ({"index": torch.zeros(3)}, "whole numbers"),
        ({"key_scores": None}, "needs key_scores .* missing"),
        ({"key_scores": torch.ones(4)}, "needs key_scores"),
        ({"boxes": None}, "needs boxes .* missing"),
        ({"boxes": torch.ones(4, 4)}, "needs boxes"),
        ({"key_boxes": torch.ones(3, 2)}, "needs key_boxes"),
        ({"ages": None}, "needs ages .* missing"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(change: dict[str, Tensor | None], words: str) -> None:
    good = {"x": torch.ones(5, 8), "keys": torch.ones(3, 8)} | context(5, 3)
    with pytest.raises(ValueError, match=words):
        GeneralizedEnhancement(8, 2)(**good | change)


@pytest.mark.parametrize("heads", [0, 3])
def test_heads_must_divide_the_width(heads: int) -> None:
    with pytest.raises(ValueError, match="do not divide"):
        SelsaAttention(8, heads)


def test_double_precision_stays_so() -> None:
    enhance = random_weights(GeneralizedEnhancement(8, 2)).double()
    more = {name: part.double() for name, part in context(5, 6).items()}
    index = where(torch.tensor([True, False] * 3))
    out = enhance(noise(5, 8).double(), noise(6, 8).double(), **more, index=index)
    assert out.dtype == torch.float64


def test_rows_by_number_are_rows() -> None:
    """Of a table that serves all streams, in any order; what is known of keys is given by key."""
    enhance = random_weights(GeneralizedEnhancement(8, 2))
    x, table, more = noise(2, 5, 8), noise(9, 8, seed=1), context(5, 4, 2)
    index = torch.tensor([[8, 0, 3, 3], [5, 2, -1, -1]])
    together = enhance(x, enhance.project(table), **more, index=index)
    for n, length in enumerate((4, 2)):
        own = {
            name: part[n] if name == "boxes" else part[n, :length] for name, part in more.items()
        }
        one = enhance(x[n], table[index[n, :length]], **own)
        assert torch.allclose(together[n], one, atol=1e-5)
