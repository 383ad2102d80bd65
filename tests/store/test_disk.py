import errno
import hashlib
import os
from pathlib import Path

import pytest
import torch

from vismem.store import MemoryStore, SegmentData
from vismem.store.disk import write_file


def test_a_file_is_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "file"
    assert write_file(path, [b"old", b"er"]) == (hashlib.sha256(b"older").hexdigest(), 5)

    def fail(_):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError):
            write_file(path, [b"new"])
    assert path.read_bytes() == b"older" and list(tmp_path.iterdir()) == [path]


def test_a_commit_is_on_the_medium_before_it_counts(tmp_path, monkeypatch):
    """Power loss cannot be had in a test, so this pins the order of what the system is asked."""
    store = MemoryStore.create(tmp_path / "m", encoder={}, config={})
    log = []
    fsync, replace, unlink = os.fsync, os.replace, Path.unlink

    def logged_fsync(file):
        log.append(("sync", Path(os.readlink(f"/proc/self/fd/{file}")).name))
        fsync(file)

    def logged_replace(source, target):
        log.append(("name", Path(target).name))
        replace(source, target)

    def logged_unlink(path, **options):
        log.append(("unlink", path.name))
        unlink(path, **options)

    monkeypatch.setattr(os, "fsync", logged_fsync)
    monkeypatch.setattr(os, "replace", logged_replace)
    monkeypatch.setattr(Path, "unlink", logged_unlink)
    store.commit({"s": SegmentData({"x": torch.zeros(1)}, [b"a"], 0.0, 0.0)}, {})
    new = ["seg_s.safetensors", "seg_s.blob", "state_000001.safetensors", "tail_000001.log"]
    expected = [step for name in new for step in (("sync", f"{name}.tmp"), ("name", name))]
    expected += [("sync", "m"), ("sync", "manifest.json.tmp"), ("name", "manifest.json")]
    expected += [("sync", "m"), ("unlink", "tail_000000.log")]
    assert log[: len(expected)] == expected
    store.close()
