"""Tile sizes of kernels: those measured on a device where there are some, else the first listed.

Nothing is timed while a program runs: `benchmarks/kernels/gpu_bench.py --tune` measures once, and
writes ``tuned/<device>.json``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

__all__ = ["FOLDER", "Config", "Key", "config_for", "device_key", "trying"]

FOLDER = Path(__file__).parent / "tuned"
Key = tuple[str, str]  # name of an operator; which of its kernels, or which kind of input


@dataclass(frozen=True)
class Config:
    """How one kernel is cut into programs.

    Args:
        tiles: Constants of the kernel by name, ``BLOCK_M`` say.
        warps: Of 32 threads each, in a program.
        stages: How many tiles are on their way from memory at a time.
    """

    tiles: dict[str, int]
    warps: int = 4
    stages: int = 2

    @property
    def options(self) -> dict[str, int]:
        """As `launch` takes them."""
        return {**self.tiles, "num_warps": self.warps, "num_stages": self.stages}

    def as_json(self) -> dict[str, Any]:
        """As a file of tuned sizes keeps it; ``Config(**...)`` reads it again."""
        return asdict(self)


_tried: Mapping[Key, Config] = {}
_asked: dict[Key, list[Config]] | None = None


def config_for(op: str, case: str, shortlist: list[Config]) -> Config:
    """The measured sizes for this device, or the first of a list.

    Args:
        op: Name of the operator.
        case: Which of its kernels, or which kind of input.
        shortlist: Sizes that are worth a try, the best guess first.
    """
    if _asked is not None:
        _asked[op, case] = shortlist
    if (op, case) in _tried:
        return _tried[op, case]
    found = _tuned(device_key()).get(op, {}).get(case) if torch.cuda.is_available() else None
    return Config(**found) if found else shortlist[0]


@contextmanager
def trying(configs: Mapping[Key, Config]) -> Iterator[dict[Key, list[Config]]]:
    """Take other sizes in this block, and hear which shortlists were asked for.

    Args:
        configs: Sizes in place of those that would be chosen; the rest is chosen as ever.
    """
    global _tried, _asked
    before, _tried, _asked = (_tried, _asked), configs, {}
    try:
        yield _asked
    finally:
        _tried, _asked = before


@lru_cache
def device_key() -> str:
    """Name of the current device as a file name, ``nvidia_h200`` say."""
    return torch.cuda.get_device_name().lower().replace(" ", "_").replace("/", "_")


@lru_cache
def _tuned(device: str) -> dict[str, dict[str, Any]]:
    path = FOLDER / f"{device}.json"
    return json.loads(path.read_text()) if path.exists() else {}
