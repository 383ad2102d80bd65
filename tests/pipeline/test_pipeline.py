"""`VisualMemory` from end to end, with the tiny encoder wherever the real one does not matter."""

from __future__ import annotations

import math
import threading
from importlib import resources
from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny_memory import PATIENCE, QUESTIONS, crash, fill, frame, replies, state_of

import vismem as vm
from vismem.encoders.embedded import EmbeddedEncoder
from vismem.errors import StoreError, UsageError
from vismem.store import MemoryStore, verify

# ---------------------------------------------------------------------- the whole of it


def test_the_gallery_from_clip_to_answers(embedded: EmbeddedEncoder, path: Path) -> None:
    with resources.as_file(resources.files("vismem.data") / "gallery.mp4") as clip:
        with vm.VisualMemory("1MB", path=path, encoder=embedded) as memory:
            for one in vm.open_stream(clip, fps=1):
                memory.write(one)
            cat, elephant = memory.ask("when does the cat appear?"), memory.ask("an elephant")
            facts = memory.describe()
    assert not cat.abstained and cat.text.startswith("Cat: ")
    assert all(m.end <= 5.5 or 31.5 <= m.start <= m.end <= 37.5 for m in cat.moments)
    assert {m.start < 6 for m in cat.moments} == {True, False}  # both times
    assert elephant.abstained and elephant.moments == () and "elephant" in elephant.text
    assert facts["frames"] == 47 and facts["span"][0] < 0.1 and 45 < facts["span"][1] < 47
    assert 0 < facts["bytes"] <= facts["budget"] == 1_000_000
    picture_of = cv2.imdecode(np.frombuffer(cat.moments[0].thumbnail, np.uint8), cv2.IMREAD_COLOR)
    assert max(picture_of.shape) == 192
    with vm.VisualMemory.open(path, read_only=True, encoder=embedded) as again:
        assert again.ask("when does the cat appear?") == cat
        assert again.ask("an elephant") == elephant


def test_answers_survive_saving(make, path: Path, tiny) -> None:
    memory = fill(make(6_000), range(80))
    before = replies(memory), state_of(memory)
    assert memory.stats.merged > 0 and any(not reply["abstained"] for reply in before[0])
    memory.save(path)
    assert replies(memory) == before[0]
    memory.close()
    for read_only in (True, False):
        with vm.VisualMemory.open(path, read_only=read_only, encoder=tiny) as again:
            assert replies(again) == before[0] and state_of(again) == before[1]
    assert verify(path).ok


def test_a_durable_memory_is_as_one_in_ram(make, path: Path, seal_often: None) -> None:
    in_ram, durable = fill(make(6_000), range(100)), fill(make(6_000, path=path), range(100))
    assert state_of(durable) == state_of(in_ram) and replies(durable) == replies(in_ram)
    assert durable._journal.store.records < 8


def test_what_was_saved_goes_on_durably(make, path: Path, tiny) -> None:
    memory = fill(make(), range(10))
    memory.save(path)
    fill(memory, range(10, 15))
    crash(memory)
    with vm.VisualMemory.open(path, encoder=tiny) as again:
        assert again.describe()["frames"] == 15
        assert state_of(again) == state_of(fill(make(), range(15)))


def test_events_of_sealed_moments_are_listed(make, path: Path) -> None:
    with make(path=path) as memory:
        fill(memory, range(60))
    with MemoryStore.open(path, read_only=True) as store:
        labels = {event.label for event in store.events.query()}
    assert labels == {"cat", "dog", "person"}


# ---------------------------------------------------------------------- who may open it


def test_readers_look_while_a_writer_writes(make, path: Path, tiny, seal_often: None) -> None:
    with make(path=path) as memory:
        for end in (5, 12, 30):
            fill(memory, range(memory.describe()["frames"], end))
            with vm.VisualMemory.open(path, read_only=True, encoder=tiny) as reader:
                assert reader.describe()["frames"] == end and replies(reader) == replies(memory)
                fill(memory, range(end, end + 3))
                assert reader.describe()["frames"] == end
                for refused in (
                    lambda r=reader: r.write(frame(99)),
                    lambda r=reader: r.forget(0, 1),
                    lambda r=reader: r.save(),
                ):
                    with pytest.raises(UsageError, match="open"):
                        refused()


def test_there_is_one_writer(make, path: Path, tiny) -> None:
    with make(path=path):
        with pytest.raises(StoreError, match="is being written by process") as caught:
            vm.VisualMemory.open(path, encoder=tiny)
        assert caught.value.exit_code == 4
    vm.VisualMemory.open(path, encoder=tiny).close()


def test_another_encoder_is_refused(make, path: Path, tiny) -> None:
    make(path=path).close()
    other = type(tiny)(version="2")
    for read_only in (True, False):
        with pytest.raises(StoreError, match="embeddings of different models never mix") as caught:
            vm.VisualMemory.open(path, read_only=read_only, encoder=other)
        assert caught.value.exit_code == 4
    vm.VisualMemory.open(path, encoder=tiny).close()  # and the lock is free again


