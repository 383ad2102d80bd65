"""A visual memory takes another budget or policy while it lives."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from pathlib import Path

import pytest
from child import in_child
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_encoder import TinyEncoder
from tiny_memory import (
    MOMENTS,
    PATIENCE,
    QUESTIONS,
    bytes_on_disk,
    crash,
    fill,
    frame,
    replies,
    slots_of,
    state_of,
    thumbnails,
)

import vismem as vm
from vismem.errors import StoreError, UsageError
from vismem.memory.policies import POLICIES
from vismem.pipeline import VisualMemory
from vismem.store import MemoryStore, verify

ALL = ("moments", *POLICIES)


def holds(memory: VisualMemory, budget: int, policy: str) -> None:
    assert memory.nbytes == memory.describe()["bytes"] <= budget
    assert memory.budget.bytes == memory.describe()["budget"] == budget
    assert memory.policy == policy and memory.config["policy"] == policy
    assert memory.config["budget"] == budget
    for stream in memory._streams.values():
        assert stream.nbytes <= budget // len(memory._streams)
        assert bool(stream.bank) == (policy != "moments")


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("policy", ALL)
def test_a_smaller_budget_holds_at_once_and_for_good(
    policy: str, durable: bool, make, path: Path, tiny
) -> None:
    memory = fill(make(60_000, policy=policy, path=path if durable else None), range(120))
    before, weight = memory.nbytes, memory.stats.merged
    report = memory.change(budget="9KB")
    holds(memory, 9_000, policy)
    assert before > 9_000 and report.nbytes == memory.nbytes
    assert report.merged > 5 and memory.stats.merged == weight + report.merged
    assert not memory.ask("a cat").abstained
    fill(memory, range(120, 150))
    holds(memory, 9_000, policy)
    if durable:
        crash(memory)
        with VisualMemory.open(path, encoder=tiny) as again:
            holds(again, 9_000, policy)
            assert state_of(again) == state_of(memory) and replies(again) == replies(memory)
        assert verify(path).ok


@pytest.mark.parametrize("policy", ALL)
def test_a_larger_budget_is_used_from_now_on(policy: str, make) -> None:
    memory = fill(make(6_000, policy=policy), range(60))
    state = state_of(memory)
    report = memory.change(budget=40_000)
    assert (report.merged, report.dropped) == (0, 0)
    assert state_of(memory) == state
    fill(memory, range(60, 200))
    assert 6_000 < memory.nbytes <= 40_000
    holds(memory, 40_000, policy)


@pytest.mark.parametrize("first", POLICIES)
@pytest.mark.parametrize("then", POLICIES)
def test_another_bank_takes_over_the_scenes(first: str, then: str, make) -> None:
    memory = fill(make("200KB", policy=first), range(60))
    moments = {k: v for k, v in state_of(memory).items() if ": bank." not in k}
    scenes = [(s.time, s.first, s.last, s.weight, s.note) for s in slots_of(memory)]
    report = memory.change(policy=then)
    assert (report.merged, report.dropped) == (0, 0) and len(scenes) > 10
    assert [(s.time, s.first, s.last, s.weight, s.note) for s in slots_of(memory)] == scenes
    assert {k: v for k, v in state_of(memory).items() if ": bank." not in k} == moments
    holds(memory, 200_000, then)
    fill(memory, range(60, 70))
    assert len(memory.recall("a cat").tokens) > 0


def test_from_moments_to_a_bank_and_back(make) -> None:
    memory = fill(make("30KB"), range(60))
    held = len(memory.snapshots()["camera"])
    report = memory.change(policy="flash")
    assert slots_of(memory) == [] and report.dropped == 0, "thumbnails are no frames"
    assert len(memory.snapshots()["camera"]) == held - report.merged
    holds(memory, 30_000, "flash")
    fill(memory, range(60, 70))
    scenes = len(slots_of(memory))
    forgotten = memory.stats.forgotten
    report = memory.change(policy="moments")
    assert report.dropped == scenes > 5 and memory.stats.forgotten == forgotten + scenes
    assert memory.visual() == {}
    with pytest.raises(UsageError, match="no visual tokens"):
        memory.recall("a cat")
    holds(memory, 30_000, "moments")


def test_what_is_given_up_is_gone_from_the_disk(make, path: Path) -> None:
    memory = fill(make("200KB", path=path), range(40))
    there = [data for data in thumbnails(range(40)) if data in bytes_on_disk(path)]
    memory.change(budget=4_000)
    left = [data for data in there if data in bytes_on_disk(path)]
    kept = {memory.snapshots()["camera"].thumbnail(n) for n in range(len(left))}
    assert len(there) == 40 and 0 < len(left) < 10 and set(left) <= kept
    memory.change(budget=0)
    assert memory.nbytes == 0 and not any(data in bytes_on_disk(path) for data in there)


wrong = pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": "much"}, "no size"),
        ({"budget": -1}, "negative"),
        ({"policy": "Flash"}, "moments, flash, star, pyramid"),
        ({"budget": 10, "policy": ""}, "policy is"),
        ({"budget": "x", "policy": "flash"}, "no size"),
    ],
)


@wrong
def test_what_is_wrong_changes_nothing(change: dict, message: str, make, path: Path) -> None:
    memory = fill(make(9_000, policy="star", path=path), range(30))
    before, counted = state_of(memory), (memory.stats.merged, memory.stats.forgotten)
    config, on_disk = dict(memory.config), bytes_on_disk(path)
    with pytest.raises(ValueError, match=message):
        memory.change(**change)
    assert state_of(memory) == before and memory.config == config
    assert (memory.stats.merged, memory.stats.forgotten) == counted
    assert bytes_on_disk(path) == on_disk
    holds(memory, 9_000, "star")


def test_who_only_reads_or_has_closed_changes_nothing(make, path: Path, tiny) -> None:
    memory = fill(make(path=path), range(3))
    memory.close()
    with pytest.raises(UsageError, match="closed"):
        memory.change(budget=10)
    with VisualMemory.open(path, encoder=tiny, read_only=True) as reader:
        with pytest.raises(UsageError, match="reading only"):
            reader.change(policy="flash")


def test_no_change_is_a_change_too(make, path: Path) -> None:
    memory = fill(make(9_000, policy="flash", path=path), range(30))
    before = state_of(memory)
    report = memory.change()
    assert (report.merged, report.dropped, report.nbytes) == (0, 0, memory.nbytes)
    assert state_of(memory) == before


def test_before_anything_was_seen(make, path: Path, tiny) -> None:
    memory = make(path=path)
    assert memory.change(budget="2KB", policy="pyramid").nbytes == 0
    fill(memory, range(20))
    holds(memory, 2_000, "pyramid")
    crash(memory)
    with VisualMemory.open(path, encoder=tiny) as again:
        holds(again, 2_000, "pyramid")
        assert state_of(again) == state_of(memory)


# ---------------------------------------------------------------------- failing disks, crashes


@pytest.mark.parametrize("failing", ["write_file", "write_manifest", "sync_directory"])
def test_a_full_disk_changes_nothing(
    failing: str, make, path: Path, tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the new manifest took its place before the disk failed."""
    memory, in_ram = make(30_000, policy="flash", path=path), make(30_000, policy="flash")
    fill(memory, range(80)), fill(in_ram, range(80))
    before = state_of(memory)
    module = (
        "manifest"
        if failing == "sync_directory"
        else "commit"
        if failing == "write_file"
        else "store"
    )
    with monkeypatch.context() as patch:

        def full(*args: object) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr(f"vismem.store.{module}.{failing}", full)
        with pytest.raises(StoreError, match="full"):
            memory.change(budget=8_000, policy="star")
    assert {k: v for k, v in state_of(memory).items() if "counters" not in k} == {
        k: v for k, v in before.items() if "counters" not in k
    }
    holds(memory, 30_000, "flash")
    fill(memory, range(80, 160)), fill(in_ram, range(80, 160))
    memory.save()
    assert replies(memory) == replies(in_ram)
    memory.close()
    with VisualMemory.open(path, encoder=tiny) as again:
        holds(again, 30_000, "flash")
        assert replies(again) == replies(in_ram)
        assert verify(path).ok
        again.change(budget=8_000, policy="star")
        holds(again, 8_000, "star")


