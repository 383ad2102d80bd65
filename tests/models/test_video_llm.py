"""A stream that is remembered answers as the stock model that sees the same, and stays as it is."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tiny import frames, tiny_family
from tiny_stream import (
    ADAPTIVE,
    ALL,
    CLIP,
    FEW,
    TIMES,
    WORDS,
    begin,
    close,
    heard,
    memory_for,
    same,
    state,
)
from torch import Tensor
from transformers import DynamicCache

from vismem.memory.kv.retrieval import Retrieval
from vismem.models.families import Family
from vismem.models.frame_drop import FrameDrop
from vismem.models.kv_context import Context
from vismem.models.rope import frame_coords
from vismem.models.video_llm import VideoLLM


@contextmanager
def stock_of(family: Family) -> Iterator[Family]:
    """The same weights in a model that nobody has touched."""
    model = copy.copy(family)
    model.model = copy.deepcopy(family.model)
    model.model.set_attn_implementation("sdpa")
    model.text_model = model._text_model()
    yield model


def one_shot(
    family: Family,
    shown: Tensor,
    times: Sequence[float | None],
    prompt: Sequence[int],
    drop: FrameDrop | None = None,
) -> Tensor:
    """Logits of the last token of init prompt, frames and prompt in a single stock forward."""
    found = family.embed_frames(shown)
    kept = torch.ones(found.embeds.shape[:2], dtype=torch.bool)
    state: dict[str, Tensor] = {}
    for number, embeds in enumerate(found.embeds):
        if drop:
            kept[number], state = drop(embeds, state)
    parts, coords = [family.embed_text(family.init_ids)], []
    marks, visual = [], [torch.zeros(len(family.init_ids), dtype=torch.bool)]
    for number, (embeds, time) in enumerate(zip(found.embeds, times, strict=True)):
        before, after = family.frame_ids(time)
        parts += [family.embed_text(before), embeds[kept[number]], family.embed_text(after)]
        left = torch.cat(
            [torch.ones(len(before)), kept[number].float(), torch.ones(len(after))]
        ).bool()
        coords.append(frame_coords(found.coords, len(before), len(after))[left])
        marks.append(torch.full((len(coords[-1]),), number))
        shown_here = torch.zeros(len(coords[-1]), dtype=torch.bool)
        shown_here[len(before) : len(before) + int(kept[number].sum())] = True
        visual.append(shown_here)
    parts.append(family.embed_text(prompt))
    visual.append(torch.zeros(len(prompt), dtype=torch.bool))
    start = len(family.init_ids)
    there, end = family.context_positions(torch.cat(coords), torch.cat(marks), start=start)
    where = torch.cat(
        [family.text_positions(start), there, family.text_positions(len(prompt), end)], -1
    )
    deepstack = found.deepstack and [part[kept] for part in found.deepstack]
    hidden = family.forward(
        torch.cat(parts)[None], positions=where, visual=torch.cat(visual), deepstack=deepstack
    )
    return family.logits(hidden)[0, -1]


# ---------------------------------------------------------------------- equal to the stock model


@pytest.mark.parametrize("timestamps", [True, False])
@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_a_stream_and_a_question_are_one_stock_forward(
    llm: VideoLLM, chunk: int, timestamps: bool
) -> None:
    """Some of it read from the window, some from blocks, nothing twice."""
    family, clip, times = llm.family, CLIP[:5], TIMES[:5]
    prompt = family.question_ids(WORDS)
    with stock_of(family) as stock:
        wanted = one_shot(stock, clip, times if timestamps else [None] * 5, prompt)
    for retrieval in (ALL, Retrieval(blocks=1000, tail=25), Retrieval(blocks=1000, tail=1)):
        sizes = {"window": 10_000}
        stream = begin(llm, sizes, chunk=chunk, timestamps=timestamps, retrieval=retrieval)
        stream.write(clip, times)
        with heard(family) as said:
            answer = stream.ask(WORDS, max_new_tokens=1)
        close(said[-1][-1], wanted)
        assert answer.ids == [int(wanted.argmax())]


def test_with_dropped_tokens_too(llm: VideoLLM) -> None:
    """What is left keeps its place in the frame and its features of inner vision layers."""
    family, drop = llm.family, FrameDrop(0.4)
    prompt = family.question_ids(WORDS)
    stream = begin(llm, {"window": 10_000}, chunk=3, drop=drop, retrieval=ALL)
    stream.write(CLIP[:6], TIMES[:6])
    sizes = {len(chunk) for chunk in stream.snapshot().window}
    assert len(sizes) > 1
    with stock_of(family) as stock:
        wanted = one_shot(stock, CLIP[:6], TIMES[:6], prompt, drop)
    with heard(family) as said:
        stream.ask(WORDS, max_new_tokens=1)
    close(said[-1][-1], wanted)


@pytest.mark.parametrize("retrieval", [FEW, ADAPTIVE], ids=["few", "adaptive"])
def test_retrieved_blocks_are_a_stock_cache(llm: VideoLLM, retrieval: Retrieval) -> None:
    """Contexts of each layer's own: stock layers over a stock cache say the same words."""
    family = llm.family
    stream = begin(llm, retrieval=retrieval)
    stream.write(CLIP, TIMES)
    answer = stream.ask(WORDS, max_new_tokens=6)
    context = Context(family, stream.snapshot(), retrieval.tail)
    prompt, cache = family.question_ids(WORDS), DynamicCache()
    for layer, rows in enumerate(answer.rows):
        keys, values, coords, sources = context.raw(layer, rows)
        count = stream.snapshot().sinks.shape[3]
        there, end = family.context_positions(coords, sources, start=count)
        where = torch.cat([family.text_positions(count), there], -1) - end
        cache.update(family.rotate(keys, where)[None], values[None], layer)
    with stock_of(family) as stock:
        ids, said = [], list(prompt)
        for step in range(len(prompt) + 5):
            # one token at a time: a stock mask knows one length for all layers
            token = said[step] if step < len(prompt) else ids[-1]
            hidden = stock.forward(
                stock.embed_text([token])[None],
                positions=stock.text_positions(1, step),
                cache=cache,
            )
            if step >= len(prompt) - 1:
                ids.append(int(stock.logits(hidden[:, -1]).argmax()))
                if ids[-1] in stock.stop_ids:
                    break
    assert answer.ids == ids


