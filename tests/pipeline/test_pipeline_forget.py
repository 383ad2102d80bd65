"""What a visual memory forgets is gone from memory and from every file."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from tiny_memory import STEP, bytes_on_disk, fill, frame, thumbnails

import vismem as vm


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
