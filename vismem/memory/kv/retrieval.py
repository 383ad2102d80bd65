"""Which blocks a question reads in each layer: scores, budgets and rows, as tensors alone.

With the scores of all layers at hand, as from a cheap pass of the question over the recent window,
`choose` lets the layers share one budget, and all blocks can be fetched before the answer begins:
the default. In a pass where each layer reads its blocks before the next has scores, as in ReKV
(arXiv 2503.00540), give it one layer at a time; every layer then gets the same number. (Budgets
that follow from the layers so far were tried: no better than equal ones.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from vismem.kernels.block_topk import block_scores

__all__ = ["Retrieval", "choose", "detrend", "fuse", "layer_scores"]

Rule = Literal["dot", "centred"]
Source = Literal["internal", "external", "fused"]

LEAST, MOST = 2, 2  # a layer gets at least half its even share, at most twice as much
BEHIND = 4  # a neighbour stands where the block that brings it would at four times its place
STEADY = 5.0  # a few blocks are no drift: as if 15 more had shown none
NOISE = 1e-5  # of the longest key: what differs by less is rounding, not content


@dataclass(frozen=True, slots=True)
class Retrieval:
    """How the blocks that a question reads are chosen.

    Args:
        blocks: Blocks a layer; the mean over layers if `adaptive`.
        rule: ``"dot"`` as ReKV, ``"centred"`` ours; see `layer_scores`.
        chunk: Blocks that are scored and taken together.
        adaptive: Whether a layer whose scores name few blocks leaves its share to others, after
            StreamKV (arXiv 2511.07278).
        neighbours: How far before and behind a good block others may come along. They take the
            place of the weakest, a third of a layer's blocks at most if 1, so that the context
            does not grow.
        detrend: Span in blocks of a running mean that is taken off the scores, see `detrend`; 0
            for none. ``"centred"`` seldom needs it, having taken drift off the keys.
        source: Whether the model's own keys choose, an outside score (of frame embeddings, say),
            or both by their ranks. Outside scores are alike for all layers.
        tail: Newest tokens of the window that an answer reads behind the retrieved ones.

    Raises:
        ValueError: If a number is negative, `chunk` does not divide `blocks`, or a name is unknown.

    Example:
        >>> scores = torch.tensor([[0.1, 0.9, 0.2, 0.3], [0.4, 0.1, 0.2, 0.8]])
        >>> [rows.tolist() for rows in choose(scores, Retrieval.published(blocks=2))]
        [[1, 3], [0, 3]]
    """

    blocks: int = 64
    rule: Rule = "centred"
    chunk: int = 1
    adaptive: bool = True
    neighbours: int = 1
    detrend: int = 0
    source: Source = "internal"
    tail: int = 1568  # 8 frames of 196

    def __post_init__(self) -> None:
        if min(self.blocks, self.neighbours, self.detrend, self.tail) < 0 or self.chunk < 1:
            raise ValueError(f"retrieval takes no negative numbers, and chunk >= 1, not {self}")
        if self.blocks % self.chunk:
            raise ValueError(f"{self.blocks} blocks cannot be taken {self.chunk} at a time")
        if self.rule not in ("dot", "centred"):
            raise ValueError(f"rule is 'dot' or 'centred', not {self.rule!r}")
        if self.source not in ("internal", "external", "fused"):
            raise ValueError(f"source is 'internal', 'external' or 'fused', not {self.source!r}")

    @classmethod
    def published(cls, blocks: int = 64, chunk: int = 1) -> Retrieval:
        """ReKV to the number: plain products, equal budgets, nothing but what was retrieved."""
        return cls(blocks, "dot", chunk, adaptive=False, neighbours=0, tail=0)


def layer_scores(query: Tensor, reps: Tensor, rule: Rule = "centred") -> Tensor:
    """Score blocks by their mean key before rotation.

    ``"dot"`` is the product with the query, in float32, summed over key heads. ``"centred"`` is the
    cosine of the query with how a key differs from what was to be expected at its place in the
    stream: the mean over all blocks, and a straight line through it where keys drift with time.
    A plain cosine is neither: keys share the bias of their projection, and its length would decide.
    Queries have a bias as well; where it is known, take it off before asking.

    Args:
        query: Mean over the question's tokens before rotation, ``(..., G, D)``, the heads that
            share a key head summed (`KVShape.fold`).
        reps: Mean key of each block in time order, ``(..., N, G, D)``.
        rule: See above.

    Returns:
        ``(..., N)`` float32.

    Example:
        >>> reps = torch.tensor([[100.0, 0.0], [100.0, 1.0], [140.0, 3.0]])[:, None]
        >>> layer_scores(torch.tensor([[0.0, 1.0]]), reps, "dot").tolist()
        [0.0, 1.0, 3.0]
    """
    if rule == "centred" and reps.shape[-3]:
        keys, asked = reps.float().flatten(-2), query.float().flatten(-2)
        noise = NOISE * keys.norm(dim=-1).amax(-1, keepdim=True)
        keys = keys - keys.mean(-2, keepdim=True)
        time = torch.linspace(-1, 1, keys.shape[-2], device=keys.device)
        slope = (time @ keys) / (time @ time + STEADY)
        keys -= time[:, None] * slope[..., None, :]
        length = torch.maximum(keys.norm(dim=-1), noise).clamp_min(torch.finfo(keys.dtype).tiny)
        asked = normalize(asked, dim=-1).unflatten(-1, reps.shape[-2:])
        return block_scores(asked, keys.unflatten(-1, reps.shape[-2:])) / length
    return block_scores(query, reps)


def detrend(scores: Tensor, span: int) -> Tensor:
    """Take an exponential running mean off scores in time order.

    The more a model has seen, the likelier its newest keys resemble any question: such scores rise
    with time whatever was seen (MemStream, arXiv 2602.18434). The mean includes the score itself
    and all before it.

    Args:
        scores: ``(..., N)``.
        span: Blocks over which the mean forgets; 0 leaves the scores as they are.

    Example:
        >>> detrend(torch.tensor([1.0, 2.0, 3.0, 9.0]), span=2).argmax().item()
        3
    """
    if not span:
        return scores
    keep = 1 - 1 / (1 + span)
    total, weight, step = scores, torch.ones_like(scores), 1
    while step < scores.shape[-1]:  # sums over 1, 2, 4 ... blocks
        total, weight = (
            torch.cat([x[..., :step], x[..., step:] + keep**step * x[..., :-step]], dim=-1)
            for x in (total, weight)
        )
        step *= 2
    return scores - total / weight


def fuse(internal: Tensor, external: Tensor, weight: float = 1.0, constant: int = 60) -> Tensor:
    """Join two scores of other scales by their reciprocal ranks (Cormack et al., 2009).

    Args:
        internal: ``(..., N)``.
        external: ``(N,)`` or as `internal`.
        weight: Of the external ranks.
        constant: How little the first places stand out.

    Returns:
        ``(..., N)`` float32, the larger the better.

    Example:
        >>> fuse(torch.tensor([3.0, 2.0, 1.0]), torch.tensor([0.0, 9.0, 1.0])).argmax().item()
        1
    """
    inner, outer = (1 / (constant + 1 + _places(-scores)) for scores in (internal, external))
    return inner + weight * outer


def choose(
    scores: Tensor,
    retrieval: Retrieval,
    *,
    external: Tensor | None = None,
    exclude: Tensor | None = None,
) -> list[Tensor]:
    """Choose rows for all layers at once. Among equal scores the oldest come first.

    Args:
        scores: Of every layer, ``(L, N)``, or of one, ``(1, N)``; the blocks in time order.
        retrieval: How.
        external: Outside scores, ``(N,)``, if `retrieval.source` asks for them.
        exclude: Rows to leave out, ``(n,)`` int64: what an answer reads anyway.

    Returns:
        For each layer ascending rows, ``(n,)`` int64: together at most ``L * retrieval.blocks``,
        and each layer all there are if these are no more than `retrieval.blocks`.

    Raises:
        ValueError: If the scores are of other shapes, or outside scores are missing.
    """
    if scores.ndim != 2:
        raise ValueError(f"scores must be (L, N), not {tuple(scores.shape)}")
    blocks = torch.arange(scores.shape[1], device=scores.device)
    inner = quality = detrend(scores.float(), retrieval.detrend)
    if retrieval.source != "internal":
        if external is None or external.shape != blocks.shape:
            got = "none" if external is None else tuple(external.shape)
            raise ValueError(f"{retrieval.source} needs outside scores ({len(blocks)},), not {got}")
        outer = detrend(external.to(inner), retrieval.detrend).expand_as(inner)
        quality = outer if retrieval.source == "external" else fuse(inner, outer)
    if exclude is not None:
        blocks = blocks[torch.ones_like(blocks, dtype=torch.bool).index_fill(0, exclude, False)]
    share = retrieval.blocks // retrieval.chunk
    if len(blocks) <= retrieval.blocks or not share:
        return [blocks if share else blocks[:0] for _ in scores]
    inner, quality = (_group(x[:, blocks], retrieval.chunk) for x in (inner, quality))
    if retrieval.adaptive and retrieval.source != "external":
        counts = _share_out(_mass(inner, MOST * share), share)
    else:
        counts = torch.full((len(inner),), share, device=scores.device)
    return _rows(quality, counts, retrieval, blocks)


def _group(scores: Tensor, chunk: int) -> Tensor:
    """Means of `chunk` neighbours each, and of what remains, ``(L, N)`` to ``(L, U)``."""
    whole = scores.shape[1] // chunk * chunk
    groups = scores[:, :whole].unflatten(1, (-1, chunk)).mean(-1)
    rest = scores[:, whole:]
    return torch.cat([groups, rest.mean(1, keepdim=True)], dim=1) if rest.shape[1] else groups


def _places(cost: Tensor) -> Tensor:
    """Which place each has if sorted from the lowest cost, counted from 0; ties stay in order."""
    order = torch.sort(cost, dim=-1, stable=True).indices
    counted = torch.arange(cost.shape[-1], device=cost.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, counted)


def _mass(scores: Tensor, most: int) -> Tensor:
    """Attention that the best 1, 2 ... `most` hold together, ``(L, min(U, most))`` float64.

    Softmax over scores in standard deviations of their layer, so that it does not matter whether
    a rule's scores are cosines or products of any length.
    """
    scores = scores.double()
    spread = scores.std(dim=1, keepdim=True, correction=0).clamp_min(1e-12)
    attention = torch.softmax((scores - scores.mean(1, keepdim=True)) / spread, dim=1)
    return attention.topk(min(most, scores.shape[1]), dim=1).values.cumsum(1)


def _share_out(mass: Tensor, share: int) -> Tensor:
    """Budgets ``(L,)`` at which all layers hold the same mass, together ``L * share``.

    StreamKV searches that mass by bisection. It is found in one step by letting the next block of
    the layer that holds least come first: sort what is held before each block.
    """
    layers, most = mass.shape
    before = pad(mass[:, :-1], (1, 0))
    before[:, : max(1, share // LEAST)] = -1
    order = torch.sort(before.T.flatten(), stable=True).indices[: layers * share]  # rank by rank
    return torch.bincount(order % layers, minlength=layers)


def _rows(quality: Tensor, counts: Tensor, retrieval: Retrieval, blocks: Tensor) -> list[Tensor]:
    """The best `counts` groups of each layer, with their neighbours in line, as rows."""
    places = _places(-quality)
    line = places.float()
    for away in range(1, retrieval.neighbours + 1):
        behind = BEHIND * away * (places + 1) - 0.5
        line[:, away:] = torch.minimum(line[:, away:], behind[:, :-away])
        line[:, :-away] = torch.minimum(line[:, :-away], behind[:, away:])
    taken = _places(line) < counts[:, None]
    taken = taken.repeat_interleave(retrieval.chunk, dim=1)[:, : len(blocks)]
    return list(blocks[taken.nonzero()[:, 1]].split(taken.sum(1).tolist()))
