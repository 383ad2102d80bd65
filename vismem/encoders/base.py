"""What every encoder gives: tokens and an embedding for a picture, a query for a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

__all__ = ["Encoder", "Encoding", "Labels", "Query", "Term"]


@dataclass(frozen=True, slots=True)
class Labels:
    """What an encoder recognised in one picture, one row a label.

    Args:
        ids: Label numbers of the encoder's own vocabulary, ``(L,)`` int64.
        scores: How sure, ``(L,)`` float32 in ``[0, 1]``.
        boxes: Where, ``(L, 4)`` float32 ``x0 y0 x1 y1`` as fractions of the picture.
        colors: Share of each colour name inside the box, ``(L, C)`` float32 in ``[0, 1]``.
        counts: How many of it are seen at once, ``(L,)`` int64.
    """

    ids: Tensor
    scores: Tensor
    boxes: Tensor
    colors: Tensor
    counts: Tensor


@dataclass(frozen=True, slots=True)
class Encoding:
    """One picture, encoded.

    Args:
        tokens: Semantic tokens, ``(N, D)`` float16.
        positions: Centres of the tokens, ``(N, 2)`` float32 ``x y`` as fractions of the picture.
        embedding: The picture in the space of :meth:`Encoder.query`, ``(E,)`` float32, unit length.
        detail: Finer tokens for attributes and positions, ``(M, F)`` float16, or ``None``.
        labels: What was recognised, or ``None`` where the encoder names nothing.
    """

    tokens: Tensor
    positions: Tensor
    embedding: Tensor
    detail: Tensor | None = None
    labels: Labels | None = None


@dataclass(frozen=True, slots=True)
class Term:
    """One thing that a question asks for, in the labels of an encoder.

    Args:
        text: The words, as asked: ``"blue mug"``.
        ids: Labels that count as the thing, ``(K,)`` int64.
        weights: How far each of them does, ``(K,)`` float32 in ``(0, 1]``.
        colors: Which colour names the region must show, ``(C,)`` bool, or ``None`` for any.
        several: Whether more than one is asked for ("people", "dogs").
        calibration: ``(slope, offset)`` of the logistic that makes the weighted score ``s`` of the
            labels a probability, ``sigmoid(slope * log(s) + offset)``.
    """

    text: str
    ids: Tensor
    weights: Tensor
    colors: Tensor | None = None
    several: bool = False
    calibration: tuple[float, float] = (1.0, 0.0)


@dataclass(frozen=True, slots=True)
class Query:
    """A sentence, ready to be compared with a memory.

    Args:
        text: The sentence.
        vector: The sentence in the embedding space, ``(E,)`` float32, unit length.
        terms: The things it names; empty where the encoder compares by vector alone.
        unknown: Words for things that the encoder has no label for.
    """

    text: str
    vector: Tensor
    terms: tuple[Term, ...] = ()
    unknown: tuple[str, ...] = field(default=())


@runtime_checkable
class Encoder(Protocol):
    """Turns pictures and sentences into comparable things.

    Attributes:
        identity: Names the model, the sha256 of its weights and its configuration; memories written
            under one identity are never read under another.
        embedding_dim: ``E``.
        token_dim: ``D``.
        max_tokens: The largest ``N`` that one picture gives.
        things: Labels below this number name things, the others qualities such as colours.
    """

    identity: dict[str, str]
    embedding_dim: int
    token_dim: int
    max_tokens: int
    things: int

    @property
    def label_names(self) -> Sequence[str]:
        """Name of every label, in the order of their numbers; empty if it names nothing."""
        ...

    def encode(self, images: Sequence[np.ndarray]) -> list[Encoding]:
        """Encode pictures, each ``(H, W, 3)`` uint8 RGB."""
        ...

    def query(self, text: str) -> Query:
        """Read a sentence."""
        ...

    def probability(self, query: Query, embeddings: Tensor) -> Tensor:
        """How likely each picture shows what is asked.

        Args:
            query: What :meth:`query` returned.
            embeddings: Pictures, ``(M, E)``, unit length.

        Returns:
            Calibrated probabilities, ``(M,)`` float32.
        """
        ...


def sha256_of(*tensors: torch.Tensor) -> str:
    """Digest of tensors, to name weights that come without a file of their own."""
    import hashlib

    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
