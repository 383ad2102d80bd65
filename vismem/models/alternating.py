"""A decoder that reads a transient and a persistent memory in turn, after the idea of Mem4D.

Mem4D (Cai et al., 2025, arXiv 2508.07908) keeps what moves and what stays in two memories and reads
them by alternating queries; its internals are not public, and nothing here claims to be them. Even
layers look at the transient tokens, odd ones at the persistent; `union=True` reads both at once in
every layer, with the same parameters, and is what alternation has to be compared with.

Where something is enters in two ways, both by differences of positions alone: rotary angles of
continuous coordinates (Su et al., "RoFormer", arXiv 2104.09864), which know directions, and a decay
with the squared distance that each head learns, which knows what is near. When something was seen
enters by its age alone, as a bias. A key that counts for several observations gets the logarithm of
their number (proportional attention: Bolya et al., "Token Merging", arXiv 2210.09461).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

__all__ = ["AlternatingConfig", "AlternatingDecoder", "GatedRead", "Store"]


class Stored(Protocol):
    """What a memory of two stores hands out for attention, as `StaticDynamicMemory.kv` does."""

    @property
    def values(self) -> Tensor:
        """``(n, D)``."""

    @property
    def bias(self) -> Tensor:
        """``(n,)``: the logarithm of a persistent token's count, ``-lambda * age`` of others."""

    @property
    def positions(self) -> Tensor:
        """``(n, axes)`` now, in the same world as the queries."""

    @property
    def dynamic(self) -> Tensor:
        """``(n,)`` bool: of the transient store."""


class Store(NamedTuple):
    """The tokens of one memory for a batch of readers; any number of them, none included.

    Args:
        tokens: ``(B, n, D)``.
        positions: ``(B, n, axes)``, in the units of the queries' positions; finite, padding too.
        bias: ``(B, n)``, added to every query's score of the token: the logarithm of its count in a
            persistent store, ``-lambda * age`` in a transient one, and -inf where it is padding.
    """

    tokens: Tensor
    positions: Tensor
    bias: Tensor

    @classmethod
    def pair(cls, memories: Sequence[Stored]) -> tuple[Store, Store]:
        """The transient and the persistent store of a batch of memories, padded to one length.

        Example:
            >>> from types import SimpleNamespace as KV
            >>> kv = KV(values=torch.ones(3, 8), positions=torch.ones(3, 3), bias=torch.zeros(3),
            ...         dynamic=torch.tensor([True, False, False]))
            >>> [store.tokens.shape[1] for store in Store.pair([kv])]
            [1, 2]
        """
        return cls._of(memories, transient=True), cls._of(memories, transient=False)

    @classmethod
    def _of(cls, memories: Sequence[Stored], *, transient: bool) -> Store:
        kept = [memory.dynamic == transient for memory in memories]
        pairs = list(zip(memories, kept, strict=True))
        return cls(
            pad_sequence([memory.values[rows] for memory, rows in pairs], batch_first=True),
            pad_sequence([memory.positions[rows] for memory, rows in pairs], batch_first=True),
            pad_sequence([memory.bias[rows] for memory, rows in pairs], True, -torch.inf),
        )


@dataclass(frozen=True)
class AlternatingConfig:
    """Shape of an `AlternatingDecoder`.

    Args:
        token_dim: Width ``D`` of what goes in, what memory holds, and what comes out.
        width: Channels inside.
        heads: Heads of every attention.
        layers: Blocks; block 0 reads the transient memory, block 1 the persistent one, and so on.
        expand: Width of the MLPs, in channels.
        axes: Of a position; 3 in metres, or 2.
        reach: Distances at which the first and the last head's attention has fallen to 1/e before
            training, in units of the positions; the others lie between, geometrically.
        wavelengths: Shortest and longest period of the rotary angles, in the same units.
        union: Read both memories at once in every block.
        grafted: Begin with all gates at zero, so that memory changes nothing until it is trained.

    Raises:
        ValueError: If a head cannot be divided into pairs of channels for each axis.
    """

    token_dim: int
    width: int = 96
    heads: int = 4
    layers: int = 4
    expand: int = 2
    axes: int = 3
    reach: tuple[float, float] = (0.1, 0.4)
    wavelengths: tuple[float, float] = (0.4, 12.8)
    union: bool = False
    grafted: bool = False

    def __post_init__(self) -> None:
        if self.axes < 1 or self.width % (self.heads * 2 * self.axes):
            raise ValueError(
                f"width {self.width} is no multiple of 2 * {self.heads} heads * {self.axes} axes"
            )


