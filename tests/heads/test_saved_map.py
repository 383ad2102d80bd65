"""The file of a map that is being made: what it refuses, and what saving may cost."""

from __future__ import annotations

import errno
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from ray_scene import Thing, World, looking_at

from vismem.errors import StoreError, UsageError
from vismem.heads import saved_map
from vismem.heads.reconstruct import MovingMap
from vismem.heads.saved_map import MapProgress, SavedMap, digest_of

EYE = looking_at((0, -1.6, 1.3), (0, 0, 0.2))
WALL = Thing("box", "green", (0.0, 1.2, 0.6), (2.4, 0.2, 1.2))
SETTINGS = {"--voxel": 0.04, "--fps": None}


@pytest.fixture(scope="module")
def scene():
    scene = MovingMap("8MB")
    for n in range(3):
        scene.write(World((WALL,)).render(EYE, n / 10))
    return scene


@pytest.fixture
def saved(scene, tmp_path):
    saved = SavedMap(tmp_path / "out" / "map.safetensors", SETTINGS)
    saved.save(scene, MapProgress(3, "abc", Counter(fused=2, lost=1), 7))
    return saved


def equal(one, other):
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def test_what_is_saved_comes_back(scene, saved):
    other = MovingMap("8MB")
    assert saved.load(other) == MapProgress(3, "abc", Counter(fused=2, lost=1), 7)
    assert equal(scene.state_dict(), other.state_dict())
    assert saved.load(other).told["never seen"] == 0  # still counts


def test_any_byte_that_changed_is_noticed(saved, tmp_path):
    whole = saved.path.read_bytes()
    places = np.random.default_rng(0).integers(0, len(whole), 40)
    header = np.arange(0, 8 + int.from_bytes(whole[:8], "little"), 97)
    for place in (*header, *places, len(whole) - 1):
        broken = bytearray(whole)
        broken[place] ^= 4
        saved.path.write_bytes(broken)
        with pytest.raises(StoreError, match=r"is damaged .*; remove .* or give another --out"):
            saved.load(MovingMap("8MB"))
    more = whole.replace(b'frames\\": 3', b'frames\\": 2')
    assert more != whole
    saved.path.write_bytes(more)
    with pytest.raises(StoreError, match="its checksum is wrong"):
        saved.load(MovingMap("8MB"))
    for end in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        saved.path.write_bytes(whole[:end])
        with pytest.raises(StoreError, match="is damaged"):
            saved.load(MovingMap("8MB"))
    saved.path.unlink()
    saved.path.mkdir()
    with pytest.raises(StoreError, match="cannot be read"):
        saved.load(MovingMap("8MB"))


def test_other_settings_are_named(saved):
    for settings, told in (
        (SETTINGS | {"--voxel": 0.05}, "begun with --voxel 0.04, not 0.05"),
        (SETTINGS | {"--fps": 2.0}, "begun with --fps None, not 2.0"),
        (SETTINGS | {"--new": 1}, "begun with --new None, not 1"),
        ({"--fps": None}, "begun with --voxel 0.04, not None"),
    ):
        with pytest.raises(UsageError, match=told):
            SavedMap(saved.path, settings).load(MovingMap("8MB"))


@pytest.mark.parametrize("other", [{"detector.sizes": None}, {"ring.0.ids": None}, {"new.part": 1}])
def test_a_state_that_no_map_of_today_takes_is_told(saved, scene, monkeypatch, other):
    state = scene.state_dict() | {name: torch.ones(1) for name in other}
    for name in [name for name, value in other.items() if value is None]:
        del state[name]
    monkeypatch.setattr(scene, "state_dict", lambda: state)
    saved.save(scene, MapProgress())
    with pytest.raises(StoreError, match="another version of vismem"):
        saved.load(MovingMap("8MB"))


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_what_was_saved_before(saved, scene, monkeypatch, call):
    before = saved.path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(f"os.{call}", full)
        with pytest.raises(StoreError, match=r"disk is full .* run it again with --resume"):
            saved.save(scene, MapProgress(9))
    assert saved.path.read_bytes() == before
    assert list(saved.path.parent.iterdir()) == [saved.path]


def test_saving_takes_a_twentieth_of_the_time_whatever_it_costs(scene, tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(saved_map.time, "monotonic", lambda: now[0])
    for cost in (0.01, 3.0):
        saved, times = SavedMap(tmp_path / "map.safetensors", SETTINGS), []

        def save(*_, cost=cost, times=times):
            times.append(now[0])
            now[0] += cost

        monkeypatch.setattr(saved, "save", save)
        begun = now[0]
        while now[0] < begun + 1000:
            saved.save_if_due(scene, MapProgress())
            now[0] += 0.1
        assert times[0] - begun == pytest.approx(5, abs=0.2)
        gaps = np.diff(times)
        assert gaps == pytest.approx(cost + max(5, 20 * cost), abs=0.2)


def test_a_frame_is_known_by_all_that_a_map_takes_from_it():
    frame = World((WALL,)).render(EYE, 0.1)
    changed = [
        frame,
        replace(frame, timestamp=0.2),
        replace(frame, image=frame.image + np.uint8(1)),
        replace(frame, depth=frame.depth + np.float32(0.01)),
        replace(frame, depth=None),
        replace(frame, pose=None),
        replace(frame, intrinsics=None),
        replace(frame, pose=looking_at((0, -1.6, 1.4), (0, 0, 0.2))),
    ]
    assert len({digest_of(one) for one in changed}) == len(changed)
    assert digest_of(World((WALL,)).render(EYE, 0.1)) == digest_of(frame)
