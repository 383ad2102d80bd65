"""ReKV as published, to the number: what differs from our way of encoding and reading.

Source: "Streaming Video Question-Answering with In-context Video KV-Cache Retrieval", 2025
(https://arxiv.org/abs/2503.00540) and its repository Becomebright/ReKV. Every token sees the last
``W`` tokens and, once the init prompt has begun to leave these, sinks at the one distance of
``W - 1``. At that border some tokens see the first words twice, as local keys and as sinks; in our
own way of encoding none does.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vismem.memory.kv.snapshot import KVSnapshot
from vismem.models.families import Family
from vismem.models.kv_attention import Pair, Plan, attend

__all__ = ["PublishedEncoding", "PublishedReading"]


def _with_sinks(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor,
    far: Tensor,
    sinks: Pair,
    shown: Tensor,
    scale: float | None,
) -> Tensor:
    """One softmax over keys, and over sinks that are met by differently rotated queries.

    Queries and keys of both kinds lie side by side in twice the width, zeros where they must not
    meet.
    """
    if not sinks[0].shape[1]:
        return attend(query, keys, values, scale, mask)
    scale = scale if scale is not None else query.shape[-1] ** -0.5
    keys = torch.cat([keys, torch.zeros_like(keys)], -1)
    others = torch.cat([torch.zeros_like(sinks[0]), sinks[0]], -1)
    return attend(
        torch.cat([query, far], -1),
        torch.cat([keys, others], 1),
        torch.cat([values, sinks[1]], 1),
        scale,
        torch.cat([mask, shown], 1),
    )


class PublishedEncoding(Plan):
    """One forward over new tokens, in steps of ``block`` tokens.

    Args:
        family: The model.
        snapshot: Of its memory.
        count: New tokens, ``S``.
    """

    def __init__(self, family: Family, snapshot: KVSnapshot, count: int) -> None:
        self.kv: list[Tensor] = []
        self._rope, self._sinks = family.rope, snapshot.sinks
        self._window, self._chunks = snapshot.config.window, snapshot.window
        held = snapshot.sinks.shape[3] + sum(map(len, snapshot.window))
        self._old = min(self._window, snapshot.seen, held)  # local tokens before the new ones
        self._angles = family.angles(torch.arange(self._old + count))
        self._far = family.angles(torch.tensor([self._window - 1]))
        self._steps: list[tuple[slice, slice, Tensor, int]] = []
        device = snapshot.sinks.device
        for start in range(0, count, snapshot.config.block):
            stop = min(start + snapshot.config.block, count)
            view = slice(max(0, self._old + start - self._window), self._old + stop)
            distance = torch.arange(self._old + start, self._old + stop, device=device)[
                :, None
            ] - torch.arange(view.start, view.stop, device=device)
            sinks = snapshot.seen + stop - self._window  # that have left the local tokens
            self._steps.append(
                (
                    slice(start, stop),
                    view,
                    (distance >= 0) & (distance < self._window),
                    min(max(sinks, 0), self._sinks.shape[3]),
                )
            )

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None
    ) -> Tensor:
        """Attend step by step, and keep the layer's new keys and values."""
        self.kv.append(torch.stack((key, value)))
        parts = [self._sinks[layer], *(chunk.kv[layer] for chunk in self._chunks)]
        held = torch.cat(parts, 2)
        held = held[:, :, held.shape[2] - self._old :]
        keys = self._rope.apply(torch.cat([held[0], key], 1), *self._angles)
        values = torch.cat([held[1], value], 1)
        near = self._rope.apply(query, *(part[self._old :] for part in self._angles))
        far = self._rope.apply(query, *self._far)
        seen = []
        for own, view, mask, sinks in self._steps:
            pair = self._sinks[layer, 0, :, :sinks], self._sinks[layer, 1, :, :sinks]
            local = keys[:, view], values[:, view]
            shown = mask.new_ones(mask.shape[0], sinks)
            seen.append(_with_sinks(near[:, own], *local, mask, far[:, own], pair, shown, scale))
        return torch.cat(seen, 1)


class PublishedReading(Plan):
    """One forward over words that see a context and themselves, of both the last ``W`` tokens.

    Args:
        family: The model.
        count: How many words there are, ``S``.
        context: Gives keys, not rotated, and values of a layer, ``(G, n, D)`` each; see `Reading`.
        window: ``W``.
        sinks: Tokens of the init prompt, ``n0``: the first of the context.

    Attributes:
        pairs: Keys, not rotated, and values that are left for the next words, layer by layer.
    """

    def __init__(
        self,
        family: Family,
        count: int,
        context: Callable[[int, Tensor], Pair],
        window: int,
        sinks: int,
    ) -> None:
        self.pairs: list[Pair] = []
        self._family, self._context = family, context
        self._window, self._count = window, sinks
        self._angles: dict[int, Pair] = {}

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None
    ) -> Tensor:
        """Attend to what is left of the context, and to the words so far."""
        family, window, new = self._family, self._window, query.shape[1]
        keys, values = self._context(layer, query)
        keys, values = torch.cat([keys, key], 1), torch.cat([values, value], 1)
        total, device = keys.shape[1], query.device
        local = min(total, new + window)
        cos, sin = family.angles(torch.arange(local))
        place = torch.arange(total - new, total, device=device)[:, None]
        distance = place - torch.arange(total - local, total, device=device)
        sinks = min(self._count, total) if total > window else 0
        seen = _with_sinks(
            family.rope.apply(query, cos[local - new :], sin[local - new :]),
            family.rope.apply(keys[:, total - local :], cos, sin),
            values[:, total - local :],
            (distance >= 0) & (distance < window),
            family.rope.apply(query, *family.angles(torch.tensor([window - 1]))),
            (keys[:, :sinks], values[:, :sinks]),
            place - torch.arange(sinks, device=device) >= window,
            scale,
        )
        if total > window + self._count:
            rest = total - window
            keys = torch.cat([keys[:, : self._count], keys[:, rest:]], 1)
            values = torch.cat([values[:, : self._count], values[:, rest:]], 1)
        self.pairs.append((keys, values))
        return seen
