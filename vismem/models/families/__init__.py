"""Families of video language models, each behind the one interface that a memory hosts."""

from vismem.models.families.family import Family, FrameTokens, Prompt
from vismem.models.families.llava_onevision import LlavaOneVision
from vismem.models.families.loading import FAMILIES, family_of, load
from vismem.models.families.qwen_vl import Qwen3VL, Qwen25VL
from vismem.models.families.smolvlm import SmolVLM

__all__ = [
    "FAMILIES",
    "Family",
    "FrameTokens",
    "LlavaOneVision",
    "Prompt",
    "Qwen3VL",
    "Qwen25VL",
    "SmolVLM",
    "family_of",
    "load",
]
