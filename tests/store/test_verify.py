import pytest
import torch

from vismem.errors import StoreError
from vismem.store import Event, MemoryStore, SegmentData, verify


def segment(number):
    return SegmentData({"number": torch.tensor([number] * 3)}, [b"jpeg" * 50] * 3, 0.0, 1.0)


def events(segment):
    return [Event(0.0, 1.0, 0.5, "dog", 0.9, 0, 0, 1, 1, "camera")]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "clip.mem"
    with MemoryStore.create(path, encoder={}, config={}) as store:
        store.commit(
            {f"s{i}": segment(i) for i in range(3)}, {"open": torch.ones(9)}, events=events
        )
        store.append(b"one")
        store.append(b"two")
    return path


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_sound_memory(path):
    report = verify(path)
    assert report.ok and report.orphans == ()
    assert (report.segments, report.rows, report.records, report.cut) == (3, 9, 2, 0)


# Everything that a commit wrote, and where a flipped bit does no harm to sizes and headers.
PLACES = [
    ("seg_s1.safetensors", -1, "seg_s1.safetensors is damaged: its sha256"),
    ("seg_s1.blob", 5, "seg_s1.blob is damaged: its sha256"),
    ("state_000001.safetensors", -1, "state_000001.safetensors is damaged: its sha256"),
    ("tail_000001.log", -1, "tail_000001.log is damaged: its last 11 bytes are no records"),
    ("manifest.json", 0, "manifest.json is damaged"),
    ("events.sqlite", 3, "events.sqlite cannot be used"),
]


@pytest.mark.parametrize("name, at, message", PLACES, ids=[place[0] for place in PLACES])
def test_one_flipped_bit_is_found_and_named(path, name, at, message):
    flip(path / name, at)
    report = verify(path)
    assert len(report.problems) == 1 and message in report.problems[0] and not report.ok


def test_missing_and_surplus_files_and_torn_records(path):
    (path / "seg_s0.blob").unlink()
    (path / "seg_s9.blob").write_bytes(b"x")
    with open(path / "tail_000001.log", "ab") as tail:
        tail.write(b"\x05\0\0")
    report = verify(path)
    assert report.orphans == ("seg_s9.blob",)
    assert (report.records, report.cut) == (2, 3)
    assert len(report.problems) == 1 and "seg_s0.blob cannot be read" in report.problems[0]


def test_a_damaged_vector_index_is_named(path):
    (path / "index.faiss").write_bytes(b"x")
    assert "index.faiss is damaged" in verify(path).problems[0]


def test_verify_beside_a_writer_changes_nothing(path):
    with MemoryStore.open(path):
        before = {entry.name: entry.read_bytes() for entry in path.iterdir()}
        assert verify(path).ok
        after = {entry.name: entry.read_bytes() for entry in path.iterdir()}
    assert before.keys() == after.keys()
    assert all(before[name] == after[name] for name in before if not name.endswith("-shm"))


def test_a_damaged_segment_stops_opening_and_says_the_way_on(path):
    (path / "seg_s1.blob").write_bytes(b"short")
    for read_only in (False, True):
        with pytest.raises(StoreError, match="seg_s1.blob.*inspect --verify.*salvage=True"):
            MemoryStore.open(path, read_only=read_only)


@pytest.mark.parametrize("damage", ["size", "bit", "missing"])
def test_salvage_goes_on_with_the_rest(path, damage):
    blob = path / "seg_s1.blob"
    if damage == "size":
        blob.write_bytes(b"short")
    elif damage == "bit":
        flip(blob, 5)
    else:
        blob.unlink()
    with MemoryStore.open(path, salvage=True) as store:
        assert [segment.name for segment in store.segments()] == ["s0", "s2"]
        assert len(store.lost) == 1 and "segment s1 with 3 moments: seg_s1.blob" in store.lost[0]
        assert [payload for _, payload in store.replay()] == [b"one", b"two"]
        assert store.events.covered == {"s0", "s2"}
    assert (path / "damaged" / "seg_s1.safetensors").exists()
    assert (path / "damaged" / "seg_s1.blob").exists() == (damage != "missing")
    assert verify(path).ok
    with MemoryStore.open(path) as store:
        assert store.lost == () and len(store.segments()) == 2


def test_salvage_without_state_and_tail(path):
    flip(path / "state_000001.safetensors", -1)
    flip(path / "tail_000001.log", 0)
    with pytest.raises(StoreError, match="tail_000001.log is damaged"):
        MemoryStore.open(path)
    with MemoryStore.open(path, salvage=True) as store:
        assert store.state() == {} and list(store.replay()) == [] and len(store.segments()) == 3
        assert len(store.lost) == 2
        store.append(b"three")
    with MemoryStore.open(path) as store:
        assert [payload for _, payload in store.replay()] == [b"three"]


def test_salvage_of_a_sound_memory_changes_nothing(path):
    before = (path / "manifest.json").read_bytes()
    with MemoryStore.open(path, salvage=True) as store:
        assert store.lost == () and store.records == 2
    assert (path / "manifest.json").read_bytes() == before and not (path / "damaged").exists()


def test_records_lost_in_the_tail_are_told(path):
    flip(path / "tail_000001.log", 20)
    with MemoryStore.open(path) as store:
        assert store.records == 0 and store.cut == 22
        assert "records at the end of tail_000001.log" in store.lost[0]
