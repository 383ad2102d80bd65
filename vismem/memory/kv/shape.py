"""The geometry of a language model, as far as its keys and values go."""

from __future__ import annotations

from dataclasses import dataclass

from einops import reduce
from torch import Tensor

__all__ = ["KVShape"]


@dataclass(frozen=True, slots=True)
class KVShape:
    """How many keys and values one token has, and how wide they are.

    Args:
        layers: Layers of the language model, ``L``.
        heads: Query heads, ``H``; a multiple of ``kv_heads``.
        kv_heads: Heads that keys and values have, ``G``.
        head_dim: Width of a head, ``D``.

    Raises:
        ValueError: If a number is below one or the heads do not divide.

    Example:
        >>> KVShape(layers=28, heads=28, kv_heads=4, head_dim=128).width * 2  # bytes, float16
        57344
    """

    layers: int
    heads: int
    kv_heads: int
    head_dim: int

    def __post_init__(self) -> None:
        if min(self.layers, self.heads, self.kv_heads, self.head_dim) < 1:
            raise ValueError(f"layers, heads and widths are at least one, not {self}")
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} query heads cannot share {self.kv_heads} key heads")

    @property
    def width(self) -> int:
        """Numbers that all layers keep of one token, ``L * 2 * G * D``."""
        return self.layers * 2 * self.kv_heads * self.head_dim

    def fold(self, query: Tensor) -> Tensor:
        """Sum the query heads that share a key head, ``(..., H, D)`` to ``(..., G, D)``.

        The scalar product of a folded query with a key is that of all its heads together with the
        key repeated for each of them, at ``H / G`` times less work.
        """
        return reduce(query, "... (g r) d -> ... g d", "sum", g=self.kv_heads)
