"""What a stream refuses, what fails, and that neither changes anything."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny import tiny_family
from tiny_stream import ADAPTIVE, CLIP, FEW, TIMES, WORDS, begin, heard, same, state
from torch import Tensor

from vismem.errors import UsageError
from vismem.memory.kv.memory import KVMemory
from vismem.memory.kv.shape import KVShape
from vismem.models.families import family_of
from vismem.models.frame_drop import FrameDrop
from vismem.models.video_llm import VideoLLM


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
