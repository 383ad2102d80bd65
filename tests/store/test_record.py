import json

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vismem.errors import StoreError, UsageError
from vismem.store.record import _DTYPES, map_tensors, pack, pieces, unpack

TENSORS = {
    "half": torch.arange(6, dtype=torch.float16).view(2, 3),
    "strided": torch.arange(12).view(3, 4)[:, ::2],
    "empty": torch.empty(0, 5),
    "bool": torch.tensor([True, False]),
    "scalar": torch.tensor(7),
}
META = {"time": 1.5, "stream": "küche", "nested": {"a": [1, None]}}
RECORD = pack(TENSORS, META)


def test_a_record_comes_back_as_it_was():
    tensors, meta = unpack(RECORD)
    assert meta == META
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == TENSORS[name].dtype and torch.equal(tensor, TENSORS[name])


def test_every_dtype_is_what_safetensors_calls_it():
    tensors = {str(dtype): torch.zeros(3, 1).to(dtype) for dtype in _DTYPES}
    ours, theirs = pack(tensors, {}), safetensors.torch.save(tensors)

    def header(data):
        return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])

    names = header(theirs)
    assert {k: header(ours)[k]["dtype"] for k in names} == {k: v["dtype"] for k, v in names.items()}
    assert safetensors.torch.load(ours).keys() == tensors.keys()
    assert int.from_bytes(ours[:8], "little") % 8 == 0
    for name, tensor in tensors.items():
        assert header(ours)[name]["data_offsets"][0] % tensor.itemsize == 0


def test_pieces_are_no_copies():
    tensor = torch.zeros(1000)
    _, piece = pieces({"x": tensor}, {})
    tensor[0] = 7
    assert bytes(piece) == tensor.numpy().tobytes()


def test_one_tensor_under_two_names_and_none_at_all():
    shared = torch.arange(3)
    tensors, _ = unpack(pack({"a": shared, "b": shared[1:]}, {}))
    assert tensors["a"].tolist() == [0, 1, 2] and tensors["b"].tolist() == [1, 2]
    assert unpack(pack({}, {})) == ({}, {})


def test_a_mapped_file_is_private_and_outlives_its_name(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(RECORD)
    tensors = map_tensors(path)
    tensors["half"][0, 0] = 9
    assert path.read_bytes() == RECORD
    path.unlink()
    assert tensors["strided"].tolist() == TENSORS["strided"].tolist()


@pytest.mark.parametrize("meta", [{"x": float("nan")}, {"x": object()}, {"x": {1, 2}}])
def test_meta_that_is_not_json_is_refused(meta):
    with pytest.raises(UsageError, match="plain JSON"):
        pack({}, meta)


@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_a_dtype_that_cannot_be_stored_is_refused():
    with pytest.raises(UsageError, match="cannot be stored"):
        pack({"x": torch.zeros(2, dtype=torch.complex32)}, {})


def read(data, path):
    """Both readers: each gives something or a StoreError."""
    try:
        unpack(data)
    except StoreError:
        pass
    path.write_bytes(data)
    try:
        for tensor in map_tensors(path).values():
            tensor.clone()
    except StoreError:
        pass


def test_every_cut_is_refused(tmp_path):
    for size in range(len(RECORD)):
        with pytest.raises(StoreError):
            unpack(RECORD[:size])
    path = tmp_path / "x.safetensors"
    for size in [0, 1, 7, 8, 9, 100, len(RECORD) - 1]:
        path.write_bytes(RECORD[:size])
        with pytest.raises(StoreError, match=r"x\.safetensors"):
            map_tensors(path)


@settings(max_examples=80)
@given(st.binary(max_size=200))
def test_garbage_is_refused(tmp_path_factory, data):
    read(data, tmp_path_factory.getbasetemp() / "garbage")
    with pytest.raises(StoreError):
        unpack(data)


@settings(max_examples=80)
@given(st.integers(0, len(RECORD) - 1), st.integers(1, 255))
def test_a_flipped_byte_never_raises_anything_else(tmp_path_factory, at, flip):
    data = bytearray(RECORD)
    data[at] ^= flip
    read(bytes(data), tmp_path_factory.getbasetemp() / "flipped")


HEADERS = [
    b"{}",
    b"[]",
    b"null",
    b'{"__metadata__":{}}',
    b'{"__metadata__":{"meta":"[]"}}',
    b'{"__metadata__":{"meta":"' + b"[" * 100_000 + b'"}}',
    b'{"__metadata__":{"meta":7}}',
    b"[" * 100_000,
    b'{"a":{"dtype":"F4","shape":[2],"data_offsets":[0,1]},"__metadata__":{"meta":"{}"}}',
    b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}',
    b'{"a":{"dtype":"F32","shape":[0,9223372036854775807,9],"data_offsets":[0,0]}}',
    b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
    b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
    b"\xff\xfe",
]


@pytest.mark.parametrize("header", HEADERS, ids=range(len(HEADERS)))
def test_hostile_headers(tmp_path, header):
    data = len(header).to_bytes(8, "little") + header
    read(data, tmp_path / "hostile")
    read(data + b"\0", tmp_path / "hostile")
    read(np.uint64(2**64 - 1).tobytes() + header, tmp_path / "hostile")
    with pytest.raises(StoreError):
        unpack(data)


def test_single_numbers_may_have_any_stride() -> None:
    given = {
        "expanded": torch.tensor(2.5, dtype=torch.float64).expand(1),
        "of a row": torch.arange(6.0).reshape(2, 3)[1:, ::3],
        "strided": torch.arange(6)[::2],
        "none": torch.empty(0, 3),
    }
    tensors, _ = unpack(pack(given, {}))
    assert all(torch.equal(tensors[name], value) for name, value in given.items())
