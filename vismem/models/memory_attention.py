"""SAM 2's memory attention: the features of a picture look at each other and at memories.

Layers of self-attention, cross-attention to memories and a two-layer network, each on normalised
input and added to what was there. Queries and keys that have a place in the picture are turned by
it (axial rotary positions); tokens without a place, the object pointers, stand last and are not.

Memories are 64 wide and keys 256, and the weights of a softmax sum to one. So in evaluation the
values are memories themselves and are projected after they were averaged: see
`vismem.kernels.mem_xattn`. On one thread of a processor, at 64 x 64 cells and seven memories, the
whole module takes a little over half the time for it. In training values are projected first, as
published, and weights are dropped at random.

Source: Ravi et al., "SAM 2: Segment Anything in Images and Videos", https://arxiv.org/abs/2408.00714;
github.com/facebookresearch/sam2. The grid may have any two sides here, and tokens are batch first.
Weights of the published code and of transformers load by `vismem.models.sam2_names`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vismem.kernels.mem_xattn import axial_table, fold_output, mem_xattn, rotate_axial

__all__ = ["MemoryAttention", "MemoryAttentionLayer", "RotaryAttention"]


@lru_cache(maxsize=8)
def _table(grid: tuple[int, int], dim: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # one that was made in it could not be trained with later
        return axial_table(*grid, dim, dtype=torch.promote_types(dtype, torch.float32)).to(device)


class RotaryAttention(nn.Module):
    """Attention whose queries and keys are turned by their place in a picture.

    Args:
        dim: Width ``C`` of queries, keys and results.
        memory_dim: Width ``E`` of what is attended to; ``dim`` by default.
        heads: Number of heads; divides ``dim``.
        dropout: Share of attention weights dropped in training.

    Raises:
        ValueError: If a head's channels are not a multiple of 4.
    """

    def __init__(
        self, dim: int, memory_dim: int | None = None, heads: int = 1, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if heads < 1 or dim % (4 * heads):
            raise ValueError(f"{heads} heads of a multiple of 4 channels do not make {dim}")
        memory_dim = dim if memory_dim is None else memory_dim
        self.heads, self.dropout = heads, dropout
        self.query, self.output = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.key, self.value = nn.Linear(memory_dim, dim), nn.Linear(memory_dim, dim)

    def turns(self, grid: tuple[int, int], like: Tensor) -> Tensor:
        """The rotary table of a grid for the channels of a head."""
        return _table(grid, self.query.out_features // self.heads, like.dtype, like.device)

    def keys(self, memory: Tensor, grid: tuple[int, int], unplaced: int = 0) -> Tensor:
        """Project and turn memories ``(B, N, E)``; what may be kept as long as the weights stay.

        Args:
            memory: Cells of one picture after the other, then tokens without a place; with
                whatever is added to tell position and time.
            grid: Rows and columns of each picture.
            unplaced: How many of the last tokens have no place.

        Returns:
            ``(B, N, C)``.
        """
        turns = self.turns(grid, memory)
        return rotate_axial(self.key(memory), turns, heads=self.heads, unrotated=unplaced)

    def forward(
        self,
        x: Tensor,
        keys: Tensor,
        memory: Tensor,
        grid: tuple[int, int],
        lengths: Tensor | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            x: ``(B, H * W, C)``, the cells of a picture.
            keys: ``(B, N, C)`` of `keys`.
            memory: ``(B, N, E)``, without position and time.
            grid: ``(H, W)``.
            lengths: How many keys each batch entry has, ``(B,)``, one at least; all by default.

        Returns:
            ``(B, H * W, C)``.
        """
        query = rotate_axial(self.query(x), self.turns(grid, x), heads=self.heads)
        if not self.training and self.heads * memory.shape[2] < query.shape[2]:
            seen = mem_xattn(query, keys, memory, self.heads, lengths=lengths)
            layers = (self.value.weight, self.value.bias, self.output.weight, self.output.bias)
            return F.linear(seen, *fold_output(*layers, self.heads))
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in (query, keys, self.value(memory))
        )
        there = None
        if lengths is not None:
            there = torch.arange(keys.shape[1], device=x.device) < lengths[:, None]
            there = there[:, None, None]
        dropped = self.dropout if self.training else 0.0
        seen = F.scaled_dot_product_attention(q, k, v, there, dropout_p=dropped)
        return self.output(seen.transpose(1, 2).flatten(2))


