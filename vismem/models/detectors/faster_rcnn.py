"""Faster R-CNN of torchvision: proposals, two fully connected layers, NMS.

Sources: Faster R-CNN (https://arxiv.org/abs/1506.01497); MAMBA enhances the same features
(https://arxiv.org/abs/2401.09923), for both branches, where here the boxes' branch never does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.hooks import RemovableHandle

from vismem.models.detectors.adapter import Adapter, Found

__all__ = ["FasterRCNNAdapter"]


class FasterRCNNAdapter(Adapter):
    """The features of proposals behind the box head, judged by ``box_predictor.cls_score``.

    Where a proposal lies is known when it is judged, its refined box is not: that is of a class.

    Args:
        model: Any ``FasterRCNN`` of torchvision, or what is made of it (Mask, Keypoint R-CNN).
    """

    supported = "FasterRCNN of torchvision, and Mask and Keypoint R-CNN"

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._heads: Any = model.roi_heads
        self._proposals: list[Tensor] = []
        self._sizes: list[tuple[int, int]] = []

    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        """Whether it has the box predictor of torchvision's own."""
        from torchvision.models.detection.faster_rcnn import FasterRCNN

        predictor = getattr(getattr(model, "roi_heads", None), "box_predictor", None)
        return isinstance(model, FasterRCNN) and isinstance(
            getattr(predictor, "cls_score", None), nn.Linear
        )

    @property
    def class_layer(self) -> nn.Linear:
        """The class scores' layer of the box predictor."""
        return self._heads.box_predictor.cls_score

    def watch(self) -> list[RemovableHandle]:
        """Look at the proposals that features are pooled for."""
        return [self._heads.box_roi_pool.register_forward_pre_hook(self._see_proposals)]

    def _see_proposals(self, module: nn.Module, arguments: Any) -> None:
        _, proposals, sizes = arguments
        self._proposals, self._sizes = [part.detach() for part in proposals], sizes

    def boxes(self) -> tuple[Tensor, Tensor]:
        """The proposals, filled up to the picture that has most."""
        parts = [
            part / part.new_tensor([width, height, width, height])
            for part, (height, width) in zip(self._proposals, self._sizes, strict=True)
        ]
        boxes = pad_sequence(parts, batch_first=True).clamp(0, 1)
        counts = torch.tensor([len(part) for part in parts], device=boxes.device)
        return boxes, torch.arange(boxes.shape[1], device=boxes.device) < counts[:, None]

    def confidence(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The classes share one softmax, in which 0 is the background."""
        scores, labels = logits.float().softmax(-1)[..., 1:].max(-1)
        return scores, labels + 1

    def prepare(self, images: Sequence[Tensor]) -> list[Tensor]:
        """From 0 to 1; the model scales their size and normalises by itself."""
        like = self.like
        return [
            image.to(like) if image.is_floating_point() else image.to(like.device).to(like) / 255
            for image in images
        ]

    def run(self, inputs: Any, targets: Any = None) -> Any:
        """Run the model; in training it gives its losses."""
        return self.model(inputs, targets)

    def found(self, outputs: Any, sizes: Sequence[tuple[int, int]]) -> list[Found]:
        """As the model gives it, in pixels of the pictures."""
        return [(part["boxes"], part["scores"], part["labels"]) for part in outputs]
