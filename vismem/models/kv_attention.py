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

from vismem.kernels.memory_attention import Reads, memory_attention
from vismem.memory.kv.window import Chunk
from vismem.models.families import Family

__all__ = [
    "ATTENTION",
    "Encoding",
    "Pair",
    "Plan",
    "Reading",
    "host",
    "seen_by",
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
        seen = seen_by(query[0], key[0], value[0], scaling)
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


def seen_by(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    scale: float | None,
    reads: Reads | None = None,
) -> Tensor:
    """Attention of ``(H, S, D)`` to ``(G, n, D)``, which are one page: see `memory_attention`.

    Args:
        query: Of ``S`` tokens, those of each part of a batch behind each other.
        keys: ``(G, n, D)``.
        values: Of any width, ``(G, n, E)``.
        scale: Of the products; one over the root of ``D`` by default.
        reads: Which stretches of the page each part reads; all of it by default.

    Returns:
        ``(H, S, E)``.
    """
    parts = 1 if reads is None else len(reads.entries)
    rows = rearrange(query, "h (b s) d -> b s h d", b=parts)
    pages = (rearrange(part, "g n d -> 1 n g d") for part in (keys, values))
    return rearrange(memory_attention(rows, *pages, reads, scale=scale), "b s h d -> h (b s) d")


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
        prompt = family.text_positions(count)
        self._angles = family.angles(torch.cat([prompt, where.to(prompt)], -1))
        # Frames of one size are a batch.
        self._steps: list[tuple[slice, Reads]] = []
        for size, same in itertools.groupby(zip(new, firsts, strict=True), lambda f: sizes[f[0]]):
            entries, shifts, number = [], [], []
            for own, first in same:
                begin, end = starts[first] - base, starts[own + 1] - base
                entries.append([(0, 0, count, 0), (0, count + begin, end - begin, begin)])
                number.append(end - size)
                # A view may begin elsewhere; the sinks stand right before it, for each anew.
                head = slice(begin, begin + sizes[first])
                alone, _ = family.context_positions(coords[head], writes[head], start=count)
                shifts.append(where[..., begin] - alone[..., 0])
            cos, sin = family.rope.angles(torch.stack(shifts, -1))
            half = cos.shape[-1] // 2
            turns = {"cos": cos[:, None, :half], "sin": sin[:, None, :half]}
            reads = Reads.of(entries, number, far=1, **turns, device=sinks.device)
            began = number[0] - self._old
            self._steps.append((slice(began, began + size * len(number)), reads))

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None
    ) -> Tensor:
        """Attend frame by frame, and keep the layer's new keys and values."""
        self.kv.append(torch.stack((key, value)))
        held = [self._sinks[layer], *(chunk.kv[layer] for chunk in self._window)]
        keys = self._rope.apply(torch.cat([*(kv[0] for kv in held), key], 1), *self._angles)
        values = torch.cat([*(kv[1] for kv in held), value], 1)
        query = self._rope.apply(query, *(part[-query.shape[1] :] for part in self._angles))
        seen = [seen_by(query[:, own], keys, values, scale, reads) for own, reads in self._steps]
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
        self._reads: dict[int, Reads] = {}  # most layers read as much as the one before

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None
    ) -> Tensor:
        """Attend to the context and to the words so far."""
        keys, values = self._context(layer, query)
        keys = torch.cat([keys, self._rope.apply(key, *self._angles)], 1)
        values = torch.cat([values, value], 1)
        self.pairs.append((keys, values))
        length, query = keys.shape[1], self._rope.apply(query, *self._angles)
        if length not in self._reads:
            self._reads[length] = Reads.causal(length, query.shape[1], query.device)
        return seen_by(query, keys, values, scale, self._reads[length])
