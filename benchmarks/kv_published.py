"""The published path of ReKV, done the way its code does it: what `kv.py` measures against.

"Streaming Video Question-Answering with In-context Video KV-Cache Retrieval", 2025
(https://arxiv.org/abs/2503.00540), told in our own words, as plain as it is published:

* every block of every layer is two tensors of its own, made and averaged in a loop;
* keys and values are repeated for every query head before they are used;
* the window is rotated anew for every execution block, with the sinks in a second set of logits;
* the head of the language model scores the vocabulary for every token, also of video;
* an answer rotates and joins its whole context in every layer for every token.

Left out is what a processor has no use for: the pool of blocks on a device and its side stream.
A language model of transformers lends its weights; its own forward is not used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]  # keys, not rotated, and values, (G, n, D) each

__all__ = ["LayerAsPublished", "ReKVAsPublished", "Settings"]


@dataclass(frozen=True)
class Settings:
    """Numbers of the published code.

    Args:
        window: Tokens that local attention reaches back, ``W``.
        block: Tokens of a block and of an execution block, ``M``.
        blocks: Blocks that a layer retrieves.
        chunk: Blocks that are retrieved together.
        sinks: Tokens of the init prompt, ``n0``.
    """

    window: int
    block: int
    blocks: int
    chunk: int
    sinks: int


def rotate(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """Rotary embedding of ``(heads, S, D)`` at positions ``(S,)``, in float32."""
    half = torch.arange(0, x.shape[-1], 2, device=x.device).float() / x.shape[-1]
    angles = positions.float()[:, None] / theta**half
    cos, sin = (torch.cat([part, part], dim=-1) for part in (angles.cos(), angles.sin()))
    first, second = x.float().chunk(2, dim=-1)
    return (x.float() * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)


class LayerAsPublished:
    """Everything that is kept for one layer of one stream."""

    def __init__(self, settings: Settings, heads: int, theta: float) -> None:
        self.settings, self.heads, self.theta = settings, heads, theta
        self.seen = 0
        self.local: Pair | None = None
        self.rest: Pair | None = None
        self.init: Pair | None = None
        self.blocks: list[Pair] = []
        self.reps: list[Tensor] = []
        self.context: Pair | None = None
        self.chosen: list[int] = []

    # ------------------------------------------------------------------ encoding

    def encode(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend in a window that slides with each execution block; keep keys and values."""
        settings = self.settings
        if self.local is None:
            none = key[:, :0], value[:, :0]
            self.local, self.rest, self.init = none, none, none
        self.local = join(self.local, (key, value))
        self.rest = join(self.rest, (key, value))
        new, length = key.shape[1], self.local[0].shape[1]
        far = torch.full((new,), settings.window - 1, device=query.device)
        distant = rotate(query, far, self.theta)
        seen, waiting = [], self.rest[0].shape[1] - new
        for start in range(0, new, settings.block):
            end = min(start + settings.block, new)
            waiting += end - start
            waiting -= self._fill_sinks(self.seen + end)
            first = max(length - new + start - settings.window, 0)
            keys, values = (part[:, first : length - new + end] for part in self.local)
            seen.append(self._attend(query[:, start:end], distant[:, start:end], keys, values))
            if self.init[0].shape[1] == settings.sinks:
                waiting = self._offload(waiting)
        self.local = tuple(part[:, -settings.window :] for part in self.local)
        self.seen += new
        return torch.cat(seen, dim=1)

    def _fill_sinks(self, end: int) -> int:
        """Move tokens of the init prompt that have left the window; how many."""
        held = self.init[0].shape[1]
        more = min(self.settings.sinks - held, end - held - self.settings.window)
        if more <= 0:
            return 0
        self.init = join(self.init, tuple(part[:, :more] for part in self.rest))
        self.rest = tuple(part[:, more:] for part in self.rest)
        return more

    def _attend(self, query: Tensor, distant: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        count, length = query.shape[1], keys.shape[1]
        places = torch.arange(length, device=query.device)
        own = places[length - count :]
        keys = rotate(expand(keys, query), places, self.theta)
        near = scores(rotate(query, own, self.theta), keys)
        back = own[:, None] - places
        near = near.masked_fill((back < 0) | (back >= self.settings.window), -torch.inf)
        sink_keys, sink_values = self.init
        logits = torch.cat([near, scores(distant, expand(sink_keys, query))], dim=-1)
        values = torch.cat([expand(values, query), expand(sink_values, query)], dim=1)
        return logits.softmax(-1, dtype=torch.float32).to(values.dtype) @ values

    def _offload(self, waiting: int) -> int:
        """Cut what waits into blocks, one after the other, and average their keys."""
        block = self.settings.block
        while waiting >= block:
            pair = tuple(part[:, :block].contiguous().clone() for part in self.rest)
            self.blocks.append(pair)
            repeated = pair[0].repeat_interleave(self.heads // len(pair[0]), dim=0)
            self.reps.append(repeated.mean(dim=1).flatten())
            self.rest = tuple(part[:, block:] for part in self.rest)
            waiting -= block
        return waiting

    # ------------------------------------------------------------------ a question

    def retrieve(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Choose blocks by the mean query of the question, and let the question see them."""
        settings, block = self.settings, self.settings.block
        asked = query.mean(dim=1).flatten()
        if self.blocks:
            init, blocks, reps = self.init, self.blocks, self.reps
        else:  # nothing has left the window yet
            init = tuple(part[:, : settings.sinks] for part in self.rest)
            frames = tuple(part[:, settings.sinks :] for part in self.rest)
            starts = range(0, frames[0].shape[1], block)
            blocks = [tuple(part[:, s : s + block] for part in frames) for s in starts]
            reps = [expand(pair[0], query).mean(dim=1).flatten() for pair in blocks]
        self.chosen = self.choose(asked, reps)
        self.context = self.gather(init, blocks)
        return self._read(query, *join(self.context, (key, value)))

    def choose(self, asked: Tensor, reps: list[Tensor]) -> list[int]:
        """Rows of the blocks that score best, ascending."""
        settings, count = self.settings, len(reps)
        if count <= settings.blocks:
            return list(range(count))
        score = torch.stack(reps).float() @ asked.float()
        groups = [score[i : i + settings.chunk].mean() for i in range(0, count, settings.chunk)]
        best = torch.stack(groups).topk(settings.blocks // settings.chunk).indices.sort().values
        rows = [g * settings.chunk + i for g in best.tolist() for i in range(settings.chunk)]
        return [row for row in rows if row < count]

    def gather(self, init: Pair, blocks: list[Pair]) -> Pair:
        """Join what was chosen, behind the init prompt."""
        parts = [init, *(blocks[row] for row in self.chosen)]
        return tuple(torch.cat(part, dim=1) for part in zip(*parts, strict=True))

    def answer(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend to context and answer so far, which the new tokens join."""
        sinks, window = self.settings.sinks, self.settings.window
        self.context = joined = join(self.context, (key, value))
        if joined[0].shape[1] > window + sinks:
            self.context = tuple(
                torch.cat([part[:, :sinks], part[:, -window:]], dim=1) for part in joined
            )
        return self._read(query, *joined)

    def _read(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attention with all positions given anew: 0, 1, 2 ... up to the newest token."""
        window, count, length = self.settings.window, query.shape[1], keys.shape[1]
        first = max(0, length - count - window)
        keys, values = expand(keys, query), expand(values, query)
        places = torch.arange(length - first, device=query.device)
        own = places[len(places) - count :]
        near = scores(rotate(query, own, self.theta), rotate(keys[:, first:], places, self.theta))
        back = own[:, None] - places
        near = near.masked_fill((back < 0) | (back >= window), -torch.inf)
        if length <= window:
            return near.softmax(-1, dtype=torch.float32).to(values.dtype) @ values
        sinks = self.settings.sinks
        distant = rotate(query, torch.full_like(own, window - 1), self.theta)
        far = scores(distant, keys[:, :sinks])
        back = (own + first)[:, None] - torch.arange(sinks, device=query.device)
        far = far.masked_fill(back < window, -torch.inf)
        weights = torch.cat([near, far], dim=-1).softmax(-1, dtype=torch.float32)
        return weights.to(values.dtype) @ torch.cat([values[:, first:], values[:, :sinks]], dim=1)


def join(one: Pair, other: Pair) -> Pair:
    """Keys and values, one after the other in time."""
    return tuple(torch.cat(pair, dim=1) for pair in zip(one, other, strict=True))


def expand(x: Tensor, query: Tensor) -> Tensor:
    """Repeat ``(G, n, D)`` for every query head."""
    return x.repeat_interleave(len(query) // len(x), dim=0)


def scores(query: Tensor, key: Tensor) -> Tensor:
    """Scaled products ``(H, S, n)``."""
    return query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5


class ReKVAsPublished:
    """One stream of frames, and questions about it.

    Args:
        model: A ``Qwen2ForCausalLM`` or the like: projections with or without bias, RoPE, one head.
        settings: The published numbers.
    """

    def __init__(self, model: Any, settings: Settings) -> None:
        self.decoder, self.head, config = model.model, model.lm_head, model.config
        heads, theta = config.num_attention_heads, config.rope_parameters["rope_theta"]
        self.layers = [LayerAsPublished(settings, heads, theta) for _ in self.decoder.layers]

    @torch.no_grad()
    def forward(self, embeds: Tensor, mode: str) -> Tensor:
        """One forward, ``(S, hidden)`` to logits of all tokens ``(S, vocabulary)`` float32.

        Args:
            embeds: What the language model is fed with.
            mode: ``"encode"``, ``"retrieve"`` or ``"answer"``.
        """
        x = embeds
        for layer, kept in zip(self.decoder.layers, self.layers, strict=True):
            normed, attention = layer.input_layernorm(x), layer.self_attn
            projections = attention.q_proj, attention.k_proj, attention.v_proj
            width = attention.head_dim
            heads = (p(normed).unflatten(-1, (-1, width)).transpose(0, 1) for p in projections)
            seen = getattr(kept, mode)(*heads)
            x = x + attention.o_proj(seen.transpose(0, 1).flatten(1))
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return self.head(self.decoder.norm(x)).float()

    def encode(self, embeds: Tensor) -> Tensor:
        """Take up the init prompt, or some frames together, at most a window of tokens."""
        return self.forward(embeds, "encode")

    def retrieve(self, ids: Tensor) -> Tensor:
        """Let every layer choose its blocks by the bare question."""
        return self.forward(self.decoder.embed_tokens(ids), "retrieve")

    def prefill(self, ids: Tensor) -> Tensor:
        """Read the question as it is put to the model, and what was retrieved."""
        return self.forward(self.decoder.embed_tokens(ids), "answer")

    def decode(self, token: int) -> Tensor:
        """Read one more token of the answer."""
        ids = torch.tensor([token], device=self.head.weight.device)
        return self.forward(self.decoder.embed_tokens(ids), "answer")

    def ask(self, question: Tensor, prompt: Tensor, tokens: int, stop: int = -1) -> list[int]:
        """Answer greedily: at most so many tokens, up to the one that ends an answer."""
        self.retrieve(question)
        answer = [int(self.prefill(prompt)[-1].argmax())]
        while len(answer) < tokens and answer[-1] != stop:
            answer.append(int(self.decode(answer[-1])[-1].argmax()))
        return answer
