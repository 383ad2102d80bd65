"""Load the memory of SAM 2 from the published checkpoints and from transformers.

`from_official` and `from_transformers` rename a state dict of a whole model for
`vismem.models.sam2_memory.MemoryHost`, or of one module for `MemoryAttention` or `MemoryEncoder`.
What belongs to other parts of SAM 2 is left out by name; a key that is not known is an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

__all__ = ["from_official", "from_transformers"]

# Phrases of a published name, and what they are called here. Numbers, `weight` and `bias` stay.
OFFICIAL = {
    "memory_attention": "attention", "memory_encoder": "encoder",
    "layers": "layers", "self_attn": "self_attention", "cross_attn_image": "cross_attention",
    "q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "output",
    "linear1": "widen", "linear2": "narrow",
    "norm": "norm", "norm1": "norm1", "norm2": "norm2", "norm3": "norm3",
    **{f"mask_downsampler.encoder.{3 * k}": f"mask.stages.{k}.conv" for k in range(4)},
    **{f"mask_downsampler.encoder.{3 * k + 1}": f"mask.stages.{k}.norm" for k in range(4)},
    "mask_downsampler.encoder.12": "mask.output", "pix_feat_proj": "features",
    "fuser.layers": "blocks", "dwconv": "depthwise", "gamma": "scale",
    "pwconv1": "widen", "pwconv2": "narrow",
    "maskmem_tpos_enc": "temporal", "no_mem_embed": "no_memory", "no_obj_ptr": "no_object",
    "no_obj_embed_spatial": "absent", "obj_ptr_tpos_proj": "pointer_time",
}  # fmt: skip
TRANSFORMERS = {
    "memory_attention": "attention", "memory_encoder": "encoder",
    "layers": "layers", "self_attn": "self_attention", "cross_attn_image": "cross_attention",
    "q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "output",
    "linear1": "widen", "linear2": "narrow",
    "layer_norm": "norm", **{f"layer_norm{k}": f"norm{k}" for k in (1, 2, 3)},
    "mask_downsampler.layers": "mask.stages", "conv": "conv",
    "mask_downsampler.final_conv": "mask.output", "feature_projection": "features",
    "memory_fuser.layers": "blocks", "depthwise_conv": "depthwise", "scale": "scale",
    "pointwise_conv1": "widen", "pointwise_conv2": "narrow", "projection": "output",
    "memory_temporal_positional_encoding": "temporal", "no_memory_embedding": "no_memory",
    "no_object_pointer": "no_object", "occlusion_spatial_embedding_parameter": "absent",
    "temporal_positional_encoding_projection_layer": "pointer_time",
}  # fmt: skip

# The parts of SAM 2 that are no memory; the code of "no memory" positions is nowhere used.
OFFICIAL_OTHERS = {
    "image_encoder", "sam_prompt_encoder", "sam_mask_decoder", "obj_ptr_proj", "mask_downsample",
    "no_mem_pos_enc",
}  # fmt: skip
TRANSFORMERS_OTHERS = {
    "vision_encoder", "shared_image_embedding", "prompt_encoder", "mask_decoder",
    "object_pointer_proj", "mask_downsample", "no_memory_positional_encoding",
}  # fmt: skip
VECTORS = {"no_memory", "no_object", "absent"}  # published with axes of length one


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a state dict of github.com/facebookresearch/sam2 (or of SAM2Act+, which copied it).

    Args:
        state: Of a whole model, or of its ``memory_attention`` or ``memory_encoder`` alone. In the
            published files it is what stands under ``"model"``.

    Returns:
        A state dict for `MemoryHost`, `MemoryAttention` or `MemoryEncoder`.

    Raises:
        ValueError: If keys are unknown, naming them.
    """
    return _rename(state, OFFICIAL, OFFICIAL_OTHERS, "the published SAM 2")


def from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a state dict of transformers' ``Sam2VideoModel`` or of its two memory modules.

    Args:
        state: Of the whole model or of one module.

    Returns:
        A state dict for `MemoryHost`, `MemoryAttention` or `MemoryEncoder`.

    Raises:
        ValueError: If keys are unknown, naming them.
    """
    return _rename(state, TRANSFORMERS, TRANSFORMERS_OTHERS, "transformers' Sam2Video")


def _rename(
    state: Mapping[str, Tensor], names: Mapping[str, str], others: set[str], origin: str
) -> dict[str, Tensor]:
    found, unknown = {}, []
    for key, value in state.items():
        if key.split(".")[0] in others:
            continue
        words = list(_words(key.split("."), names))
        if None in words:
            unknown.append(key)
            continue
        name = ".".join(filter(None, words))
        if name in VECTORS:
            value = value.flatten()
        elif name == "temporal":
            value = value.flatten(1)
        found[name] = value
    if unknown:
        some = ", ".join(unknown[:5]) + (" and more" if len(unknown) > 5 else "")
        raise ValueError(
            f"{len(unknown)} keys are unknown to the memory of {origin}: {some}; "
            "give the state dict of the whole model or of one of its memory modules"
        )
    return found


def _words(parts: list[str], names: Mapping[str, str]) -> Iterator[str | None]:
    """Translate the longest phrases first; None for a word that is not known."""
    while parts:
        for length in range(min(3, len(parts)), 0, -1):
            phrase = ".".join(parts[:length])
            if phrase in names:
                yield names[phrase]
                break
        else:
            length = 1
            known = parts[0].isdigit() or parts[0] in ("weight", "bias")
            yield parts[0] if known else None
        parts = parts[length:]
