"""SAM 2's position codes, selection, memory attention and encoder against its own numbers."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import pytest
import torch
from arrays import Case, golden
from torch import Tensor
from vismem.kernels.mem_xattn import axial_table

from vismem.memory.published.sam2 import select_memories
from vismem.models.memory_attention import MemoryAttention, RotaryAttention
from vismem.models.memory_encoder import MemoryEncoder, exclusive_masks, mask_signal
from vismem.models.sam2_memory import HostConfig, MemoryHost, Written
from vismem.models.sam2_names import from_official
from vismem.models.sine import sine_map, sine_time

TABLES: dict[str, Any] = {"rtol": 0, "atol": 1e-6}
CLOSE: dict[str, Any] = {"rtol": 0, "atol": 1e-5}  # the arrays' own tolerance is 2e-5
# Twelve frames in a row: the arrays are 2e-5 from the same loop in double precision themselves.
LOOP: dict[str, Any] = {"rtol": 0, "atol": 4e-5}  # 1e-4


def weights(case: Case) -> dict[str, Tensor]:
    return {name[2:]: case.tensor(name) for name in case.arrays if name.startswith("w.")}


def part(case: Case, name: str) -> dict[str, Tensor]:
    """The weights of one module, renamed."""
    state = from_official(weights(case))
    return {key[len(name) + 1 :]: state[key] for key in state if key.startswith(name + ".")}


def sizes(case: Case) -> dict[str, int]:
    names = {"dim": "d_model", "memory_dim": "mem_dim", "hidden": "dim_feedforward"}
    return {own: case.value(f"cfg_{name}") for own, name in names.items()} | {
        "layers": case.value("cfg_num_layers")
    }


def host(case: Case) -> MemoryHost:
    made = MemoryHost(HostConfig(**sizes(case), memories=case.value("cfg_num_maskmem"))).eval()
    state = made.state_dict()
    made.load_state_dict(state | from_official(weights(case)))
    return made


def as_map(x: Tensor, grid: int) -> Tensor:
    """``(B, N, C)`` to ``(B, C, h, w)``."""
    return x.mT.unflatten(2, (grid, grid))


# --------------------------------------------------------------------------- codes and selection


@pytest.mark.parametrize("case", golden("sam2", "position_tables*.npz"))
def test_golden_sam2_position_tables(case: Case) -> None:
    for dim, width, height in case.array("in_rope").tolist():
        table = axial_table(height, width, dim)
        for name, found in zip(("cos", "sin"), table, strict=True):
            expected = case.tensor(f"out_rope_{name}_{dim}_{width}x{height}")
            torch.testing.assert_close(found, expected, **TABLES)
    for channels, height, width in case.array("in_sine").tolist():
        found = sine_map(height, width, channels).T.unflatten(1, (height, width))
        names = [f"out_sine2d_{channels}_{a}x{b}" for a, b in ((height, width), (width, height))]
        expected = next(case.tensor(name) for name in names if name in case)
        torch.testing.assert_close(found, expected, **TABLES)
    ago = case.tensor("in_delta").float() / case.value("cfg_delta_max")
    found = sine_time(ago, case.value("cfg_sine1d_dim"))
    torch.testing.assert_close(found, case.tensor("out_sine1d"), **TABLES)


@pytest.mark.parametrize("case", golden("sam2", "bank_selection*.npz"))
def test_golden_sam2_selection(case: Case) -> None:
    """Every case: which memories, in which order, with which row and time difference; exactly."""

    def rows(kind: str, *columns: str) -> list[list[tuple[int, ...]]]:
        flat = list(zip(*(case.array(f"out_{kind}_{c}").tolist() for c in columns), strict=True))
        ends = [0, *accumulate(case.array(f"out_{kind}_count").tolist())]
        assert ends[-1] == len(flat)
        return [flat[a:b] for a, b in zip(ends, ends[1:], strict=False)]

    spatial = rows("spatial", "frame", "tpos_index")
    pointers = rows("pointer", "frame", "delta")
    for number, row in enumerate(case.array("in_cases").tolist()):
        frame, frames, memories, most, prompted, stride, *flags = row
        reverse, training, past_only, signed = map(bool, flags)
        given = {
            kind: case.array(f"in_{kind}_frames")[number, : case.array(f"in_num_{kind}")[number]]
            for kind in ("cond", "noncond")
        }
        found = select_memories(
            frame, given["cond"].tolist(), given["noncond"].tolist(), frames=frames,
            memories=memories, pointers=most, most_prompted=prompted, stride=stride,
            reverse=reverse, training=training, past_only=past_only, signed=signed,
        )  # fmt: skip
        assert list(found.maps) == spatial[number], f"maps of case {number}"
        assert list(found.pointers) == pointers[number], f"pointers of case {number}"
        assert found.reach == min(frames, most) - 1


# --------------------------------------------------------------------------- modules


@pytest.mark.parametrize("case", golden("sam2", "rope_cross_attention_*.npz"))
def test_golden_sam2_cross_attention(case: Case) -> None:
    """Keys and values come apart: the keys have positions, the values have not."""
    side, unplaced = case.value("cfg_grid"), case.value("cfg_num_k_exclude_rope")
    query, key, value = (case.tensor(f"in_{name}") for name in "qkv")
    attention = RotaryAttention(query.shape[2], key.shape[2]).eval()
    attention.load_state_dict(from_official(weights(case)))
    with torch.no_grad():
        keys = attention.keys(key, (side, side), unplaced)
        found = attention(query, keys, value, (side, side))
    torch.testing.assert_close(found, case.tensor("out"), **CLOSE)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("case", golden("sam2", "memory_attention_*.npz"))
def test_golden_sam2_memory_attention(case: Case, training: bool) -> None:
    """Values projected after they are averaged, and before, as in training."""
    side = case.value("cfg_grid")
    attention = MemoryAttention(**sizes(case), dropout=0.0).train(training)
    attention.load_state_dict(part(case, "attention"))
    x, position, memory, memory_position = (
        case.tensor(f"in_{name}").transpose(0, 1)
        for name in ("curr", "curr_pos", "memory", "memory_pos")
    )
    with torch.no_grad():
        found = attention(
            x, memory, grid=(side, side), position=position, memory_position=memory_position,
            pointers=case.value("cfg_num_obj_ptr_tokens"),
        )  # fmt: skip
    torch.testing.assert_close(found.transpose(0, 1), case.tensor("out"), **CLOSE)


@pytest.mark.parametrize("case", golden("sam2", "memory_encoder_*.npz"))
def test_golden_sam2_memory_encoder(case: Case) -> None:
    side, written = case.value("cfg_grid"), host(case)
    features, logits = case.tensor("in_pix"), case.tensor("in_mask_logits")
    binary = bool(case.value("cfg_binarize") and case.value("cfg_mask_from_points"))
    alone = bool(case.value("cfg_non_overlap"))
    encoder = MemoryEncoder(features.shape[1], case.value("cfg_mem_dim")).eval()
    encoder.load_state_dict(part(case, "encoder"))
    score = case.tensor("in_object_score")
    with torch.no_grad():
        shown = exclusive_masks(logits) if alone else logits
        bare = encoder(features, mask_signal(shown, binary=binary))
        absent = weights(case)["no_obj_embed_spatial"][..., None, None]
        found = bare + (score <= 0)[..., None, None] * absent
        whole = written.encode(features, logits, score=score, binary=binary, exclusive=alone)
    torch.testing.assert_close(found, case.tensor("out_memory"), **CLOSE)
    torch.testing.assert_close(as_map(whole.tokens, side), case.tensor("out_memory"), **CLOSE)
    position = sine_map(side, side, case.value("cfg_mem_dim"))
    expected = case.tensor("out_pos").flatten(2).mT
    torch.testing.assert_close(position.expand_as(expected), expected, **TABLES)


# --------------------------------------------------------------------------- the loop


@pytest.mark.parametrize("case", golden("sam2", "conditioned_features_*.npz"))
def test_golden_sam2_conditioned_features(case: Case) -> None:
    """From the two lists of an object to the features that the mask decoder sees."""
    side, model = case.value("cfg_grid"), host(case)
    banks: tuple[dict[int, Written], ...] = ({}, {})
    entries = zip(
        case.array("in_bank_frame").tolist(), case.array("in_bank_is_cond").tolist(),
        case.tensor("in_bank_feats"), case.tensor("in_bank_ptrs"), strict=True,
    )  # fmt: skip
    for frame, prompted, tokens, pointer in entries:
        banks[not prompted][frame] = Written(tokens.flatten(2).mT, (side, side), pointer)
    codes = []
    for number, row in enumerate(case.array("in_cases").tolist()):
        frame, frames, first, reverse, most, stride = row
        x = case.tensor("in_feats")[number].transpose(0, 1)
        with torch.no_grad():
            if first:
                found = model.start(x)
            else:
                selection = select_memories(
                    frame, *banks, frames=frames, memories=case.value("cfg_num_maskmem"),
                    reverse=bool(reverse), most_prompted=most, stride=stride,
                )  # fmt: skip
                read = model.gather(selection, banks[0] | banks[1])
                assert read.memory.shape[1] == case.array("out_num_keys")[number]
                assert read.pointers == case.array("out_num_ptr_tokens")[number]
                codes.append(read.position[0, -read.pointers :])
                found = model.condition_published(x, selection, banks[0] | banks[1])
        torch.testing.assert_close(as_map(found, side), case.tensor("out")[number], **CLOSE)
    torch.testing.assert_close(torch.cat(codes), case.tensor("out_pointer_pos"), **CLOSE)


@pytest.mark.parametrize("case", golden("sam2", "memory_loop*.npz"))
def test_golden_sam2_memory_loop(case: Case) -> None:
    """Read then write, frame by frame; masks and pointers are given."""
    side, model = case.value("cfg_grid"), host(case)
    banks: tuple[dict[int, Written], ...] = ({}, {})
    features = case.tensor("in_feats").transpose(1, 2)
    for frame, prompted in enumerate(case.array("in_is_cond").tolist()):
        x = features[frame]
        with torch.no_grad():
            if prompted:
                found = model.start(x)
            else:
                selection = select_memories(
                    frame, *banks, frames=len(features),
                    memories=case.value("cfg_num_maskmem"), stride=case.value("cfg_stride"),
                    pointers=case.value("cfg_max_obj_ptrs"),
                    most_prompted=case.value("cfg_max_cond"),
                )  # fmt: skip
                found = model.condition_published(x, selection, banks[0] | banks[1])
            written = model.encode(
                as_map(x, side),
                case.tensor("in_low_res_logits")[frame],
                score=case.tensor("in_object_score")[frame],
                pointer=case.tensor("in_ptrs")[frame],
                binary=bool(case.array("in_mask_from_points")[frame]),
            )
        banks[not prompted][frame] = written
        torch.testing.assert_close(as_map(found, side), case.tensor("out")[frame], **LOOP)
        expected = case.tensor("out_memory")[frame]
        torch.testing.assert_close(as_map(written.tokens, side), expected, **CLOSE)
