import os
import socket
import subprocess
import sys

import pytest
import torch

from vismem.errors import StoreError, UsageError
from vismem.store import Event, MemoryStore, SegmentData
from vismem.store import store as store_module
from vismem.store.manifest import read_manifest

ENCODER = {"model": "tiny", "sha256": "ab12"}


def segment(*numbers):
    columns = {"number": torch.tensor(numbers), "wide": torch.randn(len(numbers), 50)}
    thumbnails = [f"secret {number}".encode() for number in numbers]
    return SegmentData(columns, thumbnails, float(numbers[0]), float(numbers[-1]))


def events(segment):
    return [
        Event(float(n), n + 1.0, n + 0.5, f"label {n}", 0.9, 0, 0, 1, 1, "camera")
        for n in segment.columns["number"].tolist()
    ]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "clip.mem"


@pytest.fixture
def store(path):
    store = MemoryStore.create(path, encoder=ENCODER, config={"budget": "64MB"})
    yield store
    store.close()


def numbers(store):
    return [n for segment in store.segments() for n in segment.columns["number"].tolist()]


def names(path):
    return {entry.name for entry in path.iterdir()}


def test_records_and_commits_come_back(store, path):
    assert [store.append(b"a"), store.append(b"b")] == [0, 1]
    report = store.commit({"s0": segment(0, 1)}, {"open": torch.ones(2)}, meta={"frames": 2})
    assert (report.written, report.dropped, report.problems) == (("s0",), (), ())
    assert list(store.replay()) == []
    assert store.append(b"c") == 2
    store.close()
    with MemoryStore.open(path, encoder=ENCODER) as store:
        assert list(store.replay()) == [(2, b"c")] and store.records == 1
        assert numbers(store) == [0, 1]
        assert list(store.segments()[0].thumbnails) == [b"secret 0", b"secret 1"]
        assert store.state()["open"].tolist() == [1.0, 1.0]
        assert (store.encoder, store.config) == (ENCODER, {"budget": "64MB"})
        assert (store.meta, store.cut, store.lost) == ({"frames": 2}, 0, ())
        store.commit({"s0": segment(0, 1), "s1": segment(2)}, {})
        assert store.meta == {"frames": 2}, "meta stays as it was"
        assert store.append(b"d") == 3


def test_only_new_segments_are_looked_up_and_order_is_kept(store):
    class Lazy(dict):
        asked = []

        def __getitem__(self, name):
            self.asked.append(name)
            return super().__getitem__(name)

    content = Lazy(b=segment(5), a=segment(1))
    store.commit(content, {})
    content["c"] = segment(3)
    inode = (store.path / "seg_a.blob").stat().st_ino
    store.commit(content, {})
    assert Lazy.asked == ["b", "a", "c"]
    assert (store.path / "seg_a.blob").stat().st_ino == inode
    assert numbers(store) == [5, 1, 3]


def test_what_is_forgotten_is_in_no_file(store, path):
    store.append(b"secret in the tail")
    content = {"segment-0": segment(10, 11), "s1": segment(12)}
    store.commit(content, {"x": torch.tensor(list(b"secret state"))}, events=events)
    del content["segment-0"]
    report = store.commit(content, {}, events=events)
    assert report.dropped == ("segment-0",) and store.events.covered == {"s1"}
    everything = b"".join(entry.read_bytes() for entry in path.iterdir())
    assert b"secret 12" in everything and b"label 12" in everything
    for gone in (b"secret 10", b"label 10", b"secret in the tail", b"secret state", b"segment-0"):
        assert gone not in everything
    assert not [name for name in names(path) if name.startswith("seg_segment-0")]


