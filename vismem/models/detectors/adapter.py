"""What a memory has to know of a detector: where its instances are judged, and where they lie."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

__all__ = ["Adapter", "Found", "as_tensor"]

Found = tuple[Tensor, Tensor, Tensor]  # boxes (n, 4) in pixels, scores (n,), labels (n,)


class Adapter(ABC):
    """One family of detectors. Subclass it for another, and hand the instance to the wrapper.

    The features of a frame's instances are what goes into ``class_layer``. A memory changes them
    there and nowhere else, so the branch that makes boxes never sees it.

    Args:
        model: The detector.
    """

    supported: ClassVar[str]  # names of what it takes, for people

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @classmethod
    @abstractmethod
    def fits(cls, model: nn.Module) -> bool:
        """Whether this is the adapter of a model."""

    @property
    @abstractmethod
    def class_layer(self) -> nn.Linear:
        """The layer that judges instances: its input are their features."""

    @abstractmethod
    def watch(self) -> list[RemovableHandle]:
        """Hook whatever tells `boxes`; the hooks only look."""

    @abstractmethod
    def boxes(self) -> tuple[Tensor, Tensor]:
        """Where the instances lie that `class_layer` is about to judge.

        Returns:
            ``(B, Q, 4)`` ``x0 y0 x1 y1`` fractions of the picture, and a mask ``(B, Q)`` that is
            true where there is an instance.
        """

    @abstractmethod
    def confidence(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Score and label of each instance, ``(..., L)`` to two ``(...)``."""

    @abstractmethod
    def prepare(self, images: Sequence[Tensor]) -> Any:
        """What the model takes for a batch of pictures, ``(3, H, W)`` each.

        Those of uint8 are scaled in size and value; floating point ones are ready, see `as_tensor`.

        Raises:
            ValueError: If the model cannot take pictures of these sizes.
        """

    @abstractmethod
    def run(self, inputs: Any, targets: Any = None) -> Any:
        """Run the model on what `prepare` gave, with targets for its losses if there are any."""

    @abstractmethod
    def found(self, outputs: Any, sizes: Sequence[tuple[int, int]]) -> list[Found]:
        """Read what the model found in pictures of these heights and widths, best first."""

    def spread(self, features: Tensor, mask: Tensor) -> Tensor:
        """Features as `class_layer` gets them, laid out as ``(B, Q, C)``, zero where none is."""
        rows = features.new_zeros(*mask.shape, features.shape[-1])
        rows[mask] = features.reshape(-1, features.shape[-1])
        return rows

    def gather(self, rows: Tensor, mask: Tensor, like: Tensor) -> Tensor:
        """Take `spread` back."""
        return rows[mask].reshape(like.shape)

    @property
    def like(self) -> Tensor:
        """A parameter of the model: where it runs, and in which number format."""
        return next(self.model.parameters())


def as_tensor(image: Any) -> Tensor:
    """A picture for a detector, ``(3, H, W)``; its numbers stay as they are.

    Args:
        image: ``(H, W, 3)`` uint8 RGB as an array, a tensor or a `vismem.frame.Frame`, which the
            adapter scales for the model; or floating point ``(3, H, W)`` or ``(1, 3, H, W)``, made
            ready for the model by its own processor.

    Raises:
        ValueError: If it is neither, empty, or not finite.

    Example:
        >>> as_tensor(np.zeros((2, 4, 3), np.uint8)).shape
        torch.Size([3, 2, 4])
    """
    image = getattr(image, "image", image)
    tensor = torch.from_numpy(image) if isinstance(image, np.ndarray) else image
    refused = "a picture is (H, W, 3) uint8 or (3, H, W) floating point, not "
    if not isinstance(tensor, Tensor):
        raise ValueError(refused + type(image).__name__)
    if tensor.ndim == 4 and len(tensor) == 1 and tensor.is_floating_point():
        tensor = tensor[0]
    if tensor.ndim == 3 and tensor.numel():
        if tensor.dtype == torch.uint8 and tensor.shape[2] == 3:
            return tensor.permute(2, 0, 1)
        if tensor.is_floating_point() and tensor.shape[0] == 3:
            if not tensor.isfinite().all():
                raise ValueError("the picture holds NaN or infinity")
            return tensor
    raise ValueError(f"{refused}{tuple(tensor.shape)} {tensor.dtype}")
