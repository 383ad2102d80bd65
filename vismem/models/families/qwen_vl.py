"""Qwen2.5-VL and Qwen3-VL: frames of any shape, positions of three numbers.

Sources: Bai et al., "Qwen2.5-VL", 2025 (https://arxiv.org/abs/2502.13923); Bai et al., "Qwen3-VL",
2025 (https://arxiv.org/abs/2511.21631); Meng et al., "DeepStack", 2024
(https://arxiv.org/abs/2406.04334).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from vismem.errors import UsageError
from vismem.models.families.family import Family, FrameTokens, Prompt
from vismem.models.preprocess import (
    PixelScale,
    check_frames,
    normalise,
    patches,
    resize,
    smart_size,
)

__all__ = ["Qwen3VL", "Qwen25VL"]

FRAME_TOKENS = (128, 768)  # of a frame of video, as the models were trained


class Qwen25VL(Family):
    """Qwen2.5-VL: a frame keeps its aspect, each token has time, row and column.

    The vision part takes frames in pairs. A stream has no next frame to wait for, so a frame is
    paired with itself, as the stock processor does with a picture and with the last of an odd
    number of frames: one frame is one step in time.

    Args:
        model: See `Family`.
        tokenizer: See `Family`.
        frame_tokens: Least and most tokens of a frame; frames are scaled to stay between.
        **options: Of `Family`.

    Raises:
        UsageError: If the bounds are no bounds, and as `Family`.
    """

    model_type = "qwen2_5_vl"
    mrope = True
    turn_end = "<|im_end|>"
    video = "<|video_pad|>"
    published = Prompt(
        before=(
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            "<|im_start|>user\n<|vision_start|>"
        ),
        after="<|vision_end|>",
        answer="<|im_end|>\n<|im_start|>assistant\n",
    )
    default_scale = PixelScale(
        (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    )

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        frame_tokens: tuple[int, int] = FRAME_TOKENS,
        **options: Any,
    ) -> None:
        if not 1 <= frame_tokens[0] <= frame_tokens[1]:
            raise UsageError(f"frame_tokens are the least and the most, not {frame_tokens}")
        super().__init__(model, tokenizer, **options)
        self.frame_tokens = frame_tokens

    def _text_model(self) -> Any:
        return self.model.model.language_model

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of a frame's tokens.

        Raises:
            ValueError: If the frame is too elongated.
        """
        rows, columns = smart_size(height, width, self._factor, self.frame_tokens)
        return rows // self._factor, columns // self._factor

    @property
    def most_tokens(self) -> int:
        """The most tokens that a frame of any size becomes."""
        return self.frame_tokens[1]

    def pixels(self, frames: Tensor | np.ndarray) -> Tensor:
        """Frames ``(F, H, W, 3)`` uint8 as rows of patches, in the model's number format."""
        shown = check_frames(frames).to(self.device)
        vision = self.model.config.vision_config
        rows, columns = self.grid(*shown.shape[1:3])
        planes = resize(shown, rows * self._factor, columns * self._factor)
        cut = {"merge": vision.spatial_merge_size, "depth": vision.temporal_patch_size}
        return patches(normalise(planes, self.scale).to(self.dtype), vision.patch_size, **cut)

    @torch.no_grad()
    def embed_frames(self, frames: Tensor | np.ndarray) -> FrameTokens:
        """Encode frames, each by itself."""
        pixels = self.pixels(frames)
        rows, columns = self.grid(*frames.shape[1:3])
        merge = self.model.config.vision_config.spatial_merge_size
        sizes = torch.tensor([[1, rows * merge, columns * merge]], device=pixels.device)
        seen = self.model.model.get_video_features(pixels, sizes.expand(len(frames), -1))
        inside = torch.cartesian_prod(torch.arange(1), torch.arange(rows), torch.arange(columns))
        embeds = torch.stack(list(seen.pooler_output))
        return FrameTokens(embeds, inside.to(torch.int16), self._inner_features(seen))

    def _inner_features(self, seen: Any) -> tuple[Tensor, ...] | None:
        """Features of the vision part's inner layers, each ``(F, M, hidden)``."""
        return None

    @property
    def _factor(self) -> int:
        """Pixels along a token's side."""
        vision = self.model.config.vision_config
        return int(vision.patch_size * vision.spatial_merge_size)


class Qwen3VL(Qwen25VL):
    """Qwen3-VL: as Qwen2.5-VL, with features of inner layers and the time written before a frame.

    Every frame has its own time and its own marks of beginning and end, as in training.
    """

    model_type = "qwen3_vl"
    video = "<|vision_start|><|video_pad|><|vision_end|>"
    published = Prompt(
        before="<|im_start|>user\n",
        after="",
        answer="<|im_end|>\n<|im_start|>assistant\n",
    )
    default_scale = PixelScale()

    def frame_words(self, time: float | None) -> tuple[str, str]:
        """Words directly before and after a frame; ``time`` in seconds, None to leave it out."""
        seconds = "" if time is None else f"<{time:.1f} seconds>"
        return f"{seconds}<|vision_start|>", "<|vision_end|>"

    def _inner_features(self, seen: Any) -> tuple[Tensor, ...] | None:
        # Frame by frame, or all in one: it depends on the release of transformers.
        joined = (f if isinstance(f, Tensor) else torch.cat(f) for f in seen.deepstack_features)
        count = len(seen.pooler_output)
        return tuple(rearrange(f, "(f m) d -> f m d", f=count) for f in joined)

    def _deepstack(
        self, embeds: Tensor, visual: Tensor | None, deepstack: Sequence[Tensor] | None
    ) -> dict[str, Any]:
        if deepstack is None:
            return {}
        if visual is None:
            visual = torch.ones(embeds.shape[1], dtype=torch.bool)
        return {
            "visual_pos_masks": visual.to(embeds.device)[None],
            "deepstack_visual_embeds": list(deepstack),
        }
