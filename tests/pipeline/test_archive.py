"""A memory as one file: packed, carried, unpacked, and refused."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import tarfile
import tempfile
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_encoder import TinyEncoder
from tiny_memory import MOMENTS, fill, frame, replies, slots_of, state_of, thumbnails

from vismem.errors import StoreError
from vismem.pipeline import VisualMemory
from vismem.settings import check_settings
from vismem.store import MemoryStore, pack, pack_memory, unpack_memory, verify
from vismem.store.archive import FOLDER

IDENTITY = TinyEncoder().identity
Members = list[tuple[tarfile.TarInfo, bytes]]


def packed(path: Path) -> bytes:
    return b"".join(pack_memory(path))


def unpack(data: bytes, path: Path, **options: object) -> None:
    given = {"encoder": IDENTITY, "max_bytes": 10**7, "check": check_settings} | options
    unpack_memory(io.BytesIO(data), path, **given)  # type: ignore[arg-type]


@pytest.fixture
def there(make, path: Path) -> VisualMemory:
    """A memory with sealed segments, a bank and a log."""
    memory = fill(make("30KB", policy="flash", path=path), range(40))
    memory.save()
    return fill(memory, range(40, 50))


def refused(data: bytes, path: Path, message: str = "", **options: object) -> None:
    with pytest.raises(StoreError, match=message) as caught:
        unpack(data, path, **options)
    assert "\n" not in str(caught.value) and "unpacking" not in str(caught.value)
    assert not [name for name in os.listdir(path.parent) if name.startswith((path.name, "."))]


def members(data: bytes) -> Members:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return [(m, archive.extractfile(m).read()) for m in archive]  # type: ignore[union-attr]


def rebuilt(found: Members) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for member, content in found:
            member.size = len(content) if member.isreg() else 0
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


# ---------------------------------------------------------------------- there and back


def test_it_comes_back_bit_for_bit_while_the_first_goes_on(there, path: Path, tiny) -> None:
    data = packed(path)
    other = path.with_name("other.mem")
    unpack(data, other)
    assert verify(other).ok and not (other / "events.sqlite").exists()
    with VisualMemory.open(other, encoder=tiny) as copy:
        assert state_of(copy) == state_of(there) and replies(copy) == replies(there)
        for memory in (copy, there):
            fill(memory, range(50, 80))
        assert state_of(copy) == state_of(there)
        assert len(slots_of(copy)) > 3
    assert [m.name for m, _ in members(data)][0] == f"{FOLDER}manifest.json"


def test_any_tar_can_unpack_it(there, path: Path, tiny, tmp_path: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(packed(path))) as archive:
        archive.extractall(tmp_path / "by_hand", filter="data")
    with VisualMemory.open(tmp_path / "by_hand" / FOLDER, encoder=tiny) as copy:
        assert state_of(copy) == state_of(there)


def test_it_is_packed_while_it_is_written(make, path: Path, tiny, seal_often: None) -> None:
    memory, done = make("9KB", path=path), threading.Event()

    def write() -> None:
        for number in range(150):
            memory.write(frame(number))
        memory.flush()
        done.set()

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    count, newest = 0, 0
    last = False
    while not last:
        last = done.is_set() and count >= 2
        other = path.with_name(f"other{count}.mem")
        unpack(packed(path), other)
        with VisualMemory.open(other, encoder=tiny, read_only=True) as copy:
            assert copy.describe()["frames"] >= newest
            newest = copy.describe()["frames"]
        count += 1
    writer.join()
    assert newest == 150


def test_pieces_are_small_and_files_are_let_go(there, path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    pieces = list(pack_memory(path))
    assert max(map(len, pieces)) <= 2**20 and sum(map(len, pieces)) % 512 == 0
    half = pack_memory(path)
    next(half)
    half.close()  # type: ignore[attr-defined]
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_memory_in_ram_is_copied_and_stays_there(make, path: Path, tiny) -> None:
    memory = fill(make("30KB", policy="star"), range(50))
    memory.copy(path)
    assert memory._journal is None and verify(path).ok
    with VisualMemory.open(path, encoder=tiny) as copy:
        assert state_of(copy) == state_of(memory) and replies(copy) == replies(memory)
        fill(copy, range(50, 60))
    assert memory.describe()["frames"] == 50
    with pytest.raises(StoreError, match="already holds"):
        memory.copy(path)
    assert verify(path).ok


def test_a_durable_memory_and_a_reader_can_be_copied(there, path: Path, tiny) -> None:
    there.copy(path.with_name("one"))
    with VisualMemory.open(path, encoder=tiny, read_only=True) as reader:
        reader.copy(path.with_name("two"))
    for name in ("one", "two"):
        with VisualMemory.open(path.with_name(name), encoder=tiny) as copy:
            assert state_of(copy) == state_of(there)
    assert there._journal and there._journal.store.path == path


def test_a_copy_that_fails_leaves_nothing(make, path: Path, monkeypatch) -> None:
    memory = fill(make(), range(5))

    def full(*args: object, **kwargs: object) -> None:
        raise StoreError("full")

    monkeypatch.setattr(MemoryStore, "commit", full)
    with pytest.raises(StoreError, match="full"):
        memory.copy(path)
    assert not path.exists()


def test_what_is_no_memory_is_not_packed(tmp_path: Path, there, path: Path) -> None:
    with pytest.raises(StoreError, match="not a vismem memory"):
        pack_memory(tmp_path)
    next(path.glob("seg_*.blob")).unlink()
    with pytest.raises(StoreError, match="cannot be packed"):
        pack_memory(path)


def test_what_a_model_remembers_stays_behind(make, path: Path, tiny) -> None:
    fill(make(path=path), range(3)).close()
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["config"]["model"] = {"name": "/a/model"}
    (path / "manifest.json").write_text(json.dumps(manifest))
    data = packed(path)
    assert b"/a/model" not in data
    unpack(data, path.with_name("other.mem"))
    found = members(data)
    found[0] = (found[0][0], json.dumps(manifest).encode())
    refused(rebuilt(found), path.with_name("third.mem"), "names a model")


# ---------------------------------------------------------------------- what is refused


def test_limits_and_strangers(there, path: Path) -> None:
    data, other = packed(path), path.with_name("other.mem")
    refused(data, other, "limit", max_bytes=len(data) - 1025)
    refused(data, other, "limit", max_bytes=100)
    refused(data, other, "limit", max_files=3)
    refused(data, other, "never mix", encoder={**IDENTITY, "config": "2"})
    for size in (0, 1, 511, 512, 700, 5000, len(data) // 2, len(data) - 2000):
        refused(data[:size], other, "cut off")
    refused(b"PK\3\4" + bytes(600), other, "no archive")
    refused(bytes(10_000), other, "no archive")
    unpack(data, other, max_bytes=len(data))
    with pytest.raises(StoreError, match="already"):
        unpack(data, other)
    assert verify(other).ok
    link = path.with_name("link")
    link.symlink_to(path.with_name("nowhere"))
    with pytest.raises(StoreError, match="already"):
        unpack(data, link)


def named(name: str, kind: bytes = tarfile.REGTYPE, to: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, to
    return member


@pytest.mark.parametrize("place", [0, 1, 3])
@pytest.mark.parametrize(
    "evil",
    [
        named(f"{FOLDER}../evil"),
        named("../evil"),
        named("/tmp/evil"),
        named("evil"),
        named(f"{FOLDER}evil"),
        named(f"{FOLDER}LOCK"),
        named(f"{FOLDER}manifest.json"),
        named(f"{FOLDER}/manifest.json"),
        named(f"{FOLDER}seg_x.blob", tarfile.SYMTYPE, "/etc/passwd"),
        named(f"{FOLDER}tail_000001.log", tarfile.SYMTYPE, "/etc/passwd"),
        named(f"{FOLDER}tail_000001.log", tarfile.LNKTYPE, "/etc/passwd"),
        named(f"{FOLDER}manifest.json", tarfile.SYMTYPE, "/etc/passwd"),
        named(f"{FOLDER}manifest.json", tarfile.DIRTYPE),
        named(f"{FOLDER}manifest.json", tarfile.FIFOTYPE),
        named(f"{FOLDER}manifest.json", tarfile.CHRTYPE),
        named(f"{FOLDER}manifest.json", tarfile.XHDTYPE),
        named(f"{FOLDER}manifest.json", tarfile.GNUTYPE_SPARSE),
        named(f"{FOLDER}manifest.json", tarfile.GNUTYPE_LONGNAME),
        named(FOLDER, tarfile.DIRTYPE),
    ],
    ids=lambda member: f"{member.name}-{member.type!r}",
)
def test_no_member_can_do_anything(evil, place: int, there, path: Path) -> None:
    data = packed(path)
    header = evil.tobuf(tarfile.USTAR_FORMAT)
    found = members(data)
    at = data.index(FOLDER.encode() + Path(found[place][0].name).name.encode())
    around = set(os.listdir(path.parent))
    refused(data[:at] + header + data[at:], path.with_name("other.mem"), "no archive|damaged")
    assert set(os.listdir(path.parent)) == around and not Path("/tmp/evil").exists()


def test_sizes_that_lie(there, path: Path) -> None:
    data, other = packed(path), path.with_name("other.mem")
    for size, message in (
        (10**13, "limit|no archive"),
        (2**25, "no archive"),
        (0, "damaged|no arch"),
    ):
        lie = named(f"{FOLDER}manifest.json")
        lie.size = size
        refused(lie.tobuf(tarfile.GNU_FORMAT)[:512] + data[512:], other, message)
    negative = bytearray(named(f"{FOLDER}manifest.json").tobuf(tarfile.USTAR_FORMAT))
    negative[124:136] = b"\xff" * 12
    negative[148:156] = b" " * 8
    negative[148:156] = b"%06o\0 " % sum(negative)
    refused(bytes(negative) + data[512:], other, "no archive")


def changed(data: bytes, change: Callable[[dict], None]) -> bytes:
    found = members(data)
    manifest = json.loads(found[0][1])
    change(manifest)
    found[0] = (found[0][0], json.dumps(manifest).encode())
    return rebuilt(found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format=2), "newer vismem"),
        (lambda m: m.update(format="1"), "damaged"),
        (lambda m: m.update(tail="../../evil"), "damaged"),
        (lambda m: m["segments"][0].update(file="/etc/passwd"), "damaged"),
        (lambda m: m["segments"][0].update(sha256="0" * 64), "sha256"),
        (lambda m: m["segments"][0].update(rows=10**9), "damaged"),
        (lambda m: m["segments"].clear(), "no archive"),
        (lambda m: m["config"].update(budget="1MB x"), "not to be trusted"),
        (lambda m: m["config"].update(budget=-1), "not to be trusted"),
        (lambda m: m["config"].update(policy="evil"), "not to be trusted"),
        (lambda m: m["config"].update(retain=-1), "not to be trusted"),
        (lambda m: m["config"].update(more=1), "not to be trusted"),
        (lambda m: m["config"].update(moments={"max_labels": 10**9}), "not to be trusted"),
        (lambda m: m["config"].update(moments={"max_tokens": -1}), "not to be trusted"),
        (lambda m: m["config"].update(moments={"max_tokens": "9"}), "not to be trusted"),
        (lambda m: m["config"].update(moments={"evil": 1}), "not to be trusted"),
        (lambda m: m["config"].update(moments=[1]), "not to be trusted"),
        (lambda m: m["config"].pop("moments"), "not to be trusted"),
    ],
)
def test_a_forged_manifest(change, message: str, there, path: Path) -> None:
    refused(changed(packed(path), change), path.with_name("other.mem"), message)


def test_every_file_is_checked(there, path: Path) -> None:
    found = members(packed(path))
    for place in range(1, len(found)):
        if not found[place][1]:
            continue
        bad = list(found)
        content = bytearray(found[place][1])
        content[len(content) // 2] ^= 1
        bad[place] = (found[place][0], bytes(content))
        refused(rebuilt(bad), path.with_name("other.mem"), "damaged")
    for place in range(1, len(found)):
        left_out = found[:place] + found[place + 1 :]
        refused(rebuilt(left_out), path.with_name("other.mem"), "no archive|cut off")
    twice = [*found[:2], found[1], *found[2:]]
    refused(rebuilt(twice), path.with_name("other.mem"), "no archive")


@cache
def small() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path, options = Path(folder) / "a", {"encoder": TinyEncoder(), "moments": MOMENTS}
        with VisualMemory("4KB", policy="flash", path=path, **options) as memory:
            fill(memory, range(12))
            memory.save()
            fill(memory, range(12, 14))
            return packed(path)


@given(st.data())
@settings(max_examples=60, derandomize=True)
def test_any_flipped_byte_is_refused_or_harmless(tmp_path_factory, data) -> None:
    folder = tmp_path_factory.mktemp("flip")
    tiny = TinyEncoder()
    archive = bytearray(small())
    for _ in range(data.draw(st.integers(1, 3))):
        archive[data.draw(st.integers(0, len(archive) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        unpack(bytes(archive), folder / "b")
        with VisualMemory.open(folder / "b", encoder=tiny) as copy:
            replies(copy)
    except StoreError:
        pass
    assert not [name for name in os.listdir(folder) if name.endswith(".unpacking")]


def test_records_of_a_liar_do_not_break_the_reader(make, path: Path, tiny) -> None:
    """Digests are whole, and yet what they cover is no memory of this encoder."""
    import torch

    fill(make(path=path, policy="flash"), range(3)).close()
    good = {"stream": "a", "time": 9.0, "raw": 9.0}
    for number, (tensors, meta) in enumerate(
        [
            ({}, good),
            ({"tokens": torch.zeros(2, 3)}, good),
            ({"tokens": torch.zeros(2, 4).half(), "embedding": torch.zeros(5).half()}, good),
            ({}, {}),
            ({}, {"stream": [], "time": "x", "raw": None}),
        ]
    ):
        store = MemoryStore.open(path)
        store.append(pack(tensors, meta))
        store.close()
        other = path.with_name(f"other{number}.mem")
        unpack(packed(path), other)
        with pytest.raises(StoreError, match="damaged"):
            VisualMemory.open(other, encoder=tiny)


def test_thumbnails_travel(there, path: Path) -> None:
    data = packed(path)
    assert sum(one in data for one in thumbnails(range(50))) > 5
    assert dataclasses.is_dataclass(there.stats)
