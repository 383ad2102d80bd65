"""What the tests of a KV memory on disk share."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_kv import WRITES, config, frame, prompt
from torch import Tensor

from vismem.memory.kv.memory import KVMemory


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "stream.kv"


@pytest.fixture(scope="module")
def plain() -> list[dict[str, Tensor]]:
    """State after so many writes of a memory that lives in RAM and was never interrupted."""
    memory = KVMemory(config(), 1_000_000)
    memory.start(prompt())
    states = [memory.state_dict()]
    for number in range(WRITES):
        memory.write_kv(**frame(number))
        states.append(memory.state_dict())
    return states
