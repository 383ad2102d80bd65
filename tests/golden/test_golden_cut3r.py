"""CUT3R's state and TTT3R's gate against the published code's own numbers."""

from __future__ import annotations

import pytest
import torch
from arrays import Case, golden

from vismem.models.cut3r import PersistentState, RecurrentDecoder

PLAIN = golden("cut3r", "state_*.npz")
GATED = golden("cut3r", "ttt3r_*.npz")


def decoder(case: Case) -> RecurrentDecoder:
    weights = {
        name.removeprefix("w."): case.tensor(name) for name in case.arrays if name[:2] == "w."
    }
    depths = {name.split(".")[2] for name in weights if ".read_blocks." in name}
    names = ("enc_dim", "dec_dim", "heads", "depth", "pose_mem_size")
    model = RecurrentDecoder(*(case.value(f"cfg_{name}") for name in names), len(depths))
    model.load_state_dict(weights)
    return model.eval()


@torch.no_grad()
def follow(case: Case, gated: bool) -> None:
    model, close = decoder(case), {"rtol": 0.0, "atol": 2e-4}
    features = case.tensor("in_feat")
    start = model.start(case.tensor("in_init_state").expand(features.shape[1], -1, -1))
    state = start
    update = case.tensor("in_img_mask").bool() & case.tensor("in_update").bool()
    for view, reset in enumerate(case.tensor("in_reset").bool()):
        tokens, state = model(
            features[view],
            case.tensor("in_pos"),
            state,
            case.tensor("in_state_pos"),
            write=update[view],
            gated=gated,
        )
        again = reset[:, None, None]
        state = PersistentState(
            torch.where(again, start.tokens, state.tokens),
            torch.where(again, start.poses, state.poses),
            seen=True,
        )
        torch.testing.assert_close(tokens, case.tensor("out_image_tokens")[view], **close)
        torch.testing.assert_close(state.tokens, case.tensor("out_state")[view], **close)
        torch.testing.assert_close(state.poses, case.tensor("out_pose_memory")[view], **close)


@pytest.mark.parametrize("case", PLAIN)
def test_golden_cut3r_state(case: Case) -> None:
    follow(case, gated=False)


@pytest.mark.parametrize("case", GATED)
def test_golden_cut3r_gate_of_ttt3r(case: Case) -> None:
    follow(case, gated=True)
