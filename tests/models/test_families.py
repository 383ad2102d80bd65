"""Every family gives its language model what the stock model gives it, and takes nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
import torch
import transformers
from tiny import FAMILY_NAMES, frames, tiny_family, tiny_model, tiny_tokenizer
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from vismem.errors import UsageError
from vismem.models.families import Family, Qwen25VL, SmolVLM, family_of
from vismem.models.preprocess import PixelScale
from vismem.models.rope import Rope, frame_coords

TIMES = (0.0, 1.5, 61.0)
QUESTION = "what is it?"
MROPE = ("qwen2_5_vl", "qwen3_vl")


@pytest.fixture(scope="module", params=FAMILY_NAMES)
def family(request: pytest.FixtureRequest) -> Family:
    return tiny_family(request.param)


@contextmanager
def listening(module: Any) -> Iterator[dict[str, Any]]:
    """Keyword arguments of a module's last call."""
    heard: dict[str, Any] = {}
    hook = module.register_forward_pre_hook(
        lambda module, args, words: heard.update(words, calls=heard.get("calls", 0) + 1),
        with_kwargs=True,
    )
    try:
        yield heard
    finally:
        hook.remove()


class Stream:
    """A prompt, frames and a question, as tokens of ours and as inputs of the stock model."""

    def __init__(self, family: Family, shown: Tensor, times: Any = TIMES, *, step: int = 1) -> None:
        config = family.model.config
        holder = getattr(config, "video_token_id", None) or config.image_token_id
        found = family.embed_frames(shown)
        size = found.embeds.shape[1]
        ids, parts = [*family.init_ids], [family.embed_text(family.init_ids)]
        coords, origin, visual = [], [], [torch.zeros(len(ids), dtype=torch.bool)]
        for number, (embeds, time) in enumerate(zip(found.embeds, times, strict=True)):
            before, after = family.frame_ids(time)
            ids += [*before, *[holder] * size, *after]
            parts += [family.embed_text(before), embeds, family.embed_text(after)]
            coords.append(frame_coords(found.coords, len(before), len(after)))
            origin.append(torch.full((len(coords[-1]),), number * 3))
            mark = torch.zeros(len(coords[-1]), dtype=torch.bool)
            mark[len(before) : len(before) + size] = True
            visual.append(mark)
        if family.model_type == "llava_onevision":  # the stock model's newline behind all frames
            ids.append(holder)
            parts.append(family.model.model.image_newline[None])
            coords.append(torch.zeros(1, 3, dtype=torch.int16))
            origin.append(torch.tensor([-1]))
            visual.append(torch.zeros(1, dtype=torch.bool))
        start = len(family.init_ids)
        middle, free = family.context_positions(
            torch.cat(coords), torch.cat(origin), start=start, step=step
        )
        question = family.question_ids(QUESTION)
        ids += question
        visual.append(torch.zeros(len(question), dtype=torch.bool))
        self.family, self.shown, self.found = family, shown, found
        self.ids = torch.tensor([ids])
        self.embeds = torch.cat([*parts, family.embed_text(question)])
        self.visual = torch.cat(visual)
        self.positions = torch.cat(
            [
                family.text_positions(start),
                middle,
                family.text_positions(len(question), free),
            ],
            dim=-1,
        )

    @property
    def inputs(self) -> dict[str, Any]:
        family, pixels = self.family, self.family.pixels(self.shown)
        count = len(self.shown)
        if family.model_type == "llava_onevision":
            return {"input_ids": self.ids, "pixel_values_videos": pixels[None]}
        if family.model_type == "smolvlm":
            return {"input_ids": self.ids, "pixel_values": pixels[None]}
        rows, columns = family.grid(*self.shown.shape[1:3])
        return {
            "input_ids": self.ids,
            "pixel_values_videos": pixels,
            "video_grid_thw": torch.tensor([[count, 2 * rows, 2 * columns]]),
        }

    @property
    def ours(self) -> Tensor:
        deepstack = self.found.deepstack
        hidden = self.family.forward(
            self.embeds[None],
            positions=self.positions,
            visual=self.visual,
            deepstack=deepstack and [part.flatten(0, 1) for part in deepstack],
        )
        return self.family.logits(hidden)

    def stock(self, **more: Any) -> Tensor:
        if self.family.model_type == "qwen3_vl":
            more["mm_token_type_ids"] = self.visual[None].int() * 2
        with torch.no_grad():
            return self.family.model(**self.inputs, **more, use_cache=False).logits


