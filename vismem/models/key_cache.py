"""Keys of views that stay from read to read, projected and turned once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vismem.kernels.mem_xattn import rotate_axial
from vismem.models.memory_attention import MemoryAttention

__all__ = ["KeyCache"]


class _Held(NamedTuple):
    tokens: Tensor
    keys: tuple[Tensor, ...]


class KeyCache:
    """The keys of the views of the last read, in every layer.

    To project and to turn is linear, so what is known of a view for good, its tokens and its place,
    is kept apart from the code of its age, of which there are few. A view is known again by its
    name and by its tokens, and all is made anew when weights change: the cache is never stale. It
    holds ``layers * C`` numbers a token, many times what the bank does, and no more views than one
    read has. At SAM 2's sizes, seven views of 64 x 64 cells, that is 235 MB, and spares four fifths
    of the time of the keys but only some 4 % of the whole read: attention itself is the rest.

    Example:
        >>> cache = KeyCache()
        >>> len(cache), cache.nbytes
        (0, 0)
    """

    def __init__(self) -> None:
        self.clear()

    def __len__(self) -> int:
        return len(self._held)

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and of the codes of ages."""
        kept = [key for held in self._held.values() for key in held.keys]
        return sum(part.nbytes for part in [*kept, *self._ages])

    def clear(self) -> None:
        """Forget all keys."""
        self._held: dict[tuple[int, int], _Held] = {}
        self._ages: tuple[Tensor, ...] = ()
        self._made_for: object = None

    def keys(
        self,
        attention: MemoryAttention,
        names: Sequence[tuple[int, int]],
        tokens: Tensor,
        place: Tensor,
        temporal: Tensor,
        rows: Tensor,
        grid: tuple[int, int],
    ) -> Iterator[Tensor]:
        """The keys of views layer by layer, as `MemoryAttention.keys` would give them.

        Args:
            attention: Whose keys.
            names: Object and source of each of ``S`` views.
            tokens: ``(S, N, E)``.
            place: Code of the cells, ``(N, E)``.
            temporal: Table of codes of age, ``(R, E)``.
            rows: The row of each view, ``(S,)``.
            grid: Of the views.

        Returns:
            One ``(S, N, C)`` a layer.

        Raises:
            ValueError: If gradients are wanted.
        """
        if torch.is_grad_enabled():
            raise ValueError("kept keys have no gradients; read under torch.no_grad()")
        changes = tuple((id(p), p._version) for p in [*attention.parameters(), temporal])
        made_for = (changes, grid, tokens.dtype, tokens.device)
        if made_for != self._made_for:
            self.clear()
            self._made_for = made_for
            self._ages = tuple(_turned(attention, temporal, grid))
        fresh = [
            number
            for number, name in enumerate(names)
            if name not in self._held or not torch.equal(self._held[name].tokens, tokens[number])
        ]
        if fresh:
            made = list(attention.keys(tokens[fresh] + place, grid))
            for at, number in enumerate(fresh):
                # Copies: a slice would keep the keys of all views of its read.
                own = tuple(layer[at].clone() for layer in made)
                self._held[names[number]] = _Held(tokens[number].clone(), own)
        self._held = {name: self._held[name] for name in names}
        held = list(self._held.values())
        return (
            torch.stack([own.keys[layer] for own in held]) + ages[rows]
            for layer, ages in enumerate(self._ages)
        )


def _turned(
    attention: MemoryAttention, temporal: Tensor, grid: tuple[int, int]
) -> Iterator[Tensor]:
    """What the code of each age adds to the keys of a map, ``(R, N, C)`` a layer."""
    for reader in attention.readers():
        added = F.linear(temporal, reader.key.weight)[:, None].expand(-1, grid[0] * grid[1], -1)
        yield rotate_axial(added, reader.turns(grid, temporal), heads=reader.heads)
