"""A visual memory that is killed, or whose disk is full, loses nothing acknowledged."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from child import in_child
from tiny_memory import STEP, crash, fill, frame, replies, state_of

import vismem as vm
from vismem.errors import StoreError
from vismem.heads.nearest import nearest_by
from vismem.store import MemoryStore

# ---------------------------------------------------------------------- crashes


@pytest.mark.parametrize("policy", ["moments", "flash"])
def test_kill_minus_nine_loses_nothing_acknowledged(
    policy: str, make, path: Path, tiny, seal_often: None
) -> None:
    """Killed at many points, some within a seal; what comes of it is as if nothing had been."""
    total = 150
    make(6_000, path=path, policy=policy).close()

    def write_on(pipe: int) -> None:
        memory = vm.VisualMemory.open(path, encoder=tiny)
        for number in range(memory.describe()["frames"], total):
            # The clock is set back an hour on the way.
            at = number * STEP - (3600 if number >= 70 else 0)
            memory.write(frame(number, timestamp=at))
            memory.flush()
            os.write(pipe, bytes([number]))

    acknowledged = -1
    kills = 0
    for heard_before_kill in (1, 3, 6, 7, 8, 13, 20, 27, total):
        child, pipe = in_child(write_on)
        while heard := os.read(pipe, 1):
            assert heard[0] == acknowledged + 1 or kills, "frames are written in order"
            acknowledged = heard[0]
            heard_before_kill -= 1
            if heard_before_kill == 0:
                os.kill(child, signal.SIGKILL)
                kills += 1
        os.close(pipe)
        os.waitpid(child, 0)
        with vm.VisualMemory.open(path, read_only=True, encoder=tiny) as found:
            assert found.describe()["frames"] > acknowledged
    assert acknowledged == total - 1 and kills == 8

    whole = make(6_000, policy=policy)
    for number in range(total):
        whole.write(frame(number, timestamp=number * STEP - (3600 if number >= 70 else 0)))
    whole.flush()
    with vm.VisualMemory.open(path, encoder=tiny) as again:
        assert state_of(again) == state_of(whole) and replies(again) == replies(whole)
        assert again.last_timestamp("camera") == whole.last_timestamp("camera")


def test_two_streams_come_back_after_a_crash(make, path: Path, tiny, seal_often: None) -> None:
    memory, in_ram = make(20_000, path=path), make(20_000)
    for number in range(40):
        for stream in ("door", "yard")[: 1 + (number > 10)]:
            for one in (memory, in_ram):
                one.write(frame(number, stream=stream))
    memory.flush(), in_ram.flush()
    crash(memory)
    with vm.VisualMemory.open(path, encoder=tiny) as again:
        assert state_of(again) == state_of(in_ram)
        assert set(again.snapshots()) == {"door", "yard"}


def test_a_vector_index_gives_the_same_answers(
    make, path: Path, tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A very large memory asks the index which moments to compare; here, any is very large."""
    in_ram = make()
    with make(path=path) as memory:
        fill(memory, range(200)), fill(in_ram, range(200))
    asked = "zigzag"  # no label, so that vectors are compared
    real = MemoryStore.vector_index
    monkeypatch.setattr(MemoryStore, "vector_index", lambda store: real(store, threshold=1))
    with vm.VisualMemory.open(path, encoder=tiny) as memory:  # closing makes the index
        fill(memory, range(200, 210)), fill(in_ram, range(200, 210))
    memory = vm.VisualMemory.open(path, encoder=tiny)
    fill(memory, range(210, 230)), fill(in_ram, range(210, 230))
    crash(memory)
    with vm.VisualMemory.open(path, read_only=True, encoder=tiny) as reader:
        assert reader._index is not None and reader._index.covered
        pick = nearest_by(reader._index, 0)
        picked = pick(reader.snapshots()["camera"], tiny.query(asked).vector)
        newest = len(reader.snapshots()["camera"]) - 1
        assert newest in picked.tolist(), "what came after the index is compared, too"
        for threshold in (0.0, 0.3, 0.5):
            found, plain = (m.ask(asked, threshold=threshold) for m in (reader, in_ram))
            assert found == plain and not found.abstained


# ---------------------------------------------------------------------- the disk is full


class Disk:
    """Makes calls of `os` fail as on a full disk."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self.full: set[str] = set()
        for name in ("write", "replace", "fsync"):
            patch.setattr(os, name, self.guarded(name, getattr(os, name)))

    def guarded(self, name: str, call: Callable) -> Callable:
        def guard(*args: object) -> object:
            if name in self.full:
                raise OSError(errno.ENOSPC, "No space left on device")
            return call(*args)

        return guard


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def test_a_full_disk_is_told_and_nothing_is_lost(make, path: Path, tiny, disk: Disk) -> None:
    memory = fill(make(path=path), range(10))
    disk.full = {"write"}
    assert memory.write(frame(10))
    for attempt in (memory.flush, memory.flush, lambda: memory.ask("a cat")):
        with pytest.raises(StoreError, match="disk is full"):
            attempt()
    assert memory.describe()["frames"] == 10
    assert not memory.ask("what happened?", wait=False).abstained  # a question needs no disk
    disk.full = set()
    memory.flush()  # the frame that was kept
    fill(memory, range(11, 14))
    assert memory.stats.written == 14 and memory.stats.refused == 0
    crash(memory)
    with vm.VisualMemory.open(path, encoder=tiny) as again:
        assert state_of(again) == state_of(fill(make(), range(14)))


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_disk_that_fills_up_while_sealing(
    call: str, make, path: Path, tiny, disk: Disk, seal_often: None
) -> None:
    """The frame at hand is stored once: not twice by trying again, and not never."""
    memory = fill(make(path=path), range(5))
    disk.full = {call}
    told = 0
    for number in range(5, 12):
        taken = False
        while not taken:
            try:
                taken = memory.write(frame(number))
                memory.flush()
            except StoreError as error:
                assert "disk is full" in str(error)
                told += 1
                if told == 3:
                    disk.full = set()
    assert told == 3
    memory.flush()
    assert memory.stats.written == memory.describe()["frames"] == 12
    assert state_of(memory) == state_of(fill(make(), range(12)))
    crash(memory)
    with vm.VisualMemory.open(path, encoder=tiny) as again:
        assert state_of(again) == state_of(fill(make(), range(12)))


def test_closing_on_a_full_disk(make, path: Path, tiny, disk: Disk) -> None:
    memory = fill(make(path=path), range(10))
    disk.full = {"write"}
    memory.write(frame(10))
    with pytest.raises(StoreError, match="disk is full"):
        memory.close()
    assert memory.stats.problems == ["1 frames that waited could not be stored"]
    memory.close()
    disk.full = set()
    with vm.VisualMemory.open(path, encoder=tiny) as again:
        assert state_of(again) == state_of(fill(make(), range(10)))
