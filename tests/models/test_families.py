"""Every family gives its language model what the stock model gives it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import FAMILY_NAMES, frames, tiny_family
from torch import Tensor

from vismem.models.families import Family

COUNT = 3  # frames


@pytest.fixture(scope="module", params=FAMILY_NAMES)
def family(request: pytest.FixtureRequest) -> Family:
    return tiny_family(request.param)


def heard(family: Family, **inputs: Any) -> dict[str, Any]:
    """What the stock model feeds its language model for these inputs."""
    said: dict[str, Any] = {}

    def listen(module: Any, args: Any, words: dict[str, Any], output: Any) -> None:
        said.update(words, hidden=output.last_hidden_state)

    hook = family.text_model.register_forward_hook(listen, with_kwargs=True)
    try:
        with torch.no_grad():
            said["logits"] = family.model(**inputs, use_cache=False).logits
    finally:
        hook.remove()
    return said


def llava_onevision(family: Family, shown: Tensor) -> dict[str, Any]:
    words = family.init_ids
    places = [family.model.config.video_token_id] * (len(shown) * 9 + 1)
    ids = torch.tensor([words + places + family.question_ids("what?")])
    return {"input_ids": ids, "pixel_values_videos": family.pixels(shown)[None]}


STOCK = {"llava_onevision": llava_onevision}


def test_frames_are_embedded_as_the_stock_model_does(family: Family) -> None:
    shown = frames(COUNT)
    found = family.embed_frames(shown)
    stock = heard(family, **STOCK[family.model_type](family, shown))["inputs_embeds"]
    start, size = len(family.init_ids), found.embeds.shape[1]
    torch.testing.assert_close(
        found.embeds.flatten(0, 1), stock[0, start : start + COUNT * size], atol=1e-5, rtol=0
    )
