"""Tiny random detectors of the real classes, built in a tenth of a second.

All weights are drawn anew where the makers' initialisation would hide something: boxes that are not
refined at all, or scores that are all alike.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import transformers
from torch import Tensor, nn
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

__all__ = ["DETECTORS", "pictures", "tiny_detector"]

SMALL = {
    "d_model": 32, "encoder_hidden_dim": 32, "encoder_in_channels": [32, 48, 64],
    "decoder_in_channels": [32, 32, 32], "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
    "decoder_layers": 2, "num_queries": 20, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "num_labels": 5, "num_denoising": 6,
}  # fmt: skip
STAGES = {
    "embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1],
    "out_features": ["stage2", "stage3", "stage4"],
}  # fmt: skip
HGNET = {
    "stem_channels": [3, 8, 8], "stage_in_channels": [8, 16, 32, 48],
    "stage_mid_channels": [8, 8, 8, 8], "stage_out_channels": [16, 32, 48, 64],
    "stage_num_blocks": [1, 1, 1, 1], "stage_numb_of_layers": [1, 1, 1, 1],
}  # fmt: skip


def _rt_detr() -> nn.Module:
    backbone = transformers.RTDetrResNetConfig(**STAGES, layer_type="basic")
    config = transformers.RTDetrConfig(backbone_config=backbone, **SMALL)
    return transformers.RTDetrForObjectDetection(config)


def _rt_detr_v2() -> nn.Module:
    backbone = transformers.RTDetrResNetConfig(**STAGES, layer_type="basic")
    config = transformers.RTDetrV2Config(backbone_config=backbone, **SMALL)
    return transformers.RTDetrV2ForObjectDetection(config)


def _d_fine() -> nn.Module:
    backbone = transformers.HGNetV2Config(**STAGES, **HGNET)
    config = transformers.DFineConfig(backbone_config=backbone, **SMALL)
    return transformers.DFineForObjectDetection(config)


def _faster_rcnn() -> nn.Module:
    return fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=5, min_size=64, max_size=96,
        rpn_post_nms_top_n_test=30, box_score_thresh=0.01, box_detections_per_img=20,
    )  # fmt: skip


DETECTORS: dict[str, Callable[[], nn.Module]] = {
    "rt_detr": _rt_detr,
    "rt_detr_v2": _rt_detr_v2,
    "d_fine": _d_fine,
    "faster_rcnn": _faster_rcnn,
}


def tiny_detector(name: str, seed: int = 0) -> nn.Module:
    """A detector in evaluation mode."""
    before = torch.get_rng_state()
    torch.manual_seed(seed)  # the makers draw from the global generator
    model = DETECTORS[name]().eval()
    torch.set_rng_state(before)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part, weight in model.named_parameters():
            if any(word in part for word in ("class_embed", "bbox_embed", "cls_score", "pre_bbox")):
                weight.add_(torch.randn(weight.shape, generator=generator) * 0.3)
    return model


def pictures(count: int, height: int = 64, width: int = 96, *, seed: int = 0) -> Tensor:
    """Random pictures ``(F, 3, H, W)`` from 0 to 1 with structure at several scales."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.zeros(count, 3, height, width)
    for cells in (2, 5, 16):
        coarse = torch.rand(count, 3, cells, cells, generator=generator)
        image += nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return image / 3