def same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------------- against the stock model


@pytest.mark.parametrize("size", [(84, 84), (70, 130)])
def test_frames_are_embedded_as_the_stock_model_does(family: Family, size: tuple[int, int]) -> None:
    stream = Stream(family, frames(3, *size))
    with listening(family.text_model) as heard:
        stream.stock()
    same(stream.embeds, heard["inputs_embeds"][0])
    rows, columns = family.grid(*size)
    assert stream.found.embeds.shape == (3, rows * columns, family.hidden)
    assert stream.found.coords.dtype == torch.int16
    if stream.found.deepstack:
        theirs = heard["deepstack_visual_embeds"]
        for ours, other in zip(stream.found.deepstack, theirs, strict=True):
            same(ours.flatten(0, 1), other)


@pytest.mark.parametrize("size", [(84, 84), (70, 130)])
def test_one_forward_equals_the_stock_model(family: Family, size: tuple[int, int]) -> None:
    stream = Stream(family, frames(3, *size))
    more: dict[str, Any] = {}
    if family.model_type == "qwen2_5_vl":  # its own index is wrong after several frames
        more["position_ids"] = stream.positions[:, None]
    same(stream.ours, stream.stock(**more))


def test_qwen25_positions_are_the_stock_ones_where_these_are_right() -> None:
    family = tiny_family("qwen2_5_vl")
    one = Stream(family, frames(1, 70, 130), [None])
    index = family.model.model.get_rope_index
    kinds = {"mm_token_type_ids": one.visual[None].int() * 2}
    theirs, _ = index(one.ids, video_grid_thw=one.inputs["video_grid_thw"], **kinds)
    assert torch.equal(one.positions, theirs[:, 0])
    same(one.ours, one.stock(**kinds))
    # Of several frames, a second apart, the frames' own positions are right too.
    step = family.model.config.vision_config.tokens_per_second
    many = Stream(family, frames(5, 70, 130), [None] * 5, step=step)
    kinds = {"mm_token_type_ids": many.visual[None].int() * 2}
    theirs, _ = index(many.ids, video_grid_thw=many.inputs["video_grid_thw"], **kinds)
    assert torch.equal(many.positions[:, many.visual], theirs[:, 0, many.visual])
    behind = many.positions[:, many.visual.nonzero()[-1, 0] + 1]
    assert (behind == many.positions[:, many.visual].max() + 1).all()


def test_frames_do_not_see_each_other(family: Family) -> None:
    shown = frames(3)
    together = family.embed_frames(shown)
    for number in range(3):
        alone = family.embed_frames(shown[number : number + 1].numpy())
        same(alone.embeds[0], together.embeds[number])
        for one, all_frames in zip(alone.deepstack or (), together.deepstack or (), strict=True):
            same(one[0], all_frames[number])
    assert not torch.allclose(together.embeds[0], together.embeds[1], atol=0.1)


def test_the_head_is_not_called_while_encoding(family: Family) -> None:
    stream = Stream(family, frames(3))
    with listening(family.model.get_output_embeddings()) as heard:
        family.embed_frames(stream.shown)
        hidden = family.forward(stream.embeds[None], positions=stream.positions)
        assert not heard
        logits = family.logits(hidden[:, -1])
    assert heard["calls"] == 1 and logits.shape == (1, family.text_model.config.vocab_size)


