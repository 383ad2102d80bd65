"""Attention to memories is SAM 2's cross-attention, written out; in PyTorch, with gradients."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from vismem.kernels import tiled
from vismem.kernels.mem_xattn import (
    axial_table,
    cpu,
    fold_output,
    half_split,
    mem_xattn,
    reference,
    rotate_axial,
)

FEW = settings(max_examples=40, derandomize=True)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --------------------------------------------------------------------------- SAM 2, written out


def layers(width: int, memory: int, seed: int = 0) -> dict[str, nn.Linear]:
    """The four projections of a cross-attention, in float64 and with biases that matter."""
    sizes = {"q": (width, width), "k": (memory, width), "v": (memory, width), "o": (width, width)}
    out = {}
    for number, (name, (a, b)) in enumerate(sizes.items()):
        layer = nn.Linear(a, b, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(noise(b, a, seed=seed + number) / math.sqrt(a) * 1.5)
            layer.bias.copy_(noise(b, seed=seed + number + 10))
        out[name] = layer
    return out


def turned(x: Tensor, height: int, width: int, pictures: int) -> Tensor:
    """Pairs of neighbouring channels as complex numbers, cell by cell: the published rule."""
    d = x.shape[-1]
    out = x.clone()
    for picture in range(pictures):
        for cell in range(height * width):
            at = picture * height * width + cell
            for pair in range(d // 2):
                place = cell % width if pair < d // 4 else cell // width
                angle = torch.tensor(
                    place * 10_000.0 ** (-4 * (pair % (d // 4)) / d), dtype=x.dtype
                )
                number = torch.complex(x[:, at, 2 * pair], x[:, at, 2 * pair + 1])
                number = number * torch.polar(torch.ones_like(angle), angle)
                out[:, at, 2 * pair], out[:, at, 2 * pair + 1] = number.real, number.imag
    return out


def sam2(
    part: dict[str, nn.Linear], x: Tensor, mem: Tensor, position: Tensor,
    grid: tuple[int, int], pointers: int, heads: int,
) -> Tensor:  # fmt: skip
    """Cross-attention with every value projected, head by head."""
    pictures = (mem.shape[1] - pointers) // math.prod(grid)
    q, k, v = part["q"](x), part["k"](mem + position), part["v"](mem)
    seen, width = [], q.shape[-1] // heads
    for h in range(heads):
        own = slice(h * width, (h + 1) * width)
        one, other = turned(q[..., own], *grid, 1), turned(k[..., own], *grid, pictures)
        seen.append((one @ other.mT / math.sqrt(width)).softmax(-1) @ v[..., own])
    return part["o"](torch.cat(seen, -1))


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize(("pictures", "pointers"), [(1, 0), (3, 0), (2, 5), (0, 4)])
def test_is_the_cross_attention_of_sam2(
    pictures: int, pointers: int, heads: int, halves: bool
) -> None:
    grid, part = (2, 3), layers(16, 5)
    x, mem, position = (
        noise(2, n, w, seed=s).double()
        for n, w, s in (
            (6, 16, 1),
            (6 * pictures + pointers, 5, 2),
            (6 * pictures + pointers, 5, 3),
        )
    )
    expected = sam2(part, x, mem, position, grid, pointers, heads)
    order = half_split(16, heads) if halves else torch.arange(16)
    table = axial_table(*grid, 16 // heads, dtype=torch.float64)
    q, k = (
        nn.functional.linear(rows, part[name].weight[order], part[name].bias[order])
        for name, rows in (("q", x), ("k", mem + position))
    )
    how = {"heads": heads, "halves": halves}
    seen = mem_xattn(
        rotate_axial(q, table, **how), rotate_axial(k, table, unrotated=pointers, **how), mem, heads
    )
    folded = fold_output(*part["v"].parameters(), *part["o"].parameters(), heads)
    found = nn.functional.linear(seen, *folded)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("pointers", [0, 4])
@pytest.mark.parametrize("pictures", [1, 2])
def test_is_the_module_of_transformers(pictures: int, pointers: int) -> None:
    """With its own weights, at SAM 2's own widths, on a grid that is not square."""
    sam2_video = pytest.importorskip("transformers.models.sam2_video.modeling_sam2_video")
    from transformers import Sam2VideoConfig

    config = Sam2VideoConfig(memory_attention_rope_feat_sizes=[3, 2], attn_implementation="eager")
    module = sam2_video.Sam2VideoRoPEAttention(config, kv_in_dim=64, rope_k_repeat=True).eval()
    with torch.no_grad():
        for number, part in enumerate(module.parameters()):
            part.copy_(noise(*part.shape, seed=number) / 12)
        rotary = sam2_video.Sam2VideoVisionRotaryEmbedding(config)
        turns = rotary(
            torch.empty(0), sam2_video.Sam2VideoMemoryAttention.precompute_positions(config)
        )
        x = noise(1, 6, 256, seed=20)
        mem, position = noise(2, 1, 6 * pictures + pointers, 64, seed=21)
        expected, _ = module(
            x[None], (mem + position)[None], mem[None], turns, num_k_exclude_rope=pointers
        )
        table = axial_table(2, 3, 256)
        seen = mem_xattn(
            rotate_axial(module.q_proj(x), table),
            rotate_axial(module.k_proj(mem + position), table, unrotated=pointers),
            mem,
        )
        folded = fold_output(*module.v_proj.parameters(), *module.o_proj.parameters())
        found = nn.functional.linear(seen, *folded)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found, expected[0], rtol=1e-4, atol=2e-5)


