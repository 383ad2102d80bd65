"""The stock rotation at any positions, and M-RoPE positions of frames against a plain loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tiny import FAMILY_NAMES, frames, tiny_family, tiny_model, tiny_tokenizer
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from vismem.errors import UsageError
from vismem.models.families import Family, family_of
from vismem.models.rope import Rope, frame_coords, grid_positions

MROPE = ("qwen2_5_vl", "qwen3_vl")
GRID = torch.cartesian_prod(torch.arange(1), torch.arange(2), torch.arange(3)).short()


@pytest.fixture(scope="module", params=FAMILY_NAMES)
def family(request: pytest.FixtureRequest) -> Family:
    return tiny_family(request.param)


# ---------------------------------------------------------------------- rotation


@contextmanager
def recorded(family: Family) -> Iterator[list[tuple[int, Tensor, Tensor, Any]]]:
    """Layer, queries, keys and ``kvmem`` of every call of an attention function."""
    calls: list[tuple[int, Tensor, Tensor, Any]] = []
    stock = family.text_model.config._attn_implementation

    def record(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **more: Any):
        calls.append((module.layer_idx, query, key, more.get("kvmem")))
        return query.transpose(1, 2).contiguous(), None

    transformers.AttentionInterface.register("recorded_in_a_test", record)
    family.text_model.set_attn_implementation("recorded_in_a_test")
    try:
        yield calls
    finally:
        family.text_model.set_attn_implementation(stock)


def scattered(family: Family, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    form = (3, count) if family.mrope else (count,)
    return torch.randint(0, 5000, form, generator=generator)


@pytest.mark.parametrize("name", [*FAMILY_NAMES, "yarn"])
def test_zero_positions_give_what_rotates_to_any_position(name: str) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    rope = {"rope_parameters": yarn | {"rope_theta": 1e4}} if name == "yarn" else {}
    family = tiny_family("llava_onevision" if name == "yarn" else name, **rope)
    if name == "yarn":
        assert family.text_model.rotary_emb.attention_scaling > 1.1
    words, there, memory = family.embed_text(range(7))[None], scattered(family, 7), object()
    with recorded(family) as calls:
        family.forward(words, positions=torch.zeros_like(there), kvmem=memory)
        family.forward(words, positions=there)
    layers = family.shape.layers
    assert [call[0] for call in calls] == [*range(layers), *range(layers)]
    assert all(call[3] is memory for call in calls[:layers])
    assert all(call[3] is None for call in calls[layers:])
    (_, query, key, _), (_, turned_query, turned_key, _) = calls[0], calls[layers]
    assert key.shape == (1, family.shape.kv_heads, 7, family.shape.head_dim)
    assert query.shape[1] == family.shape.heads
    torch.testing.assert_close(family.rotate(query, there), turned_query)
    torch.testing.assert_close(family.rotate(key, there), turned_key)
    assert not torch.allclose(key, turned_key, atol=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rotation_is_the_stock_one(family: Family, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 11, family.shape.head_dim, generator=generator).to(dtype)
    there = scattered(family, 11)
    cos, sin = family.text_model.rotary_emb(x, family.rope.batched(there))
    theirs = apply_rotary_pos_emb(x, x, cos, sin)[0]
    assert torch.equal(family.rotate(x, there), theirs) and family.rotate(x, there).dtype == dtype
    assert torch.equal(family.rotate(x, torch.zeros_like(there)), x)
    angles = family.angles(there)
    assert all(part.dtype == family.dtype and part.shape == (11, 16) for part in angles)
    if dtype == family.dtype:
        assert torch.equal(family.rope.apply(x, *angles), theirs)


def test_a_model_may_run_in_half_precision(family: Family) -> None:
    low = family_of(
        tiny_model(family.model_type).to(torch.bfloat16), tiny_tokenizer(family.model_type)
    )
    assert low.dtype == torch.bfloat16 and low.embed_frames(frames(1)).embeds.dtype == low.dtype
    words = low.embed_text(range(9))[None]
    hidden = low.forward(words, positions=low.text_positions(9))
    full = family.forward(words.float(), positions=family.text_positions(9))
    assert torch.cosine_similarity(hidden.float(), full, dim=-1).min() > 0.99


@pytest.mark.parametrize("name", MROPE)
def test_one_row_of_positions_stands_for_three(name: str) -> None:
    family = tiny_family(name)
    x, there = torch.randn(5, 16, generator=torch.Generator().manual_seed(1)), torch.arange(5)
    assert torch.equal(family.rotate(x, there), family.rotate(x, there.expand(3, -1)))


def test_triples_are_refused_without_mrope() -> None:
    with pytest.raises(ValueError, match=r"positions are \(S,\), not \(3, 5\)"):
        tiny_family("smolvlm").rotate(torch.zeros(5, 16), torch.zeros(3, 5))


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("dynamic", {}),
        ("longrope", {"long_factor": [1.0] * 8, "short_factor": [1.0] * 8}),
    ],
)
def test_rotations_that_depend_on_length_are_refused(kind: str, more: dict[str, Any]) -> None:
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0} | more
    rope["original_max_position_embeddings"] = 64
    with pytest.raises(UsageError, match=f"type {kind} change with the length"):
        tiny_family("smolvlm", rope_parameters=rope)


def test_a_rotation_of_half_a_head_is_refused() -> None:
    rotary = tiny_model("smolvlm").model.text_model.rotary_emb
    with pytest.raises(UsageError, match="not rotated"):
        Rope(rotary, 32, mrope=False)


@pytest.mark.parametrize("place", [0, 1])
def test_a_rotation_at_position_zero_is_refused(place: int) -> None:
    rotary = tiny_model("smolvlm").model.text_model.rotary_emb

    def turn(module: Any, args: Any, angles: tuple[Tensor, Tensor]) -> Any:
        angles[place][..., 3] += 0.1
        return angles

    rotary.register_forward_hook(turn)
    with pytest.raises(UsageError, match="position 0 of this model rotates"):
        Rope(rotary, 16, mrope=False)


def test_layers_that_slide_are_refused() -> None:
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    with pytest.raises(UsageError, match="sliding_attention.*use_sliding_window=False"):
        tiny_family("llava_onevision", layer_types=kinds, use_sliding_window=True)


# ---------------------------------------------------------------------- positions


def by_hand(frames: list[Tensor], start: int, step: int) -> tuple[list[list[int]], int]:
    """The rule word by word: a frame at a time, a token at a time."""
    found: list[list[int]] = []
    base, along, free, open_run = start, 0, start, False
    for coords in frames:
        plain = all(int(t) == 0 for t, _, _ in coords)
        if not (plain and open_run):
            base, along = free, 0
        for t, h, w in coords.tolist():
            found.append([base + along + t, base + h, base + w])
            free = max(free, *[place + 1 for place in found[-1]])
        along += step
        open_run = plain
    return found, free


def token_lists(draw: st.DrawFn) -> list[Tensor]:
    frames = []
    for _ in range(draw(st.integers(1, 6))):
        words = draw(st.sampled_from([(0, 0), (0, 0), (2, 0), (1, 3)]))
        coords = frame_coords(GRID, *words)
        keep = draw(st.lists(st.booleans(), min_size=len(coords), max_size=len(coords)))
        kept = coords[torch.tensor(keep)]
        frames.append(kept if len(kept) else coords[-1:])
    return frames


@given(st.composite(token_lists)(), st.integers(0, 50), st.integers(1, 4))
def test_positions_are_those_of_the_plain_loop(frames: list[Tensor], start: int, step: int) -> None:
    origin = torch.cat([torch.full((len(part),), 5 * n) for n, part in enumerate(frames)])
    positions, free = grid_positions(torch.cat(frames), origin, start=start, step=step)
    theirs, their_free = by_hand(frames, start, step)
    assert positions.T.tolist() == theirs and free == their_free
    assert positions.min() >= start and positions.max() == free - 1
    moved, _ = grid_positions(torch.cat(frames), origin, start=start + 9, step=step)
    assert torch.equal(moved, positions + 9)


def test_frames_without_words_are_one_run_and_words_end_it() -> None:
    timed, plain = frame_coords(GRID, 2, 0), frame_coords(GRID, 0, 0)
    coords = torch.cat([plain, plain, timed, plain])
    origin = torch.tensor([0] * 6 + [1] * 6 + [2] * 8 + [3] * 6)
    positions, free = grid_positions(coords, origin, start=10)
    first = [part[0] for part in positions.T.split([6, 6, 8, 6])]
    assert [place.tolist() for place in first] == [
        [10, 10, 10],
        [11, 10, 10],
        [13, 13, 13],
        [18, 18, 18],
    ]
    assert free == 21


def test_nothing_takes_no_place() -> None:
    for name in ("qwen2_5_vl", "smolvlm"):
        family = tiny_family(name)
        empty = torch.zeros(0, 3, dtype=torch.int16)
        positions, free = family.context_positions(empty, torch.zeros(0), start=7)
        assert positions.shape[-1] == 0 and positions.dtype == torch.int64 and free == 7


def test_single_numbers_count_up_whatever_was_dropped() -> None:
    family = tiny_family("smolvlm")
    coords = torch.tensor([[0, 0, 0], [4, 4, 4], [8, 8, 8]])
    positions, free = family.context_positions(coords, torch.tensor([0, 3, 3]), start=4)
    assert positions.tolist() == [4, 5, 6] and free == 7
    assert family.text_positions(3, free).tolist() == [7, 8, 9]


def test_text_counts_up_in_all_rows() -> None:
    assert tiny_family("qwen3_vl").text_positions(2, 5).tolist() == [[5, 6]] * 3
