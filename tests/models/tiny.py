"""Tiny random models of the real transformers classes, one of each family, built in milliseconds.

Default initialisation makes attention nearly uniform, which hides a wrong position or mask; all
weights are drawn anew, wide enough for attention to choose.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from vismem.models.families import FAMILIES, Family, family_of

__all__ = ["FAMILY_NAMES", "frames", "tiny_family", "tiny_model", "tiny_tokenizer"]

FAMILY_NAMES = tuple(FAMILIES)
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|image_pad|>", "<|video_pad|>", "<image>", "<video>", "<end_of_utterance>",
    "<fake_token_around_image>", "<global-img>",
)  # fmt: skip
VOCABULARY = 256 + len(SPECIAL)
QWEN_TEMPLATE = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'video' %}"
    "<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {"qwen2_5_vl": QWEN_TEMPLATE, "qwen3_vl": QWEN_TEMPLATE}

TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096,
    "bos_token_id": None, "eos_token_id": 258, "pad_token_id": 256,
}  # fmt: skip
SIGHT: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 84, "patch_size": 14,
}  # fmt: skip


def frames(count: int, height: int = 84, width: int = 84, *, seed: int = 0) -> Tensor:
    """Random frames ``(F, H, W, 3)`` uint8 with structure at several scales."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.zeros(count, 3, height, width)
    for cells in (2, 5, 16):
        coarse = torch.rand(count, 3, cells, cells, generator=generator)
        image += torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return (image / 3 * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def tiny_model(name: str, *, seed: int = 0, **text: Any) -> Any:
    """A model of a family; ``text`` changes the language model's configuration."""
    with torch.random.fork_rng(devices=[]):
        model = BUILDERS[name](TEXT | text)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, weight in sorted(model.named_parameters()):
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim > 1:
                weight.copy_(noise * 1.5 / (weight.numel() / len(weight)) ** 0.5)
            elif key.endswith("bias"):
                weight.copy_(noise / 2)
            else:
                weight.copy_(1 + noise / 10)
    return model.eval().requires_grad_(False)


@functools.cache
def tiny_tokenizer(name: str) -> Any:
    """A byte-level tokenizer with the special tokens of all families, and the family's template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    words.add_special_tokens(list(SPECIAL))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=TEMPLATES.get(name),
    )


def tiny_family(name: str, *, seed: int = 0, **text: Any) -> Family:
    """A tiny model behind its family's interface; frames of 84 x 84 become 9 tokens or so."""
    options = {"frame_tokens": (4, 16)} if name.startswith("qwen") else {}
    return family_of(tiny_model(name, seed=seed, **text), tiny_tokenizer(name), **options)


def _llava_onevision(text: dict[str, Any]) -> Any:
    config = transformers.LlavaOnevisionConfig(
        text_config=transformers.Qwen2Config(**text),
        vision_config=transformers.SiglipVisionConfig(**SIGHT, vision_use_head=False),
        image_token_id=SPECIAL.index("<image>") + 256,
        video_token_id=SPECIAL.index("<video>") + 256,
    )
    return transformers.LlavaOnevisionForConditionalGeneration(config)


def _qwen2_5_vl(text: dict[str, Any]) -> Any:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    config = transformers.Qwen2_5_VLConfig(
        text_config={"rope_parameters": rope} | text,
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2,
            "out_hidden_size": text["hidden_size"], "patch_size": 14, "window_size": 56,
            "fullatt_block_indexes": [1],
        },
        image_token_id=SPECIAL.index("<|image_pad|>") + 256,
        video_token_id=SPECIAL.index("<|video_pad|>") + 256,
    )  # fmt: skip
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def _qwen3_vl(text: dict[str, Any]) -> Any:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}
    config = transformers.Qwen3VLConfig(
        text_config={"rope_parameters": rope, "head_dim": 16} | text,
        vision_config={
            "depth": 3, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2,
            "out_hidden_size": text["hidden_size"], "patch_size": 16,
            "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1],
        },
        image_token_id=SPECIAL.index("<|image_pad|>") + 256,
        video_token_id=SPECIAL.index("<|video_pad|>") + 256,
    )  # fmt: skip
    return transformers.Qwen3VLForConditionalGeneration(config)


def _smolvlm(text: dict[str, Any]) -> Any:
    config = transformers.SmolVLMConfig(
        text_config=transformers.LlamaConfig(**text),
        vision_config=SIGHT,
        scale_factor=2,
        image_token_id=SPECIAL.index("<image>") + 256,
    )
    return transformers.SmolVLMForConditionalGeneration(config)


BUILDERS = {
    "llava_onevision": _llava_onevision,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "smolvlm": _smolvlm,
}
