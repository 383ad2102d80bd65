"""A KV memory in a directory: what it survives, what it refuses, and that its bounds are bounds."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import vismem
from vismem.errors import StoreError, UsageError
from vismem.kv_store import DurableKV
from vismem.kv_store.sizes import DiskSizes
from vismem.memory.kv.compress import Compressed, Keep
from vismem.memory.kv.config import KVConfig
from vismem.memory.kv.memory import KVMemory
from vismem.memory.kv.shape import KVShape
from vismem.store import MemoryStore, verify

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


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "stream.kv"


@pytest.fixture(scope="module")
def plain() -> list[dict[str, Tensor]]:
    """State after so many writes of a memory that lives in RAM and was never interrupted."""
    memory = KVMemory(config(), 1_000_000)
    memory.start(prompt())
    states = [memory.state_dict()]
    for number in range(WRITES):
        memory.write_kv(**frame(number))
        states.append(memory.state_dict())
    return states


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


@settings(max_examples=15, deadline=None, derandomize=True)
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


# ---------------------------------------------------------------------- crashes


def in_child(work: Any) -> tuple[int, int]:
    """Start a child that runs ``work(pipe)``; gives its pid and the pipe to read from."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return pid, reader
    try:
        work(writer)
        os._exit(0)
    except BaseException:
        os._exit(1)


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
    script = Path(__file__).parents[1] / "benchmarks" / "kv_crash.py"
    command = [sys.executable, str(script), "--kills", str(kills), "--filled", "40"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    (acknowledged,) = re.findall(r"(\d+) frames acknowledged", result.stdout)
    assert int(acknowledged) > 40, "the writers wrote"
    assert "0 lost" in result.stdout and "0 twice" in result.stdout


# ---------------------------------------------------------------------- bounds


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


@settings(max_examples=15, deadline=None, derandomize=True)
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


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("NaN", {"kv": torch.full((2, 2, 2, 4, 4), torch.nan)}),
        ("infinity", {"kv": torch.full((2, 2, 2, 4, 4), torch.inf)}),
        ("beyond float16", {"kv": torch.full((2, 2, 2, 4, 4), 1e6)}),
        ("too many", {"kv": torch.zeros(2, 2, 2, 9, 4)}),
        ("another width", {"kv": torch.zeros(2, 2, 2, 4, 5)}),
        ("backwards", {"time": -1.0}),
        ("no embedding", {"embedding": None}),
    ],
)
def test_what_the_memory_refuses_is_not_logged(path: Path, what: str, change: Any) -> None:
    with begin(path) as memory:
        fill(memory, range(20))
        before, held = answers(memory), on_disk(path)
        with pytest.raises(ValueError):
            memory.write_kv(**{**frame(20), "coords": None, **change})
        assert equal(answers(memory), before) and on_disk(path) == held
        with pytest.raises(ValueError, match="before the first write"):
            memory.start(prompt())
        fill(memory, range(20, 30))
    with DurableKV.open(path) as memory:
        assert memory.memory.last_time == frame(29)["time"]


@pytest.mark.parametrize("sealed", [False, True])
def test_a_budget_too_small_for_the_init_prompt_is_not_called_damage(
    path: Path, sealed: bool
) -> None:
    with begin(path) as memory:
        fill(memory, range(3))
        if sealed:
            memory.seal()
    needed = 4 * prompt().half().nbytes
    with pytest.raises(UsageError, match=f"give at least {needed}"):
        DurableKV.open(path, budget=needed - 1)
    DurableKV.open(path, budget=needed).close()


def test_a_memory_of_another_kind_is_not_called_damage(path: Path) -> None:
    MemoryStore.create(path, encoder={}, config={}).close()
    with pytest.raises(StoreError, match="another kind"):
        DurableKV.open(path)


def test_a_compression_that_could_not_be_known_again_is_refused(path: Path) -> None:
    class Nameless:
        def tokens(self, tokens: int) -> int:
            return Keep(0.5).tokens(tokens)

        def __call__(self, kv: Tensor, saliency: Tensor | None = None) -> Compressed:
            return Keep(0.5)(kv, saliency)

    class Named(Nameless):
        def __repr__(self) -> str:
            return "Named()"

    with pytest.raises(UsageError, match="Nameless .* give it a __repr__"):
        begin(path, config=config(compression=Nameless()))
    begin(path, config=config(compression=Named())).close()
    DurableKV.open(path, config(compression=Named())).close()


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (config(shape=KVShape(2, 4, 2, 8)), ("head_dim 4", "head_dim 8")),
        (config(block=7), ("block 6", "block 7")),
        (config(precision="int4"), ("precision int8", "precision int4")),
        (config(dtype=torch.bfloat16), ("dtype float16", "dtype bfloat16")),
        (config(shape=KVShape(3, 4, 2, 4), window=99), ("layers 2, window 18", "layers 3")),
    ],
)
def test_another_geometry_is_refused_naming_both(path: Path, other: KVConfig, said: Any) -> None:
    begin(path).close()
    with pytest.raises(StoreError, match="or begin another memory") as error:
        DurableKV.open(path, other)
    assert all(part in str(error.value) for part in said)


def test_another_model_is_refused_naming_both(path: Path) -> None:
    begin(path).close()
    with pytest.raises(StoreError, match="tiny.*other.*begin another memory"):
        DurableKV.open(path, identity={"model": "other"})
    with pytest.raises(StoreError, match="already holds a memory"):
        begin(path)
    with DurableKV.open(path, config(), identity={"model": "tiny"}) as memory:
        assert memory.identity == {"model": "tiny"}
    with pytest.raises(StoreError, match="does not exist"):
        DurableKV.open(path / "nothing")


def test_a_segment_of_another_stream_is_refused(path: Path) -> None:
    other = path.with_name("other.kv")
    for each in (path, other):
        with begin(each) as memory:
            fill(memory, range(WRITES))
    for file in other.glob("seg_0-*"):
        shutil.copy(file, path)
    with pytest.raises(StoreError, match="of another stream.*salvage=True"):
        DurableKV.open(path)
    with DurableKV.open(path, salvage=True) as memory:
        assert "sha256" in memory.lost[0]


def test_a_log_of_another_stream_is_refused(path: Path) -> None:
    other = path.with_name("other.kv")
    for each in (path, other):
        with begin(each) as memory:
            fill(memory, range(5))
    shutil.copy(other / "tail_000000.log", path)
    with pytest.raises(StoreError, match="a record is of another stream"):
        DurableKV.open(path)


@pytest.mark.parametrize(
    ("name", "said"),
    [("stream", "the state is of another stream"), ("blocks", "1 blocks are missi")],
)
def test_a_state_that_is_not_of_these_segments_is_refused(path: Path, name: str, said: str) -> None:
    with begin(path) as memory:
        fill(memory, range(WRITES))
    with MemoryStore.open(path) as store:
        state = store.state()
        state[name] = torch.cat([state[name], state[name][-1:] + 1])
        store.commit(dict.fromkeys((segment.name for segment in store.segments()), None), state)
    with pytest.raises(StoreError, match=said):
        DurableKV.open(path)


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


# ---------------------------------------------------------------------- readers


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


# ---------------------------------------------------------------------- forgetting


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
