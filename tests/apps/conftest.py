"""A demo without weights: a tiny encoder, a detector that finds nobody."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from tiny_encoder import TinyEncoder

pytest.importorskip("gradio")

from vismem.apps.demo.session import Models, Session
from vismem.apps.demo.sessions import Sessions
from vismem.apps.demo.settings import DemoSettings


@pytest.fixture
def models() -> Models:
    def nobody(image: np.ndarray, least: float) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(0, 4), torch.zeros(0)

    def look(image: np.ndarray, boxes: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(boxes), 8)

    return Models(TinyEncoder(), nobody, look)


@pytest.fixture
def settings() -> DemoSettings:
    return DemoSettings(seats=3, patience=0.4, upload_bytes=2_000_000, pixels=400 * 400)


@pytest.fixture
def sessions(settings: DemoSettings, models: Models) -> Iterator[Sessions]:
    with Sessions(settings, models) as all_of_them:
        yield all_of_them


@pytest.fixture
def session(settings: DemoSettings, models: Models) -> Iterator[Session]:
    with Session("token", settings, models) as one:
        yield one
