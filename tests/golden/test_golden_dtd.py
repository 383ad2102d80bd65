"""TimeChat-Online's token drop against the published code's own numbers."""

from __future__ import annotations

import pytest
import torch
from arrays import Case, golden
from torch import Tensor

from vismem.memory.token_drop import (
    TokenDrop,
    keep_mask,
    keep_pixel_mask,
    pixel_difference,
    pixel_patches,
    similarity,
)

CASES = pytest.mark.parametrize("case", golden("dtd", "token_drop*.npz"))
CLEAR = 1e-5  # below this margin only the number of kept tokens is defined


def tokens_of(case: Case) -> Tensor:
    """The visual tokens, ``(T, N, D)``."""
    patches = int(case.array("frames_per_span").sum())
    visual = case.tensor("hidden")[case.tensor("visual_index").long()]
    return visual.reshape(patches, -1, visual.shape[-1])


def squares_of(case: Case) -> tuple[Tensor, Tensor]:
    """First sub-frame of each patch but the last, and last sub-frame of each but the first.

    The published code gets normalised pixels and takes the normalisation back.
    """
    mean = case.tensor("clip_mean").float()[:, None, None]
    std = case.tensor("clip_std").float()[:, None, None]
    images = (case.tensor("images").float() / 255 - mean) / std * std + mean
    size = images.shape[-1] // int(case.array("merged_grid")[1])
    squares = pixel_patches(images, size)
    return squares[0::2][:-1], squares[1::2][1:]


def settings(case: Case) -> list[tuple[int, str, float, bool]]:
    methods, absolute = case.array("methods").tolist(), case.array("absolute").tolist()
    thresholds = case.array("thresholds").tolist()
    return [
        (i, m, t, bool(a))
        for i, (m, t, a) in enumerate(zip(methods, thresholds, absolute, strict=True))
    ]


@CASES
def test_golden_dtd_layout(case: Case) -> None:
    """What the masks are laid over: whole grids, patch after patch, between the span's ends."""
    ids, visual = case.array("input_ids"), case.array("visual_index")
    rows, cols = case.array("merged_grid").tolist()
    spans = case.array("frames_per_span").tolist()
    assert len(visual) == sum(spans) * rows * cols
    times = torch.from_numpy(case.array("position_ids"))[0, visual].reshape(-1, rows * cols)
    assert bool((times == times[:, :1]).all()) and bool((times[1:, 0] > times[:-1, 0]).all())
    assert int((ids == case.value("vision_start_id")).sum()) == len(spans)
    assert int((ids == case.value("vision_end_id")).sum()) == len(spans)
    assert len(case.array("images")) == 2 * sum(spans)


@CASES
def test_golden_dtd_change(case: Case) -> None:
    tokens = tokens_of(case)
    close = {"rtol": 0, "atol": 1e-6}
    expected = case.tensor("similarity")
    torch.testing.assert_close(similarity(tokens[:-1], tokens[1:]), expected, **close)
    expected = case.tensor("pixel_difference")
    torch.testing.assert_close(pixel_difference(*squares_of(case)), expected, **close)


@CASES
def test_golden_dtd_keep(case: Case) -> None:
    tokens, squares = tokens_of(case), squares_of(case)
    length, margins = len(case.array("input_ids")), case.array("min_margin")
    for i, method, threshold, absolute in settings(case):
        if method == "feature":
            later = keep_mask(tokens[:-1], tokens[1:], threshold, absolute=absolute)
        else:
            later = keep_pixel_mask(*squares, threshold, absolute=absolute)
        keep = torch.cat([torch.ones(1, tokens.shape[1], dtype=torch.bool), later])
        expected = torch.from_numpy(case.array("keep")[i])
        if margins[i] > CLEAR:
            assert torch.equal(keep, expected), (method, threshold, absolute)
        assert int(keep.sum()) == int(expected.sum()), (method, threshold, absolute)
        in_sequence = torch.ones(length, dtype=torch.bool)
        in_sequence[case.tensor("visual_index").long()] = keep.reshape(-1)
        assert int(in_sequence.sum()) == int(case.array("kept_total")[i])


@CASES
def test_golden_dtd_frame_by_frame(case: Case) -> None:
    """The stream filter in its published form equals the rule over the whole sequence."""
    for i, method, threshold, absolute in settings(case):
        if method == "feature" and absolute and case.array("min_margin")[i] > CLEAR:
            drop = TokenDrop(threshold, reference="previous")
            keep = torch.stack([drop(frame) for frame in tokens_of(case)])
            assert torch.equal(keep, torch.from_numpy(case.array("keep")[i]))
