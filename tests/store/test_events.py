import sqlite3

import pytest

from vismem.errors import StoreError
from vismem.store.events import EVENTS, Event, EventIndex


def event(label, start, end=None, **changes):
    end = start + 1 if end is None else end
    return Event(start, end, start, label, 0.5, 0.1, 0.2, 0.3, 0.4, "camera")._replace(**changes)


@pytest.fixture
def index(tmp_path):
    index = EventIndex(tmp_path)
    yield index
    index.close()


def everything(directory):
    return b"".join(path.read_bytes() for path in directory.glob(EVENTS + "*"))


def test_events_are_found_by_label_and_time(index):
    index.replace("s2", [event("dog", 10.0), event("cat", 12.0)])
    index.replace("s1", [event("dog", 1.0, 4.0, x1=0.9)])
    assert [e.segment for e in index.query("dog")] == ["s1", "s2"]
    assert index.query("dog")[0] == event("dog", 1.0, 4.0, x1=0.9, segment="s1")
    assert [e.label for e in index.query(start=4.0)] == ["dog", "dog", "cat"]
    assert [e.label for e in index.query(start=4.1, end=11.9)] == ["dog"]
    assert len(index.query(limit=2)) == 2
    assert index.query("bird") == []
    assert index.covered == {"s1", "s2"}


def test_replacing_and_rebuilding(index):
    index.replace("s1", [event("dog", 1.0)])
    index.replace("s1", [event("cat", 1.0)])
    assert [e.label for e in index.query()] == ["cat"]
    index.replace("s2", [])
    assert index.covered == {"s1", "s2"}, "a segment without events is covered too"
    index.rebuild([("s3", [event("bird", 1.0)])])
    assert index.covered == {"s3"} and [e.label for e in index.query()] == ["bird"]


def test_what_is_dropped_is_in_no_file(tmp_path, index):
    labels = [f"secret-{i}" for i in range(200)]
    index.replace("s1", [event(label, 1.0) for label in labels])
    index.replace("s2", [event("kept", 1.0)])
    assert b"secret-150" in everything(tmp_path)
    index.drop(["s1"])
    assert b"secret" not in everything(tmp_path) and b"kept" in everything(tmp_path)
    assert [e.label for e in index.query()] == ["kept"] and index.covered == {"s2"}


def test_a_reader_in_a_transaction_cannot_keep_what_is_forgotten(tmp_path, index, monkeypatch):
    index.replace("s1", [event("secret", 1.0)])
    index._database.execute("PRAGMA busy_timeout = 0")
    reader = sqlite3.connect(tmp_path / EVENTS)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM events").fetchall()
    with pytest.raises(StoreError, match="thrown away; the next commit builds it again"):
        index.drop(["s1"])
    assert b"secret" not in everything(tmp_path)
    assert index.covered == set()
    reader.close()


@pytest.mark.parametrize("damage", [b"", b"garbage" * 1000, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_database_is_thrown_away(tmp_path, damage):
    index = EventIndex(tmp_path)
    index.replace("s1", [event("dog", 1.0)])
    index.close()
    (tmp_path / EVENTS).write_bytes(damage)
    reader = EventIndex(tmp_path, read_only=True)
    assert reader.covered == set()
    with pytest.raises(StoreError, match="open the memory for writing"):
        reader.query()
    assert (tmp_path / EVENTS).read_bytes() == damage, "a reader changed the file"
    index = EventIndex(tmp_path)
    assert index.covered == set()
    index.replace("s1", [event("dog", 1.0)])
    assert [e.label for e in index.query()] == ["dog"]
    assert index.damage() is None


def test_damage_found_later_is_an_error_and_then_gone(tmp_path):
    index = EventIndex(tmp_path)
    index.replace("s1", [event(f"label {i}", 1.0) for i in range(2000)])
    index.close()
    data = bytearray((tmp_path / EVENTS).read_bytes())
    pages = len(data) // 4096
    for page in range(4, pages):
        data[page * 4096 : (page + 1) * 4096] = b"\xa5" * 4096
    (tmp_path / EVENTS).write_bytes(data)
    index = EventIndex(tmp_path)
    with pytest.raises(StoreError, match="thrown away"):
        index.query(limit=10_000)
    assert index.covered == set() and index.query() == []


def test_a_database_of_another_version_is_made_anew(tmp_path):
    database = sqlite3.connect(tmp_path / EVENTS)
    database.execute("PRAGMA user_version = 9")
    database.execute("CREATE TABLE segments (other)")
    database.close()
    index = EventIndex(tmp_path)
    index.replace("s1", [event("dog", 1.0)])
    assert len(index.query()) == 1


def test_a_link_is_not_followed(tmp_path):
    other = tmp_path / "other.sqlite"
    sqlite3.connect(other).close()
    (tmp_path / EVENTS).symlink_to(other)
    index = EventIndex(tmp_path)
    index.replace("s1", [event("dog", 1.0)])
    assert other.stat().st_size == 0 and not (tmp_path / EVENTS).is_symlink()


def test_a_reader_reads_beside_a_writer(tmp_path, index):
    index.replace("s1", [event("dog", 1.0)])
    reader = EventIndex(tmp_path, read_only=True)
    index.replace("s2", [event("dog", 2.0)])
    assert len(reader.query("dog")) == 2
    reader.close()


def test_without_a_database_a_reader_has_nothing(tmp_path):
    reader = EventIndex(tmp_path, read_only=True)
    assert reader.covered == set() and list(tmp_path.iterdir()) == []
