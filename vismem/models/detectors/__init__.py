"""Detectors that can host a feature memory."""

from __future__ import annotations

from torch import nn

from vismem.errors import UsageError
from vismem.models.detectors.adapter import Adapter, Found, as_tensor
from vismem.models.detectors.detr import DFineAdapter, RTDetrAdapter
from vismem.models.detectors.faster_rcnn import FasterRCNNAdapter

__all__ = [
    "ADAPTERS",
    "Adapter",
    "DFineAdapter",
    "FasterRCNNAdapter",
    "Found",
    "RTDetrAdapter",
    "adapter_of",
    "as_tensor",
]

ADAPTERS: tuple[type[Adapter], ...] = (RTDetrAdapter, DFineAdapter, FasterRCNNAdapter)


def adapter_of(model: nn.Module) -> Adapter:
    """Find the adapter of a detector.

    Raises:
        UsageError: If there is none; it names what is supported and how to add another.
    """
    for adapter in ADAPTERS:
        if adapter.fits(model):
            return adapter(model)
    known = "; ".join(adapter.supported for adapter in ADAPTERS)
    raise UsageError(
        f"{type(model).__name__} cannot host a memory yet. Supported: {known}. For another, "
        "subclass vismem.models.detectors.Adapter and hand it over as adapter=YourAdapter(model)"
    )
