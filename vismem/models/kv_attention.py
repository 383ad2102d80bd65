"""Attention of a language model over a memory: encoding a stream, and reading it for a question.

A model runs with zero positions, so queries and keys reach the attention function unrotated, and
a plan (`Encoding`, `Reading`) that is handed through its forward decides what they see, and where
that stands. A plan lives for one forward and belongs to its caller, so threads may share the model.

Sources: positions inside the cache and sinks of StreamingLLM (https://arxiv.org/abs/2309.17453);
reading retrieved keys at contiguous positions, ReKV (https://arxiv.org/abs/2503.00540).
"""

from __future__ import annotations

import bisect
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from vismem.memory.kv.window import Chunk
from vismem.models.families import Family

__all__ = [
    "ATTENTION",
    "Encoding",
    "Pair",
    "Plan",
    "Reading",
    "added",
    "attend",
    "host",
    "lower_right",
]

ATTENTION = "vismem_kv"
Pair = tuple[Tensor, Tensor]  # keys and values, (G, n, D) each


class Plan(ABC):
    """What the tokens of one forward attend to, layer by layer."""

    @abstractmethod
    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None
    ) -> Tensor:
        """Attend in one layer.

        Args:
            layer: Of the language model, each once and in order.
            query: Of the new tokens, not rotated, ``(H, S, D)``.
            key: ``(G, S, D)``, not rotated.
            value: ``(G, S, D)``.
            scale: Of the products.

        Returns:
            ``(H, S, D)``.
        """


def host(model: Any) -> None:
    """Let plans reach the language model's attention; without one it stays that of ``sdpa``.

    Args:
        model: A loaded model of transformers; its vision part keeps its own attention.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(ATTENTION, _attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    model.set_attn_implementation({"text_config": ATTENTION})


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    kvmem: Plan | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in every layer; a plan needs no mask, it knows its own."""
    if kvmem is None and len(query) == query.shape[2] == 1 and attention_mask is None:
        # One more word: the same as below, without reading keys once for every query head.
        seen = attend(query[0], key[0], value[0], scaling)
        return rearrange(seen, "h s d -> 1 s h d"), None
    if kvmem is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **more
        )
    if len(query) != 1:
        raise ValueError(f"a memory hosts one stream in a forward, not {len(query)}")
    seen = kvmem.attend(module.layer_idx, query[0], key[0], value[0], scaling)
    return rearrange(seen, "h s d -> 1 s h d").contiguous(), None


def attend(
    query: Tensor, keys: Tensor, values: Tensor, scale: float | None, mask: Tensor | None = None
) -> Tensor:
    """Attention of ``(H, S, D)`` to ``(G, n, D)``, each key head serving ``H / G`` query heads.

    The heads that share keys are laid behind each other as rows, so that keys need no copies.

    Args:
        query: Of ``S`` tokens.
        keys: ``(G, n, D)``.
        values: Of any width, ``(G, n, E)``.
        scale: Of the products; one over the root of ``D`` by default.
        mask: ``(H / G * S, n)``, what is added to the products, see `added`; nothing by default.

    Returns:
        ``(H, S, E)``.
    """
    rows = rearrange(query, "(g r) s d -> 1 g (r s) d", g=len(keys))
    seen = scaled_dot_product_attention(rows, keys[None], values[None], mask, scale=scale)
    return rearrange(seen, "1 g (r s) d -> (g r) s d", s=query.shape[1])


def added(seen: Tensor, repeats: int, dtype: torch.dtype) -> Tensor:
    """A mask as `attend` takes it, made once for all layers.

    Args:
        seen: ``(S, n)`` bool, true where a token may look.
        repeats: Query heads that share a key head, ``H / G``.
        dtype: Of the queries.

    Returns:
        ``(H / G * S, n)``: zero where a token may look, minus infinity elsewhere.
    """
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return mask.masked_fill_(~seen, float("-inf")).repeat(repeats, 1)


def lower_right(count: int, length: int, repeats: int, like: Tensor) -> Tensor | None:
    """The mask with which the last ``count`` of ``length`` tokens look back; None for just one."""
    if count == 1:
        return None
    seen = torch.ones(count, length, dtype=torch.bool, device=like.device)
    return added(seen.tril_(length - count), repeats, like.dtype)


