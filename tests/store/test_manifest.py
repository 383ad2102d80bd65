import dataclasses
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vismem.errors import StoreError, UsageError
from vismem.store.manifest import (
    MANIFEST,
    Manifest,
    SegmentEntry,
    StateEntry,
    read_manifest,
    write_manifest,
)

SEGMENT = SegmentEntry(
    "s1", "seg_s1.safetensors", "seg_s1.blob", 3, "a" * 64, "b" * 64, 100, 10, 0.0, 2.5
)
FULL = Manifest(
    encoder={"model": "tiny"},
    config={"budget": "64MB"},
    meta={"frames": 3},
    durability="process",
    tail="tail_000007.log",
    first=1200,
    state=StateEntry("state_000007.safetensors", "c" * 64, 77),
    segments=(SEGMENT,),
)


def raw():
    with tempfile.TemporaryDirectory() as directory:
        write_manifest(Path(directory), FULL)
        return json.loads((Path(directory) / MANIFEST).read_text())


RAW = raw()


def read(value):
    with tempfile.TemporaryDirectory() as directory:
        text = value if isinstance(value, bytes) else json.dumps(value).encode()
        (Path(directory) / MANIFEST).write_bytes(text)
        return read_manifest(Path(directory))


def test_what_is_written_is_read(tmp_path):
    write_manifest(tmp_path, FULL)
    assert read_manifest(tmp_path) == FULL
    assert FULL.generation == 7
    assert {path.name for path in tmp_path.iterdir()} == {MANIFEST}


def test_no_manifest_says_what_to_do(tmp_path):
    with pytest.raises(StoreError, match="is not a vismem memory.*create it again"):
        read_manifest(tmp_path)


def test_another_format_says_which():
    with pytest.raises(StoreError, match=r"newer vismem \(format 3, this one reads 1\): upgrade"):
        read({"format": 3, "anything": "else"})
    with pytest.raises(StoreError, match="unknown vismem"):
        read({"format": 0})


@pytest.mark.parametrize("size", range(0, len(json.dumps(RAW)), 7))
def test_a_cut_manifest_is_damaged(size):
    with pytest.raises(StoreError, match="is damaged"):
        read(json.dumps(RAW).encode()[:size])


NAMES = ["../evil", "/etc/passwd", "a/b", "", ".", "..", ".hidden", "a\\b/", "x" * 200, "a\0b", 7]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_lead_elsewhere_are_refused(name):
    segment = {**RAW["segments"][0]}
    for change in (
        {"tail": name},
        {"tail": f"tail_{name}.log"},
        {"state": {**RAW["state"], "file": name}},
        {"segments": [{**segment, "name": name}]},
        {"segments": [{**segment, "file": name}]},
        {"segments": [{**segment, "blob": name}]},
        {"segments": [{**segment, "name": name, "file": f"seg_{name}.safetensors"}]},
    ):
        with pytest.raises(StoreError, match="is damaged"):
            read({**RAW, **change})


@pytest.mark.parametrize("file", ["manifest.json", "LOCK", "seg_other.safetensors"])
def test_a_segment_has_only_files_of_its_own(file):
    with pytest.raises(StoreError, match="not its own"):
        read({**RAW, "segments": [{**RAW["segments"][0], "file": file}]})


CHANGES = [
    {"first": -1},
    {"first": True},
    {"first": 10**400},
    {"first": 1.0},
    {"durability": "none"},
    {"encoder": {"a": 1}},
    {"encoder": []},
    {"unknown": 1},
    {"state": 5},
    {"segments": {}},
    {"segments": [None]},
    {"segments": [RAW["segments"][0]] * 2},
    {"segments": [{**RAW["segments"][0], "start": float("nan")}]},
    {"segments": [{**RAW["segments"][0], "rows": -2}]},
]


@pytest.mark.parametrize("change", CHANGES, ids=range(len(CHANGES)))
def test_wrong_values_are_damage(change):
    with pytest.raises(StoreError, match="is damaged"):
        read({**RAW, **change})


@pytest.mark.parametrize("key", [key for key in RAW if key != "format"])
def test_every_key_is_needed(key):
    with pytest.raises(StoreError, match="is damaged"):
        read({name: value for name, value in RAW.items() if name != key})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@settings(max_examples=80)
@given(st.sampled_from([*RAW, "segment", "state."]), st.data())
def test_any_json_in_any_place_is_read_or_refused(key, data):
    value = data.draw(JSON)
    if key == "segment":
        inner = data.draw(st.sampled_from(sorted(RAW["segments"][0])))
        forged = {**RAW, "segments": [{**RAW["segments"][0], inner: value}]}
    elif key == "state.":
        inner = data.draw(st.sampled_from(sorted(RAW["state"])))
        forged = {**RAW, "state": {**RAW["state"], inner: value}}
    else:
        forged = {**RAW, key: value}
    try:
        read(forged)
    except StoreError:
        pass


@settings(max_examples=80)
@given(st.binary(max_size=60))
def test_garbage_is_refused(data):
    with pytest.raises(StoreError):
        read(data)


def test_endless_nesting_is_refused():
    with pytest.raises(StoreError, match="is damaged"):
        read(b"[" * 200_000)


@pytest.mark.parametrize("config", [{"x": float("inf")}, {"x": object()}])
def test_a_config_that_is_not_json_is_refused(tmp_path, config):
    with pytest.raises(UsageError, match="plain JSON"):
        write_manifest(tmp_path, dataclasses.replace(FULL, config=config))
    assert list(tmp_path.iterdir()) == []
