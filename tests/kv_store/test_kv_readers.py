"""Readers of a KV memory on disk while another writes."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from tiny_kv import LOG, WRITES, begin, config, equal, fill, frame, prompt, state
from torch import Tensor

from vismem.errors import StoreError, UsageError
from vismem.kv_store import DurableKV
from vismem.kv_store.sizes import DiskSizes


def test_a_reader_sees_what_was_acknowledged_while_another_writes(
    path: Path, plain: list[dict[str, Tensor]]
) -> None:
    memory = begin(path)
    acknowledged = 0
    looks = []

    def write() -> None:
        nonlocal acknowledged
        for number in range(WRITES):
            memory.write_kv(**frame(number))
            acknowledged = number + 1

    thread = threading.Thread(target=write)
    thread.start()
    while thread.is_alive() or not looks:
        before = acknowledged
        with DurableKV.open(path, read_only=True) as reader:
            seen = int(reader.memory.working_state()["numbers"][2])
            assert before <= seen <= acknowledged + 1
            assert equal(state(reader), plain[seen])
            looks.append(seen)
            with pytest.raises(UsageError, match="read-only"):
                reader.write_kv(**frame(0))
            for refused in (reader.seal, lambda: reader.forget(0, 1), lambda: reader.start(0)):
                with pytest.raises(UsageError, match="read-only"):
                    refused()
    thread.join()
    assert acknowledged == WRITES and len(set(looks)) > 2
    with pytest.raises(StoreError, match="is being written"):
        DurableKV.open(path)
    memory.close()


def test_a_snapshot_outlives_what_it_shows(path: Path) -> None:
    least = DiskSizes(config(), LOG).least(prompt().nbytes)
    with begin(path, disk=least) as memory:
        fill(memory, range(100))
        snapshot = memory.snapshot()
        rows = torch.arange(len(snapshot.blocks))
        before = snapshot.gather(1, rows, snapshot.tick())
        oldest = snapshot.blocks[0].number
        fill(memory, range(100, 400))
        assert memory.blocks[0].number > oldest
        after = snapshot.gather(1, rows, snapshot.tick())
        assert all(map(torch.equal, before, after))


def test_questions_are_answered_while_it_writes_and_seals(path: Path) -> None:
    memory = begin(path, budget=24_000)
    failure: list[BaseException] = []
    done = threading.Event()
    asked = 0

    def ask() -> None:
        nonlocal asked
        try:
            while not done.is_set():
                snapshot = memory.snapshot()
                tick = snapshot.tick()
                rows = torch.arange(0, len(snapshot.blocks), 2)
                keys, _ = snapshot.gather(asked % 2, rows, tick)
                assert keys.shape[1] == 6 * len(rows) and bool(keys.isfinite().all())
                for place in rows.tolist()[:1]:
                    block = snapshot.blocks[place]
                    mean = snapshot.representatives(asked % 2)[place].float()
                    assert torch.allclose(keys[:, :6].float().mean(1), mean, atol=0.05), block
                asked += 1
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    fill(memory, range(600))
    done.set()
    thread.join()
    assert not failure and asked > 5
    memory.close()
