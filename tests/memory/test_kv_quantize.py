"""Blocks of keys and values survive packing: exactly, or within half a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from vismem.memory.kv.quantize import (
    Precision,
    pack_record,
    record_bytes,
    unpack_layer,
    unpack_layers,
)
from vismem.memory.kv.shape import KVShape

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
PRECISIONS: tuple[Precision, ...] = ("model", "int8", "int4")
LEVELS = {"int8": 255, "int4": 15}


def block(
    layers: int = 3,
    heads: int = 2,
    tokens: int = 7,
    width: int = 6,
    dtype: torch.dtype = torch.float16,
    seed: int = 0,
) -> Tensor:
    """Keys with a bias in each channel, as raw keys of Qwen2 have, and values of uneven tokens."""
    noise = torch.Generator().manual_seed(seed)
    kv = torch.randn(layers, 2, heads, tokens, width, generator=noise)
    kv[:, 0] += 40 * torch.randn(layers, heads, 1, width, generator=noise)
    kv[:, 1] *= torch.randn(layers, heads, tokens, 1, generator=noise).exp()
    return kv.to(dtype)


def shape_of(kv: Tensor) -> KVShape:
    return KVShape(kv.shape[0], kv.shape[2], kv.shape[2], kv.shape[4])


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.int32 if x.dtype == torch.float32 else torch.int16)


def unpacked(record: Tensor, kv: Tensor, precision: Precision) -> Tensor:
    """All layers of a record, in the form of ``kv``."""
    layers = [
        unpack_layer(record, layer, shape_of(kv), kv.shape[3], precision, kv.dtype)
        for layer in range(kv.shape[0])
    ]
    return torch.stack([torch.stack(layer) for layer in layers])


def bound(kv: Tensor, precision: Precision) -> Tensor:
    """Largest error that the rule allows, from the definition of a step alone."""
    info = torch.finfo(kv.dtype)
    wide = kv.double()
    spans = torch.stack(
        [
            (wide[:, half].amax(dim, keepdim=True) - wide[:, half].amin(dim, keepdim=True)).expand(
                wide[:, half].shape
            )
            for half, dim in ((0, -2), (1, -1))
        ],
        dim=1,
    )
    step = (spans / LEVELS[precision]).clamp_min(info.tiny) * (1 + info.eps)
    # What comes back is rounded to the type, at a number up to half a step away.
    return (
        step / 2 + (wide.abs() + step) * (info.eps / 2 + 2**-22) + info.smallest_normal * info.eps
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("precision", PRECISIONS)
@settings(max_examples=40)
@given(
    layers=st.integers(1, 3),
    heads=st.integers(1, 3),
    tokens=st.integers(0, 9),
    width=st.integers(1, 9),
    seed=st.integers(0, 1000),
    scale=st.sampled_from([1e-7, 1e-4, 1.0, 100.0]),
)
def test_round_trip_stays_within_half_a_step(
    dtype: torch.dtype, precision: Precision, scale: float, **sizes: int
) -> None:
    kv = (block(dtype=torch.float32, **sizes) * scale).to(dtype)
    record = pack_record(kv, precision)
    assert record.dtype == torch.uint8
    assert record.shape == (record_bytes(shape_of(kv), kv.shape[3], precision, dtype),)
    back = unpacked(record, kv, precision)
    assert back.dtype == dtype and back.shape == kv.shape
    if precision == "model":
        assert torch.equal(bits(back), bits(kv))
    elif kv.numel():
        assert ((back.double() - kv.double()).abs() <= bound(kv, precision)).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_model_precision_keeps_every_bit(dtype: torch.dtype) -> None:
    kv = block(dtype=dtype)
    kv.view(-1)[:5] = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 1e-40])
    assert torch.equal(bits(unpacked(pack_record(kv, "model"), kv, "model")), bits(kv))


@pytest.mark.parametrize("precision", LEVELS)
def test_a_span_of_all_levels_comes_back_exactly(precision: Precision) -> None:
    """Whole numbers over the whole span of codes lie on the steps: catches a lost level."""
    levels = LEVELS[precision]
    kv = torch.arange(levels + 1.0).repeat(1, 2, 1, levels + 1, 1)
    kv[:, 0] = kv[:, 0].mT + 1000  # a bias wider than the span costs nothing
    assert torch.equal(unpacked(pack_record(kv, precision), kv, precision), kv)


@pytest.mark.parametrize("precision", LEVELS)
def test_keys_are_quantised_by_channel_and_values_by_token(precision: Precision) -> None:
    """A channel of keys (a token of values) a thousand times wider leaves the others alone."""
    kv = block(tokens=8, width=8, dtype=torch.float32)
    wild = kv.clone()
    wild[:, 0, :, :, 3] *= 1000
    wild[:, 1, :, 5, :] *= 1000
    calm, stirred = (unpacked(pack_record(x, precision), x, precision) for x in (kv, wild))
    channels = torch.arange(8) != 3
    assert torch.equal(stirred[:, 0][..., channels], calm[:, 0][..., channels])
    tokens = torch.arange(8) != 5
    assert torch.equal(stirred[:, 1][:, :, tokens], calm[:, 1][:, :, tokens])


@pytest.mark.parametrize("precision", LEVELS)
def test_constant_channels_are_exact(precision: Precision) -> None:
    kv = block(tokens=5, width=4)
    kv[:, 0, :, :, 1] = 0
    kv[:, 0, :, :, 2] = -310.5
    kv[:, 1, :, 3] = 0
    back = unpacked(pack_record(kv, precision), kv, precision)
    assert torch.equal(back[:, 0, ..., 1:3], kv[:, 0, ..., 1:3])
    assert torch.equal(back[:, 1, :, 3], kv[:, 1, :, 3])


@pytest.mark.parametrize("precision", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_step_is_zero(precision: Precision, dtype: torch.dtype) -> None:
    """What dividing by zero gives as a code is another number on another machine."""
    record = pack_record(torch.zeros(1, 2, 2, 3, 4, dtype=dtype), precision)
    lows = 2 * 4 * dtype.itemsize
    assert (record[lows : 2 * lows].view(dtype) == torch.finfo(dtype).tiny).all()


@pytest.mark.parametrize("precision", LEVELS)
def test_one_token_keeps_its_keys_exactly(precision: Precision) -> None:
    kv = block(tokens=1)
    assert torch.equal(unpacked(pack_record(kv, precision), kv, precision)[:, 0], kv[:, 0])


@pytest.mark.parametrize("precision", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=60)
@given(data=st.data())
def test_numbers_near_the_largest_do_not_overflow(
    precision: Precision, dtype: torch.dtype, data: Any
) -> None:
    largest = min(torch.finfo(dtype).max, 0.99 * torch.finfo(torch.float32).max / 2)
    shares = st.sampled_from([-1.0, -0.999, -0.5, 0.0, 0.37, 0.93, 0.97, 0.995, 0.999, 1.0])
    numbers = data.draw(st.lists(shares, min_size=2 * 3 * 4, max_size=2 * 3 * 4))
    kv = (torch.tensor(numbers, dtype=torch.float64) * largest).to(dtype).view(1, 2, 1, 3, 4)
    kv = kv.clamp(-largest, largest)
    back = unpacked(pack_record(kv, precision), kv, precision)
    assert back.isfinite().all()
    assert ((back.double() - kv.double()).abs() <= 2.02 * bound(kv, precision)).all()


@pytest.mark.parametrize("precision", LEVELS)
@pytest.mark.parametrize("hostile", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_what_is_not_finite_cannot_be_quantised(precision: Precision, hostile: float) -> None:
    for half in (0, 1):
        kv = block(dtype=torch.float32)
        kv[1, half, 1, 2, 3] = hostile
        with pytest.raises(ValueError, match="finite"):
            pack_record(kv, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("width", [5, 8])
def test_a_layer_is_read_from_its_own_bytes(precision: Precision, width: int) -> None:
    kv = block(layers=4, width=width)
    shape, record = shape_of(kv), pack_record(kv, precision)
    size = len(record) // 4
    assert size % 16 == 0
    for layer in range(4):
        alone = unpack_layer(record, layer, shape, 7, precision, kv.dtype)
        torn = torch.full_like(record, 255)
        torn[layer * size : (layer + 1) * size] = record[layer * size : (layer + 1) * size]
        assert all(
            map(torch.equal, alone, unpack_layer(torn, layer, shape, 7, precision, kv.dtype))
        )
        # A layer's bytes depend on that layer's numbers alone.
        single = pack_record(kv[layer : layer + 1], precision)
        assert torch.equal(single, record[layer * size : (layer + 1) * size])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("sizes", [(3, 2, 7, 6), (1, 1, 1, 1), (2, 3, 5, 7), (2, 2, 0, 4)])
def test_many_blocks_at_once_are_the_same_as_one_by_one(
    dtype: torch.dtype, precision: Precision, sizes: tuple[int, int, int, int]
) -> None:
    layers, heads, tokens, width = sizes
    blocks = [block(layers, heads, tokens, width, dtype, seed) for seed in range(5)]
    shape, records = shape_of(blocks[0]), [pack_record(kv, precision) for kv in blocks]
    for layer in range(layers):
        keys, values = unpack_layers(records, layer, shape, tokens, precision, dtype)
        one = [unpack_layer(r, layer, shape, tokens, precision, dtype) for r in records]
        assert keys.shape == values.shape == (heads, 5 * tokens, width)
        assert torch.equal(keys, torch.cat([k for k, _ in one], dim=1))
        assert torch.equal(values, torch.cat([v for _, v in one], dim=1))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_blocks_give_no_tokens(precision: Precision) -> None:
    keys, values = unpack_layers([], 0, KVShape(1, 4, 2, 6), 7, precision, torch.bfloat16)
    assert keys.shape == values.shape == (2, 0, 6)
    assert keys.dtype == values.dtype == torch.bfloat16


@pytest.mark.parametrize("precision", PRECISIONS)
def test_mapped_records_read_the_same_and_are_not_written(
    precision: Precision, tmp_path: Path
) -> None:
    kv = block(width=5)
    record, shape = pack_record(kv, precision), shape_of(kv)
    raw = tmp_path / "raw"
    raw.write_bytes(b"abc" + record.numpy().tobytes())  # at an odd place of the file
    mapped = torch.from_file(str(raw), size=len(record) + 3, dtype=torch.uint8)[3:]
    save_file({"flag": record[:1].clone(), "record": record}, tmp_path / "all.safetensors")
    loaded = load_file(tmp_path / "all.safetensors")["record"]
    for copy in (mapped, loaded):
        before = copy.clone()
        back = unpacked(copy, kv, precision)
        assert torch.equal(bits(back), bits(unpacked(record, kv, precision)))
        back.zero_()
        keys, _ = unpack_layer(copy, 1, shape, 7, precision, kv.dtype)
        keys.fill_(7)  # what a reader does with its tensors leaves the record alone
        assert torch.equal(copy, before)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_damaged_records_are_refused(precision: Precision) -> None:
    kv = block()
    record, shape = pack_record(kv, precision), shape_of(kv)
    damaged = [
        record[:-1],
        torch.cat([record, record[:16]]),
        record[:0],
        record.view(torch.int8),
        record[None],
    ]
    for wrong in damaged:
        with pytest.raises(ValueError, match="damaged"):
            unpack_layers([record, wrong], 0, shape, 7, precision, kv.dtype)
    with pytest.raises(ValueError, match="damaged"):
        unpack_layer(record, 0, shape, 8, precision, kv.dtype)
    for layer in (-1, 3):
        with pytest.raises(ValueError, match="no layer"):
            unpack_layer(record, layer, shape, 7, precision, kv.dtype)


def test_wrong_forms_are_refused() -> None:
    with pytest.raises(ValueError, match="layers, 2"):
        pack_record(torch.zeros(2, 3, 1, 4, 5), "int8")
    with pytest.raises(ValueError, match="layers, 2"):
        pack_record(torch.zeros(2, 1, 4, 5), "int8")
    with pytest.raises(ValueError, match="float64"):
        pack_record(torch.zeros(2, 2, 1, 4, 5, dtype=torch.float64), "int8")
    with pytest.raises(ValueError, match="precision"):
        record_bytes(KVShape(1, 1, 1, 1), 1, "int2", torch.float16)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="0 or more"):
        record_bytes(KVShape(1, 1, 1, 1), -1, "int8", torch.float16)


def test_packing_is_the_same_twice_and_for_any_strides() -> None:
    kv = block()
    turned = kv.transpose(0, 3).contiguous().transpose(0, 3)
    for precision in PRECISIONS:
        assert torch.equal(pack_record(kv, precision), pack_record(kv.clone(), precision))
        assert torch.equal(pack_record(kv, precision), pack_record(turned, precision))


@pytest.mark.parametrize(("precision", "share"), [("int8", 0.52), ("int4", 0.27)])
def test_records_are_as_small_as_their_precision_says(precision: Precision, share: float) -> None:
    shape = KVShape(layers=28, heads=28, kv_heads=4, head_dim=128)
    whole = record_bytes(shape, 196, "model", torch.float16)
    assert whole == 28 * 2 * 4 * 196 * 128 * 2
    assert record_bytes(shape, 196, precision, torch.float16) < share * whole
