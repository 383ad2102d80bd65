"""What a block of keys and values stores when it may not store every token.

A rule leaves the same number of tokens in all layers, so that records stay rectangular; which
tokens they are is each layer's own choice, and one for all heads of a layer. How much a token
matters is told by its saliency, the attention that the newest queries pay it, or where nobody gives
one, by the size of its values (InfiniPot-V, arXiv 2506.15745).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor

__all__ = ["Compressed", "Compression", "Keep", "Merge"]

_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, slots=True, eq=False)
class Compressed:
    """What is left of a block of ``M`` tokens.

    Args:
        kv: Keys and values, ``(L, 2, G, M', D)``, of the type given.
        kept: Which of the tokens each stands at, ``(L, M')`` int64, ascending in each layer.
        weights: How many tokens each stands for, ``(L, M')`` int64.
    """

    kv: Tensor
    kept: Tensor
    weights: Tensor


class Compression(Protocol):
    """A rule that makes fewer tokens of a block, before it is packed."""

    def tokens(self, tokens: int) -> int:
        """Say how many tokens are left of ``tokens``; so many, whatever they hold."""

    def __call__(self, kv: Tensor, saliency: Tensor | None = None) -> Compressed:
        """Compress a block.

        Args:
            kv: Keys, not rotated, and values, ``(L, 2, G, M, D)``.
            saliency: How much each token matters, ``(L, M)``, finite, on the device of ``kv``.

        Raises:
            ValueError: If the forms do not fit.
        """


@dataclass(frozen=True)
class Keep:
    """Keep the tokens that matter most and drop the rest, after SnapKV (arXiv 2404.14469).

    What matters is averaged over neighbouring tokens first, so that what surrounds a salient token
    stays with it. A kept token stands for itself alone.

    Args:
        share: Of the tokens to keep, above 0 and up to 1.
        by: ``"saliency"``, or the size of values where none is given; or ``"value_norm"`` always.
        pool: Tokens to average over, itself included, an odd number; 1 for none. The fewer queries
            the saliency is of, the more it needs: few asked for 5, many for 1.

    Raises:
        ValueError: If the share or the number of tokens to average is out of range, or ``by`` is
            neither.

    Example:
        >>> kv = torch.arange(6.0).view(1, 1, 1, 6, 1).expand(1, 2, 1, 6, 1)
        >>> Keep(0.5, pool=1)(kv, torch.tensor([[9.0, 0.0, 8.0, 0.0, 0.0, 7.0]])).kept.tolist()
        [[0, 2, 5]]
    """

    share: float
    by: Literal["saliency", "value_norm"] = "saliency"
    pool: int = 3

    def __post_init__(self) -> None:
        _check_share(self.share)
        if self.by not in ("saliency", "value_norm"):
            raise ValueError(f"tokens are kept by saliency or value_norm, not {self.by!r}")
        if self.pool < 1 or self.pool % 2 == 0:
            raise ValueError(f"tokens to average over are an odd number, not {self.pool}")

    def tokens(self, tokens: int) -> int:
        """Say how many of ``tokens`` are kept, at least one of any."""
        return _count(self.share, tokens)

    def __call__(self, kv: Tensor, saliency: Tensor | None = None) -> Compressed:
        """Compress a block, see `Compression`."""
        score = _importance(kv, saliency if self.by == "saliency" else None)
        score = F.avg_pool1d(
            score[:, None], self.pool, stride=1, padding=self.pool // 2, count_include_pad=False
        )[:, 0]
        kept = _best(score, self.tokens(kv.shape[3]))
        return Compressed(_take(kv, kept), kept, torch.ones_like(kept))


@dataclass(frozen=True)
class Merge:
    """Merge each token into the most similar of those that matter most, its anchor.

    Anchors by what matters are from Elastic Cache (arXiv 2407.18121), the Gaussian kernel by which
    a token counts less the farther it is from its anchor from KVMerger (arXiv 2407.08454). Values
    become the mean over the anchor and what falls to it, by kernel and by what each matters; the
    key stays the anchor's own, as a mean of keys is shorter than any of them and no query finds it.
    Similarity is the cosine of keys less the mean key of the block, averaged over heads: the bias
    that all raw keys of a channel share would make all of them alike.

    An anchor counts the tokens that it stands for, but readers attend to it plainly, as to one
    token. A bias of ``log(weight)`` on its score would count it in full; measured on synthetic
    blocks that harms, but for few anchors under attention that is almost even over the block.

    Args:
        share: Of the tokens that are anchors, above 0 and up to 1.

    Raises:
        ValueError: If the share is out of range.

    Example:
        >>> kv = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]]).expand(1, 2, 1, 3, 2)
        >>> merged = Merge(0.67)(kv, torch.tensor([[1.0, 1.0, 0.5]]))
        >>> merged.kept.tolist(), merged.weights.tolist()
        ([[0, 1]], [[2, 1]])
    """

    share: float

    def __post_init__(self) -> None:
        _check_share(self.share)

    def tokens(self, tokens: int) -> int:
        """Say how many of ``tokens`` are anchors, at least one of any."""
        return _count(self.share, tokens)

    def __call__(self, kv: Tensor, saliency: Tensor | None = None) -> Compressed:
        """Compress a block, see `Compression`."""
        importance = _importance(kv, saliency)
        layers, tokens = importance.shape
        anchors = _best(importance, self.tokens(tokens))
        count = anchors.shape[1]
        if count == tokens:
            return Compressed(kv, anchors, torch.ones_like(anchors))
        owner, distance = _nearest(kv[:, 0].float(), anchors)
        mean = distance.sum(1, keepdim=True) / (tokens - count)
        kernel = torch.exp(-distance / mean.clamp_min(_TINY))
        highest = importance.amax(1, keepdim=True).clamp_min(_TINY)
        parts = kernel * (importance / highest).clamp_min(1e-6)
        members = F.one_hot(owner, count).mT.float()  # (L, M', M)
        shares = members * parts[:, None]
        shares = shares / shares.sum(2, keepdim=True)
        values = (shares[:, None] @ kv[:, 1].float()).to(kv.dtype)
        merged = torch.stack([_take(kv, anchors)[:, 0], values], 1)
        return Compressed(merged, anchors, members.sum(2).long())


def _nearest(keys: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """The anchor of each token, ``(L, M)`` as its place among ``anchors (L, M')``, and how far.

    Far is one less the cosine of centred keys ``(L, G, M, D)``; anchors are their own, at no
    distance, also where they have a twin.
    """
    keys = F.normalize(keys - keys.mean(2, keepdim=True), dim=-1)
    heads = keys.shape[1]
    keys = rearrange(keys, "l g m d -> l m (g d)")
    ends = keys.gather(1, anchors[..., None].expand(-1, -1, keys.shape[2]))
    cosine, owner = (ends @ keys.mT / heads).max(1)
    places = torch.arange(anchors.shape[1], device=keys.device).expand_as(anchors)
    distance = (1 - cosine).clamp_min(0).scatter(1, anchors, 0.0)
    return owner.scatter(1, anchors, places), distance


def _check_share(share: float) -> None:
    if not 0 < share <= 1:
        raise ValueError(f"a share of tokens is above 0 and up to 1, not {share}")


def _count(share: float, tokens: int) -> int:
    return min(tokens, max(1, round(share * tokens)))


def _importance(kv: Tensor, saliency: Tensor | None) -> Tensor:
    """How much each token matters, ``(L, M)`` float32: as given, or the size of its values.

    Sizes are taken as shares of the head's own mean, so that all heads have the same say.
    """
    if kv.ndim != 5 or kv.shape[1] != 2 or not kv.shape[3]:
        raise ValueError(
            f"a block is (layers, 2, heads, tokens, width) with a token, not {tuple(kv.shape)}"
        )
    layers, _, _, tokens, _ = kv.shape
    if saliency is not None:
        if saliency.shape != (layers, tokens):
            raise ValueError(f"saliency is ({layers}, {tokens}), not {tuple(saliency.shape)}")
        return saliency.float()
    norms = kv[:, 1].float().norm(dim=-1)
    mean = norms.mean(2, keepdim=True).clamp_min(_TINY)
    return reduce(norms / mean, "l g m -> l m", "mean")


def _best(score: Tensor, count: int) -> Tensor:
    """The ``count`` highest of each row, ascending by place; of equals the first."""
    order = score.sort(dim=1, descending=True, stable=True).indices
    return order[:, :count].sort(dim=1).values


def _take(kv: Tensor, kept: Tensor) -> Tensor:
    """The tokens ``kept (L, M')`` of all heads, bit by bit."""
    _, two, heads, _, width = kv.shape
    return kv.gather(3, kept[:, None, None, :, None].expand(-1, two, heads, -1, width))
