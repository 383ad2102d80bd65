"""Answer a question from a memory: choose blocks, read them once, go on word by word."""

from __future__ import annotations

import time as clock
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vismem.memory.kv.retrieval import Retrieval, choose, layer_scores
from vismem.models.families import Family
from vismem.models.kv_attention import Pair, Plan, Reading
from vismem.models.kv_context import Context
from vismem.models.rekv import PublishedReading

__all__ = ["Question", "VideoAnswer", "external_scores"]


@dataclass(frozen=True, slots=True)
class VideoAnswer:
    """What a model said, and what of the stream it read for that.

    Args:
        text: Without special tokens; empty where the model came without its tokenizer.
        ids: Tokens as they were generated, the one that ended the answer included.
        times: When the frames of the chosen blocks were seen, ascending, and how many layers read
            each. The newest frames, that every answer reads, are not among them.
        rows: The chosen blocks of each layer, as places among those that were held.
        seconds: Spent on ``retrieve``, ``gather``, ``prefill`` and ``decode``, apart.
    """

    text: str
    ids: list[int]
    times: dict[float, int]
    rows: list[list[int]]
    seconds: dict[str, float]


@dataclass(slots=True)
class Question:
    """One question on its way to an answer; made for it, used once.

    Args:
        family: The model.
        context: What may be read.
        retrieval: How blocks are chosen.
        external: Scores of the blocks by another encoder, ``(N,)``, where ``retrieval`` asks.
        given: The blocks to read instead of choosing any, ascending, for all layers alike.
        published: Whether to read as ReKV does, to the number.
    """

    family: Family
    context: Context
    retrieval: Retrieval
    external: Tensor | None = None
    given: Sequence[int] | None = None
    published: bool = False
    rows: list[list[int]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def answer(
        self,
        question: Sequence[int],
        prompt: Sequence[int],
        max_new_tokens: int,
        stop: frozenset[int],
    ) -> VideoAnswer:
        """Read, and generate greedily.

        Args:
            question: Tokens that choose the blocks.
            prompt: Tokens that the answer follows.
            max_new_tokens: Most tokens of the answer.
            stop: Tokens that end it.
        """
        ids = self._answer(question, prompt, max_new_tokens, stop)
        text = self.family.decode(ids) if self.family.tokenizer is not None else ""
        times = self.context.times(self.rows)
        return VideoAnswer(text, ids, times, self.rows, self.seconds)

    def _answer(
        self,
        question: Sequence[int],
        prompt: Sequence[int],
        max_new_tokens: int,
        stop: frozenset[int],
    ) -> list[int]:
        began = self._now()
        pairs = self._read(question)
        gathering = self.context.gathering
        self.seconds = {"retrieve": self._now() - began - gathering, "gather": gathering}
        window = self.context.view.config.window
        longest = max(keys.shape[1] for keys, _ in pairs) + len(prompt) + max_new_tokens
        if self.published and longest > window:
            return self._generate(prompt, max_new_tokens, stop, self._sliding(pairs))
        if self.published:  # nothing slides: contiguous positions for once are enough
            pairs = [(self._contiguous(keys), values) for keys, values in pairs]
        return self._generate(prompt, max_new_tokens, stop, self._growing(pairs, max_new_tokens))

    # ------------------------------------------------------------------ what is read

    def _read(self, question: Sequence[int]) -> list[Pair]:
        """Choose blocks and read each layer's; unrotated if as published."""
        if self.published:
            return self._layer_by_layer(question)
        if self.given is None and self._scored and not self.retrieval.adaptive:
            return self._layer_by_layer(question)
        layers = range(self.family.shape.layers)
        if self.given is not None:
            self.rows = [list(self.given) for _ in layers]
        else:
            scores = torch.zeros(len(layers), len(self.context.view.blocks))
            if self._scored:
                scores = self._look_ahead(question)
            self.rows = [rows.tolist() for rows in self._choose(scores)]
        return [self.context.placed(layer, self.rows[layer]) for layer in layers]

    @property
    def _scored(self) -> bool:
        """Whether the model's own keys have a say."""
        return self.retrieval.source != "external"

    def _choose(self, scores: Tensor) -> list[Tensor]:
        inside = self.context.inside if len(self.context.inside) else None
        return choose(scores, self.retrieval, external=self.external, exclude=inside)

    def _scores(self, layer: int, query: Tensor) -> Tensor:
        """How well the blocks of a layer fit, ``(N,)``, by its query ``(H, S, D)``."""
        keys = self.context.view.representatives(layer)
        mean = query.float().mean(1)
        if self.retrieval.rule == "centred":  # what every query has in common says nothing
            mean = mean - self.family.query_bias(layer).to(mean.device)
        folded = self.family.shape.fold(mean)
        return layer_scores(folded.to(keys.device), keys, self.retrieval.rule).cpu()

    def _look_ahead(self, question: Sequence[int]) -> Tensor:
        """Scores of all layers, ``(L, N)``, from a pass over sinks and the newest frames alone."""
        scores: list[Tensor] = []

        def context(layer: int, query: Tensor) -> Pair:
            scores.append(self._scores(layer, query))
            return self.context.placed(layer, ())

        self._run(question, Reading(self.family, len(question), context))
        return torch.stack(scores)

    def _layer_by_layer(self, question: Sequence[int]) -> list[Pair]:
        """Let every layer choose by a query that has read what those before it chose."""
        pairs: list[Pair] = []

        def context(layer: int, query: Tensor) -> Pair:
            rows = self.given
            if rows is None:
                rows = self._choose(self._scores(layer, query)[None])[0].tolist()
            self.rows.append(list(rows))
            if self.published:
                pairs.append(self.context.raw(layer, rows)[:2])
            else:
                pairs.append(self.context.placed(layer, rows))
            return pairs[-1]

        if self.published:
            self._run(question, self._published_reading(len(question), context))
        else:
            self._run(question, Reading(self.family, len(question), context))
        return pairs

    def _contiguous(self, keys: Tensor) -> Tensor:
        return self.family.rotate(keys, torch.arange(-keys.shape[1], 0))

    # ------------------------------------------------------------------ what is said

    def _generate(
        self,
        prompt: Sequence[int],
        most: int,
        stop: frozenset[int],
        forward: Callable[[Sequence[int]], Tensor],
    ) -> list[int]:
        began = self._now()
        ids = [self._best(forward(prompt))]
        self.seconds["prefill"] = self._now() - began
        while len(ids) < most and ids[-1] not in stop:
            ids.append(self._best(forward(ids[-1:])))
        self.seconds["decode"] = self._now() - began - self.seconds["prefill"]
        return ids

    def _best(self, hidden: Tensor) -> int:
        """The likeliest next token; the head sees the last state alone."""
        return int(self.family.logits(hidden[:, -1:]).argmax())

    def _growing(self, pairs: list[Pair], most: int) -> Callable[[Sequence[int]], Tensor]:
        """Words behind a context that is placed once, by the model's own rotation and cache."""
        from transformers import Cache

        cache, said = Cache(layers=[]), 0

        def forward(ids: Sequence[int]) -> Tensor:
            nonlocal said
            if said:
                there = self.family.text_positions(len(ids), said)
                embeds = self.family.embed_text(ids)[None]
                hidden = self.family.forward(embeds, positions=there, cache=cache)
            else:
                plan = Reading(self.family, len(ids), lambda layer, query: pairs[layer])
                hidden = self._run(ids, plan)
                pairs.clear()
                cache.layers = _with_room(plan.pairs, most)
            said += len(ids)
            return hidden

        return forward

    def _sliding(self, pairs: list[Pair]) -> Callable[[Sequence[int]], Tensor]:
        """Words behind a context that is longer than the window, as published."""

        def forward(ids: Sequence[int]) -> Tensor:
            plan = self._published_reading(len(ids), lambda layer, query: pairs[layer])
            hidden = self._run(ids, plan)
            pairs[:] = plan.pairs
            return hidden

        return forward

    def _published_reading(
        self, count: int, context: Callable[[int, Tensor], Pair]
    ) -> PublishedReading:
        view = self.context.view
        sinks = view.sinks.shape[3]
        return PublishedReading(self.family, count, context, view.config.window, sinks)

    def _run(self, ids: Sequence[int], plan: Plan) -> Tensor:
        embeds = self.family.embed_text(ids)[None]
        still = torch.zeros(len(ids), dtype=torch.int64)
        return self.family.forward(embeds, positions=still, kvmem=plan)

    def _now(self) -> float:
        if self.family.device.type == "cuda":
            torch.cuda.synchronize(self.family.device)
        return clock.perf_counter()


def _with_room(pairs: list[Pair], room: int) -> list[Any]:
    """Layers of a transformers cache, with room for more tokens: none is moved for a new one.

    Args:
        pairs: Keys and values of each layer, ``(G, n, D)``; used up, to hold no layer twice.
        room: Tokens that may come.
    """
    from transformers.cache_utils import DynamicLayer

    class RoomyLayer(DynamicLayer):
        """A layer that grows inside of what it was given at first."""

        def __init__(self, pair: Pair) -> None:
            super().__init__()
            self.dtype, self.device, self.is_initialized = pair[0].dtype, pair[0].device, True
            self._room = [torch.nn.functional.pad(part, (0, 0, 0, room))[None] for part in pair]
            self._show(pair[0].shape[1])

        def _show(self, count: int) -> Pair:
            keys, values = (part[:, :, :count] for part in self._room)
            self.keys, self.values = keys, values
            return keys, values

        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **more: Any) -> Pair:
            begin = self.get_seq_length()
            end = begin + key_states.shape[2]
            for part, new in zip(self._room, (key_states, value_states), strict=True):
                part[:, :, begin:end] = new
            return self._show(end)

    layers = []
    while pairs:
        layers.append(RoomyLayer(pairs.pop(0)))
    return layers


def external_scores(embeddings: Tensor, embedding: Tensor) -> Tensor:
    """Cosine of frame embeddings ``(N, E)`` with that of a question ``(E,)``: ``(N,)``."""
    one = normalize(embedding.float(), dim=-1).to(embeddings.device)
    return normalize(embeddings.float(), dim=-1) @ one
