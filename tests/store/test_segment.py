import dataclasses
import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vismem.errors import StoreError, UsageError
from vismem.store.record import pack
from vismem.store.segment import SegmentData, SegmentFile, write_segment

THUMBNAILS = [b"first", b"", b"x" * 3000]
DATA = SegmentData(
    {"embedding": torch.randn(3, 4).half(), "time": torch.tensor([0.0, 1.0, 2.0])},
    THUMBNAILS,
    0.0,
    2.0,
)


def test_a_segment_comes_back_and_is_mapped(tmp_path):
    entry = write_segment(tmp_path, "s-1.a", DATA)
    segment = SegmentFile(tmp_path, entry)
    assert (segment.name, segment.rows, entry.start, entry.end) == ("s-1.a", 3, 0.0, 2.0)
    assert segment.columns.keys() == DATA.columns.keys()
    assert torch.equal(segment.columns["embedding"], DATA.columns["embedding"])
    assert list(segment.thumbnails) == THUMBNAILS
    assert segment.thumbnails[-1] == THUMBNAILS[2] and segment.thumbnails[:2] == THUMBNAILS[:2]
    with pytest.raises(IndexError):
        segment.thumbnails[3]
    maps = open("/proc/self/maps").read()
    assert entry.file in maps and entry.blob in maps
    for path in tmp_path.iterdir():
        path.unlink()
    assert list(segment.thumbnails) == THUMBNAILS, "what a reader has does not go away"


def test_opening_costs_no_descriptors(tmp_path):
    entry = write_segment(tmp_path, "s", DATA)
    before = len(os.listdir("/proc/self/fd"))
    segments = [SegmentFile(tmp_path, entry) for _ in range(20)]
    assert len(os.listdir("/proc/self/fd")) == before and len(segments) == 20


def test_no_thumbnails_at_all(tmp_path):
    entry = write_segment(tmp_path, "s", DATA._replace(thumbnails=[b""] * 3))
    assert list(SegmentFile(tmp_path, entry).thumbnails) == [b"", b"", b""]


WRONG = [
    ("a/b", DATA, "named by letters"),
    ("", DATA, "named by letters"),
    ("s", DATA._replace(thumbnails=[]), "is empty"),
    ("s", DATA._replace(columns={}), "is empty"),
    ("s", DATA._replace(thumbnails=[b""] * 2), "one row for each"),
    ("s", DATA._replace(columns={"x": torch.tensor(1.0)}), "one row for each"),
    ("s", DATA._replace(columns={"blob_offsets": torch.zeros(3)}), "rename it"),
    ("s", DATA._replace(start=3.0), "cannot last"),
    ("s", DATA._replace(end=float("nan")), "cannot last"),
]


@pytest.mark.parametrize("name, data, message", WRONG, ids=range(len(WRONG)))
def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path, name, data, message):
    with pytest.raises(UsageError, match=message):
        write_segment(tmp_path, name, data)
    assert list(tmp_path.iterdir()) == []


def rewritten(directory, tensors):
    """A segment whose file holds other tensors, with the sizes noted as they are."""
    entry = write_segment(directory, "s", DATA)
    (directory / entry.file).write_bytes(pack(tensors, {}))
    return dataclasses.replace(entry, bytes=(directory / entry.file).stat().st_size)


OFFSETS = torch.tensor([0, 5, 5, 3005])
DAMAGED = [
    {"x": torch.zeros(3)},
    {"x": torch.zeros(2), "blob_offsets": OFFSETS},
    {"x": torch.tensor(1.0), "blob_offsets": OFFSETS},
    {"x": torch.zeros(3), "blob_offsets": OFFSETS.float()},
    {"x": torch.zeros(3), "blob_offsets": OFFSETS[:3]},
    {"x": torch.zeros(3), "blob_offsets": torch.tensor([1, 5, 5, 3005])},
    {"x": torch.zeros(3), "blob_offsets": torch.tensor([0, 5, 5, 3004])},
    {"x": torch.zeros(3), "blob_offsets": torch.tensor([0, 9, 5, 3005])},
    {"x": torch.zeros(3), "blob_offsets": torch.tensor([0, -5, 5, 3005])},
]


@pytest.mark.parametrize("tensors", DAMAGED, ids=range(len(DAMAGED)))
def test_a_file_that_does_not_fit_is_damaged(tmp_path, tensors):
    with pytest.raises(StoreError, match="seg_s.safetensors is damaged"):
        SegmentFile(tmp_path, rewritten(tmp_path, tensors))


@pytest.mark.parametrize("suffix", ["safetensors", "blob"])
def test_a_file_of_another_size_is_named(tmp_path, suffix):
    entry = write_segment(tmp_path, "s", DATA)
    path = tmp_path / f"seg_s.{suffix}"
    whole = path.read_bytes()
    for size in [0, 1, 7, 8, 9, len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(StoreError, match=f"seg_s.{suffix} is damaged: it has {size} bytes"):
            SegmentFile(tmp_path, entry)
    path.unlink()
    with pytest.raises(StoreError, match=f"seg_s.{suffix} cannot be read"):
        SegmentFile(tmp_path, entry)


def test_links_are_refused(tmp_path):
    entry = write_segment(tmp_path, "s", DATA)
    blob = tmp_path / entry.blob
    blob.rename(tmp_path / "elsewhere")
    blob.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="not an ordinary file"):
        SegmentFile(tmp_path, entry)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_flipped_byte_in_the_header_is_read_or_refused(tmp_path, data):
    entry = write_segment(tmp_path, "s", DATA)
    path = tmp_path / entry.file
    content = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    content[data.draw(st.integers(0, header - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        list(SegmentFile(tmp_path, entry).thumbnails)
    except StoreError:
        pass


def test_large_bytes_are_written_as_they_are_and_mapped_in_one_piece(tmp_path):
    records = torch.arange(3 * 64, dtype=torch.uint8).reshape(3, 64)
    views = [memoryview(record.numpy()) for record in records]
    entry = write_segment(tmp_path, "s", DATA._replace(thumbnails=views))
    blob = SegmentFile(tmp_path, entry).thumbnails.blob
    assert blob.dtype == torch.uint8 and torch.equal(blob.reshape(3, 64), records)
    blob[0] = 99  # the mapping is private
    assert torch.equal(SegmentFile(tmp_path, entry).thumbnails.blob.reshape(3, 64), records)
