"""What a KV memory on disk forgets is gone from every file."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from tiny_kv import (
    LOG,
    WRITES,
    begin,
    config,
    equal,
    fill,
    frame,
    prompt,
    state,
    watched,
    wide,
    wide_frame,
)

from vismem.errors import StoreError
from vismem.kv_store import DurableKV
from vismem.kv_store.sizes import DiskSizes
from vismem.store import MemoryStore, verify


@pytest.mark.parametrize("tight", [False, True])
def test_what_is_forgotten_is_in_no_file(path: Path, tight: bool) -> None:
    least = DiskSizes(config(precision="model"), LOG).least(prompt().nbytes)
    disk = least if tight else 2_000_000
    with (
        begin(path, config=config(precision="model"), disk=disk) as memory,
        pytest.MonkeyPatch.context() as patch,
    ):
        fill(memory, range(200))
        middle = memory.blocks[len(memory.blocks) // 2]
        span = middle.first, middle.last
        secret = middle.packed.numpy().tobytes()[-48:]
        memory.seal()
        assert any(secret in file.read_bytes() for file in path.iterdir())
        count = len(memory.blocks)
        with watched(path, patch) as most:
            gone = memory.forget(*span)
        assert gone > 0 and most[0] <= disk
        assert count > len(memory.blocks) > 0
        assert not any(secret in file.read_bytes() for file in path.iterdir())
        assert not any(b.first <= span[1] and b.last >= span[0] for b in memory.blocks)
        fill(memory, range(200, 230))
        after = state(memory)
    assert verify(path).ok
    with DurableKV.open(path) as memory:
        assert equal(state(memory), after)


@pytest.mark.parametrize("segments", [4, 9])
def test_forgetting_makes_room_for_the_segments_that_it_writes_again(
    path: Path, segments: int
) -> None:
    """Two full segments, and a full log beside: more than what is kept free for the next seal."""
    log = 400_000
    sizes = DiskSizes(wide(), log)
    disk = sizes.least() + segments * sizes.segment(sizes.cycle)
    with (
        DurableKV(path, wide(), 20_000_000, disk, log=log) as memory,
        pytest.MonkeyPatch.context() as patch,
    ):
        numbers = iter(range(1000))
        for number in numbers:
            if memory.write_kv(wide_frame(number), float(number)).dropped:
                break
        for number in numbers:
            memory.write_kv(wide_frame(number), float(number))
            if next(path.glob("tail_*")).stat().st_size > 0.9 * log:  # about to seal
                break
        with MemoryStore.open(path, read_only=True) as store:
            inside = [segment.columns["number"].tolist() for segment in store.segments()]
        first, last = float(inside[-2][-1]), float(inside[-1][0])
        oldest, count = memory.blocks[0].number, len(memory.blocks)
        with watched(path, patch) as most:
            memory.forget(first, last)
        assert most[0] <= disk
        assert not any(first <= block.first <= last for block in memory.blocks)
        assert oldest < memory.blocks[0].number <= inside[-2][0], "the oldest, and not all"
        assert count > len(memory.blocks) > len(inside[-1])


def test_what_was_forgotten_and_found_no_room_goes_with_the_next_write(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with begin(path) as memory:
        fill(memory, range(WRITES))

        def full(*_: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", full)
            with pytest.raises(StoreError, match="disk is full"):
                memory.forget(-1.0, 1.0)
        assert memory.blocks[0].first > 1.0
        memory.write_kv(**frame(WRITES))
        with MemoryStore.open(path, read_only=True) as store:
            firsts = [float(s.columns["times"].min()) for s in store.segments()]
        assert min(firsts) > 1.0
