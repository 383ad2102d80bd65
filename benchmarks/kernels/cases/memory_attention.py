"""Sizes of attention over pages: sinks, retrieved blocks and a window of a 7B language model."""

from __future__ import annotations

from functools import cache

import torch
from case import Case, Inputs, normal
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as sdpa

from kernels.memory_attention import ALL, Reads, cpu, reference

HEADS, GROUPS, WIDTH, TOKENS = 28, 4, 128, 64
ROWS = 128  # queries of a block, for FlexAttention


def _gathered(pages: torch.Tensor, entries: torch.Tensor) -> torch.Tensor:
    """Pages of a list behind each other, ``(B, G, n, D)``."""
    return pages[entries[..., 0].long()].flatten(1, 2).transpose(1, 2)


def _plain(backend: SDPBackend | None):
    def run(query, keys, values, entries, q_start, cos, sin, far):
        one, two = keys[entries[..., 0].long()].float().chunk(2, -1)
        cos, sin = cos[:, :, None, None], sin[:, :, None, None]
        turned = torch.cat([one * cos - two * sin, two * cos + one * sin], -1).to(keys.dtype)
        rows = query.transpose(1, 2)
        key, value = turned.flatten(1, 2).transpose(1, 2), _gathered(values, entries)
        if backend is None:
            return sdpa(rows, key, value, enable_gqa=True).transpose(1, 2)
        with sdpa_kernel(backend):
            return sdpa(rows, key, value, enable_gqa=True).transpose(1, 2)

    return run


def _explicit(query, keys, values, entries, q_start, cos, sin, far):
    one, two = keys[entries[..., 0].long()].chunk(2, -1)
    cos, sin = cos[:, :, None, None].to(keys.dtype), sin[:, :, None, None].to(keys.dtype)
    turned = torch.cat([one * cos - two * sin, two * cos + one * sin], -1)
    key, value = turned.flatten(1, 2).transpose(1, 2), _gathered(values, entries)
    rows = query.transpose(1, 2).reshape(len(query), GROUPS, -1, WIDTH) * WIDTH**-0.5
    seen = torch.softmax(rows @ key.mT, -1) @ value
    return seen.reshape(len(query), HEADS, -1, WIDTH).transpose(1, 2)


def _turned_store(keys, entries, cos, sin):
    """All pages in the place of their own, those of one list turned: ``(1, G, P T, D)``."""
    one, two = keys[entries[0, :, 0].long()].float().chunk(2, -1)
    cos, sin = cos[0, :, None, None], sin[0, :, None, None]
    turned = torch.cat([one * cos - two * sin, two * cos + one * sin], -1).to(keys.dtype)
    store = keys.index_copy(0, entries[0, :, 0].long(), turned)
    return store.flatten(0, 1).transpose(0, 1)[None]


def _whole(query, keys, values, entries, q_start, cos, sin, far):
    """Plain attention over everything stored, what is not listed masked."""
    seen = torch.zeros(keys.shape[:2], dtype=torch.bool, device=keys.device)
    seen[entries[0, :, 0].long()] = True
    store, value = _turned_store(keys, entries, cos, sin), values.flatten(0, 1).transpose(0, 1)
    rows, mask = query.transpose(1, 2), seen.flatten().expand(1, 1, query.shape[1], -1)
    return sdpa(rows, store, value[None], mask, enable_gqa=True).transpose(1, 2)


def _anywhere(batch, head, query, key):
    return query >= 0


@cache
def _compiled_flex():
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


