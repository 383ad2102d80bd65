"""Sizes of aggregation: MAMBA's pixels and proposals, each to rows of a bank by number."""

from __future__ import annotations

import torch
from case import Case, Inputs, normal
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from kernels.aggregate import cpu, reference

BF16, FULL = torch.bfloat16, torch.float32


def _split(query: Tensor, keys: Tensor, values: Tensor, heads: int, index: Tensor) -> list[Tensor]:
    """Gathered rows, as PyTorch's attention takes them."""
    parts = (query, keys[index.long()][None], values[index.long()][None])
    return [part.unflatten(2, (heads, -1)).transpose(1, 2) for part in parts]


def _gathered(query, keys, values, heads, index, bias=None):
    q, k, v = _split(query, keys, values, heads, index)
    mask = None if bias is None else bias.to(q.dtype)
    return scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)


def _forced(backend: SDPBackend):
    def run(*parts):
        with sdpa_kernel(backend):
            return _gathered(*parts)

    return run


def _explicit(query, keys, values, heads, index, bias=None):
    q, k, v = _split(query, keys, values, heads, index)
    logits = q @ k.mT * q.shape[3] ** -0.5
    weights = (logits if bias is None else logits + bias.to(q.dtype)).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def _ours(*parts):
    from kernels.aggregate import triton

    return triton.run(*parts)


def _ours_and_back(query, keys, values, heads, index, bias, grad):
    from kernels.aggregate.triton import split
    from kernels.cross_attention import triton

    parts = split(query, keys, values, heads, index, bias)
    out, sums = triton.run(*parts)
    grads = triton.run_backward(grad.unflatten(2, (heads, -1)), *parts, out, sums, bias is not None)
    return [
        part.reshape(like.shape) for part, like in zip(grads, (query, keys, values), strict=False)
    ]


def _and_back(form):
    """Gradients of query, keys and values, by PyTorch."""

    def run(query, keys, values, heads, index, bias, grad):
        parts = [part.detach().requires_grad_() for part in (query, keys, values)]
        with torch.enable_grad():
            return torch.autograd.grad(form(*parts, heads, index, bias), parts, grad)

    return run


def _case(
    queries: int,
    rows: int,
    heads: int,
    width: int,
    *,
    dtype: torch.dtype = BF16,
    biased: bool = False,
    back: bool = False,
    processor: bool = False,
    small: bool = False,
) -> Case:
    def inputs(device: str, seed: int) -> Inputs:
        channels = heads * width
        table = normal(device, seed, 2 * rows, 2 * channels, dtype=dtype)
        query = normal(device, seed + 1, 1, queries, channels, dtype=dtype)
        index = torch.arange(2 * rows, device=device, dtype=torch.int32).flip(0)[:rows]
        bias = normal(device, seed + 2, 1, heads, queries, rows) if biased else None
        grad = (normal(device, seed + 3, 1, queries, channels, dtype=dtype),) if back else ()
        return query, *table.chunk(2, 1), heads, index, bias, *grad

    backends = {"SDPA efficient": SDPBackend.EFFICIENT_ATTENTION}
    if not biased:
        backends = {
            "SDPA flash": SDPBackend.FLASH_ATTENTION,
            "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION,
        }
    others = {"gather + SDPA": _gathered, "explicit": _explicit}
    if not processor and not small:
        others |= {f"gather + {name}": _forced(backend) for name, backend in backends.items()}
    if back:
        others = {name: _and_back(form) for name, form in others.items()}
    wrap = _and_back if back else (lambda form: form)
    size = torch.finfo(dtype).bits // 8
    cores = {"_attend": "wgmma"} if dtype != FULL else {}
    return Case(
        "aggregate",
        f"{queries} to {rows}, {heads} x {width}, {str(dtype).removeprefix('torch.')}"
        f"{', biased' if biased else ''}{', and back' if back else ''}",
        inputs,
        _ours_and_back if back else _ours,
        wrap(reference.aggregate),
        wrap(cpu.aggregate),
        others,
        moved=size * heads * width * 2.0 * (queries + rows) * (2.5 if back else 1)
        + 4.0 * biased * heads * queries * rows * (2 if back else 1),
        flops=4.0 * heads * width * queries * rows * (3.5 if back else 1),
        tolerance={FULL: 1e-5, BF16: 1e-2}[dtype] * (3 if back else 1),
        processor=processor,
        small=small,
        tensor_cores=cores,
    )


CASES = [
    _case(2394, 8000, 1, 256),
    _case(300, 2000, 16, 64),
    _case(300, 2000, 16, 64, biased=True),
    _case(300, 2000, 8, 32, biased=True),
    _case(300, 2000, 16, 64, dtype=FULL),
    _case(300, 2000, 16, 64, biased=True, back=True),
    _case(300, 2000, 16, 64, dtype=FULL, back=True),
    _case(300, 2000, 16, 64, dtype=FULL, processor=True),
    _case(300, 2000, 16, 64, processor=True),
    _case(300, 2000, 16, 64, dtype=FULL, biased=True, processor=True),
    _case(5, 40, 2, 24, dtype=FULL, biased=True, small=True),
    _case(5, 40, 2, 16, dtype=FULL, back=True, small=True),
]
