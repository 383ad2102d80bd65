"""What the queries of one forward read, planned once for all of its layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .walk import Entry, Walk

__all__ = ["ALL", "Reads"]

ALL = 2**31 - 1  # a window that ends nowhere


@dataclass(frozen=True, eq=False)
class Reads:
    """Lists of stretches of pages, one list for each part of a batch.

    An entry is a stretch of one page: ``(page, first, length, number)``, where ``first`` is its
    first token inside the page and ``number`` the running number of that token in the stream. All
    queries see the ``far`` first entries of their list: sinks, what was retrieved. Of the others
    query ``m`` sees keys that are not ahead and less than a window behind:
    ``0 <= q_start + m - number < window``.

    Args:
        entries: ``(B, L, 4)`` int32; an entry whose page is -1 is skipped.
        q_start: Running number of the first query, ``(B,)`` int32.
        far: How many entries are seen by all queries.
        window: How far back the others are seen, the query itself included.
        cos: Turns of the first ``J <= L`` entries, ``(B, J, D / 2)`` float32; the others have
            none, nor has any by default. A turned entry is read as if its keys had been rotated by
            that angle a channel pair, on top of what they are.
        sin: As ``cos``.
        longest: No entry has more tokens; as many as a page by default. What is looked at grows
            with it on a GPU.

    Raises:
        ValueError: If the shapes do not fit, or a number is below what it can be.

    Example:
        >>> reads = Reads.of([[(0, 0, 4, 0), (2, 1, 3, 9)]], [11], far=1)
        >>> reads.entries.shape, reads.q_start.tolist()
        (torch.Size([1, 2, 4]), [11])
    """

    entries: Tensor
    q_start: Tensor
    far: int = 0
    window: int = ALL
    cos: Tensor | None = None
    sin: Tensor | None = None
    longest: int | None = None

    def __post_init__(self) -> None:
        if self.entries.ndim != 3 or self.entries.shape[2] != 4:
            raise ValueError(f"entries are (B, L, 4), not {tuple(self.entries.shape)}")
        if self.q_start.shape != self.entries.shape[:1]:
            raise ValueError(f"q_start is ({len(self.entries)},), not {tuple(self.q_start.shape)}")
        if self.entries.dtype != torch.int32 or self.q_start.dtype != torch.int32:
            raise ValueError(f"entries and q_start are int32, not {self.entries.dtype}")
        if self.far < 0 or self.window < 1:
            raise ValueError(f"far >= 0 and window >= 1, not {self.far} and {self.window}")
        if (self.cos is None) != (self.sin is None):
            raise ValueError("a turn has a cosine and a sine")
        if self.cos is not None and self.sin is not None:
            if self.cos.shape != self.sin.shape or self.cos.ndim != 3:
                raise ValueError(f"turns are (B, J, D / 2), not {tuple(self.cos.shape)}")
            if len(self.cos) != len(self.entries) or self.cos.shape[1] > self.entries.shape[1]:
                raise ValueError(
                    f"{tuple(self.cos.shape[:2])} turns for {tuple(self.entries.shape[:2])} entries"
                )

    @classmethod
    def of(
        cls,
        entries: Sequence[Sequence[Entry]],
        q_start: Sequence[int],
        *,
        far: int = 0,
        window: int = ALL,
        cos: Tensor | None = None,
        sin: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> Reads:
        """Plan from lists, which may be of different lengths.

        Args:
            entries: Of each part of the batch, ``(page, first, length, number)`` each.
            q_start: Running number of the first query of each part.
            far: As above, like the rest.
            window: How far back.
            cos: Of the turns.
            sin: Of the turns.
            device: Of the queries.
        """
        most = max(map(len, entries), default=0)
        table = [[*map(list, part), *([[-1, 0, 0, 0]] * (most - len(part)))] for part in entries]
        return cls(
            torch.tensor(table, dtype=torch.int32).reshape(len(table), most, 4).to(device),
            torch.tensor(list(q_start), dtype=torch.int32).to(device),
            far,
            window,
            cos,
            sin,
            max((entry[2] for part in entries for entry in part), default=0),
        )

    @classmethod
    def causal(cls, length: int, count: int, device: torch.device | str = "cpu") -> Reads:
        """One page of tokens whose last are the queries.

        Args:
            length: Tokens of the page.
            count: Queries.
            device: Of the queries.
        """
        return cls.of([[(0, 0, length, 0)]], [length - count], device=device)

    @cached_property
    def walk(self) -> Walk:
        """The same as lists of numbers, for PyTorch's form."""
        bare = None
        if self.cos is not None and self.sin is not None:
            bare = ((self.cos == 1) & (self.sin == 0)).all(2).tolist()
        return Walk(self.entries.tolist(), self.q_start.tolist(), self.far, self.window, bare)