def _flex(query, keys, values, entries, q_start, cos, sin, far):
    """Compiled FlexAttention over everything stored, by a list of blocks."""
    from torch.nn.attention.flex_attention import BlockMask

    pages, listed, count = len(keys), entries.shape[1], query.shape[1]
    shape = 1, 1, -(-count // ROWS)
    numbers = torch.zeros(*shape, pages, dtype=torch.int32, device=keys.device)
    numbers[..., :listed] = entries[0, :, 0]
    counts = torch.full(shape, listed, dtype=torch.int32, device=keys.device)
    lengths = count, pages * TOKENS
    blocks = BlockMask.from_kv_blocks(
        counts, numbers, BLOCK_SIZE=(ROWS, TOKENS), mask_mod=_anywhere, seq_lengths=lengths
    )
    store, value = _turned_store(keys, entries, cos, sin), values.flatten(0, 1).transpose(0, 1)
    rows = query.transpose(1, 2)
    seen = _compiled_flex()(rows, store, value[None], block_mask=blocks, enable_gqa=True)
    return seen.transpose(1, 2)


def _case(
    batch: int, count: int, listed: int, dtype: torch.dtype, *,
    processor: bool = False, small: bool = False,
) -> Case:  # fmt: skip
    """All that is listed is seen by all, so that plain attention is the same."""
    pages = 512 if processor else 4096

    def inputs(device: str, seed: int) -> Inputs:
        query = normal(device, seed, batch, count, HEADS, WIDTH, dtype=dtype)
        keys = normal(device, seed + 1, pages, TOKENS, GROUPS, WIDTH, dtype=dtype)
        values = normal(device, seed + 2, pages, TOKENS, GROUPS, WIDTH, dtype=dtype)
        angles = normal(device, seed + 3, batch, listed, WIDTH // 2)
        entries = torch.zeros(batch, listed, 4, dtype=torch.int32, device=device)
        if device != "meta":
            entries[..., 0] = normal(device, seed + 4, batch, pages).argsort(1)[:, :listed].int()
            entries[..., 2] = TOKENS
        start = torch.zeros(batch, dtype=torch.int32, device=device)
        return query, keys, values, entries, start, angles.cos(), angles.sin(), listed

    def planned(form):
        def run(query, keys, values, entries, q_start, cos, sin, far):
            reads = Reads(entries, q_start, far, ALL, cos.float(), sin.float(), TOKENS)
            return form(query, keys, values, reads)[0]

        return run

    def ours(query, keys, values, entries, q_start, cos, sin, far):
        from kernels.memory_attention import triton

        plan = entries, q_start, cos, sin, far, ALL, TOKENS
        return triton.run(query, keys, values, *plan)[0]

    length, size = listed * TOKENS, dtype.itemsize
    baselines = {"gather + SDPA": _plain(None), "products and softmax": _explicit}
    if processor:
        baselines |= {"all stored + mask": _whole, "flex, compiled": _flex}
    else:
        baselines |= {
            "gather + SDPA flash": _plain(SDPBackend.FLASH_ATTENTION),
            "gather + SDPA cuDNN": _plain(SDPBackend.CUDNN_ATTENTION),
        }
    return Case(
        "memory_attention",
        f"{batch} x {count} over {length} {dtype}".replace("torch.", ""),
        inputs,
        ours,
        planned(reference.memory_attention),
        planned(cpu.memory_attention),
        baselines,
        moved=float(batch * size * (2 * length * GROUPS * WIDTH + 2 * count * HEADS * WIDTH)),
        flops=4.0 * batch * count * HEADS * length * WIDTH,
        tolerance=1e-5 if dtype == torch.float32 else 1e-2,
        processor=processor,
        small=small,
    )


CASES = [
    _case(1, 1, 264, torch.bfloat16),
    _case(8, 1, 264, torch.bfloat16),
    _case(32, 1, 264, torch.bfloat16),
    _case(1, 196, 264, torch.bfloat16),
    _case(1, 1568, 264, torch.bfloat16),
    _case(1, 1, 97, torch.float32, processor=True),
    _case(1, 1, 97, torch.bfloat16, processor=True),
    _case(1, 196, 97, torch.float32, processor=True),
    _case(1, 196, 97, torch.bfloat16, processor=True),
    _case(2, 3, 2, torch.float32, small=True),
    _case(1, 1, 3, torch.bfloat16, small=True),
]