def test_kill_minus_nine_finds_it_before_or_after(make, path: Path, tiny) -> None:
    """Killed at many moments of many changes, each while frames are written."""
    make(20_000, path=path).close()
    sizes = (20_000, 7_000, 12_000)

    def go_on(pipe: int) -> None:
        memory = VisualMemory.open(path, encoder=tiny)
        step = 0
        while True:
            done = memory.describe()["frames"]
            fill(memory, range(done, done + 2))
            memory.change(budget=sizes[step % 3], policy=ALL[step % 4])
            os.write(pipe, bytes([step % 12]))
            step += 1

    acknowledged, seen = 0, set()
    for heard in (1, 2, 3, 5, 8, 4, 6, 7):
        child, pipe = in_child(go_on)
        for _ in range(heard):
            step = os.read(pipe, 1)[0]
            acknowledged += 2
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(pipe)
        assert verify(path).ok
        with VisualMemory.open(path, encoder=tiny) as found:
            got = found.budget.bytes, found.policy
            assert got in {(sizes[s % 3], ALL[s % 4]) for s in (step, step + 1, step + 2)}
            holds(found, *got)
            assert found.describe()["frames"] >= acknowledged
            acknowledged = found.describe()["frames"]
            replies(found)
            seen.add(got)
    assert len(seen) > 3


steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(1, 12), st.sampled_from(["door", "yard"])),
        st.tuples(
            st.just("change"),
            st.one_of(st.none(), st.integers(0, 40_000)),
            st.one_of(st.none(), st.sampled_from(ALL)),
        ),
        st.tuples(st.just("ask"), st.sampled_from(QUESTIONS), st.booleans()),
        st.tuples(st.just("reopen"), st.booleans(), st.none()),
        st.tuples(st.just("forget"), st.integers(0, 30), st.integers(0, 5)),
    ),
    max_size=14,
)


