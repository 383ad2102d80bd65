"""Tokens that do not change are left out of a stream."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_stream import CLIP, begin
from torch import Tensor

from vismem.models.frame_drop import FrameDrop
from vismem.models.video_llm import VideoLLM


def test_tokens_that_do_not_change_are_left_out(llm: VideoLLM) -> None:
    still = CLIP[:1].expand(9, -1, -1, -1)
    stream = begin(llm, {"window": 10_000}, drop=FrameDrop(0.9, whole=4), timestamps=False)
    stream.write(still, range(9))
    before, after = llm.family.frame_ids(None)
    words, size = len(before) + len(after), llm.family.embed_frames(still[:1]).embeds.shape[1]
    counts = [len(chunk) - words for chunk in stream.snapshot().window]
    assert counts == [size, 1, 1, 1, size, 1, 1, 1, size]


def test_what_is_kept_is_compared_with_what_was_kept() -> None:
    drop, tokens = FrameDrop(0.9, whole=100), torch.eye(4)
    kept, state = drop(tokens, {})
    assert kept.all()
    angle = 0.0
    taken = []
    for _ in range(8):  # turns by a little each time; after 26 degrees it is new
        angle += 0.15
        tokens = torch.eye(4)
        tokens[0] = torch.tensor([np.cos(angle), np.sin(angle), 0, 0]).float()
        kept, state = drop(tokens, state)
        assert kept[0] and kept.sum() == 1 or not kept[1:].all()
        taken.append(bool(kept[0]))
    assert state["drop.count"] == 9
    assert sum(taken) >= 2


def test_what_had_to_be_kept_is_compared_with_from_then_on() -> None:
    drop, first = FrameDrop(0.5), torch.eye(3)
    _, state = drop(first, {})
    second = first.clone()
    second[1, 0] = 0.3  # not enough by itself, but more than the others
    kept, state = drop(second, state)
    assert kept.tolist() == [False, True, False]
    assert torch.equal(state["drop.reference"], second)


def test_the_state_of_a_drop_is_as_exact_as_the_tokens() -> None:
    drop, generator = FrameDrop(0.2, whole=3), torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}
    for _ in range(7):
        tokens = torch.randn(6, 8, generator=generator).to(torch.bfloat16)
        kept, state = drop(tokens, state)
        assert kept.any() and state["drop.reference"].dtype == torch.bfloat16
        reference = state["drop.reference"]
        assert torch.equal(reference[kept], tokens[kept])


@pytest.mark.parametrize("wrong", [{"threshold": 2.0}, {"whole": 0}])
def test_a_drop_is_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        FrameDrop(**wrong)