def test_no_cache_is_made_where_none_is_given(family: Family) -> None:
    with listening(family.text_model.layers[0]) as heard:
        family.forward(family.embed_text([1, 2])[None], positions=family.text_positions(2))
        assert heard["past_key_values"] is None
        cache = transformers.DynamicCache()
        for number in (1, 2):  # word by word through a cache: as both at once
            hidden = family.forward(
                family.embed_text([number])[None],
                positions=family.text_positions(1, number - 1),
                cache=cache,
            )
    whole = family.forward(family.embed_text([1, 2])[None], positions=family.text_positions(2))
    same(hidden[:, -1], whole[:, -1])


def test_deepstack_reaches_the_visual_tokens_alone() -> None:
    family = tiny_family("qwen3_vl")
    stream = Stream(family, frames(3))
    none = family.forward(stream.embeds[None], positions=stream.positions)
    assert not torch.allclose(family.logits(none), stream.ours, atol=0.1)
    before = int(stream.visual.nonzero()[0])
    same(family.logits(none)[:, :before], stream.ours[:, :before])
    features = [part[0] for part in stream.found.deepstack or ()]
    embeds, positions = stream.found.embeds[:1], family.text_positions(features[0].shape[0])
    marks = torch.ones(features[0].shape[0], dtype=torch.bool)
    same(
        family.forward(embeds, positions=positions, deepstack=features),
        family.forward(embeds, positions=positions, deepstack=features, visual=marks),
    )


@pytest.mark.parametrize("name", [name for name in FAMILY_NAMES if name != "qwen3_vl"])
def test_deepstack_is_refused_where_there_is_none(name: str) -> None:
    family = tiny_family(name)
    assert family.embed_frames(frames(1)).deepstack is None
    with pytest.raises(ValueError, match="no deepstack"):
        family.forward(
            family.embed_text([1])[None], positions=torch.zeros(1), deepstack=[torch.zeros(1, 64)]
        )


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
    same(family.rotate(query, there), turned_query)
    same(family.rotate(key, there), turned_key)
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


# ---------------------------------------------------------------------- words


@pytest.mark.parametrize("name", MROPE)
def test_prompts_come_from_the_chat_template(name: str) -> None:
    family = tiny_family(name)
    content = [{"type": "video"}, {"type": "text", "text": QUESTION}]
    text = family.tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    before, after = family.frame_words(None)
    ours = f"{family.prompt.before}{before}<|video_pad|>{after}{family.prompt.after}"
    assert f"{ours}{QUESTION}{family.prompt.answer}" == text
    assert family.init_ids == family.text_ids(family.prompt.before)


def test_published_prompts_where_there_is_no_template() -> None:
    words = {name: tiny_family(name).prompt for name in ("llava_onevision", "smolvlm")}
    assert words["llava_onevision"].before == (
        "<|im_start|>system \nYou are a helpful assistant.<|im_end|><|im_start|>user "
    )
    assert words["llava_onevision"].after == "\n"
    assert words["llava_onevision"].answer == "<|im_end|><|im_start|>assistant\n"
    assert words["smolvlm"].answer == "<end_of_utterance>\nAssistant:"
    plain = tiny_tokenizer("smolvlm")  # has no template
    assert family_of(tiny_model("qwen2_5_vl"), plain).prompt == Qwen25VL.published


def test_a_template_without_a_video_is_refused() -> None:
    family = tiny_family("qwen3_vl")
    family.tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=family.tokenizer.backend_tokenizer,
        chat_template="{% for m in messages %}{{ m['role'] }}{% endfor %}",
    )
    with pytest.raises(UsageError, match="no <|vision_start|>"):
        _ = family.init_ids