@pytest.mark.parametrize("name", ["llava_onevision", "smolvlm"])
def test_stock_generate_says_the_same(name: str) -> None:
    family = tiny_family(name)
    stream = begin(VideoLLM(family), retrieval=FEW)
    stream.write(CLIP, TIMES)
    prompt = family.question_ids(WORDS)
    rows = [0, 3, 7]
    answer = stream.ask_ids(family.text_ids(WORDS), prompt, max_new_tokens=12, rows=rows)
    context, cache = Context(family, stream.snapshot(), FEW.tail), DynamicCache()
    for layer in range(family.shape.layers):
        keys, values, *_ = context.raw(layer, rows)
        cache.update(family.rotate(keys, torch.arange(keys.shape[1]))[None], values[None], layer)
    with stock_of(family) as stock:
        held = keys.shape[1]
        ids = torch.tensor([[0] * held + list(prompt)])
        said = stock.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=cache,
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=sorted(family.stop_ids),
        )
    assert answer.ids == said[0, ids.shape[1] :].tolist()
    assert answer.rows == [rows] * family.shape.layers


# ---------------------------------------------------------------------- what may not matter


def test_frames_of_a_forward_do_not_matter(llm: VideoLLM) -> None:
    """Also where the window slides, and where tokens are dropped."""
    for drop in (None, FrameDrop(0.3, whole=5)):
        states = []
        for chunk in (1, 2, 5, 12):
            stream = begin(llm, chunk=chunk, drop=drop)
            stream.write(CLIP, TIMES)
            states.append(state(stream))
        for other in states[1:]:
            assert states[0].keys() == other.keys()
            for key, value in states[0].items():
                if value.is_floating_point():
                    close(other[key], value)
                elif key != "block.record":
                    assert torch.equal(other[key], value), key


def test_interleaved_streams_are_streams_apart(llm: VideoLLM) -> None:
    clips = [frames(8, seed=seed) for seed in range(3)]
    apart = []
    for clip in clips:
        stream = begin(llm, drop=FrameDrop(0.5))
        for n in range(0, 8, 2):
            stream.write(clip[n : n + 2], TIMES[n : n + 2])
        apart.append(stream)
    together = [begin(llm, drop=FrameDrop(0.5)) for _ in clips]
    for n in range(0, 8, 2):
        for stream, clip in zip(together, clips, strict=True):
            stream.write(clip[n : n + 2], TIMES[n : n + 2])
            if n == 4:
                stream.ask(WORDS, max_new_tokens=2)
    for a, b in zip(apart, together, strict=True):
        assert same(state(a), state(b))
        assert a.ask(WORDS, max_new_tokens=4).ids == b.ask(WORDS, max_new_tokens=4).ids
    assert not same(state(apart[0]), state(apart[1]))


