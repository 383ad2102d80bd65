"""Products of all rows with all rows in PyTorch: the fastest there is for a device and a type."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["bfloat16_is_fast", "products", "rounding"]


def products(x: Tensor, y: Tensor, bias: Tensor | None = None) -> Tensor:
    """Give ``x @ y.T + bias``, for ``x (N, D)``, ``y (K, D)`` and ``bias (K,)``; no gradient.

    On processors float32 goes to oneDNN by name: ``torch.mm`` takes MKL, which was measured to
    need twice the time on an AMD EPYC. What is not dense is copied: there oneDNN falls back to a
    form that takes thousands of times as long.
    """
    if not x.numel() or not y.numel():
        zeros = x.new_zeros(len(x), len(y))
        return zeros if bias is None else zeros + bias
    if x.device.type == "cpu" and x.dtype == torch.float32 and _onednn():
        if not y.T.is_contiguous():
            y = y.contiguous()
        return torch.ops.mkldnn._linear_pointwise(x.contiguous(), y, bias, "none", [], "")
    return x @ y.T if bias is None else torch.addmm(bias, x, y.T)


def _onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def rounding(like: Tensor) -> float:
    """Largest relative error of one operation in `products`, which may round its input first."""
    if like.dtype == torch.float32 and like.device.type in ("cpu", "cuda"):
        backend = torch.backends.cuda if like.is_cuda else torch.backends.mkldnn
        if backend.matmul.fp32_precision not in ("none", "ieee"):
            return 2.0**-8
    return torch.finfo(like.dtype).eps / 2


def bfloat16_is_fast(device: torch.device) -> bool:
    """Whether products of bfloat16 are summed in float32 and faster than those of float32."""
    return (
        device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and torch.cpu._is_avx512_bf16_supported()
    )
