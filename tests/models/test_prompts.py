"""The words around a video and its frames, and where an answer ends."""

from __future__ import annotations

import pytest
import transformers
from tiny import FAMILY_NAMES, frames, tiny_family, tiny_model, tiny_tokenizer
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from vismem.errors import UsageError
from vismem.models.families import Family, Qwen25VL, family_of

QUESTION = "what is it?"
MROPE = ("qwen2_5_vl", "qwen3_vl")


@pytest.fixture(scope="module", params=FAMILY_NAMES)
def family(request: pytest.FixtureRequest) -> Family:
    return tiny_family(request.param)


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


@pytest.mark.parametrize("said", ["m['role']", "m['content'][1]['text']"])
def test_a_template_without_a_video_is_refused(said: str) -> None:
    family = tiny_family("qwen3_vl")
    family.tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=family.tokenizer.backend_tokenizer,
        chat_template="{% for m in messages %}{{ " + said + " }}{% endfor %}",
    )
    with pytest.raises(UsageError, match="has no <.vision_start.>.* before the question"):
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


def test_nothing_is_put_before_the_words() -> None:
    plain = tiny_tokenizer("smolvlm")
    words = Tokenizer.from_str(plain.backend_tokenizer.to_str())
    words.post_processor = TemplateProcessing("<|endoftext|> $A", None, [("<|endoftext|>", 256)])
    eager = transformers.PreTrainedTokenizerFast(tokenizer_object=words)
    assert eager("a")["input_ids"][0] == 256  # as the tokenizer of a Llama does
    family = family_of(tiny_model("smolvlm"), eager)
    assert family.text_ids("a") == plain("a")["input_ids"] and 256 not in family.init_ids


def test_words_need_a_tokenizer() -> None:
    family = family_of(tiny_model("llava_onevision"))
    assert family.embed_frames(frames(1)).embeds.shape == (1, 9, 64)
    assert family.stop_ids == {258} and family.text_ids("") == []
    for read in (lambda: family.question_ids("what?"), lambda: family.decode([1])):
        with pytest.raises(UsageError, match="without its tokenizer"):
            read()