@pytest.mark.parametrize("published", [False, True])
def test_a_question_leaves_the_stream_as_it_was(one: VideoLLM, published: bool) -> None:
    sizes = {"block": 9} if published else {}
    asked, silent = (begin(one, sizes, published=published) for _ in range(2))
    for n in range(0, 12, 3):
        for stream in (asked, silent):
            stream.write(CLIP[n : n + 3], TIMES[n : n + 3])
        before = state(asked)
        asked.ask(WORDS, max_new_tokens=3)
        asked.ask("and now?", max_new_tokens=1, before=TIMES[n])
        assert same(before, state(asked))
    assert same(state(asked), state(silent))


@pytest.mark.parametrize("options", [{}, {"drop": FrameDrop(0.4, whole=4)}], ids=["all", "drop"])
def test_a_stream_goes_on_from_a_restored_memory(llm: VideoLLM, options: dict[str, Any]) -> None:
    for cut in (1, 5, 9):
        whole, first = begin(llm, **options), begin(llm, **options)
        whole.write(CLIP[:cut], TIMES[:cut])
        whole.write(CLIP[cut:], TIMES[cut:])
        first.write(CLIP[:cut], TIMES[:cut])
        restored = memory_for(llm)
        restored.load_state_dict(state(first))
        second = llm.stream(restored, **options)
        second.write(CLIP[cut:], TIMES[cut:])
        assert same(state(whole), state(second))


@pytest.mark.parametrize("retrieval", [FEW, ADAPTIVE, Retrieval(blocks=2, tail=0)])
@pytest.mark.parametrize("block", [10, 17, 40])
def test_as_of_a_time_is_the_answer_that_was_given_then(
    llm: VideoLLM, block: int, retrieval: Retrieval
) -> None:
    """Also long after the window has lost what was the newest then."""
    family = llm.family
    stream = begin(llm, {"block": block, "window": 40}, retrieval=retrieval)
    then = []
    for n in range(12):
        stream.write(CLIP[n : n + 1], [float(n // 2)])  # two frames share each time
        if n % 2:
            with heard(family) as said:
                answer = stream.ask(WORDS, max_new_tokens=4)
            then.append((answer, said))
    for time, (answer, logits) in enumerate(then):
        with heard(family) as said:
            again = stream.ask(WORDS, max_new_tokens=4, before=time + 0.5)
        assert (again.ids, again.rows, again.times) == (answer.ids, answer.rows, answer.times)
        assert all(torch.equal(a, b) for a, b in zip(said, logits, strict=True))
    assert stream.ask(WORDS, max_new_tokens=2, before=-1.0).times == {}


def test_two_threads(one: VideoLLM) -> None:
    """Questions as of a time get the answer of that time, whatever is being encoded meanwhile."""
    calm, busy = (begin(one, {"block": 9, "window": 40}, retrieval=ADAPTIVE) for _ in range(2))
    many = frames(40, seed=3)
    wanted = []
    for n in range(40):
        calm.write(many[n : n + 1], [float(n)])
        wanted.append(calm.ask(WORDS, max_new_tokens=3).ids)
    busy.write(many[:1], [0.0])
    failures: list[BaseException] = []

    def encode() -> None:
        try:
            for n in range(1, 40):
                busy.write(many[n : n + 1], [float(n)])
        except BaseException as error:
            failures.append(error)

    writer = threading.Thread(target=encode)
    writer.start()
    asked = 0
    while writer.is_alive() or asked < 3:
        now = int(busy.snapshot().window[-1].time)
        assert busy.ask(WORDS, max_new_tokens=3, before=float(now)).ids == wanted[now]
        asked += 1
    writer.join()
    assert not failures
    assert same(state(calm), state(busy))


def test_a_view_is_never_of_half_a_write(one: VideoLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = begin(one)
    seen: list[int] = []
    reader = threading.Thread(target=lambda: seen.append(len(stream.snapshot().window)))
    take = stream.memory.write_kv

    def slowly(*args: Any, **more: Any) -> Any:
        if not stream.memory.snapshot().window:
            reader.start()
        reader.join(timeout=0.2)
        assert not seen
        return take(*args, **more)

    monkeypatch.setattr(stream.memory, "write_kv", slowly)
    stream.write(CLIP[:2], TIMES[:2])
    reader.join()
    assert seen == [2]
