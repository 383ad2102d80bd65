"""A KV memory on a disk that is damaged, or full."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_kv import (
    LOG,
    WRITES,
    about_to_seal,
    answers,
    begin,
    config,
    equal,
    fill,
    frame,
    prompt,
    state,
)
from torch import Tensor

from vismem.errors import StoreError
from vismem.kv_store import DurableKV
from vismem.kv_store.sizes import DiskSizes
from vismem.store import MemoryStore, verify

# ---------------------------------------------------------------------- damage


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def scramble(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[: min(40, len(content))] = os.urandom(min(40, len(content)))
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("suffix", "damage", "seen"),
    [
        ("safetensors", cut, True),
        ("safetensors", scramble, True),
        ("safetensors", Path.unlink, True),
        ("blob", cut, True),
        ("blob", Path.unlink, True),
        ("blob", scramble, False),  # only a full check can see it
    ],
)
def test_a_damaged_segment_costs_its_own_blocks_alone(
    path: Path, plain: list[dict[str, Tensor]], suffix: str, damage: Any, seen: bool
) -> None:
    with begin(path) as memory:
        fill(memory, range(WRITES))
        whole = answers(memory)
    with MemoryStore.open(path, read_only=True) as store:
        assert len(store.segments()) > 3
        victim = store.segments()[1]
        numbers = victim.columns["number"].tolist()
    damage(path / f"seg_{victim.name}.{suffix}")
    if seen:
        with pytest.raises(StoreError, match=f"{victim.name}.*salvage=True"):
            DurableKV.open(path)
    else:
        assert f"{victim.name}" in verify(path).problems[0]
    with DurableKV.open(path, salvage=True) as memory:
        assert victim.name in memory.lost[0] and f"{len(numbers)} blocks" in memory.lost[1]
        left = [n for n in plain[-1]["blocks"].tolist() if n not in numbers]
        assert [block.number for block in memory.blocks] == left
        found = answers(memory)
        keep = torch.tensor([n for n in range(len(whole["mean 0"])) if n not in numbers])
        assert torch.equal(found["mean 0"], whole["mean 0"][keep])
        block = torch.arange(len(whole["mean 0"])).repeat_interleave(6)
        assert torch.equal(found["keys 1"], whole["keys 1"][:, torch.isin(block, keep)])
        assert all(torch.equal(found[k], whole[k]) for k in whole if k[:6] in ("window", "compan"))
        fill(memory, range(WRITES, WRITES + 30))
        after = state(memory)
    with DurableKV.open(path) as memory:
        assert equal(state(memory), after) and not memory.lost


def test_what_was_salvaged_is_sealed_at_once(path: Path) -> None:
    with begin(path) as memory:
        fill(memory, range(WRITES))
        memory.seal()
    with MemoryStore.open(path, read_only=True) as store:
        Path.unlink(path / f"seg_{store.segments()[1].name}.blob")
    with DurableKV.open(path, salvage=True) as memory:
        assert memory.lost and memory.logged == 0
        found = answers(memory)
    with DurableKV.open(path) as memory:
        assert not memory.lost and equal(answers(memory), found)


def test_a_lost_state_is_said(path: Path) -> None:
    with begin(path) as memory:
        fill(memory, range(WRITES))
    (file,) = path.glob("state_*")
    scramble(file)
    with pytest.raises(StoreError, match="salvage"):
        DurableKV.open(path)
    with pytest.raises(StoreError, match="the state is lost"):
        DurableKV.open(path, salvage=True)


def test_a_torn_log_gives_what_was_whole(path: Path, plain: list[dict[str, Tensor]]) -> None:
    with begin(path) as memory:
        fill(memory, range(5))
    cut(path / "tail_000000.log")
    with DurableKV.open(path) as memory:
        assert equal(state(memory), plain[4])


# ---------------------------------------------------------------------- full disks


def test_a_full_disk_at_any_call_loses_nothing(
    path: Path, plain: list[dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call of a write that seals fails once; the write is refused, and goes through later."""
    number = about_to_seal(path)
    failures = 0
    for call in ("write", "open", "fsync", "replace"):
        for nth in range(20):
            copy = path.with_name(f"{call}-{nth}")
            shutil.copytree(path, copy)
            memory = DurableKV.open(copy)
            before, calls, real = state(memory), 0, getattr(os, call)

            def fail(*given: Any, call: str = call, nth: int = nth, real: Any = real) -> Any:
                nonlocal calls
                if call != "open" or given[1] & os.O_CREAT:
                    calls += 1
                    if calls > nth:
                        raise OSError(errno.ENOSPC, "No space left on device")
                return real(*given)

            refused = False
            with monkeypatch.context() as patch:
                patch.setattr(os, call, fail)
                try:
                    memory.write_kv(**frame(number))
                except StoreError as error:
                    refused = True
                    assert "the disk is full" in str(error)
                    assert equal(state(memory), before)
            if refused:
                failures += 1
                memory.write_kv(**frame(number))
            assert equal(state(memory), plain[number + 1])
            fill(memory, range(number + 1, WRITES))
            memory.close()
            with DurableKV.open(copy) as memory:
                assert equal(state(memory), plain[WRITES])
            if not refused:
                break
    assert failures > 6


def test_a_start_that_finds_no_room_can_be_made_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = DurableKV(path, config(), 1_000_000, 2_000_000, log=LOG)

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(StoreError, match="disk is full"):
            memory.start(prompt())
    assert memory.memory.seen == 0
    memory.start(prompt())
    assert memory.memory.seen == 3
    memory.close()
    with DurableKV.open(path) as memory:
        assert torch.equal(memory.snapshot().sinks, prompt().half())


def test_a_really_full_disk(tmp_path: Path, plain: list[dict[str, Tensor]]) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    size = DiskSizes(config(), LOG).least(prompt().nbytes) + 40_000
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(mount)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with begin(mount / "m", disk=10_000_000) as memory:
            ballast = mount / "ballast"
            written = failures = 0
            for _ in range(4):
                ballast.write_bytes(bytes(max(0, shutil.disk_usage(mount).free - 30_000)))
                for _ in range(40):
                    try:
                        if written < WRITES:
                            memory.write_kv(**frame(written))
                            written += 1
                    except StoreError as error:
                        assert "disk is full" in str(error)
                        failures += 1
                    assert equal(state(memory), plain[written])
                ballast.unlink()
        assert failures > 10 and written > 20
        with DurableKV.open(mount / "m") as memory:
            assert equal(state(memory), plain[written])
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)  # files of it are mapped yet


def test_files_may_not_grow_beyond_a_limit(path: Path, plain: list[dict[str, Tensor]]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    failures = 0
    with begin(path) as memory:
        fill(memory, range(10))
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        try:
            for _ in range(5):
                try:
                    memory.write_kv(**frame(10))
                except StoreError:
                    failures += 1
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        fill(memory, range(10, WRITES))
        assert failures == 5 and equal(state(memory), plain[WRITES])
