"""A tiny random SAM 2 video model of the real classes, and pictures for it."""

from __future__ import annotations

from typing import Any

import torch
import transformers

__all__ = ["SIZE", "tiny_sam2"]

WIDTH = 128  # twice that of a memory map, which transformers wants 64 wide: pointers are split
SIZE = 128  # pixels of a side of the picture that the model sees; its memory maps are 8 x 8


def tiny_sam2(*, seed: int = 0, presence: float = 0.2, **config: Any) -> tuple[Any, Any]:
    """A model and its processor; all weights are drawn anew, so that memory matters."""
    grids = [[SIZE // stride, SIZE // stride] for stride in (4, 8, 16)]
    backbone = transformers.Sam2HieraDetConfig(
        hidden_size=12,
        image_size=[SIZE, SIZE],
        embed_dim_per_stage=[12, 24, 48, 96],
        num_attention_heads_per_stage=[1, 2, 4, 8],
        blocks_per_stage=[1, 1, 2, 1],
        window_positional_embedding_background_size=[7, 7],
        window_size_per_stage=[8, 4, 8, 4],
        global_attention_blocks=[3],
    )
    sight = transformers.Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[96, 48, 24, 12],
        backbone_feature_sizes=grids,
        fpn_hidden_size=WIDTH,
    )
    sizes: dict[str, Any] = {
        "memory_attention_hidden_size": WIDTH,
        "memory_attention_num_layers": 2,
        "memory_attention_feed_forward_hidden_size": 48,
        "memory_attention_rope_feat_sizes": grids[-1],
        "memory_encoder_hidden_size": WIDTH,
        "memory_encoder_output_channels": 64,
        "mask_downsampler_embed_dim": WIDTH,
        "memory_fuser_embed_dim": WIDTH,
        "memory_fuser_intermediate_dim": 48,
    }
    whole = transformers.Sam2VideoConfig(
        vision_config=sight,
        prompt_encoder_config={"hidden_size": WIDTH, "image_size": SIZE, "patch_size": 16},
        mask_decoder_config={
            "hidden_size": WIDTH,
            "mlp_dim": 48,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": 32,
        },
        image_size=SIZE,
        **sizes | config,
    )
    with torch.random.fork_rng(devices=[]):
        model = transformers.Sam2VideoModel(whole)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim > 1:
                weight.copy_(noise / (weight.numel() / len(weight)) ** 0.5)
            elif name.endswith("bias"):
                weight.copy_(noise / 4)
            else:
                weight.copy_(1 + noise / 10)
        # About even: objects come and go.
        model.mask_decoder.pred_obj_score_head.proj_out.bias += presence
    size = {"height": SIZE, "width": SIZE}
    images = transformers.Sam2ImageProcessor(size=size)
    processor = transformers.Sam2VideoProcessor(
        image_processor=images, video_processor=transformers.Sam2VideoVideoProcessor(size=size)
    )
    return model.eval().requires_grad_(False), processor
