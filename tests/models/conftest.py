"""What the tests of video language models share."""

from __future__ import annotations

import pytest
from tiny import FAMILY_NAMES, tiny_family

from vismem.models.video_llm import VideoLLM


@pytest.fixture(scope="module", params=FAMILY_NAMES)
def llm(request: pytest.FixtureRequest) -> VideoLLM:
    return VideoLLM(tiny_family(request.param))


@pytest.fixture(scope="module")
def one() -> VideoLLM:
    return VideoLLM(tiny_family("llava_onevision"))