@pytest.mark.parametrize(
    ("name", "words", "silent"),
    [
        ("llava_onevision", ("<t=72.4s>", ""), ("", "")),
        ("qwen2_5_vl", ("<t=72.4s>", ""), ("", "")),
        (
            "qwen3_vl",
            ("<72.4 seconds><|vision_start|>", "<|vision_end|>"),
            ("<|vision_start|>", "<|vision_end|>"),
        ),
        (
            "smolvlm",
            (
                "\nFrame from 01:12:<fake_token_around_image><global-img>",
                "<fake_token_around_image>",
            ),
            ("<fake_token_around_image><global-img>", "<fake_token_around_image>"),
        ),
    ],
)
def test_a_frame_says_when_it_was(
    name: str, words: tuple[str, str], silent: tuple[str, str]
) -> None:
    family = tiny_family(name)
    assert family.frame_words(72.44) == words and family.frame_words(None) == silent
    before, after = family.frame_ids(72.44)
    read = family.tokenizer.decode(before), family.tokenizer.decode(after)
    assert read == words


def test_answers_end_and_are_read(family: Family) -> None:
    ends = {"llava_onevision": "<|im_end|>", "smolvlm": "<end_of_utterance>"}
    end = family.tokenizer.get_vocab()[ends.get(family.model_type, "<|im_end|>")]
    assert end in family.stop_ids
    family.model.generation_config.eos_token_id = [3, 4]
    assert {3, 4, end} <= family.stop_ids
    family.model.generation_config.eos_token_id = None
    assert family.decode([*family.text_ids(" a dog"), end]) == "a dog"


def test_words_need_a_tokenizer() -> None:
    family = family_of(tiny_model("llava_onevision"))
    assert family.embed_frames(frames(1)).embeds.shape == (1, 9, 64)
    assert family.stop_ids == {258} and family.text_ids("") == []
    for read in (lambda: family.question_ids("what?"), lambda: family.decode([1])):
        with pytest.raises(UsageError, match="without its tokenizer"):
            read()


# ---------------------------------------------------------------------- what is refused


def test_other_models_are_refused_with_the_way_on() -> None:
    config = transformers.LlamaConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    with torch.random.fork_rng(devices=[]):
        model = transformers.LlamaForCausalLM(config)
    with pytest.raises(UsageError, match="llama is no supported.*qwen2_5_vl.*inherit.*FAMILIES"):
        family_of(model)
    with pytest.raises(UsageError, match="Linear is no supported"):
        family_of(torch.nn.Linear(1, 1))


def test_a_scale_that_makes_frames_vanish_is_refused() -> None:
    with pytest.raises(UsageError, match="drops as padding"):
        SmolVLM(tiny_model("smolvlm"), scale=PixelScale((0, 0, 0), (1, 1, 1)))
    black = torch.zeros(2, 84, 84, 3, dtype=torch.uint8)
    assert tiny_family("smolvlm").embed_frames(black).embeds.shape == (2, 9, 64)


@pytest.mark.parametrize("bounds", [(0, 4), (5, 4)])
def test_bounds_of_a_frame_are_checked(bounds: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="least and the most"):
        family_of(tiny_model("qwen2_5_vl"), frame_tokens=bounds)


def test_a_frame_stays_within_its_bounds() -> None:
    family = family_of(tiny_model("qwen3_vl"), frame_tokens=(6, 12))
    for height, width in pairwise([20, 84, 300, 1000, 40]):
        rows, columns = family.grid(height, width)
        assert 4 <= rows * columns <= 12
        assert family.embed_frames(frames(1, height, width)).embeds.shape[1] == rows * columns


@pytest.mark.parametrize(
    "bad",
    [
        torch.zeros(84, 84, 3, dtype=torch.uint8),
        torch.zeros(1, 3, 84, 84, dtype=torch.uint8),
        torch.zeros(1, 84, 84, 3),
        torch.zeros(0, 84, 84, 3, dtype=torch.uint8),
        torch.zeros(1, 0, 84, 3, dtype=torch.uint8),
    ],
)
def test_frames_of_another_form_are_refused(family: Family, bad: Tensor) -> None:
    with pytest.raises(ValueError, match="frames"):
        family.embed_frames(bad)
