"""A small `DurableKV`, frames to write into it, and what may be compared of two."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vismem.kv_store import DurableKV
from vismem.memory.kv.config import KVConfig
from vismem.memory.kv.memory import KVMemory
from vismem.memory.kv.shape import KVShape

SHAPE = KVShape(layers=2, heads=4, kv_heads=2, head_dim=4)
LOG = 8_000  # bytes: a seal about every eight writes
WRITES = 64


def config(**more: Any) -> KVConfig:
    sizes: dict[str, Any] = {"precision": "int8", "block": 6, "window": 18, "max_tokens": 8}
    shape = more.pop("shape", SHAPE)
    return KVConfig(shape, **{**sizes, "embedding_dim": 3, **more})


def begin(path: Path, **more: Any) -> DurableKV:
    """A new memory; the init prompt is in it."""
    given = {"budget": 1_000_000, "disk": 2_000_000, "log": LOG, "identity": {"model": "tiny"}}
    memory = DurableKV(path, more.pop("config", config()), **{**given, **more})
    memory.start(prompt())
    return memory


def prompt() -> Tensor:
    return torch.randn(2, 2, 2, 3, 4, generator=torch.Generator().manual_seed(99))


def frame(number: int) -> dict[str, Any]:
    """The arguments of a write: of different lengths, some with a companion, some times equal."""
    generator = torch.Generator().manual_seed(number)
    count = 1 + number * 5 % 8
    given: dict[str, Any] = {
        "kv": torch.randn(2, 2, 2, count, 4, generator=generator),
        "time": number // 2 * 0.1,
        "coords": torch.randint(0, 99, (count, 3), generator=generator),
        "embedding": torch.randn(3, generator=generator),
    }
    if number % 5 == 3:
        given["companion"] = {"last": torch.randn(7, generator=generator), "n": torch.tensor(1)}
    return given


def wide(**more: Any) -> KVConfig:
    """Blocks that are large beside what they are found by; one write is one block."""
    given: dict[str, Any] = {"precision": "model", "block": 24, "window": 24, "max_tokens": 24}
    return KVConfig(KVShape(2, 2, 1, 64), **{**given, **more})


def wide_frame(number: int) -> Tensor:
    return torch.randn(2, 2, 1, 24, 64, generator=torch.Generator().manual_seed(number))


def fill(memory: DurableKV | KVMemory, numbers: range) -> Any:
    for number in numbers:
        memory.write_kv(**frame(number))
    return memory


def answers(memory: DurableKV | KVMemory) -> dict[str, Tensor]:
    """All that a reader can see, in tensors: rows, keys, values, window, companion."""
    snapshot, held = memory.snapshot(), dict[str, Tensor]()
    tick = snapshot.tick()
    for layer in range(SHAPE.layers):
        held[f"mean {layer}"] = snapshot.representatives(layer)
        rows = torch.arange(len(snapshot.blocks))
        held[f"keys {layer}"], held[f"values {layer}"] = snapshot.gather(layer, rows, tick)
    recall = snapshot.read()
    held |= {"times": recall.times, "sources": recall.sources, "sinks": snapshot.sinks}
    held |= {f"window {chunk.source}": chunk.kv for chunk in snapshot.window}
    held["seen"] = torch.tensor([snapshot.seen, snapshot.packed])
    held["embeddings"] = snapshot.embeddings()
    return held | {f"companion {name}": value for name, value in memory.companion.items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether both are the same, bit for bit."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype
        and one[name].shape == other[name].shape
        and one[name].numpy().tobytes() == other[name].numpy().tobytes()
        for name in one
    )


def state(memory: DurableKV) -> dict[str, Tensor]:
    """All state of the memory itself."""
    return memory.memory.state_dict()


def on_disk(path: Path) -> int:
    total = 0
    for entry in os.scandir(path):
        with contextlib.suppress(FileNotFoundError):
            total += entry.stat().st_size
    return total


def about_to_seal(path: Path) -> int:
    """Make a memory whose next write seals first; gives the number of that write."""
    with begin(path) as memory:
        for number in range(WRITES):
            before = memory.disk_bytes
            memory.write_kv(**frame(number))
            if number > 30 and memory.disk_bytes < before:
                break
    shutil.rmtree(path)
    with begin(path) as memory:
        fill(memory, range(number))
    return number


@contextlib.contextmanager
def watched(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The largest size of a directory at any time that a file is written or replaced in it."""
    most = [0]
    for name in ("fsync", "replace", "unlink"):
        real = getattr(os, name)

        def look(*given: Any, real: Any = real, **more: Any) -> Any:
            most[0] = max(most[0], on_disk(path))
            return real(*given, **more)

        monkeypatch.setattr(os, name, look)
    yield most
    monkeypatch.undo()
