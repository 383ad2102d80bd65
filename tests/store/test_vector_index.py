import json

import pytest
import torch

from vismem.errors import UsageError
from vismem.store import MemoryStore, SegmentData
from vismem.store.index import INDEX, VectorIndex

ROWS, WIDTH, THRESHOLD = 250, 32, 1000


@pytest.fixture(scope="module")
def scenes():
    generator = torch.Generator().manual_seed(3)
    centres = torch.randn(60, WIDTH, generator=generator)

    def draw(rows):
        pick = torch.randint(0, 60, (rows,), generator=generator)
        noise = torch.randn(rows, WIDTH, generator=generator)
        return torch.nn.functional.normalize(centres[pick] + 0.6 * noise, dim=1)

    return draw


def segment(vectors):
    columns = {"embedding": vectors.half()}
    return SegmentData(columns, [b""] * len(vectors), 0.0, 1.0)


@pytest.fixture
def content(scenes):
    return {f"s{i}": segment(scenes(ROWS)) for i in range(12)}


@pytest.fixture
def store(tmp_path, content):
    store = MemoryStore.create(tmp_path / "m", encoder={}, config={})
    store.commit(content, {})
    yield store
    store.close()


def index_of(store):
    return store.vector_index(threshold=THRESHOLD)


def test_it_finds_nearly_all_of_what_a_scan_finds(store, scenes):
    queries, k = scenes(50), 10
    index = index_of(store)
    assert len(index) == 12 * ROWS and index.covered == {f"s{i}" for i in range(12)}
    scores, numbers, rows = index.search(queries, k)
    everything = torch.cat([s.columns["embedding"].float() for s in store.segments()])
    exact = (queries @ everything.T).topk(k)
    found = [
        {(index.segments[n], r) for n, r in zip(ns, rs, strict=True)}
        for ns, rs in zip(numbers.tolist(), rows.tolist(), strict=True)
    ]
    true = [{(f"s{i // ROWS}", i % ROWS) for i in row} for row in exact.indices.tolist()]
    recall = sum(len(a & b) for a, b in zip(found, true, strict=True)) / (50 * k)
    assert recall > 0.9
    assert (scores[:, :-1] >= scores[:, 1:]).all()
    torch.testing.assert_close(scores[:, 0], exact.values[:, 0], atol=0.02, rtol=0)


def test_a_small_memory_has_none(store):
    index_of(store)
    assert (store.path / INDEX).exists()
    # An index once loaded is kept while it fits, whatever the threshold; a new look removes it.
    store.close()
    with MemoryStore.open(store.path) as store:
        assert store.vector_index() is None
        assert not (store.path / INDEX).exists()


def test_it_is_kept_on_disk_and_built_anew_below_four_fifths(store, content, scenes, monkeypatch):
    built = []
    real = VectorIndex.build
    monkeypatch.setattr(VectorIndex, "build", lambda *args: built.append(1) or real(*args))
    index_of(store)
    store.close()
    with MemoryStore.open(store.path) as store:
        index_of(store)
        assert len(built) == 1
        content |= {f"new{i}": segment(scenes(ROWS)) for i in range(3)}
        store.commit(content, {})
        assert index_of(store).covered == {f"s{i}" for i in range(12)}  # exactly 80 %
        assert len(built) == 1
        content["last"] = segment(scenes(ROWS))
        store.commit(content, {})
        assert index_of(store).covered == content.keys()
        assert len(built) == 2


def test_what_is_forgotten_is_out_of_the_files_at_once(store, content):
    index_of(store)
    queries = content["s0"].columns["embedding"].float()
    before = (store.path / INDEX).stat().st_size
    del content["s0"]
    store.commit(content, {})
    assert (store.path / INDEX).stat().st_size < before - ROWS * WIDTH // 2
    assert "s0" not in json.loads((store.path / "index.json").read_text())["segments"]
    index = index_of(store)
    assert len(index) == 11 * ROWS and "s0" not in index.covered
    _, numbers, _ = index.search(queries, 5)
    assert "s0" not in {index.segments[n] for n in numbers.flatten().tolist() if n >= 0}


def test_a_reader_takes_what_there_is(store, content):
    assert MemoryStore.open(store.path, read_only=True).vector_index(threshold=THRESHOLD) is None
    index_of(store)
    reader = MemoryStore.open(store.path, read_only=True)
    assert index_of(reader).covered == content.keys()
    assert reader.vector_index(column="other", threshold=THRESHOLD) is None


@pytest.mark.parametrize("name", [INDEX, "index.json"])
@pytest.mark.parametrize("damage", [b"", b"garbage", b"[]", b"[" * 100_000, b'{"format": 1}'])
def test_a_damaged_index_is_built_anew(store, name, damage):
    index_of(store)
    store.close()
    (store.path / name).write_bytes(damage)
    with MemoryStore.open(store.path) as store:
        assert len(index_of(store)) == 12 * ROWS


def test_fewer_rows_than_asked_for(store, content):
    small = VectorIndex.build(store.segments()[:1], "embedding")
    scores, numbers, rows = small.search(content["s0"].columns["embedding"][:2], ROWS + 5)
    assert (numbers[:, -5:] == -1).all() and (rows[:, -5:] == -1).all()
    assert torch.isneginf(scores[:, -5:]).all()


def test_a_column_that_is_not_there(store):
    with pytest.raises(UsageError, match="no column 'other'"):
        store.vector_index(column="other", threshold=THRESHOLD)