@given(steps, st.sampled_from(ALL), st.integers(0, 30_000))
@settings(max_examples=40, derandomize=True)
def test_any_course_of_changes_writes_and_questions(
    course: list[tuple], policy: str, budget: int
) -> None:
    """On disk, killed and reopened or not, it is as in RAM; the budget holds all along."""
    tiny, number = TinyEncoder(), 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.mem"
        options = {"encoder": tiny, "moments": MOMENTS, "policy": policy}
        memory, in_ram = VisualMemory(budget, path=path, **options), VisualMemory(budget, **options)
        try:
            for what, one, two in course:
                if what == "write":
                    for held in (memory, in_ram):
                        fill(held, range(number, number + one), stream=two)
                    number += one
                elif what == "change":
                    reports = [held.change(budget=one, policy=two) for held in (memory, in_ram)]
                    assert reports[0] == reports[1]
                    budget = budget if one is None else one
                    policy = policy if two is None else two
                elif what == "ask":
                    assert memory.ask(one, wait=two).to_dict() == in_ram.ask(one).to_dict()
                elif what == "forget":
                    assert memory.forget(one, one + two) == in_ram.forget(one, one + two)
                else:
                    crash(memory) if one else memory.close()
                    memory._writer.close()
                    memory = VisualMemory.open(path, encoder=tiny)
                for held in (memory, in_ram):
                    holds(held, budget, policy)
                assert state_of(memory) == state_of(in_ram)
        finally:
            memory.close()
            in_ram.close()
        assert verify(path).ok


# ---------------------------------------------------------------------- many at once


def test_changing_while_a_writer_writes_and_questions_come(make, path: Path, seal_often) -> None:
    memory = make(20_000, path=path, policy="flash")
    done, failures, asked = threading.Event(), [], [0] * 3

    def ask(reader: int) -> None:
        try:
            while not done.is_set() or not asked[reader]:
                reply = memory.ask(QUESTIONS[asked[reader] % len(QUESTIONS)], wait=reader == 0)
                asked[reader] += 1
                assert reply.memory["bytes"] <= reply.memory["budget"]
                for view in memory.visual().values():
                    assert sum(slot.weight for slot in view.slots()) <= 100
                try:
                    assert len(memory.recall("a cat", tokens=64).tokens) <= 64
                except UsageError as error:
                    assert "no visual tokens" in str(error) or "none yet" in str(error)
        except BaseException as error:
            failures.append(error)

    def write() -> None:
        try:
            for number in range(100):
                memory.write(frame(number))
            memory.flush()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=ask, args=(n,), daemon=True) for n in range(3)]
    threads.append(threading.Thread(target=write, daemon=True))
    for thread in threads:
        thread.start()
    step = 0
    while threads[-1].is_alive():
        budget, policy = (20_000, 6_000, 11_000)[step % 3], ALL[step % 4]
        report = memory.change(budget=budget, policy=policy)
        assert report.nbytes <= budget
        holds(memory, budget, policy)
        step += 1
        time.sleep(0.05)  # the writer's turn
    done.set()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert failures == [] and min(asked) > 0 and step > 5
    assert memory.describe()["frames"] == 100 == memory.stats.written
    memory.close()
    assert verify(path).ok


def test_questions_do_not_wait_for_a_change(make, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fill(make(policy="flash"), range(20))
    inside, go_on = threading.Event(), threading.Event()
    changed = memory._streams.changed

    def slow(*args: object) -> object:
        inside.set()
        assert go_on.wait(PATIENCE)
        return changed(*args)

    monkeypatch.setattr(memory._streams, "changed", slow)
    changer = threading.Thread(target=lambda: memory.change(policy="star"), daemon=True)
    changer.start()
    assert inside.wait(PATIENCE)
    assert not memory.ask("a cat", wait=False).abstained and memory.policy == "flash"
    assert memory.describe()["frames"] == 20 and memory.write(frame(20))
    go_on.set()
    changer.join(PATIENCE)
    memory.flush()
    assert memory.policy == "star" and memory.describe()["frames"] == 21


def test_the_settings_on_disk_are_the_new_ones(make, path: Path) -> None:
    memory = fill(make(path=path), range(3))
    memory.change(budget="3MB", policy="star")
    with MemoryStore.open(path, read_only=True) as store:
        assert store.config["budget"] == 3_000_000 and store.config["policy"] == "star"
        assert store.records == 0
    memory.close()
    assert vm.VisualMemory is VisualMemory


def test_no_name_of_a_segment_is_given_twice_though_a_change_failed(make) -> None:
    memory = fill(make("60KB"), range(100))
    stream = memory._streams["camera"]
    other, _ = stream.changed(6_000, "moments")
    given = {s.name: s for s in other.moments.segments if s not in stream.moments.segments}
    assert given
    for number in range(100, 160):
        fill(memory, range(number, number + 1))
        assert not any(given.get(s.name, s) is not s for s in stream.moments.segments)
