"""Tile sizes of scoring and choosing blocks."""

from __future__ import annotations

from ..tuning import Config, config_for

SHORTLIST = {
    "score": [
        Config({"BLOCK_N": 32, "BLOCK_S": 128}, 4, 3),
        Config({"BLOCK_N": 16, "BLOCK_S": 256}, 4, 3),
        Config({"BLOCK_N": 64, "BLOCK_S": 64}, 4, 3),
    ],
    "select": [Config({"BLOCK_N": 1024}, 8, 1), Config({"BLOCK_N": 512}, 4, 1)],
}


def config(name: str) -> Config:
    """Sizes for a kernel."""
    return config_for("block_topk", name, SHORTLIST[name])
