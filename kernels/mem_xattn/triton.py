"""Attention to memories on a GPU: the rows are cut into shares so that one object fills it."""

from __future__ import annotations

from torch import Tensor

from ..cross_attention import triton as attention

Parts = tuple[Tensor, Tensor, Tensor, float, None, Tensor | None]


def mem_xattn(
    query: Tensor,
    keys: Tensor,
    mem: Tensor,
    heads: int,
    scale: float,
    lengths: Tensor | None = None,
) -> Tensor:
    """Run the kernels, see :func:`vismem.kernels.mem_xattn.mem_xattn`."""
    seen, _ = attention.cross_attention(*split(query, keys, mem, heads, scale, lengths))
    return seen.flatten(2)


def run(
    query: Tensor,
    keys: Tensor,
    mem: Tensor,
    heads: int,
    scale: float,
    lengths: Tensor | None = None,
) -> Tensor:
    """Start the forward kernels; also on tensors without data, to compile them."""
    return attention.run(*split(query, keys, mem, heads, scale, lengths))[0].flatten(2)


def split(
    query: Tensor,
    keys: Tensor,
    mem: Tensor,
    heads: int,
    scale: float,
    lengths: Tensor | None = None,
) -> Parts:
    """The arguments of the kernels: heads apart, all with the same memory."""
    q, k = (part.unflatten(2, (heads, -1)) for part in (query, keys))
    return q, k, mem[:, :, None].expand(-1, -1, heads, -1), scale, None, lengths
