"""Observations: frames as banks of visual tokens keep them, and their form as tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vismem.memory.slots import Slot

__all__ = ["OVERHEAD", "Observation", "observations_from", "observations_state"]

OVERHEAD = 64  # bytes: times, weight, source, run and grid of an observation


@dataclass(frozen=True, slots=True, eq=False)
class Observation:
    """One frame as a bank keeps it; never changed.

    Args:
        time: When it was seen, in seconds.
        start: First second of the uninterrupted run around it.
        end: Last second of that run.
        source: Running number of the write.
        tokens: ``(N, D)`` float16; ``(0, D)`` where only its synopsis is left.
        grid: Rows and columns of the tokens.
        embedding: ``(E,)`` float16 of unit length; the mean of all that it stands for.
        note: What stays with it.
    """

    time: float
    start: float
    end: float
    source: int
    tokens: Tensor
    grid: tuple[int, int]
    embedding: Tensor
    note: bytes

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return self.tokens.nbytes + self.embedding.nbytes + len(self.note) + OVERHEAD

    @classmethod
    def of(cls, slot: Slot) -> Observation:
        """The representative of a slot, with tokens of its own."""
        values = {name: getattr(slot, name) for name in cls.__slots__}
        return cls(**(values | {"tokens": slot.tokens.clone()}))

    def slot(self, level: str, **more: Any) -> Slot:
        """The observation as a slot: one of its own, unless told more."""
        values: dict[str, Any] = {"first": self.time, "last": self.time, "weight": 1}
        values |= {name: getattr(self, name) for name in Observation.__slots__}
        return Slot(level=level, **(values | more))


def observations_state(held: Iterable[Observation]) -> dict[str, Tensor]:
    """Observations as tensors, ``n`` of them."""
    held = list(held)
    notes = b"".join(observation.note for observation in held)
    tokens = [observation.tokens for observation in held]
    return {
        "times": torch.tensor([(o.time, o.start, o.end) for o in held], dtype=torch.float64),
        "sources": torch.tensor([o.source for o in held], dtype=torch.int64),
        "grids": torch.tensor([o.grid for o in held], dtype=torch.int64),
        "counts": torch.tensor([len(t) for t in tokens], dtype=torch.int64),
        "tokens": torch.cat(tokens) if held else torch.empty(0, dtype=torch.float16),
        "embeddings": torch.stack([o.embedding for o in held]) if held else torch.empty(0).half(),
        "note_sizes": torch.tensor([len(o.note) for o in held], dtype=torch.int64),
        "notes": torch.tensor(bytearray(notes), dtype=torch.uint8),
    }


def observations_from(
    state: Mapping[str, Tensor], token_dim: int, embedding_dim: int
) -> list[Observation]:
    """Inverse of `observations_state`.

    Raises:
        KeyError: If something is missing.
        ValueError: If it is of another configuration.
    """
    times, counts = state["times"].tolist(), state["counts"].tolist()
    sources, grids = state["sources"].tolist(), state["grids"].tolist()
    sizes, notes = state["note_sizes"].tolist(), state["notes"].numpy().tobytes()
    all_tokens, embeddings = state["tokens"], state["embeddings"]
    if times and (all_tokens.shape[1:] != (token_dim,) or embeddings.shape[1:] != (embedding_dim,)):
        raise ValueError("tokens or embeddings are of another configuration")
    held, place = [], 0
    tokens = all_tokens.split(counts) if times else ()
    for n, (time, start, end) in enumerate(times):
        note = notes[place : place + sizes[n]]
        place += sizes[n]
        rows, columns = grids[n]
        held.append(
            Observation(
                time,
                start,
                end,
                sources[n],
                tokens[n].clone(),
                (rows, columns),
                embeddings[n].clone(),
                note,
            )
        )
    return held
