"""Load a video language model by name, and put it behind the interface of its family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from vismem.checkpoint import best_device, find_checkpoint, first_line, weights_sha256
from vismem.errors import UsageError, require
from vismem.models.families.family import Family
from vismem.models.families.llava_onevision import LlavaOneVision
from vismem.models.families.qwen_vl import Qwen3VL, Qwen25VL
from vismem.models.families.smolvlm import SmolVLM
from vismem.models.preprocess import PixelScale

__all__ = ["FAMILIES", "family_of", "load"]

FAMILIES: dict[str, type[Family]] = {
    family.model_type: family for family in (LlavaOneVision, Qwen25VL, Qwen3VL, SmolVLM)
}
INSTEAD = "use the embedded profile"
TRANSFORMERS = (5, 17)  # the first whose Qwen2.5-VL gives one angle a channel


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
    _check_supported(kind)
    return FAMILIES[kind](model, tokenizer, **options)


def load(
    name: str,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    **options: Any,
) -> Family:
    """Load a model of the hub, or of a folder that ``save_pretrained`` wrote, with its tokenizer.

    Args:
        name: Say ``llava-hf/llava-onevision-qwen2-0.5b-ov-hf``.
        device: Where the model runs; CUDA if there is one, else MPS, else the CPU by default.
        dtype: Number format; on the CPU float32, elsewhere that of the checkpoint by default.
        revision: Commit, tag or branch of the hub's repository.
        **options: Of the family, see `family_of`.

    Returns:
        The family; its ``identity`` names model, revision and sha256 of the weights.

    Raises:
        UsageError: If transformers is not installed or too old, or the model is of no supported
            family or damaged.
        SourceError: If the hub cannot be reached and the model is not in its local cache.

    Example:
        >>> family = load("Qwen/Qwen2.5-VL-3B-Instruct")  # doctest: +SKIP
    """
    transformers = require("transformers", extra="video")
    if tuple(int(part) for part in transformers.__version__.split(".")[:2]) < TRANSFORMERS:
        raise UsageError(
            f"a video language model needs transformers {TRANSFORMERS[0]}.{TRANSFORMERS[1]} or "
            f"newer, not {transformers.__version__}; run: pip install -U 'vismem[video]'"
        )
    folder, commit = find_checkpoint(name, revision, instead=INSTEAD, extra="video")
    place = torch.device(device) if device is not None else best_device()
    try:
        config = transformers.AutoConfig.from_pretrained(folder)
        _check_supported(config.model_type)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        model, loaded = transformers.AutoModelForImageTextToText.from_pretrained(
            folder,
            dtype=dtype or (torch.float32 if place.type == "cpu" else "auto"),
            output_loading_info=True,
        )
        if missing := sorted(loaded["missing_keys"]):  # transformers would draw them at random
            raise ValueError(f"its weights lack {missing[0]} and {len(missing) - 1} more")
        scale = PixelScale.read(folder)
    except (ImportError, KeyError, OSError, RuntimeError, SafetensorError, ValueError) as error:
        raise UsageError(
            f"{name} cannot be loaded: {first_line(error)}; name another model or {INSTEAD}"
        ) from error
    options.setdefault("scale", scale)
    options.setdefault(
        "identity",
        {
            "model": name if folder != Path(name) else folder.resolve().name,
            "revision": commit,
            "weights": weights_sha256(folder),
        },
    )
    return family_of(model.to(place).requires_grad_(False), tokenizer, **options)


def _check_supported(kind: str) -> None:
    if kind not in FAMILIES:
        raise UsageError(
            f"{kind} is no supported video language model; supported are {', '.join(FAMILIES)}. "
            "To add one, inherit vismem.models.families.Family and put the class into FAMILIES"
        )