def test_events_follow_the_segments_and_heal(store, path):
    store.commit({"s0": segment(0)}, {})
    assert store.events.covered == set()
    store.commit({"s0": segment(0), "s1": segment(1)}, {}, events=events)
    assert [e.label for e in store.events.query()] == ["label 0", "label 1"]
    store.close()
    (path / "events.sqlite").write_bytes(b"garbage" * 999)
    with MemoryStore.open(path) as store:
        assert store.events.covered == set()
        store.commit({"s0": segment(0), "s1": segment(1)}, {}, events=events)
        assert [e.segment for e in store.events.query("label 1")] == ["s1"]


def test_an_index_that_cannot_be_written_does_not_stop_a_commit(store, monkeypatch):
    def full(*_):
        raise StoreError("events.sqlite cannot be used (database or disk is full)")

    monkeypatch.setattr(store.events, "replace", full)
    report = store.commit({"s0": segment(0)}, {}, events=events)
    assert "disk is full" in report.problems[0] and numbers(store) == [0]


def test_old_files_that_cannot_be_removed_are_reported(store, path, monkeypatch):
    store.commit({"s0": segment(0)}, {})

    def fail(*_, **__):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.unlink", fail)
        report = store.commit({"s1": segment(1)}, {})
    assert any("seg_s0.blob could not be removed" in line for line in report.problems)
    assert store.commit({"s1": segment(1)}, {}).problems == ()
    assert "seg_s0.blob" not in names(path)


def test_an_interrupt_right_after_the_switch_loses_nothing(store, path, monkeypatch):
    real = store_module.write_manifest

    def interrupted(*args):
        real(*args)
        raise KeyboardInterrupt

    store.append(b"a")
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "write_manifest", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.commit({"s0": segment(0)}, {})
    assert store.append(b"b") == 1
    store.close()
    with MemoryStore.open(path) as store:
        assert numbers(store) == [0] and list(store.replay()) == [(1, b"b")]


# -- opening --------------------------------------------------------------------------------------


def test_another_encoder_is_refused(store, path):
    store.close()
    with pytest.raises(StoreError, match="tiny.*not.*other.*different models never mix"):
        MemoryStore.open(path, encoder={"model": "other"})


def test_one_writer_and_the_error_names_it(store, path):
    with pytest.raises(StoreError, match=f"process {os.getpid()} on {socket.gethostname()}"):
        MemoryStore.open(path)
    code = (
        "from vismem.store import MemoryStore\nfrom vismem.errors import StoreError\nimport sys\n"
        "try: MemoryStore.open(sys.argv[1])\nexcept StoreError as error: print(error)"
    )
    output = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert f"being written by process {os.getpid()}" in output.stdout
    store.close()
    MemoryStore.open(path).close()


def test_create_refuses_what_is_there(store, path, tmp_path):
    with pytest.raises(StoreError, match="already holds a memory: open it, or choose another"):
        MemoryStore.create(path, encoder={}, config={})
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="is a file: choose another path"):
        MemoryStore.create(tmp_path / "file", encoder={}, config={})
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("x")
    with pytest.raises(StoreError, match="is not empty .it has a.jpg.: choose another path"):
        MemoryStore.create(tmp_path / "photos", encoder={}, config={})
    assert names(tmp_path / "photos") == {"a.jpg"}


def test_open_says_what_is_wrong_with_a_path(tmp_path):
    with pytest.raises(StoreError, match="does not exist"):
        MemoryStore.open(tmp_path / "nothing")
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="is a file"):
        MemoryStore.open(tmp_path / "file")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreError, match="is not a vismem memory"):
        MemoryStore.open(tmp_path / "folder")
    assert names(tmp_path / "folder") == set()


