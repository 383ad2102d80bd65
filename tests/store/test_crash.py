"""Crashes at chosen points of a commit, each line in turn, and at random ones in a real writer."""

import errno
import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest

import vismem.store
from vismem.errors import StoreError
from vismem.store import MemoryStore, verify

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "crash.py"
CODE = str(Path(vismem.store.__file__).parent)


@pytest.fixture(scope="module")
def crash():
    spec = importlib.util.spec_from_file_location("crash_benchmark", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def at_line(number, act):
    """Call ``act`` before the ``number``-th line of the store runs; counts on beyond it."""
    count = 0

    def trace(frame, event, _):
        nonlocal count
        if not frame.f_code.co_filename.startswith(CODE):
            return None
        if event == "line":
            count += 1
            if count == number:
                act()
        return trace

    sys.settrace(trace)
    return lambda: (sys.settrace(None), count)[1]


@pytest.fixture
def ready(crash, tmp_path):
    """A store whose next write appends a record and commits, dropping a segment."""
    path = tmp_path / "m"
    with MemoryStore.create(path, encoder={}, config={}) as store:
        memory = crash.Recent(store)
        for _ in range(crash.ROWS * crash.SEGMENTS + 2):
            memory.write()
        while len(memory.numbers()) % crash.COMMIT_EVERY:
            memory.write()
    return path


def lines_of_a_write(crash, path):
    with MemoryStore.open(path) as store:
        memory = crash.Recent(store)
        stop = at_line(-1, lambda: None)
        memory.commit()
        return stop()


def test_death_at_any_line_of_append_and_commit(crash, ready):
    last = 0

    def work(pipe, line):
        memory = crash.Recent(MemoryStore.open(ready))
        at_line(line, lambda: os._exit(9))
        os.write(pipe, memory.write().to_bytes(8, "little"))
        memory.commit()

    total = lines_of_a_write(crash, ready)
    assert total > 300
    for line in range(1, total, 17):
        pid, pipe = crash.in_child(lambda pipe, line=line: work(pipe, line))
        heard = os.read(pipe, 8)
        os.close(pipe)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status in (0, 9)
        if heard:
            last = int.from_bytes(heard, "little") + 1
        crash.recover(ready, last)


def test_an_interrupt_at_any_line_loses_nothing(crash, ready):
    """Ctrl-C within a commit, and the program goes on: it appends, and commits at its end."""

    def interrupt():
        raise KeyboardInterrupt

    total = lines_of_a_write(crash, ready)
    store = MemoryStore.open(ready)
    memory = crash.Recent(store)
    interrupted = 0
    for line in range(1, total, 11):
        stop = at_line(line, interrupt)
        try:
            memory.commit()
        except KeyboardInterrupt:
            interrupted += 1
        finally:
            stop()
        number = store.append(crash.record(memory.numbers()[-1] + 1))
        memory.take(number)
        if line % 3 == 0:  # some die here, the others go on
            store.close()
            crash.recover(ready, number + 1)
            store = MemoryStore.open(ready)
            memory = crash.Recent(store)
            assert memory.numbers()[-1] == number
    memory.commit()
    store.close()
    assert interrupted > 25
    crash.recover(ready, memory.numbers()[-1] + 1)


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
def test_a_full_disk_at_any_call_of_a_commit(crash, ready, monkeypatch, call):
    store = MemoryStore.open(ready)
    memory = crash.Recent(store)
    real = getattr(os, call)
    nth = failures = 0
    succeeded = False
    while not succeeded:
        calls = 0

        def fail(*args, nth=nth):
            nonlocal calls
            if call != "open" or args[1] & os.O_CREAT:
                calls += 1
                if calls > nth:
                    raise OSError(errno.ENOSPC, "No space left on device")
            return real(*args)

        for _ in range(crash.ROWS):
            memory.take(store.append(crash.record(memory.numbers()[-1] + 1)))
        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            try:
                memory.commit()
                succeeded = True
            except StoreError as error:
                failures += 1
                assert "disk is full" in str(error) and "commit again" in str(error)
        assert not verify(ready).orphans
        number = store.append(crash.record(memory.numbers()[-1] + 1))
        memory.take(number)
        copy = ready.with_name(f"after-{nth}")
        shutil.copytree(ready, copy)
        crash.recover(copy, number + 1)
        nth += 1
    assert failures >= 5


def test_kill_minus_nine(crash, tmp_path):
    results = crash.kills(tmp_path / "m", 10, seed=1)
    assert results[-1].acknowledged > 10


def test_cut_and_garbage_tails(crash, tmp_path):
    kept, cut = crash.torn(tmp_path / "m", 40, seed=1)
    assert kept > 0 and cut > 0


def test_a_really_full_disk(crash, tmp_path):
    failures, found = crash.limited_files(tmp_path / "m")
    assert failures > 0 and found > 0