class MemoryAttentionLayer(nn.Module):
    """Self-attention, attention to memories and a network of two layers; see `MemoryAttention`."""

    def __init__(self, dim: int, memory_dim: int, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.self_attention = RotaryAttention(dim, heads=heads, dropout=dropout)
        self.cross_attention = RotaryAttention(dim, memory_dim, heads, dropout)
        self.widen, self.narrow = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        keys: Tensor,
        memory: Tensor,
        grid: tuple[int, int],
        lengths: Tensor | None = None,
    ) -> Tensor:
        """As `RotaryAttention.forward`, which it calls for the memories."""
        own = self.norm1(x)
        own = self.self_attention(own, self.self_attention.keys(own, grid), own, grid)
        x = x + self.dropout(own)
        seen = self.cross_attention(self.norm2(x), keys, memory, grid, lengths)
        x = x + self.dropout(seen)
        wide = self.dropout(self.widen(self.norm3(x)).relu())
        return x + self.dropout(self.narrow(wide))


class MemoryAttention(nn.Module):
    """Condition the features of a picture on memories.

    Args:
        dim: Width ``C`` of features.
        memory_dim: Width ``E`` of memories.
        layers: Number of layers.
        hidden: Width of the two-layer networks.
        heads: Number of heads.
        dropout: In training.

    Example:
        >>> attention = MemoryAttention(dim=16, memory_dim=4, layers=2, hidden=32).eval()
        >>> memory = torch.randn(1, 2 * 6 + 3, 4)  # two pictures of 2 x 3 cells, three pointers
        >>> attention(torch.randn(1, 6, 16), memory, grid=(2, 3), pointers=3).shape
        torch.Size([1, 6, 16])
    """

    def __init__(
        self,
        dim: int = 256,
        memory_dim: int = 64,
        layers: int = 4,
        hidden: int = 2048,
        heads: int = 1,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.dim, self.memory_dim = dim, memory_dim
        self.layers = nn.ModuleList(
            MemoryAttentionLayer(dim, memory_dim, hidden, heads, dropout) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        *,
        grid: tuple[int, int],
        position: Tensor | None = None,
        memory_position: Tensor | None = None,
        pointers: int = 0,
    ) -> Tensor:
        """Condition features on memories.

        Args:
            x: ``(B, H * W, C)`` features of a picture, row by row.
            memory: ``(B, V * H * W + pointers, E)``: the cells of ``V`` memory maps, then pointers.
            grid: ``(H, W)``.
            position: Code of the cells of the picture, that broadcasts to ``x``.
            memory_position: Code of memories, in place and time, that broadcasts to ``memory``;
                keys have it, values have not.
            pointers: How many of the last memories have no place in the picture.

        Returns:
            ``(B, H * W, C)``.

        Raises:
            ValueError: If the shapes do not fit.
        """
        self._check(x, memory, grid, pointers)
        placed = memory if memory_position is None else memory + memory_position
        keys = self.keys(placed, grid, pointers)
        return self.attend(x, keys, memory, grid=grid, position=position)

    def readers(self) -> Iterator[RotaryAttention]:
        """The attention to memories of every layer."""
        return (cast(MemoryAttentionLayer, layer).cross_attention for layer in self.layers)

    def keys(self, memory: Tensor, grid: tuple[int, int], unplaced: int = 0) -> Iterator[Tensor]:
        """The keys ``(B, N, C)`` layer by layer; see `RotaryAttention.keys`."""
        return (reader.keys(memory, grid, unplaced) for reader in self.readers())

    def attend(
        self,
        x: Tensor,
        keys: Iterable[Tensor],
        memory: Tensor,
        *,
        grid: tuple[int, int],
        position: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """Condition features on memories whose keys are there already.

        Args:
            x: ``(B, H * W, C)``.
            keys: One ``(B, N, C)`` a layer.
            memory: ``(B, N, E)``.
            grid: ``(H, W)``.
            position: As in `forward`.
            lengths: How many memories each batch entry has, ``(B,)``, one at least; what is behind
                is not read. All by default.

        Returns:
            ``(B, H * W, C)``.
        """
        if position is not None:
            x = x + 0.1 * position
        for layer, own in zip(self.layers, keys, strict=True):
            x = layer(x, own, memory, grid, lengths)
        return self.norm(x)

    def _check(self, x: Tensor, memory: Tensor, grid: tuple[int, int], pointers: int) -> None:
        cells = grid[0] * grid[1]
        if x.ndim != 3 or x.shape[1:] != (cells, self.dim):
            raise ValueError(
                f"features of a grid of {grid[0]} x {grid[1]} must be (B, {cells}, {self.dim}), "
                f"batch first, not {tuple(x.shape)}"
            )
        if memory.ndim != 3 or memory.shape[::2] != (len(x), self.memory_dim):
            raise ValueError(
                f"memory must be ({len(x)}, N, {self.memory_dim}), batch first, "
                f"not {tuple(memory.shape)}"
            )
        placed = memory.shape[1] - pointers
        if pointers < 0 or placed < 0 or placed % cells:
            raise ValueError(
                f"{memory.shape[1]} memories less {pointers} pointers are no whole maps of "
                f"{grid[0]} x {grid[1]} cells; put pointers last and give their number"
            )
        if not memory.shape[1]:
            raise ValueError("there is no memory to attend to; give one token that stands for none")
