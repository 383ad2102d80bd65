"""What a token attends to, and where that stands, against attention written out query by query."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import FAMILY_NAMES, tiny_family, tiny_model
from tiny_stream import CLIP, FEW, TIMES, WORDS, begin
from torch import Tensor
from vismem.kernels.memory_attention import Reads
from vismem.kernels.registry import Mode, using

from vismem.memory.kv.window import Chunk
from vismem.models.families import Family
from vismem.models.kv_attention import Encoding, Plan, Reading, host, seen_by
from vismem.models.rekv import PublishedEncoding, PublishedReading
from vismem.models.rope import frame_coords
from vismem.models.video_llm import VideoLLM


def naive(query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """One query ``(H, D)`` over keys and values ``(G, n, D)``, in float64."""
    heads, groups = len(query), len(keys)
    seen = []
    for head in range(heads):
        group = head * groups // heads
        logits = keys[group].double() @ query[head].double() * scale
        seen.append(torch.softmax(logits, 0) @ values[group].double())
    return torch.stack(seen).float()


class OneByOne(Plan):
    """The rule of `Encoding` over a whole stream at once, said another way: query by query.

    Sinks, then whole frames within the limit, then the own frame up to the token itself; positions
    counted from the first sink, for each frame anew.
    """

    def __init__(self, family: Family, sinks: int, frames: Sequence[Tensor], limit: int) -> None:
        self.family, self.sinks, self.frames, self.limit = family, sinks, frames, limit
        self.kv: list[Tensor] = []

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None
    ) -> Tensor:
        assert scale is not None
        self.kv.append(torch.stack((key, value)))
        family, out = self.family, torch.zeros_like(query)
        prompt = family.text_positions(self.sinks)
        spans, begin = [], self.sinks
        for coords in self.frames:
            spans.append(range(begin, begin + len(coords)))
            begin += len(coords)
        rotated = family.rotate(query[:, : self.sinks], prompt)
        for p in range(self.sinks):
            keys = family.rotate(key[:, : p + 1], prompt[..., : p + 1])
            out[:, p] = naive(rotated[:, p], keys, value[:, : p + 1], scale)
        for own, span in enumerate(spans):
            first, room = own, self.limit
            while first and len(spans[first - 1]) <= room:
                first -= 1
                room -= len(spans[first])
            seen = range(first, own + 1)
            where, _ = family.context_positions(
                torch.cat([self.frames[n] for n in seen]),
                torch.cat([torch.full((len(spans[n]),), n) for n in seen]),
                start=self.sinks,
            )
            where = torch.cat([prompt, where], -1)
            tokens = [*range(self.sinks), *itertools.chain(*(spans[n] for n in seen))]
            keys = family.rotate(key[:, tokens], where)
            for p in span:
                end = tokens.index(p) + 1
                asked = family.rotate(query[:, p : p + 1], where[..., end - 1 : end])[:, 0]
                out[:, p] = naive(asked, keys[:, :end], value[:, tokens[:end]], scale)
        return out


def coords_of(family: Family, count: int, words: int, grid: tuple[int, int] = (2, 3)) -> Tensor:
    rows, columns = torch.arange(grid[0]), torch.arange(grid[1])
    inside = torch.cartesian_prod(torch.arange(1), rows, columns)
    if not family.mrope:
        inside = torch.arange(len(inside))[:, None].expand(-1, 3)
    return frame_coords(inside.short(), words, 0)[:count]


def stream_of(family: Family, sizes: Sequence[tuple[int, int]]) -> tuple[list[Tensor], Tensor]:
    """Coordinates of frames, given their tokens and how many of them are words; embeddings."""
    frames = [coords_of(family, count, words) for count, words in sizes]
    generator = torch.Generator().manual_seed(len(sizes))
    total = SINKS + sum(map(len, frames))
    return frames, torch.randn(total, family.hidden, generator=generator)


SINKS = 4
SIZES = [(6, 0)] * 3 + [(5, 0), (6, 0), (1, 0), (6, 0), (4, 0), (6, 0)]
WORDED = [(8, 2), (6, 2), (8, 2), (3, 2), (8, 2), (8, 2), (7, 2)]


def chunk_of(kv: Tensor, coords: Tensor, number: int, first: int) -> Chunk:
    return Chunk(kv, float(number), coords, number, first, torch.empty(0), torch.empty(0))


def streamed(
    family: Family, frames: Sequence[Tensor], embeds: Tensor, limit: int, step: int
) -> Tensor:
    """Keys and values ``(L, 2, G, T, D)`` of a stream, some frames at a time."""
    none = torch.empty(family.shape.layers, 2, family.shape.kv_heads, 0, family.shape.head_dim)

    def forward(plan: Encoding, part: Tensor) -> Tensor:
        still = torch.zeros(len(part), dtype=torch.int64)
        family.forward(part[None], positions=still, kvmem=plan)
        return torch.stack(plan.kv)

    words = torch.arange(SINKS)[:, None].expand(-1, 3)
    sinks = forward(Encoding(family, none, (), limit, [words]), embeds[:SINKS])
    window: list[Chunk] = []
    done = SINKS
    for start in range(0, len(frames), step):
        new = frames[start : start + step]
        count = sum(map(len, new))
        plan = Encoding(family, sinks, window, limit, new)
        made = forward(plan, embeds[done : done + count]).split([len(c) for c in new], 3)
        for number, (kv, coords) in enumerate(zip(made, new, strict=True), start):
            window.append(chunk_of(kv, coords, number, done))
            done += len(coords)
    return torch.cat([sinks, *(chunk.kv for chunk in window)], 3)


@pytest.fixture(scope="module", params=FAMILY_NAMES)
def family(request: pytest.FixtureRequest) -> Family:
    hosted = tiny_family(request.param)
    host(hosted.model)
    return hosted


@pytest.mark.parametrize("limit", [1, 6, 17, 1000])
@pytest.mark.parametrize("sizes", [SIZES, WORDED], ids=["run", "words"])
def test_encoding_is_attention_query_by_query(
    family: Family, sizes: list[tuple[int, int]], limit: int
) -> None:
    frames, embeds = stream_of(family, sizes)
    plan = OneByOne(family, SINKS, frames, limit)
    still = torch.zeros(len(embeds), dtype=torch.int64)
    family.forward(embeds[None], positions=still, kvmem=plan)
    wanted = torch.stack(plan.kv)
    for step in (1, 2, 3, len(frames)):
        found = streamed(family, frames, embeds, limit, step)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_a_window_that_holds_all_is_the_stock_model(family: Family) -> None:
    """One stock forward, its own rotation and its own causal mask."""
    frames, embeds = stream_of(family, WORDED)
    marks = torch.cat([torch.full((len(c),), n) for n, c in enumerate(frames)])
    where, _ = family.context_positions(torch.cat(frames), marks, start=SINKS)
    where = torch.cat([family.text_positions(SINKS), where], -1)
    heard: list[Tensor] = []
    layers = family.text_model.layers
    hooks = [
        layer.self_attn.v_proj.register_forward_hook(lambda m, a, out: heard.append(out[0]))
        for layer in layers
    ]
    try:
        family.forward(embeds[None], positions=where)
    finally:
        for hook in hooks:
            hook.remove()
    found = streamed(family, frames, embeds, 1000, 3)[:, 1]
    wanted = torch.stack(heard).unflatten(2, (family.shape.kv_heads, -1)).transpose(1, 2)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


@settings(max_examples=25, derandomize=True)
@given(
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(0, 6),
    st.integers(1, 8),
)
def test_attention_of_shared_key_heads(
    groups: int, ratio: int, count: int, before: int, width: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    draw = lambda *size: torch.randn(*size, generator=generator)  # noqa: E731
    query = draw(groups * ratio, count, width)
    keys, values = draw(groups, before + count, width), draw(groups, before + count, width)
    found = seen_by(query, keys, values, 0.3, Reads.causal(before + count, count))
    for token in range(count):
        end = before + token + 1
        wanted = naive(query[:, token], keys[:, :end], values[:, :end], 0.3)
        torch.testing.assert_close(found[:, token], wanted, rtol=0, atol=1e-5)


def test_words_read_contexts_of_other_lengths_in_each_layer(family: Family) -> None:
    shape, generator = family.shape, torch.Generator().manual_seed(1)
    lengths = [5, 0, 11]
    raw = [torch.randn(2, shape.kv_heads, n, shape.head_dim, generator=generator) for n in lengths]
    embeds = torch.randn(1, 7, family.hidden, generator=generator)

    class Plainly(Plan):
        def attend(
            self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None
        ) -> Tensor:
            assert scale is not None
            where = family.text_positions(lengths[layer] + 7)
            keys = family.rotate(torch.cat([raw[layer][0], key], 1), where)
            asked = family.rotate(query, where[..., lengths[layer] :])
            values = torch.cat([raw[layer][1], value], 1)
            ends = [lengths[layer] + n + 1 for n in range(7)]
            seen = [
                naive(asked[:, n], keys[:, :end], values[:, :end], scale)
                for n, end in enumerate(ends)
            ]
            return torch.stack(seen, 1)

    def placed(layer: int, query: Tensor) -> tuple[Tensor, Tensor]:
        before = family.text_positions(lengths[layer], -lengths[layer])
        return family.rotate(raw[layer][0], before), raw[layer][1]

    still, plan = torch.zeros(7, dtype=torch.int64), Reading(family, 7, placed)
    found = family.forward(embeds, positions=still, kvmem=plan)
    wanted = family.forward(embeds, positions=still, kvmem=Plainly())
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    assert [keys.shape[1] for keys, _ in plan.pairs] == [n + 7 for n in lengths]


def test_reading_as_published_is_reading_while_nothing_slides() -> None:
    family = tiny_family("llava_onevision")
    host(family.model)
    shape, generator = family.shape, torch.Generator().manual_seed(1)
    raw = torch.randn(shape.layers, 2, shape.kv_heads, 9, shape.head_dim, generator=generator)
    embeds, still = torch.randn(1, 7, family.hidden, generator=generator), torch.zeros(7).long()
    before = family.text_positions(9, -9)
    ours = Reading(
        family, 7, lambda layer, query: (family.rotate(raw[layer, 0], before), raw[layer, 1])
    )
    theirs = [
        PublishedReading(family, 7, lambda layer, query: (raw[layer, 0], raw[layer, 1]), w, 4)
        for w in (16, 15)
    ]
    a, b, c = (family.forward(embeds, positions=still, kvmem=p) for p in (ours, *theirs))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    assert (a - c).abs().max() > 1e-3  # one token more than the window has room for


def test_a_hosted_model_is_the_stock_model_for_anybody_else(family: Family) -> None:
    """Padding included, which needs a mask."""
    stock = tiny_model(family.model_type)
    ids = torch.arange(24).reshape(2, 12) % 20
    mask = torch.ones(2, 12, dtype=torch.int64)
    mask[1, :5] = 0
    with torch.no_grad():
        found = family.model(input_ids=ids, attention_mask=mask).logits
        wanted = stock(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(found[0], wanted[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(found[1, 5:], wanted[1, 5:], rtol=0, atol=1e-5)


def test_a_plan_takes_one_stream() -> None:
    family = tiny_family("smolvlm")
    host(family.model)
    plan = Reading(family, 3, lambda layer, query: (torch.empty(2, 0, 16), torch.empty(2, 0, 16)))
    with pytest.raises(ValueError, match="one stream in a forward, not 2"):
        family.forward(torch.zeros(2, 3, 64), positions=torch.zeros(3).long(), kvmem=plan)


def test_published_encoding_is_ours_while_nothing_slides() -> None:
    """Until the window is full, neither sinks nor window matter."""
    from vismem.memory.kv.config import KVConfig
    from vismem.memory.kv.memory import KVMemory

    family = tiny_family("llava_onevision")
    host(family.model)
    frames, embeds = stream_of(family, [(6, 0)] * 5)
    wanted = streamed(family, frames, embeds, 1000, 2)
    memory = KVMemory(KVConfig(family.shape, torch.float32, "model", block=6, window=1000), "10MB")
    for part in (embeds[:SINKS], embeds[SINKS : SINKS + 18], embeds[SINKS + 18 :]):
        plan = PublishedEncoding(family, memory.snapshot(), len(part))
        family.forward(part[None], positions=torch.zeros(len(part)).long(), kvmem=plan)
        kv = torch.stack(plan.kv)
        if not memory.snapshot().seen:
            memory.start(kv)
        else:
            for one in kv.split(6, 3):
                memory.write_kv(one, 0.0)
    view = memory.snapshot()
    found = torch.cat([view.sinks, *(chunk.kv for chunk in view.window)], 3)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the tiny model is on the processor")
def test_a_stream_and_its_answer_are_the_same_in_triton() -> None:
    pytest.importorskip("triton")
    llm = VideoLLM(tiny_family("llava_onevision", num_hidden_layers=2))
    said: dict[Mode, tuple[list[int], Tensor]] = {}
    modes: tuple[Mode, Mode] = ("torch", "triton")
    for mode in modes:
        with using(mode):
            stream = begin(llm, chunk=2, retrieval=FEW)
            stream.write(CLIP[:4], TIMES[:4])
            ids = stream.ask(WORDS, max_new_tokens=2).ids
        said[mode] = ids, torch.cat([c.kv for c in stream.memory.snapshot().window], 3)
    assert said["torch"][0] == said["triton"][0]
    assert not torch.equal(said["torch"][1], said["triton"][1])  # the kernel did run
    torch.testing.assert_close(said["torch"][1], said["triton"][1], rtol=0, atol=1e-4)