def test_what_cannot_be_opened_or_begun(make, path: Path, tmp_path: Path, tiny) -> None:
    with pytest.raises(StoreError, match="does not exist"):
        vm.VisualMemory.open(path, encoder=tiny)
    make(path=path).close()
    with pytest.raises(StoreError, match="already holds a memory"):
        make(path=path)
    memory = fill(make(), range(3))
    with pytest.raises(UsageError, match=r"save\(\"clip.mem\"\)"):
        memory.save()
    with pytest.raises(StoreError, match="already holds a memory"):
        memory.save(path)
    memory.save(tmp_path / "other.mem")
    memory.save(tmp_path / "other.mem")
    with pytest.raises(UsageError, match="lives at"):
        memory.save(tmp_path / "third.mem")


def test_settings_that_do_not_fit_the_state_are_named(path: Path, tiny, make) -> None:
    with make(path=path) as memory:
        fill(memory, range(30))
    wider = type(tiny)()
    wider.token_dim = 5
    with pytest.raises(StoreError, match="vismem inspect --verify"):
        vm.VisualMemory.open(path, encoder=wider)
    vm.VisualMemory.open(path, encoder=tiny).close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"retain": 0.0}, "retain"),
        ({"retain": math.nan}, "retain"),
        ({"queue": 0}, "queue"),
        ({"budget": "many"}, "write it like 64MB"),
        ({"policy": "flesh"}, "policy is moments, flash, star, pyramid; not flesh"),
    ],
)
def test_settings_out_of_range(options: dict, message: str, make) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


# ---------------------------------------------------------------------- the budget, threads


def test_streams_share_the_budget(make) -> None:
    memory = make(8_000)
    fill(memory, range(60), stream="door")
    alone, merged = memory.nbytes, memory.stats.merged
    assert 4_000 < alone <= 8_000
    fill(memory, range(1), stream="yard")
    assert memory.stats.merged > merged + 3, "half of the budget is the other's now"
    merged = memory.stats.merged
    for number in range(1, 60):
        fill(memory, range(number, number + 1), stream="yard")
        assert memory.nbytes <= 8_000
    parts = [stream.moments.nbytes for stream in memory._streams.values()]
    assert all(2_000 < part <= 4_000 for part in parts) and sum(parts) == memory.nbytes
    assert memory.stats.merged > merged
    assert {m.stream for m in memory.ask("a cat").moments} == {"door", "yard"}


@pytest.mark.parametrize("policy", ["moments", "flash", "pyramid"])
def test_asking_while_writing(policy: str, make, path: Path, seal_often: None) -> None:
    memory = make(8_000, path=path, policy=policy)
    done = threading.Event()
    failures: list[BaseException] = []
    asked = [0] * 4

    def ask(reader: int) -> None:
        newest = 0
        try:
            while not done.is_set() or not asked[reader]:
                reply = memory.ask(QUESTIONS[asked[reader] % len(QUESTIONS)], wait=reader == 0)
                asked[reader] += 1
                assert reply.memory["bytes"] <= 8_000 and memory.nbytes <= 8_000
                for snapshot in memory.snapshots().values():
                    start, end = snapshot.column("start"), snapshot.column("end")
                    assert bool((start <= end).all()) and bool((end[:-1] < start[1:]).all())
                    frames = int(snapshot.column("frames").sum())
                    assert frames <= 120
                for view in memory.visual().values():
                    held, read = view.slots(), view.read(tokens=64)
                    assert [slot.time for slot in held] == sorted(slot.time for slot in held)
                    assert all(slot.first <= slot.time <= slot.last for slot in held)
                    assert all(slot.start <= slot.time <= slot.end for slot in held)
                    assert sum(slot.weight for slot in held) <= 120
                    assert len(read.tokens) <= 64 and bool((read.times.diff() >= 0).all())
                assert reply.memory["frames"] >= newest
                newest = reply.memory["frames"]
        except BaseException as error:
            failures.append(error)

    readers = [threading.Thread(target=ask, args=(reader,), daemon=True) for reader in range(4)]
    for reader in readers:
        reader.start()
    for number in range(120):
        memory.write(frame(number))
        memory.write(frame(number, stream="yard"))
    memory.flush()
    done.set()
    for reader in readers:
        reader.join(PATIENCE)
        assert not reader.is_alive()
    assert failures == [] and min(asked) > 0
    assert memory.stats.written == 240


def test_frames_are_counted_over_the_whole_life(make, path: Path, tiny) -> None:
    with make(path=path) as memory:
        fill(memory, range(5))
        assert memory.describe()["frames"] == memory.stats.written == 5
    with vm.VisualMemory.open(path, encoder=tiny) as again:
        fill(again, range(5, 8))
        assert (again.describe()["frames"], again.stats.written) == (8, 3)
