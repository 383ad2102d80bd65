"""How PyTorch's form of attention over pages walks over them: lists, and masks kept for layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .folded import added

__all__ = ["Entry", "Run", "Walk"]

Entry = tuple[int, int, int, int]  # page, first token in it, tokens, running number of the first
Run = tuple[int, int, int, int | None]  # page, first token in it, tokens, which turn if any
ALWAYS = 2**62  # the age of a key that every query sees


class Walk:
    """What each part of a batch reads, see `Reads`.

    Args:
        entries: Of each part.
        starts: Running number of the first query of each part.
        far: Entries that are seen by all queries.
        window: How far back the others are seen.
        bare: Which of the first entries have a turn that turns nothing; None if none has any.

    Attributes:
        runs: Stretches to read, of each part; neighbours in a page that are not turned are one.
    """

    def __init__(
        self,
        entries: Sequence[Sequence[Entry]],
        starts: Sequence[int],
        far: int,
        window: int,
        bare: Sequence[Sequence[bool]] | None = None,
    ) -> None:
        self._window, self.runs = window, list[list[Run]]()
        self._ages: list[list[tuple[int, int]]] = []  # length of a stretch, age of its first key
        self._masks: dict[tuple[int, int, torch.dtype], list[Tensor | None]] = {}
        for b, part in enumerate(entries):
            runs: list[Run] = []
            ages: list[tuple[int, int]] = []
            for n, (page, first, length, number) in enumerate(part):
                if page < 0 or length < 1:
                    continue
                ages.append((length, ALWAYS if n < far else starts[b] - number))
                turned = bare is not None and n < len(bare[b]) and not bare[b][n]
                if runs and not turned and runs[-1][3] is None:
                    before, begin, count, _ = runs[-1]
                    if before == page and begin + count == first:
                        runs[-1] = page, begin, count + length, None
                        continue
                runs.append((page, first, length, n if turned else None))
            self.runs.append(runs)
            self._ages.append(ages)

    def masks(
        self, count: int, repeats: int, dtype: torch.dtype, device: torch.device
    ) -> list[Tensor | None]:
        """A mask for each part of a batch as `masked_attention` takes it, None where all is seen.

        Parts that end alike, as frames do that are encoded together, share one.

        Args:
            count: Queries of a part.
            repeats: Query heads that share a key head.
            dtype: Of the queries.
            device: Of the queries.
        """
        key = count, repeats, dtype
        if key not in self._masks:
            ages = [self._seen_from(part, count) for part in self._ages]
            long = max(ages, key=len, default=torch.empty(0))
            whole = None
            if any(bool((part != ALWAYS).any()) for part in ages):
                whole = self._mask(long, count, repeats, dtype).to(device)
            self._masks[key] = [
                None
                if bool((part == ALWAYS).all())
                else whole[:, len(long) - len(part) :]
                if whole is not None and torch.equal(part, long[len(long) - len(part) :])
                else self._mask(part, count, repeats, dtype).to(device)
                for part in ages
            ]
        return self._masks[key]

    def _seen_from(self, stretches: list[tuple[int, int]], count: int) -> Tensor:
        """How far each key is behind the first query, ``(n,)``; `ALWAYS` where all see it."""
        if not stretches:
            return torch.empty(0, dtype=torch.int64)
        ages = [
            torch.full((length,), ALWAYS) if age == ALWAYS else age - torch.arange(length)
            for length, age in stretches
        ]
        age = torch.cat(ages)
        return age.masked_fill_((age >= 0) & (age + count <= self._window), ALWAYS)

    def _mask(self, age: Tensor, count: int, repeats: int, dtype: torch.dtype) -> Tensor:
        age = age + torch.arange(count)[:, None] * (age != ALWAYS)
        return added((age == ALWAYS) | ((age >= 0) & (age < self._window)), repeats, dtype)
