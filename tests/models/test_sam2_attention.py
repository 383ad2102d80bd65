"""SAM 2's memory attention: that of transformers, that of the paper written out, on any grid."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scattered import noise, scatter
from torch import Tensor, nn

from vismem.models.memory_attention import MemoryAttention, RotaryAttention
from vismem.models.sam2_names import from_official, from_transformers

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def stock(grid: tuple[int, int], size: float = 0.05) -> tuple[nn.Module, MemoryAttention]:
    """The module of transformers at its own widths, and ours with its weights."""
    modeling = pytest.importorskip("transformers.models.sam2_video.modeling_sam2_video")
    from transformers import Sam2VideoConfig

    config = Sam2VideoConfig(
        memory_attention_rope_feat_sizes=[grid[1], grid[0]], memory_attention_num_layers=2
    )
    theirs = modeling.Sam2VideoMemoryAttention(config).eval()
    scatter(theirs.parameters(), size)
    ours = MemoryAttention(layers=2).eval()
    ours.load_state_dict(from_transformers(theirs.state_dict()))
    return theirs, ours


def inputs(
    batch: int, grid: tuple[int, int], pictures: int, pointers: int, dim: int, memory_dim: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    cells = math.prod(grid)
    count = pictures * cells + pointers
    x, position = noise(2, batch, cells, dim, seed=1)
    memory, memory_position = noise(2, batch, count, memory_dim, seed=2)
    return x, position, memory, memory_position


# --------------------------------------------------------------------------- transformers


# Weights of 0.05 leave logits near zero; of 0.2 they are what trained ones are.
@pytest.mark.parametrize("size", [0.05, 0.2])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(("pictures", "pointers"), [(1, 0), (3, 8), (7, 64)])
@pytest.mark.parametrize("grid", [(8, 8), (4, 6)])
def test_is_the_module_of_transformers(
    grid: tuple[int, int], pictures: int, pointers: int, batch: int, size: float
) -> None:
    theirs, ours = stock(grid, size)
    x, position, memory, memory_position = inputs(batch, grid, pictures, pointers, 256, 64)
    with torch.no_grad():
        expected = theirs(
            x.transpose(0, 1), memory.transpose(0, 1), position.transpose(0, 1),
            memory_position.transpose(0, 1), pointers,
        )  # fmt: skip
        # What comes back has its axes mixed up: (N, 1, C), and for larger batches (1, B, N, C).
        expected = expected.reshape(batch, -1, 256) if batch > 1 else expected.transpose(0, 1)
        found = ours(
            x, memory, grid=grid, position=position, memory_position=memory_position,
            pointers=pointers,
        )  # fmt: skip
    torch.testing.assert_close(found, expected.view_as(found), **CLOSE)


def test_gradients_are_those_of_transformers() -> None:
    """Of all weights and of what goes in, for the sum of what comes out."""
    grid = (4, 4)
    theirs, ours = stock(grid, 0.2)
    given = [t.requires_grad_() for t in inputs(1, grid, 2, 8, 256, 64)]
    x, position, memory, memory_position = given
    theirs(*(t.transpose(0, 1) for t in (x, memory, position, memory_position)), 8).sum().backward()
    expected = [t.grad.clone() for t in given if t.grad is not None]
    for one in given:
        one.grad = None
    ours(
        x, memory, grid=grid, position=position, memory_position=memory_position, pointers=8
    ).sum().backward()
    for one, grad in zip(given, expected, strict=True):
        torch.testing.assert_close(one.grad, grad, rtol=1e-4, atol=1e-5)
    state = {name: p.grad for name, p in theirs.named_parameters()}
    own = dict(ours.named_parameters())
    for name, grad in from_transformers(state).items():
        torch.testing.assert_close(own[name].grad, grad, rtol=1e-4, atol=1e-4)


# --------------------------------------------------------------------------- written out


def turned(x: Tensor, grid: tuple[int, int], placed: int) -> Tensor:
    """Pairs of channels as complex numbers, turned by column and by row; the rest stays."""
    pairs, (height, width) = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()), grid
    quarter = x.shape[-1] // 4
    out = pairs.clone()
    for token in range(placed):
        cell = token % (height * width)
        for pair in range(2 * quarter):
            place = cell % width if pair < quarter else cell // width
            angle = place * 10_000.0 ** (-(pair % quarter) / quarter)
            out[:, token, pair] = pairs[:, token, pair] * complex(math.cos(angle), math.sin(angle))
    return torch.view_as_real(out).flatten(-2)


def slow(
    module: MemoryAttention, x: Tensor, memory: Tensor, position: Tensor,
    memory_position: Tensor, grid: tuple[int, int], pointers: int,
) -> Tensor:  # fmt: skip
    """The whole module, line by line, in the precision of its input; one head."""
    w = {name: p.detach().to(x) for name, p in module.named_parameters()}

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def attention(name: str, x: Tensor, k: Tensor, v: Tensor, placed: int) -> Tensor:
        q = turned(linear(f"{name}.query", x), grid, x.shape[1])
        k = turned(linear(f"{name}.key", k), grid, placed)
        weights = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
        return linear(f"{name}.output", weights @ linear(f"{name}.value", v))

    x = x + position / 10
    for number in range(len(module.layers)):
        name = f"layers.{number}"
        y = norm(f"{name}.norm1", x)
        x = x + attention(f"{name}.self_attention", y, y, y, y.shape[1])
        y = norm(f"{name}.norm2", x)
        placed = memory.shape[1] - pointers
        x = x + attention(f"{name}.cross_attention", y, memory + memory_position, memory, placed)
        y = norm(f"{name}.norm3", x)
        x = x + linear(f"{name}.narrow", linear(f"{name}.widen", y).clamp(min=0))
    return norm("norm", x)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("pictures", "pointers"), [(1, 0), (3, 5), (0, 4)])
@pytest.mark.parametrize("grid", [(2, 5), (5, 2), (1, 7), (3, 3)])
def test_is_what_the_paper_says_on_any_grid(
    grid: tuple[int, int], pictures: int, pointers: int, training: bool
) -> None:
    """In double precision; also as in training, where values are projected first."""
    module = MemoryAttention(16, 8, layers=2, hidden=12, dropout=0.0).double().train(training)
    scatter(module.parameters(), 0.5)
    x, position, memory, memory_position = (
        t.double() for t in inputs(2, grid, pictures, pointers, 16, 8)
    )
    with torch.no_grad():
        found = module(
            x, memory, grid=grid, position=position, memory_position=memory_position,
            pointers=pointers,
        )  # fmt: skip
        expected = slow(module, x, memory, position, memory_position, grid, pointers)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=25, derandomize=True)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=4), st.booleans(), st.sampled_from([1, 2, 4])
)
def test_what_is_behind_the_length_is_not_read(
    lengths: list[int], training: bool, heads: int
) -> None:
    """Each entry of a batch alone, with as many memories as it has."""
    attention = RotaryAttention(16, 4, heads).train(training)
    scatter(attention.parameters(), 0.5)
    batch, most = len(lengths), max(lengths)
    x, keys, memory = noise(batch, 6, 16), noise(batch, most, 16), noise(batch, most, 4)
    with torch.no_grad():
        found = attention(x, keys, memory, (2, 3), torch.tensor(lengths))
        for b, n in enumerate(lengths):
            alone = attention(x[b, None], keys[b, None, :n], memory[b, None, :n], (2, 3))
            torch.testing.assert_close(found[b, None], alone, **CLOSE)


@pytest.mark.parametrize("heads", [1, 2])
def test_values_projected_after_are_those_projected_before(heads: int) -> None:
    """Evaluation averages memories, training averages their projections; gradients agree too."""
    module = MemoryAttention(32, 8, layers=2, hidden=16, heads=heads, dropout=0.0)
    scatter(module.parameters(), 0.3)
    x, position, memory, memory_position = inputs(2, (3, 4), 2, 3, 32, 8)
    results = []
    for training in (True, False):
        module.train(training).zero_grad()
        found = module(
            x, memory, grid=(3, 4), position=position, memory_position=memory_position, pointers=3
        )
        found.square().sum().backward()
        grads = [p.grad.clone() for p in module.parameters() if p.grad is not None]
        results.append([found.detach(), *grads])
    assert len(results[0]) == 1 + len(list(module.parameters()))
    for before, after in zip(*results, strict=True):
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


def test_drops_in_training_alone() -> None:
    module = MemoryAttention(16, 4, layers=1, hidden=16, dropout=0.5)
    x, _, memory, _ = inputs(1, (2, 3), 1, 0, 16, 4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        one, other = (module(x, memory, grid=(2, 3)) for _ in range(2))
        assert not torch.equal(one, other)
        module.eval()
        one, other = (module(x, memory, grid=(2, 3)) for _ in range(2))
    assert torch.equal(one, other)


def test_weights_of_attention_are_dropped_in_training_alone() -> None:
    attention, (x, _, memory, _) = (
        RotaryAttention(16, 4, dropout=0.5),
        inputs(1, (2, 3), 1, 0, 16, 4),
    )
    keys = attention.keys(memory, (2, 3)).detach()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        one, other = (attention(x, keys, memory, (2, 3)) for _ in range(2))
        assert not torch.equal(one, other)
        attention.eval()
        one, other = (attention(x, keys, memory, (2, 3)) for _ in range(2))
    assert torch.equal(one, other)


def test_half_precision_is_near() -> None:
    """Memories kept as bfloat16, as SAM 2 keeps them, change little."""
    _, ours = stock((8, 8), 0.2)
    x, position, memory, memory_position = inputs(1, (8, 8), 3, 8, 256, 64)
    how = {"grid": (8, 8), "position": position, "memory_position": memory_position, "pointers": 8}
    with torch.no_grad():
        exact = ours(x, memory, **how)
        stored = ours(x, memory.bfloat16().float(), **how)
    assert 0 < (stored - exact).norm() / exact.norm() < 1e-2


def test_inference_mode_leaves_nothing_behind_that_cannot_be_trained_with() -> None:
    module = MemoryAttention(16, 4, layers=1, hidden=16).eval()
    x, _, memory, _ = inputs(1, (9, 11), 1, 0, 16, 4)  # a grid that no other test has
    with torch.inference_mode():
        module(x, memory, grid=(9, 11))
    module(x, memory, grid=(9, 11)).sum().backward()
    assert module.layers[0].cross_attention.query.weight.grad is not None


# --------------------------------------------------------------------------- refusals, names


def test_refuses_what_does_not_fit() -> None:
    module = MemoryAttention(16, 4, layers=1, hidden=16)
    x, _, memory, _ = inputs(1, (2, 3), 2, 0, 16, 4)
    for message, arguments in {
        r"\(B, 8, 16\), batch first": {"x": x, "memory": memory, "grid": (2, 4)},
        r"\(B, 6, 16\), batch first": {"x": x.transpose(0, 1), "memory": memory},
        r"must be \(1, N, 4\), batch first": {"x": x, "memory": memory.transpose(0, 1)},
        "no whole maps of 2 x 3 cells": {"x": x, "memory": memory[:, 1:]},
        "put pointers last": {"x": x, "memory": memory, "pointers": 13},
        "one token that stands for none": {"x": x, "memory": memory[:, :0]},
    }.items():
        with pytest.raises(ValueError, match=message):
            module(**{"grid": (2, 3), **arguments})
    with pytest.raises(ValueError, match="no whole maps"):
        module(x, memory, grid=(2, 3), pointers=-6)
    with pytest.raises(ValueError, match="multiple of 4"):
        RotaryAttention(16, heads=3)


@pytest.mark.parametrize("rename", [from_official, from_transformers])
def test_unknown_names_are_refused(rename: object) -> None:
    """Also those of the other of the two."""
    weight = torch.zeros(1)
    other = "layers.0.self_attn.o_proj.weight"
    if rename is from_transformers:
        other = "layers.0.self_attn.out_proj.weight"
    for key in (other, "layers.0.extra.weight", "layers.0.self_attn.q_proj.lora_a", "surprise"):
        with pytest.raises(ValueError, match=key.replace(".", r"\.")):
            rename({"layers.0.linear1.weight": weight, key: weight})  # type: ignore[operator]
    assert (
        rename({"mask_decoder.x": weight, "vision_encoder.y": weight}) == {}
        if (rename is from_transformers)
        else rename({"image_encoder.trunk.x": weight, "mask_downsample.bias": weight}) == {}
    )  # type: ignore[operator]