class Places(NamedTuple):
    """Where queries or keys are: coordinates ``(B, S, axes)`` and the keys' bias ``(B, S)``."""

    at: Tensor
    bias: Tensor


class PlacedAttention(nn.Module):
    """Attention among things with places; a head that finds nothing of use reads nothing.

    Beside the keys there is a sink of value zero whose score each head learns. So a query that no
    key is near is not made to read a far one, and an empty memory is nothing special.
    """

    wavenumbers: Tensor

    def __init__(self, config: AlternatingConfig) -> None:
        super().__init__()
        self.heads, width = config.heads, config.width
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        # What is read begins as a copy of what is there; to learn that takes most of a training.
        nn.init.eye_(self.key_value.weight[width:].detach())
        nn.init.eye_(self.out.weight)
        self.sink = nn.Parameter(torch.zeros(self.heads))
        reach = torch.logspace(0, 1, self.heads, base=config.reach[1] / config.reach[0])
        self.log_reach = nn.Parameter((config.reach[0] * reach).log())
        periods = width // (self.heads * 2 * config.axes)
        ratio = config.wavelengths[1] / config.wavelengths[0]
        waves = config.wavelengths[0] * torch.logspace(0, 1, periods, base=ratio)
        self.register_buffer("wavenumbers", 2 * torch.pi / waves, persistent=False)

    def forward(self, x: Tensor, here: Places, memory: Tensor, there: Places) -> Tensor:
        """Read keys ``(B, n, C)`` by queries ``(B, M, C)``: what was read, ``(B, M, C)``."""
        key, value = self._split(self.key_value(memory), 2)
        query = self._turned(self._split(self.query(x), 1)[0], here.at)
        key = self._turned(key, there.at)
        # The form that subtracts first; the one by products loses what is near, far from home.
        apart = torch.cdist(here.at, there.at, compute_mode="donot_use_mm_for_euclid_dist")
        decay = rearrange((-2 * self.log_reach).exp(), "h -> h 1 1")
        score = there.bias[:, None, None] - decay * apart.square()[:, None]
        sink = rearrange(self.sink, "h -> 1 h 1 1").expand(*score.shape[:3], 1)
        read = F.scaled_dot_product_attention(
            query, F.pad(key, (0, 0, 0, 1)), F.pad(value, (0, 0, 0, 1)), torch.cat([score, sink], 3)
        )
        return self.out(rearrange(read, "b h m c -> b m (h c)"))

    def _split(self, x: Tensor, parts: int) -> Tensor:
        return rearrange(x, "b s (p h c) -> p b h s c", p=parts, h=self.heads)

    def _turned(self, x: Tensor, at: Tensor) -> Tensor:
        angle = rearrange(at[..., None] * self.wavenumbers, "b s a p -> b 1 s (a p)")
        cos, sin = angle.cos(), angle.sin()
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


class GatedRead(nn.Module):
    """``x + gate * attention(norm(x), memory)``: what a host's block is given to read a memory.

    Args:
        config: Its `width` is the host's; with `grafted` the gate is zero, and the host is what it
            was until the gate is trained.
    """

    def __init__(self, config: AlternatingConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.attention = PlacedAttention(config)
        self.gate = nn.Parameter(torch.tensor(0.0 if config.grafted else 1.0))

    def forward(self, x: Tensor, here: Places, memory: Tensor, there: Places) -> Tensor:
        """Add what is read of ``memory`` ``(B, n, C)`` to ``x`` ``(B, M, C)``."""
        return x + self.gate * self.attention(self.norm(x), here, memory, there)


class Block(nn.Module):
    """Look at each other, then at the memory, then think."""

    def __init__(self, config: AlternatingConfig) -> None:
        super().__init__()
        width = config.width
        self.norm = nn.LayerNorm(width)
        self.attention = PlacedAttention(config)
        self.read = GatedRead(config)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, config.expand * width),
            nn.GELU(),
            nn.Linear(config.expand * width, width),
        )

    def forward(self, x: Tensor, here: Places, memory: Tensor, there: Places) -> Tensor:
        normed = self.norm(x)
        x = x + self.attention(normed, here, normed, here)
        x = self.read(x, here, memory, there)
        return x + self.mlp(x)


