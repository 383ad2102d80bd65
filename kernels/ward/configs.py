"""Tile sizes of Ward's cost."""

from __future__ import annotations

from ..tuning import Config, config_for

SHORTLIST = [
    Config({"BLOCK_K": 4, "BLOCK_S": 512}, warps=4),
    Config({"BLOCK_K": 1, "BLOCK_S": 1024}, warps=4),
    Config({"BLOCK_K": 16, "BLOCK_S": 128}, warps=4),
]


def config(width: int) -> Config:
    """Sizes for keys of a width."""
    return config_for("merge_costs", "wide" if width > 512 else "narrow", SHORTLIST)
