"""A KV memory on disk passes its bounds in RAM and on disk at no moment."""

from __future__ import annotations

import tempfile
from pathlib import Path

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
    on_disk,
    prompt,
    state,
    watched,
    wide,
    wide_frame,
)

from vismem.errors import StoreError, UsageError
from vismem.kv_store import DurableKV
from vismem.kv_store.sizes import DiskSizes
from vismem.store import MemoryStore


@settings(max_examples=15, derandomize=True)
@given(
    more=st.integers(0, 60_000),
    budget=st.integers(1_000, 60_000),
    log=st.sampled_from([None, 0, 3_000, LOG]),
    sizes=st.sampled_from([{}, {"block": 1}, {"block": 40}, {"window": 1}, {"max_tokens": 8}]),
    late=st.sampled_from([0, 30_000]),
)
def test_neither_ram_nor_disk_is_ever_passed(
    more: int, budget: int, log: int | None, sizes: dict[str, int], late: int
) -> None:
    given = config(**sizes)
    least = DiskSizes(given, log).least(prompt().nbytes)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder) / "m"
        disk = least + more + 3 * late
        memory = begin(path, config=given, budget=budget, disk=disk, log=log)
        with watched(path, patch) as most:
            for number in range(WRITES):
                beside = {"companion": {"late": torch.zeros(late, dtype=torch.uint8)}}
                report = memory.write_kv(**frame(number) | (beside if number > 40 else {}))
                assert report.nbytes == memory.nbytes <= budget
                assert on_disk(path) <= disk
                assert most[0] <= disk, "while it was sealing"
        before = state(memory)
        memory.close()
        with DurableKV.open(path) as memory:
            assert equal(state(memory), before) and memory.nbytes <= budget


def test_a_companion_that_comes_late_and_is_large_finds_its_room(path: Path) -> None:
    """The log is far from full, but what it is to be sealed into no longer fits."""
    size = 125_000
    least = DiskSizes(config(), 60_000).least(prompt().nbytes)
    with (
        begin(path, disk=least + 100_000, log=60_000) as memory,
        pytest.MonkeyPatch.context() as patch,
        watched(path, patch) as most,
    ):
        fill(memory, range(700))
        memory.seal()
        fill(memory, range(700, 705))
        beside = {"companion": {"last": torch.zeros(size, dtype=torch.uint8)}}
        assert memory.write_kv(**frame(705) | beside).dropped > 0
        fill(memory, range(706, 780))
        assert most[0] <= least + 100_000


def test_the_log_is_sealed_before_a_write_that_could_not_be_sealed_later(path: Path) -> None:
    """A log with room for the record, but no room for the state that has the companion as well."""
    log, size = 1_000_000, 950_000
    sizes = wide(precision="int4")
    disk = DiskSizes(sizes, log).least() + log
    with (
        DurableKV(path, sizes, 20_000_000, disk, log=log) as memory,
        pytest.MonkeyPatch.context() as patch,
        watched(path, patch) as most,
    ):
        given_up = 0
        for number in range(401):
            memory.write_kv(wide_frame(number), float(number))
            given_up += memory.seal() if number % 20 == 19 else 0
        assert given_up > 0, "the directory is as full as it may be"
        beside = {"last": torch.zeros(size, dtype=torch.uint8)}
        assert memory.write_kv(wide_frame(401), 401.0, companion=beside).dropped > 0
        assert memory.logged == 1
        memory.seal()
        assert most[0] <= disk


def test_blocks_that_are_in_ram_alone_are_sealed_before_they_crowd_it(path: Path) -> None:
    """The log is far from full, but a record that is in no file cannot leave RAM."""
    with DurableKV(path, wide(), 1_000_000, 9_000_000, log=1_300_000) as memory:
        for number in range(60):
            report = memory.write_kv(wide_frame(number), float(number))
            unsealed = sum(block.packed.nbytes for block in memory.memory.unsealed())
            assert report.dropped == 0 and unsealed <= memory.budget.bytes / 4
        assert len(memory.blocks) == 60 and memory.logged > 5


def test_the_oldest_whole_segments_go_first_and_are_reported(path: Path) -> None:
    least = DiskSizes(config(), LOG).least(prompt().nbytes)
    with begin(path, disk=least) as memory:
        made = dropped = 0
        for number in range(400):
            dropped += memory.write_kv(**frame(number)).dropped
            numbers = [block.number for block in memory.blocks]
            made = numbers[-1] + 1 if numbers else 0
            assert numbers == list(range(dropped, made))
        with MemoryStore.open(path, read_only=True) as store:
            segments = store.segments()
        held = [n for segment in segments for n in segment.columns["number"].tolist()]
        assert held[0] == dropped > 0 and held == list(range(held[0], held[-1] + 1))
        assert len(segments) >= 2, "what fits is kept"


def test_a_disk_that_is_too_small_is_refused_with_the_figure_that_is_needed(path: Path) -> None:
    sizes = DiskSizes(config(), LOG)
    with pytest.raises(UsageError, match=f"give at least {sizes.least()}"):
        DurableKV(path, config(), 1_000_000, sizes.least() - 1, log=LOG)
    assert not path.exists()
    with DurableKV(path, config(), 1_000_000, sizes.least(), log=LOG) as memory:
        least = sizes.least(prompt().half().nbytes)
        with pytest.raises(UsageError, match=f"give at least {least}"):
            memory.start(prompt())
        assert memory.memory.seen == 0
        fill(memory, range(50))
    with pytest.raises(UsageError, match="give at least"):
        DurableKV.open(path, disk="1kB")
    DurableKV.open(path).close()


def test_a_companion_that_no_disk_has_room_for_is_refused(path: Path) -> None:
    with begin(path) as memory:
        fill(memory, range(20))
        before = answers(memory)
        huge = {"last": torch.zeros(2_000_000)}
        with pytest.raises(StoreError, match="this write alone needs.*larger disk budget"):
            memory.write_kv(**{**frame(20), "companion": huge})
        assert equal(answers(memory), before)
        fill(memory, range(20, 40))


def test_other_budgets_may_be_given_when_it_is_opened(path: Path) -> None:
    with begin(path) as memory:
        fill(memory, range(WRITES))
        blocks = len(memory.blocks)
    least = DiskSizes(config(), LOG).least(prompt().nbytes)
    with DurableKV.open(path, budget=9_000, disk=least) as memory:
        assert memory.nbytes <= memory.budget.bytes == 9_000
        fill(memory, range(WRITES, 2 * WRITES))
        assert on_disk(path) <= least and memory.nbytes <= 9_000
        assert len(memory.blocks) < blocks
    with pytest.raises(ValueError, match="no size"):
        DurableKV.open(path, disk="much")
    with DurableKV.open(path) as memory:
        assert memory.disk.bytes == 2_000_000
