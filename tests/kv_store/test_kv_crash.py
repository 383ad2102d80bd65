"""A KV memory on disk loses nothing acknowledged wherever its process ends."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from child import in_child
from tiny_kv import WRITES, about_to_seal, equal, fill, frame, state
from torch import Tensor

import vismem
from vismem.errors import StoreError
from vismem.kv_store import DurableKV
from vismem.store import verify


def traced(act: Any) -> Any:
    """Call ``act(count)`` before each line of the store runs; gives what stops it and counts."""
    code = str(Path(vismem.__file__).parent)
    rooms = tuple(f"{code}/{name}" for name in ("kv_", "store/", "memory/kv/memory"))
    count = 0

    def trace(frame: Any, event: str, _: Any) -> Any:
        nonlocal count
        if not frame.f_code.co_filename.startswith(rooms):
            return None
        if event == "line":
            count += 1
            act(count)
        return trace

    def stop() -> int:
        sys.settrace(None)
        return count

    sys.settrace(trace)
    return stop


def test_death_at_any_line_of_a_write_that_seals(
    path: Path, plain: list[dict[str, Tensor]], tmp_path: Path
) -> None:
    number = about_to_seal(path)
    count = path.with_name("count")
    shutil.copytree(path, count)
    memory = DurableKV.open(count)
    stop = traced(lambda line: None)
    memory.write_kv(**frame(number))
    total = stop()
    memory.close()
    assert total > 500
    heard_of = 0
    for line in range(1, total + 1, 47):
        copy = tmp_path / "copy"
        shutil.copytree(path, copy)

        def work(pipe: int, line: int = line, copy: Path = copy) -> None:
            memory = DurableKV.open(copy)
            traced(lambda count: os._exit(9) if count == line else None)
            memory.write_kv(**frame(number))
            os.write(pipe, b"!")

        pid, pipe = in_child(work)
        heard = bool(os.read(pipe, 1))
        os.close(pipe)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) in (0, 9)
        with DurableKV.open(copy) as memory:
            seen = int(memory.memory.working_state()["numbers"][2])
            assert seen in ((number + 1,) if heard else (number, number + 1))
            assert equal(state(memory), plain[seen])
            fill(memory, range(seen, WRITES))
            assert equal(state(memory), plain[WRITES])
        assert verify(copy).ok and not verify(copy).orphans
        shutil.rmtree(copy)
        heard_of += heard
    assert heard_of < total / 47 / 2


def test_an_interrupt_at_any_line_loses_nothing(
    path: Path, plain: list[dict[str, Tensor]], tmp_path: Path
) -> None:
    """Ctrl-C within a write; the program goes on, or is told to open it again."""
    number = about_to_seal(path)
    told = went_on = 0
    for line in range(5, 3000, 61):
        copy = tmp_path / "copy"
        shutil.copytree(path, copy)
        memory = DurableKV.open(copy)

        def interrupt(count: int, line: int = line) -> None:
            if count == line:
                raise KeyboardInterrupt

        stop = traced(interrupt)
        try:
            memory.write_kv(**frame(number))
            done = True
        except KeyboardInterrupt:
            done = False
        finally:
            stop()
        if not done:
            try:
                memory.write_kv(**frame(number))
                went_on += 1
            except StoreError as error:
                assert "open it again" in str(error)
                told += 1
                memory.close()
                memory = DurableKV.open(copy)
                if int(memory.memory.working_state()["numbers"][2]) == number:
                    memory.write_kv(**frame(number))
        fill(memory, range(number + 1, WRITES))
        assert equal(state(memory), plain[WRITES]), line
        memory.close()
        shutil.rmtree(copy)
        if done:
            break
    assert told > 0 and went_on > 5


@pytest.mark.parametrize("kills", [3, pytest.param(60, marks=pytest.mark.slow)])
def test_kill_minus_nine(path: Path, kills: int) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "kv_crash.py"
    command = [sys.executable, str(script), "--kills", str(kills), "--filled", "40"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    (acknowledged,) = re.findall(r"(\d+) frames acknowledged", result.stdout)
    assert int(acknowledged) > 40, "the writers wrote"
    assert "0 lost" in result.stdout and "0 twice" in result.stdout
