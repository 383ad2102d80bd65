"""LLaVA-OneVision: SigLIP, a projector, bilinear pooling, Qwen2.

Source: Li et al., "LLaVA-OneVision", 2024 (https://arxiv.org/abs/2408.03326). The prompts are those
of ReKV (https://arxiv.org/abs/2503.00540), whose numbers the compat mode reproduces.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from vismem.models.families.family import Family, FrameTokens, Prompt

__all__ = ["LlavaOneVision"]


class LlavaOneVision(Family):
    """LLaVA-OneVision: every frame, whatever its shape, is a square of 14 x 14 tokens.

    Frames follow each other with nothing between: the newline token that the stock model puts
    behind a whole video has no place in a stream.
    """

    model_type = "llava_onevision"
    turn_end = "<|im_end|>"
    published = Prompt(
        before=(
            "<|im_start|>system \nYou are a helpful assistant.<|im_end|>"
            "<|im_start|>user "  # the published strings have these spaces and no other newline
        ),
        after="\n",
        answer="<|im_end|><|im_start|>assistant\n",
    )

    def _text_model(self) -> Any:
        return self.model.model.language_model

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of a frame's tokens; the same for every size of frame."""
        vision = self.model.config.vision_config
        side = (vision.image_size // vision.patch_size + 1) // 2
        return side, side

    @torch.no_grad()
    def embed_frames(self, frames: Tensor | np.ndarray) -> FrameTokens:
        """Encode frames, each by itself."""
        pixels = self.pixels(frames)
        rows, columns = self.grid(*frames.shape[1:3])
        features = self.model.model.get_video_features(
            pixels[None],
            vision_feature_layer=self.model.config.vision_feature_layer,
            vision_feature_select_strategy=self.model.config.vision_feature_select_strategy,
        ).pooler_output
        tokens = features[0, : len(pixels) * rows * columns]  # the newline comes last
        embeds = rearrange(tokens, "(f m) d -> f m d", f=len(pixels))
        coords = torch.arange(rows * columns, dtype=torch.int16)[:, None].expand(-1, 3)
        return FrameTokens(embeds, coords)
