"""Tile sizes of attention to rows, of its forward and its two backward kernels."""

from __future__ import annotations

import torch

from ..tuning import Config, config_for


def _list(*sizes: tuple[int, int, int, int]) -> list[Config]:
    return [Config({"BLOCK_M": m, "BLOCK_N": n}, warps, stages) for m, n, warps, stages in sizes]


# By kernel, and by the wider of keys and values: up to 64, 128 and 256 columns.
HALF = {
    "attend": {
        64: _list((64, 64, 4, 2), (64, 64, 8, 3), (64, 32, 4, 3)),
        128: _list((128, 64, 8, 2), (64, 64, 4, 2)),
        256: _list((64, 32, 8, 3), (64, 64, 8, 2)),
    },
    "grad_query": {
        64: _list((128, 64, 8, 2), (64, 64, 4, 2)),
        128: _list((64, 64, 8, 2), (64, 32, 4, 2)),
        256: _list((64, 32, 8, 2), (32, 32, 4, 2)),
    },
    "grad_keys": {
        64: _list((64, 128, 8, 2), (64, 64, 4, 2)),
        128: _list((32, 64, 8, 2), (32, 32, 4, 2)),
        256: _list((32, 32, 8, 2), (32, 64, 8, 2)),
    },
}
NARROW_VALUES = {  # keys of more than 128 columns, values of 64 at most: SAM 2
    "attend": _list((128, 64, 8, 2), (128, 64, 8, 3), (128, 32, 8, 3)),
    "grad_query": _list((64, 64, 8, 2), (64, 32, 8, 2)),
    "grad_keys": _list((32, 64, 8, 2), (64, 64, 8, 2)),
}
# Float32 is multiplied exactly, by plain arithmetic units: only small tiles stay in registers.
FULL = {
    64: _list((32, 16, 8, 1), (16, 32, 8, 1), (16, 16, 4, 1)),
    128: _list((16, 16, 8, 1)),
    256: _list((16, 16, 16, 2)),
}
FULL_NARROW_VALUES = _list((32, 16, 8, 1), (16, 16, 8, 1))


def config(kernel: str, keys: int, values: int, dtype: torch.dtype) -> Config:
    """Sizes of a kernel for rows of a width, padded to powers of two."""
    width, narrow = max(64, keys, values), keys == 256 and values <= 64
    if dtype == torch.float32:
        shortlist = FULL_NARROW_VALUES if narrow else FULL[width]
    else:
        shortlist = NARROW_VALUES[kernel] if narrow else HALF[kernel][width]
    kind = "full" if dtype == torch.float32 else "half"
    case = f"{kernel}, {kind}, {width}{' to 64' if narrow else ''}"
    return config_for("cross_attention", case, shortlist)