# --------------------------------------------------------------------------- the operator


@FEW
@given(
    batch=st.integers(1, 3),
    queries=st.integers(1, 9),
    rows=st.integers(0, 12),
    heads=st.integers(1, 2),
    widths=st.sampled_from([(6, 3), (4, 4), (3, 5), (1, 1)]),
    ragged=st.booleans(),
    scale=st.sampled_from([None, 0.7]),
    tile=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_is_the_reference_with_its_gradients(
    batch: int, queries: int, rows: int, heads: int, widths: tuple[int, int], ragged: bool,
    scale: float | None, tile: int, seed: int,
) -> None:  # fmt: skip
    sizes = ((queries, heads * widths[0]), (rows, heads * widths[0]), (rows, widths[1]))
    parts = [noise(batch, *size, seed=seed + n).double() for n, size in enumerate(sizes)]
    lengths = None
    if ragged:
        draws = torch.Generator().manual_seed(seed)
        lengths = torch.randint(0, rows + 1, (batch,), generator=draws)
        for b, length in enumerate(lengths.tolist()):
            parts[1][b, length:], parts[2][b, length:] = 1e9, 1e9  # nothing of it is seen
    expected = reference.mem_xattn(*parts, heads, scale, lengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiled, "ROWS", tile)
        patch.setattr(tiled, "COLUMNS", tile + 1)
        factor = (parts[0].shape[2] // heads) ** -0.5 if scale is None else scale
        found = cpu.tiled(*parts, heads, factor, lengths)
    assert found.shape == (batch, queries, heads * widths[1])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    parts = [part.requires_grad_() for part in parts]
    found = mem_xattn(*parts, heads, scale, lengths=lengths)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    expected = reference.mem_xattn(*parts, heads, scale, lengths)
    if not expected.requires_grad or not found.requires_grad:  # there is no key at all
        assert not found.any()
        return
    grad = noise(*found.shape, seed=9).double()
    for one, other in zip(
        torch.autograd.grad(found, parts, grad),
        torch.autograd.grad(expected, parts, grad, allow_unused=True),
        strict=True,
    ):
        other = torch.zeros_like(one) if other is None else other
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.float32, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 1e-2)]
)
@pytest.mark.parametrize("form", [cpu.tiled, cpu.padded])
def test_both_forms_keep_the_type(form: object, dtype: torch.dtype, error: float) -> None:
    parts = [noise(2, n, w, seed=n).to(dtype) for n, w in ((600, 32), (1100, 32), (1100, 8))]
    lengths = torch.tensor([1100, 513])
    found = form(*parts, 1, 0.25, lengths)  # type: ignore[operator]
    expected = reference.mem_xattn(*(part.double() for part in parts), 1, 0.25, lengths)
    assert found.dtype == dtype
    assert (found.double() - expected).norm() < error * expected.norm()


def test_which_form_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    for name in ("tiled", "padded"):
        monkeypatch.setattr(cpu, name, lambda query, *_, name=name: ran.append(name) or query)
    for rows in (2, 200):
        mem_xattn(noise(1, rows, 4), noise(1, 600, 4), noise(1, 600, 4))
    assert ran == ["padded", "tiled"]


def test_large_scores_do_not_overflow() -> None:
    parts = [300 * noise(1, 3, 8), noise(1, 2000, 8, seed=1), noise(1, 2000, 4, seed=2)]
    expected = reference.mem_xattn(*(part.double() for part in parts))
    torch.testing.assert_close(mem_xattn(*parts).double(), expected, rtol=1e-3, atol=1e-3)


def test_nothing_is_changed() -> None:
    parts = [noise(1, 3, 8), noise(1, 20, 8, seed=1), noise(1, 20, 4, seed=2)]
    before = [part.clone() for part in parts]
    mem_xattn(*parts)
    rotate_axial(parts[1], axial_table(4, 5, 8))
    assert all(map(torch.equal, before, parts))


