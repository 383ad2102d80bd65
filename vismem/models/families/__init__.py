"""Families of video language models, each behind the one interface that a memory hosts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vismem.errors import UsageError
from vismem.models.families.family import Family, FrameTokens, Prompt
from vismem.models.families.llava_onevision import LlavaOneVision
from vismem.models.preprocess import PixelScale

__all__ = ["FAMILIES", "Family", "FrameTokens", "LlavaOneVision", "Prompt", "family_of"]

FAMILIES: dict[str, type[Family]] = {family.model_type: family for family in (LlavaOneVision,)}


def family_of(
    model: Any,
    tokenizer: Any = None,
    *,
    scale: PixelScale | None = None,
    identity: Mapping[str, str] | None = None,
) -> Family:
    """Put a loaded model behind the interface of its family.

    Args:
        model: A ``…ForConditionalGeneration`` of transformers.
        tokenizer: Of the model.
        scale: How its pixels are scaled, where it is not as published.
        identity: Tells this model from others.

    Raises:
        UsageError: If the model is of no supported family.
    """
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if kind not in FAMILIES:
        raise UsageError(
            f"{kind} is no supported video language model; supported are {', '.join(FAMILIES)}. "
            "To add one, inherit vismem.models.families.Family and put the class into FAMILIES"
        )
    return FAMILIES[kind](model, tokenizer, scale=scale, identity=identity)