class Encoding(Plan):
    """One forward over new frames, which see sinks, the newest frames before them, and themselves.

    A frame sees whole frames, as many of the newest before it as have at most ``limit`` tokens
    together. Positions are those of StreamingLLM, inside what is seen: sinks first, the rest right
    behind them, by the family's rule. So what a frame becomes does not depend on how many frames
    are encoded at a time, and every key counts once.

    Args:
        family: The model.
        sinks: Keys and values of the init prompt, ``(L, 2, G, n0, D)``.
        window: The newest writes, oldest first.
        limit: Most tokens of earlier frames that a frame sees.
        frames: Coordinates of the new tokens, frame by frame, ``(N, 3)`` each.

    Attributes:
        kv: What the forward made, ``(2, G, S, D)`` a layer, keys not rotated.
    """

    def __init__(
        self,
        family: Family,
        sinks: Tensor,
        window: Sequence[Chunk],
        limit: int,
        frames: Sequence[Tensor],
    ) -> None:
        self.kv: list[Tensor] = []
        sizes = [*map(len, window), *map(len, frames)]
        starts = [0, *itertools.accumulate(sizes)]
        new = range(len(window), len(sizes))
        firsts = [bisect.bisect_left(starts, starts[own] - limit) for own in new]
        self._window = window[firsts[0] :]
        base, self._old = starts[firsts[0]], starts[len(window)] - starts[firsts[0]]
        coords = torch.cat([*(chunk.coords for chunk in self._window), *frames])
        writes = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))[base:]
        count, self._sinks, self._rope = sinks.shape[3], sinks, family.rope
        where, _ = family.context_positions(coords, writes, start=count)
        self._angles = family.angles(where)
        repeats = family.shape.heads // family.shape.kv_heads
        longest = max(
            count + starts[own + 1] - starts[first] for own, first in zip(new, firsts, strict=True)
        )
        masks = {sizes[own]: lower_right(sizes[own], longest, repeats, sinks) for own in new}
        # Each frame's view may begin elsewhere; the sinks stand right before it, for each anew.
        self._views: list[tuple[slice, slice, Tensor | None]] = []
        before: list[Tensor] = []
        for own, first in zip(new, firsts, strict=True):
            begin, end, size = starts[first] - base, starts[own + 1] - base, sizes[own]
            head = slice(begin, begin + sizes[first])
            alone, _ = family.context_positions(coords[head], writes[head], start=count)
            shift = where[..., begin, None] - alone[..., 0, None]
            before.append(family.text_positions(count) + shift)
            mask = masks[size]
            if mask is not None:
                mask = mask[:, longest - count - (end - begin) :]
            self._views.append((slice(begin, end), slice(end - size, end), mask))
        self._sink_angles = family.angles(torch.cat(before, -1))

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None
    ) -> Tensor:
        """Attend frame by frame, and keep the layer's new keys and values."""
        self.kv.append(torch.stack((key, value)))
        held = [chunk.kv[layer] for chunk in self._window]
        keys = self._rope.apply(torch.cat([*(kv[0] for kv in held), key], 1), *self._angles)
        values = torch.cat([*(kv[1] for kv in held), value], 1)
        query = self._rope.apply(query, *(part[self._old :] for part in self._angles))
        count, views = self._sinks.shape[3], len(self._views)
        sink_keys, sink_values = self._sinks[layer]
        placed = self._rope.apply(sink_keys.repeat(1, views, 1), *self._sink_angles)
        seen = []
        for n, (view, own, mask) in enumerate(self._views):
            sinks = placed[:, n * count : (n + 1) * count]
            pair = (
                torch.cat([sinks, keys[:, view]], 1),
                torch.cat([sink_values, values[:, view]], 1),
            )
            rows = slice(own.start - self._old, own.stop - self._old)
            seen.append(attend(query[:, rows], *pair, scale, mask))
        return torch.cat(seen, 1)


class Reading(Plan):
    """One forward over words that see a context of each layer's own, and themselves.

    The words stand at positions 0, 1, 2 ...; a context stands before them, at negative ones, so
    that it may have another length in every layer.

    Args:
        family: The model.
        count: How many words there are, ``S``.
        context: Gives keys, placed, and values of a layer, ``(G, n, D)`` each; it is asked in the
            order of the layers, with the layer's query, not rotated, ``(H, S, D)``.

    Attributes:
        pairs: Keys, placed, and values that each layer saw, those of the words included.
    """

    def __init__(self, family: Family, count: int, context: Callable[[int, Tensor], Pair]) -> None:
        self.pairs: list[Pair] = []
        self._rope, self._context = family.rope, context
        self._angles = family.angles(family.text_positions(count))

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None
    ) -> Tensor:
        """Attend to the context and to the words so far."""
        keys, values = self._context(layer, query)
        keys = torch.cat([keys, self._rope.apply(key, *self._angles)], 1)
        values = torch.cat([values, value], 1)
        self.pairs.append((keys, values))
        mask = lower_right(query.shape[1], keys.shape[1], len(query) // len(keys), keys)
        return attend(self._rope.apply(query, *self._angles), keys, values, scale, mask)
