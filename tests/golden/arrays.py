"""Find the golden arrays: numbers computed with the published systems' own code.

They live outside the repository, in the folder named by ``VISMEM_GOLDEN`` (``../shared/golden`` by
default), one sub-folder a system. Where it is absent the tests skip, visibly.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

ROOT = Path(
    os.environ.get("VISMEM_GOLDEN", Path(__file__).resolve().parents[2] / "../shared/golden")
)


class Case:
    """One case of a file: its own arrays first, then those that all cases of the file share."""

    def __init__(self, path: Path, name: str, arrays: dict[str, np.ndarray]):
        self.path, self.name, self.arrays = path, name, arrays

    def __contains__(self, key: str) -> bool:
        return f"{self.name}.{key}" in self.arrays or key in self.arrays

    def array(self, key: str) -> np.ndarray:
        """The array as it was stored."""
        own = f"{self.name}.{key}"
        return self.arrays[own if own in self.arrays else key]

    def tensor(self, key: str) -> Tensor:
        """The array as a tensor; half precision is exact and comes as float32."""
        array = self.array(key)
        return torch.from_numpy(
            array.astype(np.float32) if array.dtype == np.float16 else array.copy()
        )

    def value(self, key: str) -> Any:
        """A single number or text as a plain Python value."""
        return self.array(key).item()

    def lists(self, key: str) -> list[list[int]]:
        """A list of lists, stored as ``<key>_flat`` and ``<key>_ptr``."""
        flat, ends = self.array(f"{key}_flat").tolist(), self.array(f"{key}_ptr").tolist()
        return [flat[a:b] for a, b in zip(ends, ends[1:], strict=False)]


def _cases(path: Path) -> Iterator[Case]:
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    for name in arrays["cases"].tolist() if "cases" in arrays else [""]:
        yield Case(path, name, arrays)


def golden(group: str, pattern: str) -> list[Any]:
    """Every case of every file of a kind, as parameters of a test.

    Args:
        group: Sub-folder, ``"pyramid"``.
        pattern: Glob of the files, ``"memory_bank_*.npz"``. A file without ``cases`` is one case.

    Returns:
        Parameters for ``pytest.mark.parametrize("case", ...)``; a skipped one if there are none.
    """
    found = [case for path in sorted((ROOT / group).glob(pattern)) for case in _cases(path)]
    if not found:
        reason = f"no {group}/{pattern} in {ROOT}; set VISMEM_GOLDEN"
        return [pytest.param(None, marks=pytest.mark.skip(reason=reason), id="absent")]
    return [pytest.param(case, id=f"{case.path.stem}-{case.name}".rstrip("-")) for case in found]
