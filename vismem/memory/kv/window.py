"""The window: the newest writes whole, and their form as tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import TypedDict

__all__ = ["Chunk", "KVContext", "chunks_from", "state_of"]


class KVContext(TypedDict, total=False):
    """What comes with the keys and values of a frame.

    Args:
        coords: Where each token stands in its frame, ``(N, 3)`` ``t h w``; in a row by default.
        embedding: Of the frame, ``(E,)``; needed where ``E`` is above 0.
        saliency: How much each token matters, ``(L, N)``, for compression that asks for it.
        companion: What the memory's companion is from now on; as before by default.
    """

    coords: Tensor | None
    embedding: Tensor | None
    saliency: Tensor | None
    companion: Mapping[str, Tensor] | None


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """One write as the window keeps it; never changed.

    Args:
        kv: Keys and values before any rotation, ``(L, 2, G, N, D)``.
        time: When it was seen, in seconds.
        coords: Where each token stands in its frame, ``(N, 3)`` int16 ``t h w``.
        source: Running number of the write.
        first: Absolute number of its first token; those of the init prompt come before all.
        embedding: Of the frame, ``(E,)`` float16.
        saliency: How much each token matters, ``(L, N)`` float32, where compression needs it.
    """

    kv: Tensor
    time: float
    coords: Tensor
    source: int
    first: int
    embedding: Tensor
    saliency: Tensor

    def __len__(self) -> int:
        return self.kv.shape[3]

    @property
    def end(self) -> int:
        """Absolute number behind its last token."""
        return self.first + len(self)

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        beside = self.coords.nbytes + self.embedding.nbytes + self.saliency.nbytes
        return self.kv.nbytes + beside + 64


def state_of(window: Iterable[Chunk], empty: Tensor) -> dict[str, Tensor]:
    """Writes as tensors; ``empty`` stands for keys and values where there are none."""
    chunks = list(window)
    facts = [(c.source, c.first, len(c), c.saliency.numel()) for c in chunks]
    return {
        "window.kv": torch.cat([c.kv for c in chunks], 3) if chunks else empty,
        "window.facts": torch.tensor(facts, dtype=torch.int64).reshape(-1, 4),
        "window.times": torch.tensor([c.time for c in chunks], dtype=torch.float64),
        "window.coords": torch.cat([torch.empty(0, 3).short(), *(c.coords for c in chunks)]),
        "window.embeddings": torch.cat([torch.empty(0).half(), *(c.embedding for c in chunks)]),
        "window.saliency": torch.cat([torch.empty(0), *(c.saliency.flatten() for c in chunks)]),
    }


def chunks_from(state: Mapping[str, Tensor], device: torch.device) -> list[Chunk]:
    """Inverse of `state_of`.

    Raises:
        KeyError: If something is missing.
        RuntimeError: If the parts do not fit together.
    """
    facts, times = state["window.facts"].tolist(), state["window.times"].tolist()
    counts = [count for _, _, count, _ in facts]
    kv, coords = state["window.kv"], state["window.coords"]
    vectors = state["window.embeddings"].reshape(len(facts), -1) if facts else ()
    weighed = state["window.saliency"].split([size for *_, size in facts])
    parts = zip(kv.split(counts, 3), coords.split(counts), vectors, weighed, strict=True)
    return [
        Chunk(
            part.to(device, copy=True),
            time,
            at.clone(),
            source,
            first,
            vector.clone(),
            saliency.reshape(-1, count).clone() if saliency.numel() else saliency.clone(),
        )
        for (source, first, count, _), time, (part, at, vector, saliency) in zip(
            facts, times, parts, strict=True
        )
    ]
