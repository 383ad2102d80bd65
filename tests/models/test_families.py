"""Every family gives its language model what the stock model gives it, and takes nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
import torch
import transformers
from tiny import FAMILY_NAMES, frames, tiny_family, tiny_model
from torch import Tensor

from vismem.errors import UsageError
from vismem.models.families import Family, SmolVLM, family_of
from vismem.models.preprocess import PixelScale
from vismem.models.rope import frame_coords

TIMES = (0.0, 1.5, 61.0)
QUESTION = "what is it?"


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


def test_an_odd_number_of_patches_is_pooled_upwards() -> None:
    """As of the published model, whose 27 x 27 patches become 14 x 14 tokens."""
    config = tiny_model("llava_onevision").config
    config.vision_config.image_size = 70
    with torch.random.fork_rng(devices=[]):
        family = family_of(transformers.LlavaOnevisionForConditionalGeneration(config))
    assert family.grid(480, 640) == (3, 3)
    theirs = family.model.get_video_features(family.pixels(frames(2))[None]).pooler_output
    same(family.embed_frames(frames(2)).embeds.flatten(0, 1), theirs[0, :-1])


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


def test_a_model_in_training_is_put_to_use() -> None:
    assert not family_of(tiny_model("smolvlm").train()).text_model.training


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


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_the_bias_of_queries_is_what_they_have_in_common(name: str) -> None:
    family = tiny_family(name)
    heads, width = family.shape.heads, family.shape.head_dim
    for layer in range(family.shape.layers):
        project = family.text_model.layers[layer].self_attn.q_proj
        nothing = project(torch.zeros(project.in_features)).reshape(heads, width)
        assert torch.equal(family.query_bias(layer), nothing)
