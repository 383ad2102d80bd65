import errno
import os
import struct
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vismem.errors import StoreError, UsageError
from vismem.store import tail as tail_module
from vismem.store.tail import TailLog

PAYLOADS = [b"one", b"\0" * 20, b"x" * 1000, b"last"]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "tail_000000.log"
    TailLog.create(path)
    return path


def filled(path):
    log = TailLog(path)
    for payload in PAYLOADS:
        log.append(payload)
    log.close()
    return path.read_bytes()


def payloads(path, **options):
    log = TailLog(path, **options)
    found = [payload for _, payload in log.replay()]
    assert len(log) == len(found)
    log.close()
    return found


def test_records_come_back_numbered_and_more_can_follow(path):
    log = TailLog(path, first=40)
    assert [log.append(payload) for payload in PAYLOADS] == [40, 41, 42, 43]
    assert list(log.replay()) == list(enumerate(PAYLOADS, 40))
    assert log.nbytes == path.stat().st_size
    log.close()
    log = TailLog(path, first=40)
    assert log.append(b"more") == 44
    assert [number for number, _ in log.replay()] == [40, 41, 42, 43, 44]
    assert (log.cut, log.damaged) == (0, False)


def test_a_record_is_in_the_file_when_append_returns(path):
    log = TailLog(path)
    log.append(b"one")
    assert payloads(path, read_only=True) == [b"one"]


def test_every_cut_keeps_the_whole_records_before_it(path):
    whole = filled(path)
    ends = [12]
    for payload in PAYLOADS:
        ends.append(ends[-1] + 8 + len(payload))
    assert ends[-1] == len(whole)
    for size in range(12, len(whole) + 1):
        path.write_bytes(whole[:size])
        kept = max(n for n, end in enumerate(ends) if end <= size)
        assert payloads(path, read_only=True) == PAYLOADS[:kept]
        assert path.stat().st_size == size, "a reader changed the file"
        log = TailLog(path)
        assert (log.cut, log.damaged) == (size - ends[kept], False)
        log.append(b"next")
        log.close()
        assert payloads(path) == [*PAYLOADS[:kept], b"next"]


@pytest.mark.parametrize("size", range(12))
def test_a_cut_header_is_an_error(path, size):
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(StoreError, match="tail_000000.log is damaged"):
        TailLog(path)


def test_a_newer_format_is_named(path):
    path.write_bytes(b"VISMTAIL" + struct.pack("<I", 3))
    with pytest.raises(StoreError, match=r"newer vismem \(tail format 3, this one reads 1\)"):
        TailLog(path)


def test_a_damaged_record_is_told_from_an_unfinished_one(path):
    whole = bytearray(filled(path))
    whole[12 + 8] ^= 1
    path.write_bytes(whole)
    log = TailLog(path, read_only=True)
    assert (len(log), log.damaged, log.cut) == (0, True, len(whole) - 12)


def test_zeros_behind_the_end_are_no_records(path):
    whole = filled(path)
    path.write_bytes(whole + bytes(4096))
    log = TailLog(path)
    assert (len(log), log.cut, log.damaged) == (4, 4096, True)
    assert path.read_bytes() == whole


@settings(max_examples=80)
@given(st.binary(max_size=64), st.integers(0, 3))
@example(struct.pack("<II", 2**32 - 1, 0), 2)
@example(struct.pack("<II", 1, 0) + b"x", 2)
def test_garbage_behind_the_records_is_cut(garbage, count):
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "tail_000000.log"
        TailLog.create(path)
        filled(path)
        end = 12 + sum(8 + len(payload) for payload in PAYLOADS[:count])
        path.write_bytes(path.read_bytes()[:end] + garbage)
        log = TailLog(path)
        assert [payload for _, payload in log.replay()] == PAYLOADS[:count]
        assert log.cut == len(garbage) and path.stat().st_size == end
        log.close()


@settings(max_examples=80)
@given(st.binary(max_size=100))
def test_any_file_opens_or_raises_a_store_error(data):
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "tail_000000.log"
        path.write_bytes(data)
        try:
            TailLog(path).close()
        except StoreError:
            pass


@pytest.mark.parametrize("durability, syncs", [("process", 2), ("power", 25)])
def test_durability_says_how_often_the_medium_is_waited_for(path, monkeypatch, durability, syncs):
    log = TailLog(path, durability=durability)
    calls = []
    monkeypatch.setattr(tail_module, "_fdatasync", calls.append)
    for _ in range(25):
        log.append(b"x")
    assert len(calls) == syncs


def failing(failure, after):
    """An os.write that stores ``after`` bytes and then fails."""
    real, calls = os.write, []

    def write(file, data):
        calls.append(data)
        if len(calls) == 1 and after:
            return real(file, bytes(data)[:after])
        raise failure

    return write


@pytest.mark.parametrize("after", [0, 1, 8, 12])
def test_a_full_disk_leaves_the_log_as_it_was(path, monkeypatch, after):
    log = TailLog(path)
    log.append(b"one")
    before = path.read_bytes()
    full = OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", failing(full, after))
        with pytest.raises(StoreError, match="disk is full.*free space and call write again"):
            log.append(b"two two two")
    assert path.read_bytes() == before
    assert log.append(b"three") == 1
    assert payloads(path) == [b"one", b"three"]


def test_a_short_write_is_finished(path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, data: real(file, bytes(data)[:5]))
    log = TailLog(path)
    log.append(b"a record of some length")
    assert payloads(path) == [b"a record of some length"]


def test_a_failed_sync_takes_the_record_back(path, monkeypatch):
    log = TailLog(path, durability="power")

    def fail(_):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(tail_module, "_fdatasync", fail)
        with pytest.raises(StoreError, match="check the disk and call write again"):
            log.append(b"one")
    assert payloads(path) == []
    assert log.append(b"two") == 0


def test_an_interrupt_within_append_leaves_no_record_behind(path, monkeypatch):
    log = TailLog(path, durability="power")

    def interrupt(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tail_module, "_fdatasync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            log.append(b"never acknowledged")
    assert log.append(b"next") == 0
    assert list(log.replay()) == [(0, b"next")]
    assert payloads(path) == [b"next"]


def test_records_that_are_too_large_are_refused(path, monkeypatch):
    log = TailLog(path)
    monkeypatch.setattr(tail_module, "MAX_RECORD", 100)
    with pytest.raises(UsageError, match="at most 100 bytes"):
        log.append(b"x" * 101)
    log.append(b"x" * 100)
    log.append(b"")
    assert payloads(path) == [b"x" * 100, b""]


def test_a_link_is_not_followed(path, tmp_path):
    link = tmp_path / "tail_000001.log"
    link.symlink_to(path)
    with pytest.raises(StoreError):
        TailLog(link)


def test_a_garbage_length_is_never_allocated(path, monkeypatch):
    whole = filled(path)
    path.write_bytes(whole + struct.pack("<II", 2**32 - 1, 0) + b"x" * 50)
    real, asked = os.pread, []
    monkeypatch.setattr(os, "pread", lambda *args: asked.append(args[1]) or real(*args))
    assert len(TailLog(path)) == len(PAYLOADS)
    assert max(asked) <= 1000
