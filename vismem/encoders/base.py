"""What every encoder gives: tokens and an embedding for a picture, a query for a sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

__all__ = ["Encoder", "Encoding", "Labels", "Query", "Term", "cell_centres", "pool_map"]


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


def pool_map(features: Tensor, most: int) -> tuple[Tensor, tuple[int, int]]:
    """Average a feature map down to the finest grid of its shape with at most ``most`` cells.

    Args:
        features: ``(D, h, w)``.
        most: Cells at most, 1 or more.

    Returns:
        Tokens ``(rows * columns, D)``, and rows and columns of the grid.

    Example:
        >>> tokens, grid = pool_map(torch.zeros(320, 9, 16), 16)
        >>> tuple(tokens.shape), grid
        ((15, 320), (3, 5))
    """
    height, width = features.shape[-2:]
    scale = min(1.0, math.sqrt(most / (height * width)))
    rows = max(1, min(int(height * scale + 1e-6), most))  # 8, where floats say 7.9999
    columns = max(1, min(int(width * scale + 1e-6), most // rows))
    cells = F.adaptive_avg_pool2d(features[None], (rows, columns))
    return rearrange(cells, "1 d h w -> (h w) d"), (rows, columns)


def cell_centres(rows: int, columns: int, high: float = 1.0, wide: float = 1.0) -> Tensor:
    """Centres of the cells of a grid, as fractions of the picture.

    Args:
        rows: Cells from top to bottom.
        columns: Cells from left to right.
        high: Share of the picture's height that the grid covers, from the middle.
        wide: Share of its width.

    Returns:
        ``(rows * columns, 2)`` float32 ``x y``, row by row.
    """
    y = 0.5 + ((torch.arange(rows) + 0.5) / rows - 0.5) * high
    x = 0.5 + ((torch.arange(columns) + 0.5) / columns - 0.5) * wide
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).reshape(-1, 2)
