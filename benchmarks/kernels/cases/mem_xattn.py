"""Sizes of attention to memories: SAM 2's 64 x 64 cells, to seven pictures and 64 pointers."""

from __future__ import annotations

from functools import lru_cache

import torch
from case import Case, Inputs, normal
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pad, scaled_dot_product_attention

from kernels.mem_xattn import cpu, reference

BF16, FULL = torch.bfloat16, torch.float32
CELLS, ROWS, WIDTH, VALUES = 4096, 28736, 256, 64


def _projected(query: Tensor, keys: Tensor, mem: Tensor, heads: int, scale: float) -> Tensor:
    """The published form: values as wide as keys. They are filled up, to give the same result."""
    wide = pad(mem, (0, keys.shape[2] - mem.shape[2]))
    parts = (part[:, None] for part in (query, keys, wide))
    return scaled_dot_product_attention(*parts, scale=scale)[:, 0, :, : mem.shape[2]]


def _absorbed(query, keys, mem, heads, scale):
    parts = (part[:, None] for part in (query, keys, mem))
    return scaled_dot_product_attention(*parts, scale=scale)[:, 0]


def _explicit(query, keys, mem, heads, scale):
    return (query @ keys.mT * scale).softmax(-1) @ mem


def _forced(backend: SDPBackend):
    def run(*parts):
        with sdpa_kernel(backend):
            return _projected(*parts)

    return run


@lru_cache
def _flex_compiled():
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, fullgraph=True)


def _flex(query, keys, mem, heads, scale):
    parts = (part[:, None] for part in (query, keys, mem))
    return _flex_compiled()(*parts, scale=scale)[:, 0]


def _ours(*parts):
    from kernels.mem_xattn import triton

    return triton.run(*parts)


def _ours_and_back(query, keys, mem, heads, scale, grad):
    from kernels.cross_attention import triton
    from kernels.mem_xattn.triton import split

    parts = (*split(query, keys, mem, heads, scale), None)
    out, sums = triton.run(*parts)
    grads = triton.run_backward(grad.unflatten(2, (heads, -1)), *parts, out, sums)
    return [part.flatten(2) for part in grads[:3]]


def _and_back(form):
    """Gradients of query, keys and memory, by PyTorch."""

    def run(query, keys, mem, heads, scale, grad):
        parts = [part.detach().requires_grad_() for part in (query, keys, mem)]
        with torch.enable_grad():
            return torch.autograd.grad(form(*parts, heads, scale), parts, grad)

    return run


def _case(
    objects: int,
    queries: int = CELLS,
    rows: int = ROWS,
    *,
    width: int = WIDTH,
    values: int = VALUES,
    dtype: torch.dtype = BF16,
    back: bool = False,
    processor: bool = False,
    small: bool = False,
) -> Case:
    def inputs(device: str, seed: int) -> Inputs:
        sizes = ((queries, width), (rows, width), (rows, values))
        parts = [normal(device, seed + n, objects, *s, dtype=dtype) for n, s in enumerate(sizes)]
        grad = (normal(device, seed + 3, objects, queries, values, dtype=dtype),) if back else ()
        return *parts, 1, width**-0.5, *grad

    others = {
        "SDPA, values projected": _projected,
        "SDPA, absorbed": _absorbed,
        "explicit": _explicit,
    }
    if not processor and not small:
        others = {
            "SDPA flash": _forced(SDPBackend.FLASH_ATTENTION),
            "SDPA cuDNN": _forced(SDPBackend.CUDNN_ATTENTION),
            "flex": _flex,
        }
    if processor and dtype == BF16:
        others.pop(
            "explicit"
        )  # it rounds scores to bfloat16, which is no precision to compare with
    if back:
        others = {name: _and_back(form) for name, form in others.items() if form is not _flex}
    wrap = _and_back if back else (lambda form: form)
    size = torch.finfo(dtype).bits // 8
    return Case(
        "mem_xattn",
        f"{objects} x {queries} to {rows}, {width} and {values}, "
        f"{str(dtype).removeprefix('torch.')}{', and back' if back else ''}",
        inputs,
        _ours_and_back if back else _ours,
        wrap(reference.mem_xattn),
        wrap(cpu.mem_xattn),
        others,
        moved=size * objects * float((queries + rows) * (width + values)) * (2.5 if back else 1),
        flops=2.0 * objects * queries * rows * (width + values) * (3.5 if back else 1),
        tolerance={FULL: 1e-5, BF16: 1e-2}[dtype] * (3 if back else 1),
        processor=processor,
        small=small,
        tensor_cores={"_attend": "wgmma"} if dtype == BF16 else {},
    )


CASES = [
    _case(1),
    _case(8),
    _case(1, back=True),
    _case(1, 1024, 8 * 1024, dtype=FULL),
    _case(1, 512, processor=True, dtype=FULL),
    _case(1, 512, processor=True),
    _case(2, 5, 300, width=16, values=8, dtype=FULL, small=True),
    _case(2, 5, 40, width=16, values=8, dtype=FULL, back=True, small=True),
]
