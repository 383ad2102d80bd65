"""The window: the newest writes whole, and their form as tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import TypedDict

from vismem.memory.kv.config import KVConfig
from vismem.memory.kv.quantize import LARGEST

__all__ = ["Chunk", "KVContext", "checked", "chunks_from", "make_chunk", "state_of"]


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


def checked(kv: Tensor, config: KVConfig, device: torch.device) -> Tensor:
    """A copy of keys and values as the window keeps them.

    Raises:
        ValueError: If they are of another shape, or not finite in the model's dtype.
    """
    shape = config.shape
    if kv.ndim != 5 or (*kv.shape[:3], kv.shape[4]) != (
        shape.layers,
        2,
        shape.kv_heads,
        shape.head_dim,
    ):
        size = f"({shape.layers}, 2, {shape.kv_heads}, N, {shape.head_dim})"
        raise ValueError(f"keys and values must be {size}, not {tuple(kv.shape)}")
    held = torch.empty(kv.shape, dtype=config.dtype, device=device)
    held.copy_(kv.detach())
    if not torch.isfinite(held).all():
        raise ValueError(
            f"keys or values are NaN, infinite or beyond {config.dtype}; drop that frame"
        )
    if config.precision != "model" and held.numel() and float(held.abs().max()) > LARGEST:
        raise ValueError(
            f"keys or values are beyond {LARGEST:.2g}, which {config.precision} cannot hold; "
            f"drop that frame"
        )
    return held


def make_chunk(
    config: KVConfig,
    device: torch.device,
    kv: Tensor,
    time: float,
    place: tuple[int, int, float],
    *,
    coords: Tensor | None = None,
    embedding: Tensor | None = None,
    saliency: Tensor | None = None,
    companion: Mapping[str, Tensor] | None = None,
) -> Chunk:
    """Take a write, if it can be taken.

    Args:
        config: Of the memory.
        device: Of the window.
        kv: Keys and values, ``(L, 2, G, N, D)``.
        time: When it was seen, in seconds.
        place: Number of the write, absolute number of its first token, time of the one before.
        coords: See `KVContext`, as the rest.
        embedding: Of the frame.
        saliency: How much each token matters.
        companion: Not of the chunk; its names are looked at.

    Raises:
        ValueError: If anything does not fit or is not finite.
    """
    source, first, last = place
    time = float(time)
    if not math.isfinite(time):
        raise ValueError(f"the time of a write must be finite seconds, not {time}")
    if time < last:
        raise ValueError(f"time went backwards, from {last:.3f} s to {time:.3f} s; sort the stream")
    held = checked(kv, config, device)
    count = held.shape[3]
    if not 0 < count <= config.max_tokens:
        raise ValueError(f"a write takes 1 to {config.max_tokens} tokens, not {count}")
    if coords is None:
        coords = torch.arange(count)[:, None].expand(-1, 3)
    if coords.shape != (count, 3) or coords.is_floating_point():
        raise ValueError(f"coords must be ({count}, 3) whole numbers, not {coords.shape}")
    low, high = int(coords.min()), int(coords.max())  # the lowest whole number has no abs
    if max(-low, high) >= 2**15:
        raise ValueError(f"coords must be below {2**15}, not {max(-low, high)}")
    if embedding is None:
        if config.embedding_dim:
            raise ValueError(f"an embedding of ({config.embedding_dim},) is needed")
        embedding = torch.empty(0)
    if embedding.shape != (config.embedding_dim,) or not embedding.half().isfinite().all():
        raise ValueError(f"an embedding is ({config.embedding_dim},) finite numbers of float16")
    if saliency is None or config.compression is None:
        saliency = torch.empty(0)
    elif saliency.shape != (config.shape.layers, count) or not saliency.float().isfinite().all():
        raise ValueError(f"saliency is ({config.shape.layers}, {count}) finite numbers")
    if companion and not all(name and "," not in name for name in companion):
        raise ValueError(f"names of a companion have no comma, not {sorted(companion)}")
    if companion and not all(isinstance(value, Tensor) for value in companion.values()):
        raise ValueError("a companion is tensors by name; make tensors of its values")
    return Chunk(
        held,
        time,
        coords.detach().to("cpu", torch.int16, copy=True),
        source,
        first,
        embedding.detach().to("cpu", torch.float16, copy=True),
        saliency.detach().to("cpu", torch.float32, copy=True),
    )


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