def test_an_interrupted_create_can_be_repeated(path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("vismem.store.commit.write_manifest", fail)
        with pytest.raises(StoreError, match="disk is full.*create it again"):
            MemoryStore.create(path, encoder={}, config={})
    with pytest.raises(StoreError, match="interrupted, create it again"):
        MemoryStore.open(path)
    MemoryStore.create(path, encoder={}, config={}).close()
    MemoryStore.open(path).close()


def test_a_writer_removes_orphans_and_nothing_else(store, path):
    store.commit({"s0": segment(0)}, {})
    store.close()
    orphans = {"seg_x.safetensors", "seg_x.blob.tmp", "tail_000009.log", "state_000009.safetensors"}
    for name in orphans | {"notes.txt"}:
        (path / name).write_bytes(b"x")
    MemoryStore.open(path, read_only=True).close()
    assert orphans <= names(path)
    MemoryStore.open(path).close()
    assert not orphans & names(path) and "notes.txt" in names(path)


def test_misuse_is_named(store, path):
    with MemoryStore.open(path, read_only=True) as reader:
        with pytest.raises(UsageError, match="opened read-only: open it for writing"):
            reader.append(b"x")
        with pytest.raises(UsageError, match="opened read-only"):
            reader.commit({}, {})
    with pytest.raises(UsageError, match="without read_only"):
        MemoryStore.open(path, read_only=True, salvage=True)
    store.close()
    store.close()
    for call in (lambda: store.append(b"x"), store.segments, store.state, store.replay):
        with pytest.raises(UsageError, match="is closed: open it again"):
            call()
    with pytest.raises(UsageError, match="durability"):
        MemoryStore.create(path, encoder={}, config={}, durability="none")


def test_nbytes_is_what_is_on_disk(store, path):
    store.commit({"s0": segment(0, 1, 2)}, {"x": torch.zeros(9)}, events=events)
    store.append(b"abc")
    assert sum(store.nbytes.values()) == sum(
        entry.stat().st_size for entry in path.iterdir() if entry.name != "LOCK"
    )
    assert all(store.nbytes[kind] for kind in ("segments", "thumbnails", "state", "tail", "events"))


# -- readers --------------------------------------------------------------------------------------


def test_a_reader_keeps_its_view_while_the_writer_goes_on(store, path):
    store.append(b"a")
    store.commit({"s0": segment(0)}, {"n": torch.tensor(1)})
    store.append(b"b")
    reader = MemoryStore.open(path, read_only=True)
    store.append(b"c")
    store.commit({"s1": segment(1)}, {"n": torch.tensor(2)})
    assert numbers(reader) == [0] and list(reader.replay()) == [(1, b"b")]
    assert reader.segments()[0].thumbnails[0] == b"secret 0"
    assert reader.state()["n"].item() == 1
    assert numbers(MemoryStore.open(path, read_only=True)) == [1]


def test_a_reader_overtaken_by_commits_looks_again(store, path, monkeypatch):
    store.commit({"t9": segment(9)}, {"n": torch.tensor(9)})
    to_come = [2, 1, 0]

    def overtaken(directory):
        manifest = read_manifest(directory)
        with monkeypatch.context() as patch:
            patch.setattr(store_module, "read_manifest", read_manifest)
            if to_come:
                number = to_come.pop()
                store.commit({f"t{number}": segment(number)}, {"n": torch.tensor(number)})
        return manifest

    monkeypatch.setattr(store_module, "read_manifest", overtaken)
    with MemoryStore.open(path, read_only=True) as reader:
        assert reader.state()["n"].item() == 2 and numbers(reader) == [2] and not to_come


def test_a_read_only_medium(store, path, tmp_path):
    store.append(b"a")
    store.commit({"s0": segment(0)}, {}, events=events)
    store.append(b"b")
    store.close()
    target = tmp_path / "medium"
    target.mkdir()
    mount = ["mount", "--bind", "-o", "ro", str(path), str(target)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this machine does not let tests mount")
    try:
        with MemoryStore.open(target, read_only=True) as reader:
            assert numbers(reader) == [0] and list(reader.replay()) == [(1, b"b")]
            assert [e.label for e in reader.events.query()] == ["label 0"]
        with pytest.raises(StoreError, match="open it with read_only=True"):
            MemoryStore.open(target)
    finally:
        subprocess.run(["umount", "-l", str(target)], check=True)
