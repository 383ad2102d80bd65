"""SmolVLM and SmolVLM2: SigLIP, pixel shuffle, a small Llama.

Source: Marafioti et al., "SmolVLM", 2025 (https://arxiv.org/abs/2504.05299).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from vismem.errors import UsageError
from vismem.models.families.family import Family, FrameTokens, Prompt
from vismem.models.preprocess import normalise

__all__ = ["SmolVLM"]


class SmolVLM(Family):
    """SmolVLM: every frame is a square, marked as a picture with its time before it.

    The published prompt also tells how many frames follow and how long they last, which nobody
    knows of a stream: these words are left out.

    Raises:
        UsageError: If the scale of pixels maps a plain colour to zeros, which the stock model
            takes for padding and drops; and as `Family`.
    """

    model_type = "smolvlm"
    turn_end = "<end_of_utterance>"
    published = Prompt(
        before="<|im_start|>User: You are provided the following series of frames from a video.\n",
        after="\n\n",
        answer="<end_of_utterance>\nAssistant:",
    )

    def __init__(self, model: Any, tokenizer: Any = None, **options: Any) -> None:
        super().__init__(model, tokenizer, **options)
        levels = torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 256)
        if (normalise(levels, self.scale) == 0).any(-1).all():
            raise UsageError(
                f"with the mean {self.scale.mean} a plain frame becomes zeros, which this model "
                "drops as padding; give the scale that the model was published with"
            )

    def _text_model(self) -> Any:
        return self.model.model.text_model

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of a frame's tokens; the same for every size of frame."""
        vision = self.model.config.vision_config
        side = vision.image_size // vision.patch_size // self.model.config.scale_factor
        return side, side

    @torch.no_grad()
    def embed_frames(self, frames: Tensor | np.ndarray) -> FrameTokens:
        """Encode frames, each by itself."""
        pixels = self.pixels(frames)
        seen = self.model.model.get_image_features(pixel_values=pixels[None]).pooler_output
        # One entry for all frames, or one for each: it depends on the release of transformers.
        embeds = rearrange(torch.cat(list(seen)), "(f m) d -> f m d", f=len(pixels))
        coords = torch.arange(embeds.shape[1], dtype=torch.int16)[:, None].expand(-1, 3)
        return FrameTokens(embeds, coords)

    def frame_words(self, time: float | None) -> tuple[str, str]:
        """Words directly before and after a frame; ``time`` in seconds, None to leave it out.

        The published form: minutes and seconds, and a picture's marks.
        """
        mark = "<fake_token_around_image>"
        if time is None:
            return f"{mark}<global-img>", mark
        minutes, seconds = divmod(int(time), 60)
        return f"\nFrame from {minutes:02d}:{seconds:02d}:{mark}<global-img>", mark
