"""SAM2Act+'s keyframe memory against the published code's own numbers, its scrambled rows too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from arrays import Case, golden
from torch import Tensor

from vismem.models.sam2_names import from_official
from vismem.models.sam2act import KeyframeMemory, Layout, token_rows

# In double precision the loops are up to 1.5e-5 from the arrays, fed back up to 2.6e-4.
CLOSE: dict[str, Any] = {"rtol": 0, "atol": 4e-5}  # their own tolerance is 1e-4
# Fed back, another order of a sum alone moves results by some 1e-4.
FED_BACK: dict[str, Any] = {"rtol": 0, "atol": 1e-3}  # 2e-3
SUMS: dict[str, Any] = {"rtol": 1e-5, "atol": 0}  # 1e-4

GIVEN = pytest.mark.parametrize("case", golden("sam2act_plus", "keyframe_loop*__inputs.npz"))
CLOSED = pytest.mark.parametrize("case", golden("sam2act_plus", "keyframe_closed*__inputs.npz"))
LAYOUTS = pytest.mark.parametrize("layout", ["intended", "eval", "train"])


def whole(case: Case) -> Case:
    """Inputs, weights and outputs, which are three files."""
    name, arrays = Path(case.path).stem.removesuffix("__inputs"), dict(case.arrays)
    for kind in ("weights", "outputs"):
        [found] = [param.values[0] for param in golden("sam2act_plus", f"{name}__{kind}.npz")]
        assert found is not None, f"{name} has no {kind}"
        arrays |= found.arrays
    return Case(case.path, case.name, arrays)


def memory(case: Case) -> KeyframeMemory:
    made = KeyframeMemory(
        case.value("cfg_d_model"), case.value("cfg_mem_dim"), case.value("cfg_num_layers"),
        case.value("cfg_dim_feedforward"), case.value("cfg_num_maskmem"),
    ).eval()  # fmt: skip
    weights = {name[2:]: case.tensor(name) for name in case.arrays if name.startswith("w.")}
    made.load_state_dict(from_official(weights))
    return made


def check(case: Case, layout: Layout, closed: bool) -> None:
    """Every keyframe: what the head sees and what is stored; tokens in full, sums of all."""
    made, side = memory(case), case.value("cfg_grid")
    kept = case.tensor("in_token_index").long()
    table = case.tensor("in_pos_encoding")[0]
    features = case.tensor("in_feats").flatten(3).mT
    steps = case.value("cfg_train_batch") if layout == "train" else len(features)
    name = {True: f"_{layout}", False: ""}[closed]
    loose = FED_BACK if closed else CLOSE
    stored: list[Tensor] = []
    for step, x in enumerate(features[:steps]):
        # In training a sequence is one more than is read, so nothing is emptied within it.
        fresh = step % (case.value("cfg_num_maskmem") + 1) == 0
        if fresh if layout == "train" else case.array("in_reset")[step]:
            stored = []
        rows = token_rows(layout, side * side, len(x), steps, step)
        with torch.no_grad():
            seen = made.read(x, table[rows], stored, grid=(side, side))
            if closed:
                heat = seen @ case.tensor("in_head_weight") + case.value("in_head_bias")
                heat = heat.unflatten(1, (side, side))
            else:
                heat = case.tensor("in_heatmap")[step]
            stored.append(made.write(x, heat, grid=(side, side)))
        for found, kind in ((seen, f"conditioned_{layout}"), (stored[-1], f"memory{name}")):
            expected = case.tensor(f"out_{kind}")[step]
            torch.testing.assert_close(found[:, kept], expected, **loose)
            key = kind.split("_")[0]
            total = case.tensor(f"out_{key}_abs_sum{kind.removeprefix(key)}")[step]
            torch.testing.assert_close(found.double().abs().sum((1, 2)), total, **SUMS)


@LAYOUTS
@GIVEN
def test_golden_sam2act_plus_keyframe_loop(case: Case, layout: Layout) -> None:
    check(whole(case), layout, closed=False)


@LAYOUTS
@CLOSED
def test_golden_sam2act_plus_keyframe_closed_loop(case: Case, layout: Layout) -> None:
    """The heat map is read from the conditioned tokens and written back."""
    check(whole(case), layout, closed=True)


@GIVEN
def test_golden_sam2act_plus_token_rows(case: Case) -> None:
    """Which row of the table each token gets, as coded; next to none gets its own."""
    case = whole(case)
    cells, keyframes = case.value("cfg_grid") ** 2, case.value("cfg_train_batch")
    assert torch.equal(token_rows("eval", cells).T, case.tensor("out_layout_eval").long())
    columns = [token_rows("train", cells, 3, keyframes, k) for k in range(keyframes)]
    assert torch.equal(torch.cat(columns).T, case.tensor("out_layout_train").long())
    right = token_rows("eval", cells) == token_rows("intended", cells)
    assert right.float().mean() < 0.01
