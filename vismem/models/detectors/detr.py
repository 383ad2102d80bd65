"""RT-DETR, its second version and D-FINE of transformers: queries of a decoder, and no NMS.

Sources: RT-DETR (https://arxiv.org/abs/2304.08069), RT-DETRv2 (https://arxiv.org/abs/2407.17140),
D-FINE (https://arxiv.org/abs/2410.13842).
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vismem.models.detectors.adapter import Adapter, Found

__all__ = ["DFineAdapter", "RTDetrAdapter"]


class RTDetrAdapter(Adapter):
    """RT-DETR v1 and v2: the last decoder layer's queries, judged by ``class_embed``.

    Args:
        model: ``RTDetrForObjectDetection`` or ``RTDetrV2ForObjectDetection``.
        size: Height and width that pictures of uint8 are scaled to, as the model was trained.
    """

    supported = "RTDetrForObjectDetection and RTDetrV2ForObjectDetection of transformers"
    kinds: tuple[str, ...] = ("rt_detr", "rt_detr_v2")

    def __init__(self, model: nn.Module, size: tuple[int, int] = (640, 640)) -> None:
        super().__init__(model)
        self.size = size
        self._decoder: Any = model.model.decoder  # type: ignore[union-attr]
        self._reference = self._corners = torch.empty(0)

    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        """Whether it is of these types and detects: the decoder alone has no class layer."""
        kind = getattr(getattr(model, "config", None), "model_type", None)
        decoder = getattr(getattr(model, "model", None), "decoder", None)
        return kind in cls.kinds and getattr(decoder, "class_embed", None) is not None

    @property
    def class_layer(self) -> nn.Linear:
        """That of the last decoder layer."""
        return self._decoder.class_embed[-1]

    def watch(self) -> list[RemovableHandle]:
        """Look at the references that enter each layer, and at the last refinement of them."""
        return [
            self._decoder.query_pos_head.register_forward_pre_hook(self._see_reference),
            self._decoder.bbox_embed[-1].register_forward_hook(self._see_corners),
        ]

    def _see_reference(self, module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        self._reference = arguments[0].detach()

    def _see_corners(self, module: nn.Module, arguments: Any, output: Tensor) -> None:
        self._corners = output.detach()

    def centred(self) -> Tensor:
        """The final boxes, ``(B, Q, 4)`` as centre and size."""
        return (self._corners + self._reference.logit(eps=1e-5)).sigmoid()

    def boxes(self) -> tuple[Tensor, Tensor]:
        """Those that the model itself gives out."""
        boxes = corners(self.centred()).clamp(0, 1)
        return boxes, torch.ones(boxes.shape[:2], dtype=torch.bool, device=boxes.device)

    def confidence(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Each class is a question of its own; the surest counts."""
        scores, labels = logits.float().sigmoid().max(-1)
        return scores, labels

    def prepare(self, images: Sequence[Tensor]) -> Tensor:
        """Scale pictures of uint8, of any size; ready ones must be alike and large enough."""
        images = [
            image.to(self.like) if image.is_floating_point() else self._scaled(image)
            for image in images
        ]
        if len(shapes := {tuple(image.shape) for image in images}) > 1:
            raise ValueError(f"pictures of one batch must be of one size, not of {sorted(shapes)}")
        config: Any = self.model.config
        height, width = images[0].shape[1:]
        cells = sum(-(-height // step) * -(-width // step) for step in config.feat_strides)
        coarsest = max(config.feat_strides)
        if height % coarsest or width % coarsest or cells < config.num_queries:
            raise ValueError(
                f"the detector cannot take {height}x{width} pixels: both must be multiples of "
                f"{coarsest} and give {config.num_queries} cells; a uint8 picture is scaled to fit"
            )
        return torch.stack(images)

    def _scaled(self, image: Tensor) -> Tensor:
        whole = image[None].to(self.like.device, torch.float32) / 255
        scaled = F.interpolate(whole, self.size, mode="bilinear", antialias=True)
        return scaled[0].to(self.like)

    def run(self, inputs: Any, targets: Any = None) -> Any:
        """Run the model; ``targets`` are its ``labels``."""
        return self.model(pixel_values=inputs, labels=targets)

    def found(self, outputs: Any, sizes: Sequence[tuple[int, int]]) -> list[Found]:
        """As many pairs of a query and a class as there are queries, as the model's makers do."""
        scores = outputs.logits.float().sigmoid()
        best, at = scores.flatten(1).topk(scores.shape[1])
        query, labels = at // scores.shape[2], at % scores.shape[2]
        boxes = corners(outputs.pred_boxes.float())
        boxes = boxes.gather(1, query[..., None].expand(-1, -1, 4))
        scale = boxes.new_tensor([[width, height, width, height] for height, width in sizes])
        return list(zip(boxes * scale[:, None], best, labels, strict=True))


class DFineAdapter(RTDetrAdapter):
    """D-FINE: as RT-DETR, but boxes are distances from a first guess, each a distribution.

    Args:
        model: ``DFineForObjectDetection``.
        size: See `RTDetrAdapter`.
    """

    supported = "DFineForObjectDetection of transformers"
    kinds = ("d_fine",)

    @property
    def class_layer(self) -> nn.Linear:
        """That of the layer which evaluation reads."""
        return self._decoder.class_embed[self._decoder.eval_idx]

    def watch(self) -> list[RemovableHandle]:
        """Look at the first guess and at the distances from it."""
        return [
            self._decoder.query_pos_head.register_forward_pre_hook(self._see_reference),
            self._decoder.pre_bbox_head.register_forward_hook(self._see_guess),
            self._decoder.integral.register_forward_hook(self._see_corners),
        ]

    def _see_guess(self, module: nn.Module, arguments: Any, output: Tensor) -> None:
        # The newest reference is still that of the first layer.
        self._guess = (output.detach() + self._reference.logit(eps=1e-5)).sigmoid()

    def centred(self) -> Tensor:
        """The boxes of the layer which evaluation reads."""
        d_fine = importlib.import_module("transformers.models.d_fine.modeling_d_fine")
        return d_fine.distance2bbox(self._guess, self._corners, self._decoder.reg_scale)


def corners(boxes: Tensor) -> Tensor:
    """From centre and size to ``x0 y0 x1 y1``."""
    centre, size = boxes.split(2, -1)
    return torch.cat([centre - size / 2, centre + size / 2], -1)
