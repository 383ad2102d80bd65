"""Point3R's pointers and rotations against the published code's own numbers."""

from __future__ import annotations

import pytest
import torch
from arrays import Case, golden

from vismem.memory.published.point3r import merge_pointers, patch_centres, rotate_in_space

MERGES = pytest.mark.parametrize("case", golden("point3r", "pointer_merge*.npz"))
ROTATIONS = pytest.mark.parametrize("case", golden("point3r", "rope3d_*.npz"))


@MERGES
def test_golden_point3r_pointers(case: Case) -> None:
    """Patches, counts and positions after every frame, features after the last."""
    points, features = case.tensor("in_pts3d"), case.tensor("in_feat")
    counts = case.array("out_count")
    rows = iter(case.tensor("out_pos_rows").split(counts.flatten().tolist()))
    held = [(points.new_empty(0, 3), features.new_empty(0, features.shape[3]))] * points.shape[1]
    for frame, maps in enumerate(points):
        centres = patch_centres(maps)
        torch.testing.assert_close(centres, case.tensor("out_patch_pos")[frame], rtol=0, atol=1e-5)
        for b, centre in enumerate(centres):
            held[b] = merge_pointers(*held[b], centre, features[frame, b])
            assert len(held[b][0]) == counts[frame, b]
            torch.testing.assert_close(held[b][0], next(rows), rtol=0, atol=1e-5)
    last = torch.cat([feature for _, feature in held])
    # Stored in half precision.
    torch.testing.assert_close(last, case.tensor("out_final_feat_rows"), rtol=1e-3, atol=1e-3)


@ROTATIONS
def test_golden_point3r_rotation(case: Case) -> None:
    found = rotate_in_space(case.tensor("in_x"), case.tensor("in_pos"))
    torch.testing.assert_close(found, case.tensor("out"), rtol=0, atol=5e-6)
