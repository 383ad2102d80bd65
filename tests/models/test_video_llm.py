"""A stream that is remembered answers as the stock model that sees the same, and stays as it is."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import FAMILY_NAMES, frames, tiny_family
from torch import Tensor
from transformers import DynamicCache

from vismem.errors import UsageError
from vismem.memory.kv.compress import Keep
from vismem.memory.kv.memory import KVMemory
from vismem.memory.kv.retrieval import Retrieval
from vismem.memory.kv.shape import KVShape
from vismem.models.families import Family, family_of
from vismem.models.frame_drop import FrameDrop
from vismem.models.kv_context import Context
from vismem.models.rope import frame_coords
from vismem.models.video_llm import VideoLLM, VideoStream

ALL = Retrieval(blocks=1000, tail=10_000)
FEW = Retrieval(blocks=3, adaptive=False, neighbours=0, tail=20)
ADAPTIVE = Retrieval(blocks=4, tail=20)
WORDS = "what is on the table?"
CLIP = frames(12)
TIMES = [0.5 * n for n in range(12)]


@pytest.fixture(scope="module", params=FAMILY_NAMES)
def llm(request: pytest.FixtureRequest) -> VideoLLM:
    return VideoLLM(tiny_family(request.param))


@pytest.fixture(scope="module")
def one() -> VideoLLM:
    return VideoLLM(tiny_family("llava_onevision"))


def memory_for(llm: VideoLLM, budget: str = "100MB", **sizes: Any) -> KVMemory:
    return KVMemory(
        llm.config(**({"precision": "model", "block": 10, "window": 60} | sizes)), budget
    )


def begin(llm: VideoLLM, sizes: dict[str, Any] | None = None, **options: Any) -> VideoStream:
    return llm.stream(memory_for(llm, **(sizes or {})), **options)


def state(stream: VideoStream) -> dict[str, Tensor]:
    memory = stream.memory
    assert isinstance(memory, KVMemory)
    return memory.state_dict()


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)


@contextmanager
def heard(family: Family) -> Iterator[list[Tensor]]:
    """Everything that the head says."""
    said: list[Tensor] = []
    head = family.model.get_output_embeddings()
    hook = head.register_forward_hook(lambda module, args, out: said.append(out[0].clone()))
    try:
        yield said
    finally:
        hook.remove()


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


# ---------------------------------------------------------------------- what is read


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=12),
    st.integers(1, 12),
    st.integers(1, 30),
    st.integers(0, 40),
    st.one_of(st.none(), st.integers(-1, 12)),
)
def test_no_token_is_read_twice_or_left_out(
    sizes: list[int], block: int, window: int, tail: int, before: int | None
) -> None:
    """With every block on offer chosen, a context holds the stream once and in order."""
    family = _small()
    shape = family.shape
    config = VideoLLM(family).config(precision="model", block=block, window=window)
    memory = KVMemory(config, "10MB")
    memory.start(torch.zeros(shape.layers, 2, shape.kv_heads, 2, shape.head_dim))
    total, marks = 0, []
    for number, size in enumerate(sizes):
        # each token's key is its own number
        kv = torch.arange(total, total + size).float()[:, None].expand(-1, shape.head_dim)
        memory.write_kv(kv.expand(shape.layers, 2, shape.kv_heads, -1, -1), float(number))
        marks += [number] * size
        total += size
    context = Context(family, memory.snapshot(), tail, before)
    rows = sorted(set(range(len(context.view.blocks))) - set(context.inside.tolist()))
    keys, values, coords, sources = context.raw(0, rows)
    assert torch.equal(keys, values) and len(coords) == len(sources) == keys.shape[1] - 2
    found = keys[0, 2:, 0].int().tolist()
    seen = [n for n in range(total) if before is None or marks[n] <= before]
    if tail:
        assert found == seen
    else:
        assert found == seen[: len(seen) // block * block]
    assert sources.tolist() == [marks[n] for n in found]
    newest = [n for n in seen if not rows or n >= (rows[-1] + 1) * block]
    assert keys.shape[1] - 2 >= len(newest) if tail else True
    if rows and tail:
        alone = context.raw(0, [])[0].shape[1] - 2
        packed = len(seen) // block * block
        forced = [n for n in seen if marks[n] >= marks[packed - 1]]
        assert alone <= max(tail, len(forced))


_FAMILY: list[Family] = []


def _small() -> Family:
    if not _FAMILY:
        _FAMILY.append(tiny_family("smolvlm"))
    return _FAMILY[0]


def test_an_answer_tells_what_it_read(one: VideoLLM) -> None:
    stream = begin(one, {"block": 17}, retrieval=Retrieval(blocks=2, adaptive=False, tail=34))
    stream.write(CLIP, TIMES)  # each frame 17 tokens, hence a block
    answer = stream.ask(WORDS, max_new_tokens=3)
    assert [len(rows) for rows in answer.rows] == [2, 2, 2]
    layers = {TIMES[n]: sum(n in rows for rows in answer.rows) for n in range(12)}
    assert answer.times == {time: count for time, count in layers.items() if count}
    assert list(answer.times) == sorted(answer.times)
    assert max(answer.times) <= TIMES[9]  # the newest two are the tail
    assert answer.text == one.family.decode(answer.ids) and 1 <= len(answer.ids) <= 3
    assert set(answer.seconds) == {"retrieve", "gather", "prefill", "decode"}
    assert all(value >= 0 for value in answer.seconds.values())


def test_layers_read_as_many_blocks_as_they_need(llm: VideoLLM) -> None:
    stream = begin(llm, retrieval=Retrieval(blocks=6, tail=10))
    stream.write(CLIP, TIMES)
    counts = {
        tuple(len(rows) for rows in stream.ask(f"{n}?", max_new_tokens=1).rows) for n in range(6)
    }
    assert all(sum(each) == 6 * llm.family.shape.layers for each in counts)
    assert any(len(set(each)) > 1 for each in counts)


def test_blocks_are_found_by_frame_embeddings(one: VideoLLM) -> None:
    retrieval = Retrieval(blocks=2, neighbours=0, source="external", tail=17)
    stream = begin(one, {"block": 17, "embedding_dim": 12}, retrieval=retrieval)
    stream.write(CLIP, TIMES, embeddings=torch.eye(12))
    asked = torch.zeros(12)
    asked[[3, 8]] = torch.tensor([1.0, 0.5])
    answer = stream.ask(WORDS, max_new_tokens=1, embedding=asked)
    assert answer.rows == [[3, 8]] * 3 and answer.times == {1.5: 3, 4.0: 3}
    for wrong in (None, torch.zeros(3)):
        with pytest.raises(ValueError, match=r"needs an embedding \(12,\)"):
            stream.ask(WORDS, embedding=wrong)


def test_compressed_blocks_are_read(llm: VideoLLM) -> None:
    """Layers that keep different tokens of a block; positions are of the tokens that are left."""
    stream = begin(llm, {"block": 20, "compression": Keep(0.25)}, retrieval=FEW)
    stream.write(CLIP, TIMES)
    assert stream.ask(WORDS, max_new_tokens=3).ids
    context = Context(llm.family, stream.snapshot(), FEW.tail)
    _, values, coords, sources = context.raw(1, [0, 2])
    tail = context.raw(1, [])[1].shape[1]
    assert values.shape[1] - tail == 10 and len(coords) == len(sources) == values.shape[1] - len(
        llm.family.init_ids
    )


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_packed_blocks_say_nearly_the_same(one: VideoLLM, precision: str) -> None:
    said = []
    for kind in ("model", precision):
        stream = begin(one, {"precision": kind}, retrieval=Retrieval(blocks=1000, tail=10))
        stream.write(CLIP, TIMES)
        with heard(one.family) as logits:
            stream.ask(WORDS, max_new_tokens=1)
        said.append(logits[-1][-1])
    error = (said[0] - said[1]).norm() / said[0].norm()
    assert 0 < error < {"int8": 0.05, "int4": 0.5}[precision]


def test_an_answer_ends_where_it_should(one: VideoLLM) -> None:
    stream = begin(one)
    stream.write(CLIP, TIMES)
    ids = one.family.text_ids(WORDS), one.family.question_ids(WORDS)
    long = stream.ask_ids(*ids, max_new_tokens=8, stop_ids=frozenset()).ids
    assert len(long) == 8
    stop = long[3]
    short = stream.ask_ids(*ids, max_new_tokens=8, stop_ids=frozenset([stop])).ids
    assert short == long[: long.index(stop) + 1]


def test_what_is_forgotten_is_not_read(one: VideoLLM) -> None:
    stream = begin(one, {"block": 17}, retrieval=Retrieval(blocks=1000, tail=34))
    assert stream.last_time == -np.inf
    stream.write(CLIP, TIMES)
    assert stream.last_time == TIMES[-1]
    assert stream.forget(1.0, 3.0)
    assert not any(1.0 <= time <= 3.0 for time in stream.ask(WORDS, max_new_tokens=1).times)
    stream.write(CLIP[:2], [7.0, 8.0])
    assert stream.ask(WORDS, max_new_tokens=2).ids
    stream.forget(-np.inf, np.inf)
    assert stream.last_time == -np.inf and stream.ask(WORDS, max_new_tokens=2).times == {}


# ---------------------------------------------------------------------- token drop


def test_tokens_that_do_not_change_are_left_out(llm: VideoLLM) -> None:
    still = CLIP[:1].expand(9, -1, -1, -1)
    stream = begin(llm, {"window": 10_000}, drop=FrameDrop(0.9, whole=4), timestamps=False)
    stream.write(still, range(9))
    before, after = llm.family.frame_ids(None)
    words, size = len(before) + len(after), llm.family.embed_frames(still[:1]).embeds.shape[1]
    counts = [len(chunk) - words for chunk in stream.snapshot().window]
    assert counts == [size, 1, 1, 1, size, 1, 1, 1, size]


def test_what_is_kept_is_compared_with_what_was_kept() -> None:
    drop, tokens = FrameDrop(0.9, whole=100), torch.eye(4)
    kept, state = drop(tokens, {})
    assert kept.all()
    angle = 0.0
    taken = []
    for _ in range(8):  # turns by a little each time; after 26 degrees it is new
        angle += 0.15
        tokens = torch.eye(4)
        tokens[0] = torch.tensor([np.cos(angle), np.sin(angle), 0, 0]).float()
        kept, state = drop(tokens, state)
        assert kept[0] and kept.sum() == 1 or not kept[1:].all()
        taken.append(bool(kept[0]))
    assert state["drop.count"] == 9
    assert sum(taken) >= 2


def test_what_had_to_be_kept_is_compared_with_from_then_on() -> None:
    drop, first = FrameDrop(0.5), torch.eye(3)
    _, state = drop(first, {})
    second = first.clone()
    second[1, 0] = 0.3  # not enough by itself, but more than the others
    kept, state = drop(second, state)
    assert kept.tolist() == [False, True, False]
    assert torch.equal(state["drop.reference"], second)


def test_the_state_of_a_drop_is_as_exact_as_the_tokens() -> None:
    drop, generator = FrameDrop(0.2, whole=3), torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}
    for _ in range(7):
        tokens = torch.randn(6, 8, generator=generator).to(torch.bfloat16)
        kept, state = drop(tokens, state)
        assert kept.any() and state["drop.reference"].dtype == torch.bfloat16
        reference = state["drop.reference"]
        assert torch.equal(reference[kept], tokens[kept])


@pytest.mark.parametrize("wrong", [{"threshold": 2.0}, {"whole": 0}])
def test_a_drop_is_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        FrameDrop(**wrong)


# ---------------------------------------------------------------------- what is refused, what fails


@pytest.mark.parametrize(
    ("shown", "times", "message"),
    [
        (CLIP[:2], [1.0], "as many times"),
        (CLIP[:0], [], "no frames"),
        (CLIP[:2], [3.0, 2.0], "backwards"),
        (CLIP[:1], [-1.0], "backwards"),
        (CLIP[:1], [float("nan")], "finite"),
        (CLIP[:2].float(), [7.0, 8.0], "frames"),
        (CLIP[:2].permute(0, 3, 1, 2), [7.0, 8.0], "frames"),
        (CLIP[0], [7.0] * 84, "frames"),
        (CLIP[:2, :0], [7.0, 8.0], "frames"),
    ],
)
def test_hostile_frames_change_nothing(
    one: VideoLLM, shown: Tensor, times: list[float], message: str
) -> None:
    stream = begin(one, drop=FrameDrop(0.5))
    stream.write(CLIP[:2], [0.0, 1.0])
    before = state(stream)
    with pytest.raises(ValueError, match=message):
        stream.write(shown, times)
    assert same(before, state(stream))


def test_frames_without_embeddings_are_refused_where_these_are_kept(one: VideoLLM) -> None:
    stream = begin(one, {"embedding_dim": 3})
    for vectors in (None, torch.zeros(2, 3)):
        with pytest.raises(ValueError, match="embedding"):
            stream.write(CLIP[:1], [0.0], embeddings=vectors)
    assert not stream.snapshot().window


def test_a_frame_with_too_many_tokens_is_refused_before_it_is_encoded(one: VideoLLM) -> None:
    stream = begin(one, {"max_tokens": 16})
    with pytest.raises(ValueError, match="17 tokens, the memory takes 16"):
        stream.write(CLIP[:1], [0.0])


@pytest.mark.parametrize("layer", [0, 2])
def test_a_forward_that_fails_changes_nothing(llm: VideoLLM, layer: int) -> None:
    stream, calm = (begin(llm, drop=FrameDrop(0.5), chunk=2) for _ in range(2))
    for each in (stream, calm):
        each.write(CLIP[:4], TIMES[:4])
    before = state(stream)

    def fail(*args: object) -> None:
        raise MemoryError("out of memory")

    hook = llm.family.text_model.layers[layer].mlp.register_forward_hook(fail)
    try:
        for attempt in (
            lambda: stream.write(CLIP[4:6], TIMES[4:6]),
            lambda: stream.ask(WORDS),
        ):
            with pytest.raises(MemoryError):
                attempt()
    finally:
        hook.remove()
    assert same(before, state(stream))
    for each in (stream, calm):
        each.write(CLIP[4:], TIMES[4:])
    assert same(state(stream), state(calm))


def test_no_vocabulary_while_encoding(llm: VideoLLM) -> None:
    with heard(llm.family) as said:
        stream = begin(llm)
        stream.write(CLIP, TIMES)
        assert not said
        stream.ask(WORDS, max_new_tokens=4)
    assert 1 <= len(said) <= 4 and all(len(each) == 1 for each in said)


def test_a_memory_of_another_model_is_refused(one: VideoLLM) -> None:
    config = one.config()
    other = KVShape(config.shape.layers + 1, config.shape.heads, config.shape.kv_heads, 16)
    for wrong in ({"shape": other}, {"dtype": torch.float16}):
        changed = type(config)(**({"shape": config.shape, "dtype": config.dtype} | wrong))
        with pytest.raises(UsageError, match="make the memory with VideoLLM.config"):
            one.stream(KVMemory(changed, "1GB"))


def test_a_memory_on_another_device_is_refused(one: VideoLLM) -> None:
    class Elsewhere(type(one.family)):  # type: ignore[misc]
        device = torch.device("meta")

    family = copy.copy(one.family)
    family.__class__ = Elsewhere
    with pytest.raises(UsageError, match="make the memory with device='meta'"):
        begin(VideoLLM(family))


@pytest.mark.parametrize(
    "options", [{"chunk": 0}, {"published": True, "drop": FrameDrop()}, {"init_ids": []}]
)
def test_options_that_cannot_be_are_refused(one: VideoLLM, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        begin(one, **options)


def test_published_mode_asks_for_published_streams(one: VideoLLM) -> None:
    with pytest.raises(UsageError, match="M-RoPE"):
        begin(VideoLLM(tiny_family("qwen2_5_vl")), published=True)
    with pytest.raises(UsageError, match="no room for the init prompt"):
        begin(one, {"window": 3}, published=True)
    stream = begin(one, {"block": 10}, published=True)
    with pytest.raises(ValueError, match="one block: 9, not 10"):
        stream.write(CLIP[:1], [0.0])


def test_questions_that_cannot_be_are_refused(one: VideoLLM) -> None:
    stream = begin(one)
    stream.write(CLIP[:3], TIMES[:3])
    for question, prompt, more in (
        ([], [1], {}),
        ([1], [], {}),
        ([1], [1], {"max_new_tokens": 0}),
        ([1], [1], {"rows": [99]}),
        ([1], [1], {"rows": [-1]}),
    ):
        with pytest.raises(ValueError):
            stream.ask_ids(question, prompt, **more)


def test_an_empty_stream_answers(llm: VideoLLM) -> None:
    for retrieval in (FEW, ADAPTIVE):
        answer = begin(llm, retrieval=retrieval).ask(WORDS, max_new_tokens=2)
        assert answer.times == {} and answer.rows == [[]] * 3 and answer.ids


def test_a_question_needs_words(one: VideoLLM) -> None:
    wordless = family_of(one.family.model)
    stream = begin(VideoLLM(wordless), init_ids=[1, 2, 3], timestamps=False)
    stream.write(CLIP[:2], [0.0, 1.0])
    with pytest.raises(UsageError, match="without its tokenizer"):
        stream.ask(WORDS)
    assert stream.ask_ids([5, 6], [7], max_new_tokens=2).text == ""
