"""Streams of tiny video language models, and what may be compared of two."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tiny import frames
from torch import Tensor

from vismem.memory.kv.memory import KVMemory
from vismem.memory.kv.retrieval import Retrieval
from vismem.models.families import Family
from vismem.models.video_llm import VideoLLM, VideoStream

ALL = Retrieval(blocks=1000, tail=10_000)
FEW = Retrieval(blocks=3, adaptive=False, neighbours=0, tail=20)
ADAPTIVE = Retrieval(blocks=4, tail=20)
WORDS = "what is on the table?"
CLIP = frames(12)
TIMES = [0.5 * n for n in range(12)]


def memory_for(llm: VideoLLM, budget: str = "100MB", **sizes: Any) -> KVMemory:
    return KVMemory(
        llm.config(**({"precision": "model", "block": 10, "window": 60} | sizes)), budget
    )


def begin(llm: VideoLLM, sizes: dict[str, Any] | None = None, **options: Any) -> VideoStream:
    return llm.stream(memory_for(llm, **(sizes or {})), **options)


def state(stream: VideoStream) -> dict[str, Tensor]:
    memory = stream.memory
    assert isinstance(memory, KVMemory)
    return memory.state_dict()


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)


@contextmanager
def heard(family: Family) -> Iterator[list[Tensor]]:
    """Everything that the head says."""
    said: list[Tensor] = []
    head = family.model.get_output_embeddings()
    hook = head.register_forward_hook(lambda module, args, out: said.append(out[0].clone()))
    try:
        yield said
    finally:
        hook.remove()
