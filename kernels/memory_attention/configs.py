"""Tile sizes of attention over pages."""

from __future__ import annotations

import torch

from ..tuning import Config, config_for

DECODE = 16  # rows that a program has at least: the least a product of tiles takes
Sizes = dict[str, list[Config]]


def _config(rows: int, keys: int, warps: int, stages: int) -> Config:
    return Config({"BLOCK_M": rows, "BLOCK_N": keys}, warps, stages)


SHORTLIST: Sizes = {
    "decode": [_config(16, 64, 4, 3), _config(16, 64, 4, 4), _config(16, 128, 4, 3)],
    "prefill": [_config(64, 64, 8, 3), _config(64, 64, 8, 2)],
    "decode wide": [_config(16, 32, 4, 3), _config(16, 32, 4, 4), _config(16, 64, 8, 3)],
    "prefill wide": [_config(64, 32, 8, 3), _config(64, 64, 8, 2), _config(64, 32, 8, 2)],
    "decode odd": [_config(16, 32, 4, 2)],
    "prefill odd": [_config(32, 32, 4, 2)],
    "decode wide odd": [_config(16, 16, 8, 1)],
    "prefill wide odd": [_config(16, 16, 8, 1)],
    "decode float32": [_config(16, 32, 4, 2), _config(16, 64, 8, 2)],
    "prefill float32": [_config(32, 32, 8, 2), _config(64, 32, 8, 2)],
    "decode wide float32": [_config(16, 16, 8, 1), _config(16, 32, 8, 1)],
    "prefill wide float32": [_config(16, 16, 8, 1), _config(32, 16, 8, 1)],
    "merge": [Config({"BLOCK_M": 4}, 4, 1), Config({"BLOCK_M": 1}, 4, 1)],
}


def case(rows: int, width: int, wide: int, dtype: torch.dtype) -> str:
    """Which list fits: rows of a key head, widths of keys and values, type."""
    kind = "decode" if rows <= DECODE else "prefill"
    large = " wide" if max(width, wide) > 128 else ""
    if dtype == torch.float32:
        return f"{kind}{large} float32"
    # Halves of a head that begin off a multiple of 16 bytes are loaded in small pieces.
    return f"{kind}{large} odd" if width % 16 or wide % 8 else f"{kind}{large}"


def config(name: str) -> Config:
    """Sizes for a case."""
    return config_for("memory_attention", name, SHORTLIST[name])


def splits(programs: int, tiles: int, processors: int) -> int:
    """Into how many parts keys are cut, for all processors of a GPU to have two programs to run.

    Args:
        programs: That there are without.
        tiles: Of keys that each goes through.
        processors: Of the device.
    """
    return max(1, min(2 * processors // max(programs, 1), tiles))
