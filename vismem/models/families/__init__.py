"""Families of video language models, each behind the one interface that a memory hosts."""

from __future__ import annotations

from typing import Any

from vismem.errors import UsageError
from vismem.models.families.family import Family, FrameTokens, Prompt
from vismem.models.families.llava_onevision import LlavaOneVision
from vismem.models.families.qwen_vl import Qwen3VL, Qwen25VL
from vismem.models.families.smolvlm import SmolVLM

__all__ = [
    "FAMILIES",
    "Family",
    "FrameTokens",
    "LlavaOneVision",
    "Prompt",
    "Qwen25VL",
    "Qwen3VL",
    "SmolVLM",
    "family_of",
]

FAMILIES: dict[str, type[Family]] = {
    family.model_type: family for family in (LlavaOneVision, Qwen25VL, Qwen3VL, SmolVLM)
}


def family_of(model: Any, tokenizer: Any = None, **options: Any) -> Family:
    """Put a loaded model behind the interface of its family.

    Args:
        model: A ``…ForConditionalGeneration`` of transformers.
        tokenizer: Of the model.
        **options: Of the family: ``scale`` of the pixels, ``identity``; ``frame_tokens`` too for
            the Qwen models.

    Raises:
        UsageError: If the model is of no supported family.
    """
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if kind not in FAMILIES:
        raise UsageError(
            f"{kind} is no supported video language model; supported are {', '.join(FAMILIES)}. "
            "To add one, inherit vismem.models.families.Family and put the class into FAMILIES"
        )
    return FAMILIES[kind](model, tokenizer, **options)