def test_compiles_whole() -> None:
    parts = [noise(2, 3, 8), noise(2, 20, 8, seed=1), noise(2, 20, 4, seed=2)]
    lengths = torch.tensor([20, 0])
    compiled = torch.compile(mem_xattn, fullgraph=True, backend="aot_eager")
    expected = reference.mem_xattn(*parts, 1, None, lengths)
    torch.testing.assert_close(compiled(*parts, lengths=lengths), expected)


# --------------------------------------------------------------------------- rotation


@FEW
@given(
    sides=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    quarter=st.integers(1, 3),
    heads=st.integers(1, 2),
    pictures=st.integers(0, 3),
    pointers=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_rotation_as_published_and_by_halves(
    sides: tuple[int, int], quarter: int, heads: int, pictures: int, pointers: int, seed: int
) -> None:
    width, count = 4 * quarter, math.prod(sides) * pictures + pointers
    x = noise(2, count, heads * width, seed=seed).double()
    table = axial_table(*sides, width, dtype=torch.float64)
    found = rotate_axial(x, table, heads=heads, unrotated=pointers)
    expected = torch.cat([turned(p, *sides, pictures) for p in x.split(width, 2)], 2)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert torch.equal(found[:, count - pointers :], x[:, count - pointers :])
    order = half_split(heads * width, heads)
    split = rotate_axial(x[..., order], table, heads=heads, unrotated=pointers, halves=True)
    torch.testing.assert_close(split, found[..., order], rtol=1e-12, atol=1e-12)


@FEW
@given(move=st.tuples(st.integers(0, 3), st.integers(0, 3)), seed=st.integers(0, 99))
def test_products_know_only_how_far_cells_are_apart(move: tuple[int, int], seed: int) -> None:
    a, b = noise(2, 1, 1, 16, seed=seed).double()
    table = axial_table(7, 9, 16, dtype=torch.float64)

    def product(one: tuple[int, int], other: tuple[int, int]) -> Tensor:
        cells = [row * 9 + column for row, column in (one, other)]
        q, k = (rotate_axial(x, table[:, [c]]) for x, c in zip((a, b), cells, strict=True))
        return (q * k).sum()

    there = (1 + move[0], 2 + move[1]), (3 + move[0], move[1])
    torch.testing.assert_close(product((1, 2), (3, 0)), product(*there), rtol=1e-9, atol=1e-9)


def test_half_types_are_turned_in_float32() -> None:
    x, table = noise(1, 4096, 64).half(), axial_table(64, 64, 64)
    turned_ = rotate_axial(x, table)
    assert turned_.dtype == torch.float16
    torch.testing.assert_close(turned_, rotate_axial(x.float(), table).half(), rtol=0, atol=0)


# --------------------------------------------------------------------------- the door

GOOD = {"query": torch.ones(2, 3, 8), "keys": torch.ones(2, 5, 8), "mem": torch.ones(2, 5, 4)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"query": torch.ones(3, 8)}, r"takes \(B, M, C\)"),
        ({"keys": torch.ones(2, 5, 6)}, "one batch"),
        ({"keys": torch.ones(1, 5, 8)}, "one batch"),
        ({"mem": torch.ones(2, 4, 4)}, "one batch"),
        ({"heads": 3}, "do not divide"),
        ({"heads": 0}, "do not divide"),
        ({"mem": torch.ones(2, 5, 4).half()}, "of one type"),
        ({"lengths": torch.ones(3).long()}, "2 whole numbers"),
        ({"lengths": torch.ones(2)}, "2 whole numbers"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Tensor], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        mem_xattn(**{**GOOD, **change})


def test_rotations_and_layers_that_do_not_fit_are_refused() -> None:
    table = axial_table(2, 3, 8)
    for x, how, words in (
        (torch.ones(1, 7, 8), {}, "whole pictures of 6 cells"),
        (torch.ones(1, 7, 8), {"unrotated": 8}, "whole pictures"),
        (torch.ones(1, 7, 8), {"unrotated": -5}, "whole pictures"),
        (torch.ones(1, 6, 16), {}, "8 channels are no 16"),
    ):
        with pytest.raises(ValueError, match=words):
            rotate_axial(x, table, **how)
    with pytest.raises(ValueError, match="multiple of 4"):
        axial_table(2, 3, 6)
    good = [torch.ones(8, 2), torch.ones(8), torch.ones(3, 8), torch.ones(3)]
    for at, part in ((0, torch.ones(6, 2)), (1, torch.ones(7)), (3, torch.ones(8))):
        with pytest.raises(ValueError, match="do not follow each other"):
            fold_output(*good[:at], part, *good[at + 1 :])
    with pytest.raises(ValueError, match="3 heads"):
        fold_output(*good, heads=3)
