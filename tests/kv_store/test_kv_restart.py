"""A KV memory on disk, opened again, goes on as if nothing had happened."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_kv import (
    LOG,
    WRITES,
    answers,
    begin,
    config,
    equal,
    fill,
    frame,
    prompt,
    state,
    watched,
)
from torch import Tensor

from vismem.errors import StoreError, UsageError
from vismem.kv_store import DurableKV
from vismem.kv_store.sizes import DiskSizes
from vismem.memory.kv.memory import KVMemory
from vismem.memory.kv.shape import KVShape
from vismem.store import MemoryStore

# ---------------------------------------------------------------------- restart


def test_a_directory_changes_nothing(path: Path, plain: list[dict[str, Tensor]]) -> None:
    with begin(path) as memory:
        for number in range(WRITES):
            memory.write_kv(**frame(number))
            assert equal(state(memory), plain[number + 1])
        assert len(MemoryStore.open(path, read_only=True).segments()) > 3
        assert memory.memory.held()["cold"] > 0
        assert not memory.problems and not memory.lost


def test_opened_again_after_every_write(path: Path, plain: list[dict[str, Tensor]]) -> None:
    memory = begin(path)
    for number in range(WRITES):
        memory.write_kv(**frame(number))
        memory.close()
        memory = DurableKV.open(path, config(), identity={"model": "tiny"})
        assert equal(state(memory), plain[number + 1]), number
        assert not memory.lost
    assert answers(memory).keys() > {"keys 0", "values 1", "companion last"}
    memory.close()


@settings(max_examples=15, derandomize=True)
@given(st.sets(st.integers(0, WRITES)), st.sets(st.integers(0, WRITES)))
def test_a_tight_memory_opened_and_sealed_anywhere_is_as_one_that_never_was(
    opened: set[int], sealed: set[int]
) -> None:
    """Blocks are given up on disk and leave RAM; neither may depend on when it was opened."""
    least = DiskSizes(config(), LOG).least(prompt().nbytes)
    with tempfile.TemporaryDirectory() as folder:
        sizes = {"budget": 30_000, "disk": least + 10_000}
        one, other = (begin(Path(folder) / name, **sizes) for name in ("one", "other"))
        for number in range(WRITES):
            if number in sealed:
                one.seal()
                other.seal()
            if number in opened:
                other.close()
                other = DurableKV.open(Path(folder) / "other")
            reports = [memory.write_kv(**frame(number)) for memory in (one, other)]
            assert reports[0].dropped == reports[1].dropped
            assert equal(state(one), state(other))
        assert equal(answers(one), answers(other))
        one.close()
        other.close()


@pytest.mark.parametrize("precision", ["model", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_precision_and_type_comes_back(path: Path, precision: Any, dtype: Any) -> None:
    sizes = config(precision=precision, dtype=dtype, embedding_dim=0, block=5)
    plain = KVMemory(sizes, 1_000_000)
    with begin(path, config=sizes) as memory:
        plain.start(prompt())
        for number in range(30):
            for one in (memory, plain):
                one.write_kv(frame(number)["kv"], float(number))
    with DurableKV.open(path) as memory:
        assert memory.config == sizes
        assert {k: v.tolist() for k, v in state(memory).items()} == {
            k: v.tolist() for k, v in plain.state_dict().items()
        }


def test_two_directories_of_one_stream_seal_at_the_same_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = []
    for chance in (lambda bits: 5, lambda bits: 2**bits - 1):
        monkeypatch.setattr("vismem.kv_store.durable.secrets.randbits", chance)
        with begin(tmp_path / str(len(logs)), log=100_000) as memory:
            fill(memory, range(10))
            logs.append(memory._store.nbytes["tail"])
    assert logs[0] == logs[1]  # whatever number the stream was given


def test_sealed_blocks_leave_ram_and_are_read_from_the_file(path: Path) -> None:
    wide = config(shape=KVShape(2, 2, 1, 64), precision="model", block=24, embedding_dim=0)
    generator = torch.Generator().manual_seed(0)
    with (
        DurableKV(path, wide, 2_000_000, 4_000_000, log=20_000) as large,
        DurableKV(path.with_name("small"), wide, 600_000, 4_000_000, log=20_000) as small,
    ):
        for number in range(300):
            kv = torch.randn(2, 2, 1, 8, 64, generator=generator)
            for memory in (large, small):
                memory.write_kv(kv, float(number))
                assert memory.nbytes <= memory.budget.bytes
        assert small.memory.held()["ram"] < small.memory.held()["cold"] / 2
        assert large.memory.held()["ram"] == 100 * wide.record_bytes
        assert len(small.blocks) == len(large.blocks) == 100
        assert equal(answers(small), answers(large))
        assert equal(answers(small), answers(large)), "and again, from where they came up to"
        assert small.nbytes <= 600_000
        record = small.blocks[0].cold
        assert record is not None and record.data_ptr() % 16 == 0
        assert "seg_0-" in Path("/proc/self/maps").read_text()


# ---------------------------------------------------------------------- adopting


def test_a_memory_from_ram_is_adopted_whole(path: Path, plain: list[dict[str, Tensor]]) -> None:
    memory = KVMemory(config(), 1_000_000)
    memory.start(prompt())
    fill(memory, range(50))
    with DurableKV(path, config(), 1_000_000, 2_000_000, log=LOG) as durable:
        assert durable.adopt(memory) == 0
        assert equal(state(durable), plain[50])
        assert not durable.memory.unsealed()
        assert durable.held()["disk"] == durable.disk_bytes > 0
    with DurableKV.open(path) as durable:
        assert equal(state(durable), plain[50])
        fill(durable, range(50, WRITES))
        assert equal(state(durable), plain[WRITES])
        for _ in range(2):
            with pytest.raises(UsageError, match="holds a stream already"):
                durable.adopt(memory)
            durable.seal()  # nothing is in the log, and still it holds a stream
        assert equal(state(durable), plain[WRITES])


def test_what_is_too_large_to_be_adopted_loses_its_oldest_blocks_alone(path: Path) -> None:
    memory = KVMemory(config(), 1_000_000)
    fill(memory, range(600))
    least = DiskSizes(config(), LOG).least() + 1000  # for the companion
    with (
        DurableKV(path, config(), 1_000_000, least, log=LOG) as durable,
        pytest.MonkeyPatch.context() as patch,
    ):
        with watched(path, patch) as most:
            gone = durable.adopt(memory)
        assert most[0] <= least
        numbers = [block.number for block in durable.blocks]
        assert numbers == list(range(gone, len(memory.blocks))) and gone > 0
        assert len(numbers) >= DiskSizes(config(), LOG).cycle
        assert len(memory.blocks) == gone + len(numbers), "the one in RAM is as it was"


def test_adopting_another_configuration_or_onto_a_full_disk_changes_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = fill(KVMemory(config(), 1_000_000), range(20))
    with DurableKV(path, config(), 1_000_000, 2_000_000, log=LOG) as durable:
        with pytest.raises(ValueError, match="another model or configuration"):
            durable.adopt(KVMemory(config(block=5), 1_000_000))

        def full(*_: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", full)
            with pytest.raises(StoreError, match="disk is full"):
                durable.adopt(memory)
        assert durable.memory.seen == 0
        durable.adopt(memory)
        assert equal(answers(durable), answers(memory))


def test_a_seal_that_failed_when_it_was_done_is_taken_note_of(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest is in its place, and then its folder cannot be forced to the medium."""
    least = DiskSizes(config(), LOG).least(prompt().nbytes)
    one, other = (begin(path.with_name(name), disk=least) for name in ("one", "other"))
    for memory in (one, other):
        fill(memory, range(150))

    real, failed = os.replace, []

    def replace(source: Any, target: Any) -> None:
        real(source, target)
        if str(target).endswith("manifest.json"):
            failed.append(target)
            raise OSError(errno.EIO, "Input/output error")

    refused = 0
    for number in range(150, 200):
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", replace)
            try:
                one.write_kv(**frame(number))
            except StoreError:
                refused += 1
                one.write_kv(**frame(number))
        other.write_kv(**frame(number))
        assert equal(state(one), state(other))
    assert refused == len(failed) > 3
    names = [
        [segment.name for segment in MemoryStore.open(memory_path, read_only=True).segments()]
        for memory_path in (path.with_name("one"), path.with_name("other"))
    ]
    assert names[0] == names[1]
    for memory in (one, other):
        memory.close()