class AlternatingDecoder(nn.Module):
    """Tells what is at given places, from what is seen beside them and from two memories.

    Example:
        >>> decoder = AlternatingDecoder(AlternatingConfig(token_dim=80))
        >>> sum(weight.numel() for weight in decoder.parameters()) < 500_000
        True
        >>> empty = Store(torch.zeros(1, 0, 80), torch.zeros(1, 0, 3), torch.zeros(1, 0))
        >>> decoder(torch.randn(1, 5, 80), torch.rand(1, 5, 3), empty, empty).shape
        torch.Size([1, 5, 80])
    """

    def __init__(self, config: AlternatingConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Linear(config.token_dim, config.width)
        self.unseen = nn.Parameter(0.02 * torch.ones(config.width))
        self.kind = nn.Parameter(torch.zeros(2, config.width))  # transient, persistent
        self.norm_memory = nn.LayerNorm(config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        out = nn.Linear(config.width, config.token_dim)
        self.head = nn.Sequential(nn.LayerNorm(config.width), out)
        nn.init.orthogonal_(self.embed.weight)  # and the way out begins as the way in, turned round
        out.weight.detach().copy_(self.embed.weight.T)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        transient: Store,
        persistent: Store,
        *,
        hidden: Tensor | None = None,
        padding: Tensor | None = None,
    ) -> Tensor:
        """Decode.

        Args:
            tokens: ``(B, M, D)`` of now.
            positions: ``(B, M, axes)``; float64 keeps its precision, however far from the origin.
            transient: What was seen a moment ago, where it is now.
            persistent: What stays.
            hidden: ``(B, M)`` bool: tokens that are not seen; they ask, and are not asked.
            padding: ``(B, M)`` bool: rows that hold nothing; what comes out for them means nothing.

        Returns:
            ``(B, M, D)``.

        Raises:
            ValueError: If shapes do not fit.
        """
        self._check(tokens, positions, transient, persistent)
        if padding is None:
            padding = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        x = self.embed(tokens)
        if hidden is not None:
            x = torch.where(hidden[..., None], self.unseen, x)
        # Only differences count; taken from amid the queries they stay precise in float32.
        real = (~padding)[..., None]
        origin = (positions.double() * real).sum(1, True) / real.sum(1, True).clamp(min=1)

        def placed(at: Tensor, bias: Tensor) -> Places:
            return Places((at.double() - origin).to(x.dtype), bias.to(x.dtype))

        here = placed(
            positions, torch.zeros_like(padding, dtype=x.dtype).masked_fill(padding, -torch.inf)
        )
        stores = [
            (self.norm_memory(self.embed(store.tokens)) + kind, placed(*store[1:]))
            for store, kind in zip((transient, persistent), self.kind, strict=True)
        ]
        if self.config.union:
            (one, at_one), (other, at_other) = stores
            both = Places(*(torch.cat(pair, 1) for pair in zip(at_one, at_other, strict=True)))
            stores = [(torch.cat([one, other], 1), both)]
        for number, block in enumerate(self.blocks):
            x = block(x, here, *stores[number % len(stores)])
        return self.head(x)

    def _check(self, tokens: Tensor, positions: Tensor, *stores: Store) -> None:
        config, batch = self.config, tokens.shape[:1]
        for what, at, bias in ((tokens, positions, None), *stores):
            rows = what.shape[:2]
            fits = what.ndim == 3 and what.shape[2] == config.token_dim and what.shape[:1] == batch
            if not fits or at.shape != (*rows, config.axes):
                raise ValueError(
                    f"tokens are (B, n, {config.token_dim}) and positions (B, n, {config.axes}) "
                    f"with one B for all, not {tuple(what.shape)} and {tuple(at.shape)}"
                )
            if bias is not None and bias.shape != rows:
                raise ValueError(f"the bias is {tuple(rows)}, not {tuple(bias.shape)}")
