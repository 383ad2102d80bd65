"""What a question reads of a stream, and what it says it read."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_family
from tiny_stream import CLIP, FEW, TIMES, WORDS, begin, heard

from vismem.memory.kv.compress import Keep
from vismem.memory.kv.memory import KVMemory
from vismem.memory.kv.retrieval import Retrieval
from vismem.models.families import Family
from vismem.models.kv_context import Context
from vismem.models.video_llm import VideoLLM


@settings(max_examples=60, derandomize=True)
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
