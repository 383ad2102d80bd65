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

from vismem.kernels.memory_attention import added, masked_attention
from vismem.memory.kv.snapshot import KVSnapshot
from vismem.models.families import Family
from vismem.models.kv_attention import Pair, Plan

__all__ = ["PublishedEncoding", "PublishedReading"]


def _near(query: Tensor, keys: Tensor, window: int) -> Tensor:
    """Whether tokens at places ``(S,)`` see those at places ``(n,)``: the last ``W``, bool."""
    distance = query[:, None] - keys
    return (distance >= 0) & (distance < window)


def _with_sinks(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    far: Tensor,
    sink_keys: Tensor,
    sink_values: Tensor,
    mask: Tensor,
    scale: float | None,
) -> Tensor:
    """One softmax over keys, and over sinks that are met by queries rotated otherwise, ``far``.

    Queries and keys of both kinds lie side by side in twice the width, zeros where they must not
    meet. The mask has the keys first.
    """
    if not sink_keys.shape[1]:
        return masked_attention(query, keys, values, mask, scale=scale)
    scale = scale if scale is not None else query.shape[-1] ** -0.5
    keys = torch.cat([keys, torch.zeros_like(keys)], -1)
    sinks = torch.cat([torch.zeros_like(sink_keys), sink_keys], -1)
    both = torch.cat([keys, sinks], 1), torch.cat([values, sink_values], 1)
    return masked_attention(torch.cat([query, far], -1), *both, mask, scale=scale)


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
        repeats = family.shape.heads // family.shape.kv_heads
        place = torch.arange(self._old + count, device=self._sinks.device)
        for start in range(0, count, snapshot.config.block):
            own = slice(start, min(start + snapshot.config.block, count))
            view = slice(max(0, self._old + start - self._window), self._old + own.stop)
            # As many first words as have left the local tokens by the end of the step.
            gone = snapshot.seen + own.stop - self._window
            shown = min(max(gone, 0), self._sinks.shape[3])
            seen = _near(place[self._old :][own], place[view], self._window)
            seen = torch.cat([seen, seen.new_ones(len(seen), shown)], 1)
            self._steps.append((own, view, added(seen, repeats, self._sinks.dtype), shown))

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
        for own, view, mask, shown in self._steps:
            local = near[:, own], keys[:, view], values[:, view]
            first = self._sinks[layer, :, :, :shown]
            seen.append(_with_sinks(*local, far[:, own], first[0], first[1], mask, scale))
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
        pairs: Keys, not rotated, and values of context and words, layer by layer: the context of
            the next words. The published code cuts off what these can no longer see.
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

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None
    ) -> Tensor:
        """Attend to what the words still see of the context, and to the words so far."""
        family, window, new = self._family, self._window, query.shape[1]
        keys, values = self._context(layer, query)
        keys, values = torch.cat([keys, key], 1), torch.cat([values, value], 1)
        total = keys.shape[1]
        near = slice(max(0, total - new - window), total)
        place = torch.arange(total, device=query.device)
        seen = _near(place[total - new :], place[near], window)
        shown = self._count if total > window else 0
        gone = place[total - new :, None] - place[:shown] >= window
        mask = added(torch.cat([seen, gone], 1), len(query) // len(keys), query.dtype)
        cos, sin = family.angles(torch.arange(total - near.start))
        out = _with_sinks(
            family.rope.apply(query, cos[-new:], sin[-new:]),
            family.rope.apply(keys[:, near], cos, sin),
            values[:, near],
            family.rope.apply(query, *family.angles(torch.tensor([window - 1]))),
            keys[:, :shown],
            values[:, :shown],
            mask,
            scale,
        )
        self.pairs.append((keys, values))
        return out
