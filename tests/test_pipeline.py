"""`VisualMemory` from end to end, with the tiny encoder wherever the real one does not matter."""

from __future__ import annotations

import errno
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import vismem as vm
from vismem import pipeline
from vismem.encoders.base import Encoding
from vismem.encoders.embedded import EmbeddedEncoder
from vismem.errors import StoreError, UsageError
from vismem.frame import Frame
from vismem.heads.answer import answer
from vismem.memory.policies import POLICIES
from vismem.observation import thumbnail
from vismem.scenes import thumbnail_of
from vismem.store import MemoryStore, verify

MOMENTS = {"max_labels": 4, "max_thumbnail": 1500}
STEP = 0.5  # seconds between frames
PATIENCE = 30.0
QUESTIONS = ("a cat", "dogs", "how many people?", "a unicorn", "what happened?", "the first dog")


def picture(number: int, seen: int | None = None, count: int = 1) -> np.ndarray:
    """One of many scenes of six pictures each, with noise of its own; see `TinyEncoder`."""
    scene = np.random.default_rng(number // 6).integers(0, 255, (2, 1, 3))
    image = np.repeat(np.repeat(scene, 6, axis=0), 16, axis=1).astype(np.uint8)
    image[:, 8:] ^= np.random.default_rng(1000 + number).integers(0, 16, (12, 8, 3), np.uint8)
    image[0, 0, :2] = (number // 6 % 5 if seen is None else seen), count
    return image


def frame(number: int, seen: int | None = None, **other: object) -> Frame:
    given = {"timestamp": number * STEP, "index": number} | other
    return Frame(picture(number, seen), **given)  # type: ignore[arg-type]


def fill(memory: vm.VisualMemory, numbers: range, **other: object) -> vm.VisualMemory:
    for number in numbers:
        assert memory.write(frame(number, **other))  # type: ignore[arg-type]
    memory.flush()
    return memory


def state_of(memory: vm.VisualMemory) -> dict[str, tuple]:
    """All that is held, bit for bit."""
    return {
        f"{name}: {key}": (value.dtype, tuple(value.shape), value.numpy().tobytes())
        for name, stream in memory._streams.items()
        for key, value in (stream.working_state() | stream.moments.state_dict()).items()
    } | {f"{name}: clock": (stream.clock,) for name, stream in memory._streams.items()}


def crash(memory: vm.VisualMemory) -> None:
    """Let go of the directory as the death of the process would: nothing is sealed."""
    assert memory._store is not None
    memory._store.close()


def replies(memory: vm.VisualMemory) -> list[dict]:
    return [memory.ask(question).to_dict() for question in QUESTIONS]


@pytest.fixture
def make(tiny, tmp_path: Path) -> Iterator[Callable[..., vm.VisualMemory]]:
    """Makes memories with the tiny encoder, and lets their threads end."""
    made: list[vm.VisualMemory] = []

    def make(budget: int | str = "1MB", **options: object) -> vm.VisualMemory:
        settings = {"encoder": tiny, "moments": MOMENTS} | options
        made.append(vm.VisualMemory(budget, **settings))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for memory in made:
        memory._writer.close()


@pytest.fixture
def seal_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "COMMIT_RECORDS", 7)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "clip.mem"


# --------------------------------------------------------------------------- the whole of it


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
    assert durable._store.records < 8


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


# --------------------------------------------------------------------------- crashes


def in_child(work: Callable[[int], None]) -> tuple[int, int]:
    """Run work in a child process that has the writing end of a pipe; its id and our end."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(ours)
            work(theirs)
            status = 0
        finally:
            os._exit(status)
    os.close(theirs)
    return child, ours


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
        picked = reader._nearest(0)(reader.snapshots()["camera"], tiny.query(asked).vector)
        newest = len(reader.snapshots()["camera"]) - 1
        assert newest in picked.tolist(), "what came after the index is compared, too"
        for threshold in (0.0, 0.3, 0.5):
            found, plain = (m.ask(asked, threshold=threshold) for m in (reader, in_ram))
            assert found == plain and not found.abstained


# --------------------------------------------------------------------------- who may open it


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


# --------------------------------------------------------------------------- the disk is full


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


# --------------------------------------------------------------------------- frames of all kinds


def test_a_live_source_drops_what_is_too_much(make, tiny, monkeypatch) -> None:
    gate, busy, real = threading.Event(), threading.Event(), tiny.encode

    def slow(images: list) -> list[Encoding]:
        busy.set()
        assert gate.wait(PATIENCE)
        return real(images)

    monkeypatch.setattr(tiny, "encode", slow)
    memory = make(queue=3)
    memory.write(frame(0), block=False)
    assert busy.wait(PATIENCE)
    taken = [memory.write(frame(number), block=False) for number in range(1, 8)]
    assert taken == [True, True] + [False] * 5
    gate.set()
    memory.flush()
    assert (memory.stats.written, memory.stats.dropped) == (3, 5)
    assert memory.write(frame(8), block=False)
    memory.flush()
    assert memory.describe()["frames"] == 4


def test_late_frames_are_left_out_and_counted(make) -> None:
    memory = make()
    for at in (0.0, 1.0, 0.5, 0.0, 1.5, 1.5):
        memory.write(frame(int(2 * at), timestamp=at))
    memory.flush()
    assert (memory.stats.written, memory.stats.late) == (4, 2)
    assert memory.describe()["span"] == [0.0, 1.5]


def test_a_clock_set_back_an_hour_carries_on_and_survives_a_restart(make, path: Path, tiny) -> None:
    for end in ("crash", "close"):
        here = path.with_name(end)
        memory = make(path=here)
        for at in (7200.0, 7200.5, 3600.0, 3600.5):
            memory.write(frame(0, timestamp=at))
        memory.flush()
        assert memory.stats.clock_jumps == 1 and memory.stats.late == 0
        assert "the clock was set back; time was carried on at 7201.0 s" in memory.stats.problems[0]
        crash(memory) if end == "crash" else memory.close()
        with vm.VisualMemory.open(here, encoder=tiny) as again:
            assert again.last_timestamp("camera") == 3600.5
            assert again.last_timestamp("door") is None
            again.write(frame(0, timestamp=3601.5))
            again.flush()
            assert again.describe()["span"] == [7200.0, 7202.5]
            assert again.stats.clock_jumps == 0 and again.stats.written == 1


@pytest.mark.parametrize("at", [math.nan, math.inf, -math.inf, None, "noon"])
def test_a_frame_without_a_time_is_refused(at: object, make) -> None:
    memory = fill(make(), range(3))
    with pytest.raises(ValueError, match="timestamp must be finite seconds"):
        memory.write(frame(3, timestamp=at))
    fill(memory, range(4, 6))
    assert (memory.stats.written, memory.stats.refused) == (5, 1)


@pytest.mark.parametrize("number", [int, np.float32, np.float64, np.int64, torch.tensor])
def test_any_number_is_a_time(number: Callable, make, path: Path, tiny) -> None:
    """Also for the log, which holds JSON."""
    memory = make(path=path)
    for at in (1, 2, 3):
        memory.write(frame(0, timestamp=number(at)))
    memory.flush()
    crash(memory)
    with vm.VisualMemory.open(path, encoder=tiny) as again:
        assert again.describe()["span"] == [1.0, 3.0]


@pytest.mark.parametrize(
    "image",
    [np.full((4, 4, 3), np.nan), np.zeros((0, 4, 3)), np.zeros((4, 4, 3), np.int32), None],
)
def test_a_frame_without_a_picture_is_refused(image: np.ndarray, make) -> None:
    memory = fill(make(), range(3))
    with pytest.raises(ValueError, match="picture"):
        memory.write(Frame(image, timestamp=5.0))
    fill(memory, range(11, 13))
    assert (memory.stats.written, memory.stats.refused) == (5, 1)


def test_pictures_of_all_kinds_are_taken(make, embedded: EmbeddedEncoder) -> None:
    random = np.random.default_rng(0)
    pictures = [
        random.integers(0, 255, (1, 1, 3), np.uint8),
        random.integers(0, 255, (40, 60), np.uint8),
        random.integers(0, 255, (40, 60, 4), np.uint8),
        random.integers(0, 65535, (40, 60, 3), np.uint16),
        random.random((60, 40, 3), np.float32),
        random.random((40, 60)) > 0.5,
        random.integers(0, 255, (2, 900, 3), np.uint8),
    ]
    memory = make(encoder=embedded, moments={})
    for number, image in enumerate(pictures):
        memory.write(Frame(image, timestamp=10.0 * number))
    memory.flush()
    assert memory.stats.written == len(pictures) and memory.stats.problems == []
    snapshot = memory.snapshots()["camera"]
    sizes = [
        cv2.imdecode(np.frombuffer(snapshot.thumbnail(n), np.uint8), cv2.IMREAD_COLOR).shape[:2]
        for n in range(len(snapshot))
    ]
    expected = [(1, 1), (40, 60), (40, 60), (40, 60), (60, 40), (40, 60), (1, 192)]
    assert sizes == expected


def test_what_a_source_does_with_its_buffer_afterwards_is_its_own_affair(make) -> None:
    memory, careful = make(queue=64), fill(make(), range(30))
    image, pose = np.zeros((12, 16, 3), np.uint8), np.eye(4)
    for number in range(30):
        image[:] = picture(number)
        memory.write(Frame(image, number * STEP, pose=pose if number == 99 else None))
        image[:] = 0
    memory.flush()
    assert state_of(memory) == state_of(careful)


def test_poses_are_kept_and_checked(make) -> None:
    memory = make()
    pose = np.eye(4)
    pose[0, 3] = 2.5
    memory.write(frame(0, seen=1, pose=pose))
    pose[0, 3] = 99.0  # the caller's own again
    memory.write(frame(50, seen=2, pose=np.full((4, 4), np.nan)))  # lost, as trackers say it
    memory.flush()
    assert memory.ask("a cat").moments[0].pose[0][3] == 2.5
    assert memory.ask("a dog").moments[0].pose is None
    with pytest.raises(ValueError, match=r"pose is \(4, 4\)"):
        memory.write(frame(60, pose=np.eye(3)))
    assert (memory.stats.written, memory.stats.refused) == (2, 1)


def test_a_picture_that_breaks_the_encoder_is_left_out(make) -> None:
    memory = make()
    for number in range(10):
        memory.write(frame(number, seen=13 if number == 4 else 1))
    memory.flush()
    assert (memory.stats.written, memory.stats.refused) == (9, 1)
    assert memory.stats.problems == ["a frame was left out: RuntimeError: this picture breaks me"]
    assert not memory.ask("a cat").abstained


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize(
    ("hostile", "problem"),
    [
        ({"seen": 14}, "tokens hold NaN"),
        ({"seen": 1, "pose": np.eye(4) * 1e300}, "the pose holds NaN or infinity"),
    ],
)
def test_what_the_memory_refuses_never_gets_into_the_log(
    hostile: dict, problem: str, make, path: Path, tiny
) -> None:
    """Else the memory could not be opened again."""
    memory = fill(make(path=path), range(4))
    memory.write(frame(4, **hostile))
    fill(memory, range(5, 9))
    assert (memory.stats.written, memory.stats.refused) == (8, 1)
    assert problem in memory.stats.problems[0]
    crash(memory)
    with vm.VisualMemory.open(path, encoder=tiny) as again:
        assert again.describe()["frames"] == 8 and state_of(again) == state_of(memory)


def test_a_closed_memory_takes_nothing(make) -> None:
    memory = fill(make(), range(3))
    memory.close()
    memory.close()
    with pytest.raises(UsageError, match="closed"):
        memory.write(frame(3))
    with pytest.raises(ValueError, match="ask something"):
        make().ask(" ")


# --------------------------------------------------------------------------- forgetting


def bytes_on_disk(path: Path) -> bytes:
    return b"".join(file.read_bytes() for file in path.rglob("*") if file.is_file())


def thumbnails(numbers: range) -> list[bytes]:
    found = [thumbnail(picture(number), MOMENTS["max_thumbnail"]) for number in numbers]
    assert len(set(found)) == len(found)
    return found


@pytest.mark.parametrize("sealed", [True, False])
def test_forgetting_leaves_no_trace_on_disk(sealed: bool, make, path: Path) -> None:
    memory = fill(make(path=path), range(60))
    if sealed:
        memory.save()
    snapshot = memory.snapshots()["camera"]
    start, end = snapshot.column("start"), snapshot.column("end")
    touched = (start <= 18.0) & (end >= 9.0)
    first, last = float(start[touched].min()), float(end[touched].max())
    gone = thumbnails(range(round(first / STEP), round(last / STEP) + 1))
    held = [snapshot.thumbnail(n) for n in range(len(snapshot))]
    before = bytes_on_disk(path)
    assert sum(picture in before for picture in gone) >= int(touched.sum()) > 2
    assert memory.forget(9.0, 18.0) == int(touched.sum()) == memory.stats.forgotten
    after = bytes_on_disk(path)
    assert not any(picture in after for picture in gone)
    assert all(picture in after for picture in held if picture not in gone)
    seen = memory.snapshots()["camera"]
    assert not ((seen.column("start") <= 18.0) & (seen.column("end") >= 9.0)).any()
    memory.close()
    after = bytes_on_disk(path)
    assert not any(picture in after for picture in gone)


def test_what_memory_gave_up_before_is_forgotten_on_disk_too(make, path: Path) -> None:
    """The log holds every frame since the last seal, also of moments that are gone already."""
    memory = fill(make(0, path=path), range(20))
    assert memory.snapshots()["camera"].column("start").tolist() == []
    assert thumbnails(range(20))[5] in bytes_on_disk(path)
    assert memory.forget(0.0, 5.0) == 0
    after = bytes_on_disk(path)
    assert not any(picture in after for picture in thumbnails(range(20)))


def test_one_stream_can_be_forgotten(make) -> None:
    memory = make()
    for stream in ("door", "yard"):
        fill(memory, range(20), stream=stream)
    assert memory.forget(-math.inf, math.inf, stream="door") > 0
    assert len(memory.snapshots()["door"]) == 0 and len(memory.snapshots()["yard"]) > 0
    assert memory.forget(0, 100, stream="attic") == 0
    with pytest.raises(ValueError, match="from its start to its end"):
        memory.forget(2.0, 1.0)


def test_what_is_too_old_is_forgotten_in_memory_and_on_disk(make, path: Path, tiny) -> None:
    memory = make(path=path, retain=10.0)
    for number in range(100):
        fill(memory, range(number, number + 1))
        oldest = float(memory.snapshots()["camera"].column("end")[0])
        assert oldest >= number * STEP - 1.05 * 10.0
    assert memory.stats.forgotten > 5
    old = thumbnails(range(round((99 * STEP - 15) / STEP)))
    kept = memory.describe()["span"][0]
    assert 99 * STEP - 10.5 <= kept <= 99 * STEP - 4
    on_disk = bytes_on_disk(path)
    assert not any(picture in on_disk for picture in old)
    memory.close()
    with vm.VisualMemory.open(path, encoder=tiny) as again:  # goes on forgetting
        again.write(frame(300))
        again.flush()
        assert again.describe()["span"] == [150.0, 150.0]


# --------------------------------------------------------------------------- the budget, threads


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


# --------------------------------------------------------------------------- a bank of pictures

every_policy = pytest.mark.parametrize("policy", POLICIES)


def slots_of(memory: vm.VisualMemory, stream: str = "camera") -> list:
    return list(memory.visual()[stream].slots())


@every_policy
def test_a_bank_and_moments_hold_one_budget(policy: str, make) -> None:
    for budget in (0, 200, 3_000, 20_000):
        memory = make(budget, policy=policy)
        for number in range(30):
            for stream in ("door", "yard")[: 1 + (number > 12)]:
                fill(memory, range(number, number + 1), stream=stream)
                assert memory.nbytes == memory.describe()["bytes"] <= budget
                for held in memory._streams.values():
                    assert held.nbytes <= budget // len(memory._streams)
        held = slots_of(memory, "door")
        assert len(held) > 2 if budget == 20_000 else budget or not held
        assert set(memory.visual()) == {"door", "yard"}


@every_policy
def test_a_bank_goes_on_after_a_crash_bit_for_bit(
    policy: str, make, path: Path, tiny, seal_often: None
) -> None:
    memory, in_ram = make(16_000, policy=policy, path=path), make(16_000, policy=policy)

    def write(memory: vm.VisualMemory, numbers: range) -> vm.VisualMemory:
        for number in numbers:
            for stream in ("door", "yard")[: 1 + (number > 10)]:
                assert memory.write(frame(number, stream=stream))
        memory.flush()
        return memory

    write(memory, range(25)), write(in_ram, range(60))
    crash(memory)
    again = vm.VisualMemory.open(path, encoder=tiny)
    assert again.policy == policy and 0 < again._store.records < 8
    write(again, range(25, 47))
    again.close()
    with vm.VisualMemory.open(path, encoder=tiny) as again:
        write(again, range(47, 60))
        assert state_of(again) == state_of(in_ram) and replies(again) == replies(in_ram)
        assert any(name.startswith("door: bank.") for name in state_of(again))
        assert torch.equal(
            again.recall("a cat", stream="yard").tokens,
            in_ram.recall("a cat", stream="yard").tokens,
        )
    assert verify(path).ok


def test_a_memory_of_before_there_were_policies_holds_moments(make, path: Path, tiny) -> None:
    memory = make()
    del memory.config["policy"]
    fill(memory, range(30)).save(path)
    memory.close()
    with vm.VisualMemory.open(path, encoder=tiny) as again:
        assert again.policy == "moments" and again.visual() == {}
        assert state_of(fill(again, range(30, 40))) == state_of(fill(make(), range(40)))


def test_a_stored_policy_that_is_not_known_is_told(make, path: Path, tiny) -> None:
    memory = fill(make(), range(3))
    memory.config["policy"] = "flesh"
    memory.save(path)
    memory.close()
    with pytest.raises(StoreError, match="policy is moments, flash, star, pyramid; not flesh"):
        vm.VisualMemory.open(path, encoder=tiny)


@pytest.mark.parametrize("sealed", [True, False])
@every_policy
def test_a_bank_forgets_without_a_trace(policy: str, sealed: bool, make, path: Path, tiny) -> None:
    memory = fill(make("200KB", policy=policy, path=path), range(60))
    if sealed:
        memory.save()
    inside = [slot for slot in slots_of(memory) if slot.first <= 18.0 and slot.last >= 9.0]
    assert len(inside) > 3
    gone = thumbnails(range(18, 37))
    kept = {thumbnail_of(s, memory.sizes) for s in slots_of(memory) if s.last < 9 or s.first > 18}
    assert sum(picture in bytes_on_disk(path) for picture in gone) > 3
    before = len(slots_of(memory)) + len(memory.snapshots()["camera"])
    count = memory.forget(9.0, 18.0)

    def look(memory: vm.VisualMemory) -> None:
        on_disk = bytes_on_disk(path)
        assert not any(picture in on_disk for picture in gone)
        held = slots_of(memory)
        assert not any(slot.first <= 18.0 and slot.last >= 9.0 for slot in held)
        assert kept == {thumbnail_of(slot, memory.sizes) for slot in held} and b"" not in kept
        in_memory = b"".join(state[2] for state in state_of(memory).values() if len(state) == 3)
        assert not any(picture in in_memory for picture in gone)
        assert any(picture in in_memory for picture in kept)
        assert before - len(held) - len(memory.snapshots()["camera"]) == count
        for question in QUESTIONS:
            told = memory.ask(question, threshold=0.01).moments
            assert not any(m.start <= 18.0 and m.end >= 9.0 for m in told)
        times = memory.recall("a cat").times
        assert len(times) and not bool(((times >= 9.0) & (times <= 18.0)).any())
        if policy == "star":
            assert len(memory._streams["camera"].bank.abstract) == 0

    look(memory)
    crash(memory)
    with vm.VisualMemory.open(path, encoder=tiny) as again:
        look(again)


def test_what_a_bank_only_sums_up_is_forgotten_on_disk_too(make, path: Path, tiny) -> None:
    """There is room for no moment and no scene, but for a token of all frames."""
    memory = fill(make(800, policy="star", path=path), range(20))
    memory.save()
    assert not slots_of(memory) and len(memory.snapshots()["camera"]) == 0
    assert len(memory._streams["camera"].bank.abstract) == 1
    assert memory.forget(2.0, 3.0) == 0
    crash(memory)
    with vm.VisualMemory.open(path, encoder=tiny) as again:
        assert len(again._streams["camera"].bank.abstract) == 0


@every_policy
def test_a_bank_forgets_by_age(policy: str, make, path: Path) -> None:
    memory = make("200KB", policy=policy, path=path, retain=10.0)
    for number in range(80):
        fill(memory, range(number, number + 1))
        assert memory._streams["camera"].bank.oldest >= number * STEP - 1.05 * 10.0
    assert len(slots_of(memory)) > 3
    old = thumbnails(range(round((79 * STEP - 15) / STEP)))
    assert not any(picture in bytes_on_disk(path) for picture in old)


def coming_back(number: int) -> Frame:
    """Eight scenes of three seconds in turn; a cat in the fourth."""
    image = picture(number // 6 % 8 * 6, 0)
    image[:, 8:] ^= np.random.default_rng(number).integers(0, 8, (12, 8, 3), np.uint8)
    image[0, 0, 0] = number // 6 % 8 == 3
    return Frame(image, number * STEP)


@every_policy
def test_a_bank_knows_what_the_moments_had_to_merge_away(policy: str, make) -> None:
    memory = make(12_000, policy=policy)
    for number in range(480):
        memory.write(coming_back(number))
    found = memory.ask("a cat")
    assert answer("a cat", memory.snapshots(), memory.encoder).abstained
    assert not found.abstained and memory.nbytes <= 12_000
    for moment in found.moments:
        assert round(moment.time / STEP) // 6 % 8 == 3, "a time at which it was seen"
        assert moment.start <= moment.time <= moment.end
    for absent in ("a dog", "people"):
        assert memory.ask(absent).abstained


@every_policy
def test_recall_gives_true_times_in_order_within_its_tokens(policy: str, make) -> None:
    memory = make(40_000, policy=policy)
    for number in range(300):
        memory.write(coming_back(number))
    memory.flush()
    true = {number * STEP for number in range(300)}
    sizes = []
    for tokens in (0, 1, 2, 3, 7, 30, 8192):
        for question in (None, "a cat"):
            for before in (None, -1.0, 0.0, 60.2, 149.5, 1e9):
                recall = memory.recall(question, tokens=tokens, before=before)
                times = recall.times
                assert len(recall.tokens) == len(times) <= tokens
                assert recall.tokens.dtype == torch.float16 and recall.tokens.shape[1] == 4
                assert bool((times.diff() >= 0).all()) and set(times.tolist()) <= true
                if before is not None:
                    assert not len(times) or float(times.max()) <= before
                sizes.append(len(times))
        if tokens >= 2:
            assert float(memory.recall("a cat", tokens=tokens).times[-1]) == 149.5
    assert max(sizes) > 6 and memory.recall().times[-1] == 149.5
    asked, asked_not = memory.recall("a cat"), memory.recall()
    assert bool((asked.scores != 0).any()) and not bool(asked_not.scores.any())


def test_recall_says_what_is_missing(make) -> None:
    for memory in (make(), fill(make(), range(2))):
        with pytest.raises(UsageError, match="keeps no visual tokens; make it with policy="):
            memory.recall("a cat")
    memory = make(policy="flash")
    with pytest.raises(UsageError, match="name one of the streams: none yet"):
        memory.recall()
    fill(memory, range(3), stream="door")
    assert len(memory.recall().times) == len(memory.recall(stream="door").times) == 6
    with pytest.raises(UsageError, match="name one of the streams: door"):
        memory.recall(stream="attic")
    fill(memory, range(5), stream="yard")
    with pytest.raises(UsageError, match="name one of the streams: door, yard"):
        memory.recall("a cat")
    assert len(memory.recall(stream="yard").times) == 10
