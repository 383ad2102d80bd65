"""The spatial memory of Spann3R as published, to the number.

Keys and values of the last frames are the working memory; what leaves it is the long-term memory,
of which the tokens that attention asked for most, by age, survive. Kept as they are: a frame that
one element of a batch has seen is written for none of them; tokens are protected from pruning for
five frames more than the working memory is long; and where every weight of a softmax is below the
threshold the result is not a number.

Keys and values are normalised once, when they are written, which gives the same bits as normalising
all of them at every read.

Source: Wang and Agapito, "3D Reconstruction with Spatial Memory", 2024
(https://arxiv.org/abs/2408.16061); class ``SpatialMemory`` of HengyiWang/spann3r.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["PublishedSpann3R", "PublishedSpann3RConfig"]

_PROTECTED = 1e8  # the weight of a token that is too young to be judged
_YOUNG = 5  # frames beyond the working memory in which it is


@dataclass(frozen=True)
class PublishedSpann3RConfig:
    """Sizes and thresholds; the defaults are those of the released model.

    Args:
        work_frames: Frames of the working memory.
        long_tokens: Tokens from which on the memory is pruned, and what is left then; 0 keeps the
            working memory alone.
        least_weight: Attention below which a token is left out; 0 in training.
        alike: Mean cosine to a frame of the working memory above which a frame is not written; 1
            writes all.
    """

    work_frames: int = 5
    long_tokens: int = 4000
    least_weight: float = 5e-4
    alike: float = 0.95


class PublishedSpann3R:
    """Keys and values of the frames of ``B`` streams, written together; see the module.

    Args:
        query_norm: Of the queries, a layer norm over ``C``.
        key_norm: Of the keys.
        value_norm: Of the values.
        config: Sizes and thresholds.

    Attributes:
        keys: ``(B, n, C)``, in the order of writing up to the first prune, then of weight.
        attention: Sums of the weights that each token got, ``(B, n)``.
        age: Frames written since, ``(B, n)``.
        frames: Of the working memory.
        long: Tokens counted as long-term memory.

    Example:
        >>> norms = [nn.LayerNorm(8) for _ in range(3)]
        >>> memory = PublishedSpann3R(*norms)
        >>> memory.write(torch.randn(1, 4, 8), torch.randn(1, 4, 8))
        True
        >>> memory.read(torch.randn(1, 3, 8)).shape
        torch.Size([1, 3, 8])
    """

    keys: Tensor
    attention: Tensor
    age: Tensor

    def __init__(
        self,
        query_norm: nn.LayerNorm,
        key_norm: nn.LayerNorm,
        value_norm: nn.LayerNorm,
        config: PublishedSpann3RConfig | None = None,
    ) -> None:
        self.query_norm, self.key_norm, self.value_norm = query_norm, key_norm, value_norm
        self.config = PublishedSpann3RConfig() if config is None else config
        self.frames = self.long = 0

    def read(self, query: Tensor) -> Tensor:
        """Attend to all tokens, and note how much of it each got.

        Args:
            query: ``(B, P, C)``.

        Returns:
            What was seen, added to the query, ``(B, P, C)``.

        Raises:
            ValueError: If nothing was written yet.
        """
        if not self.frames:
            raise ValueError("nothing was written yet; the first frame is not read for")
        scores = self.query_norm(query) @ self._seen_keys.mT / query.shape[2] ** 0.5
        weights = scores.softmax(-1)
        if self.config.least_weight > 0:
            weights = weights.masked_fill(weights < self.config.least_weight, 0.0)
            weights = weights / weights.sum(-1, keepdim=True)
        self.attention = self.attention + weights.sum(1)
        return weights @ self._seen_values + query

    def write(self, keys: Tensor, values: Tensor) -> bool:
        """Add a frame, unless it is like one of the working memory.

        Args:
            keys: ``(B, P, C)``.
            values: ``(B, P, C)``.

        Returns:
            Whether it was written.
        """
        if not self.frames:
            empty = keys[:, :0]
            self.keys = self._seen_keys = self._seen_values = empty
            self.attention = self.age = empty[..., 0]
        elif self.config.alike != 1 and self._alike(keys) > self.config.alike:
            return False
        fresh = keys.new_zeros(keys.shape[:2])
        self.keys = torch.cat([self.keys, keys], 1)
        self._seen_keys = torch.cat([self._seen_keys, self.key_norm(keys)], 1)
        self._seen_values = torch.cat([self._seen_values, self.value_norm(values)], 1)
        self.attention = torch.cat([self.attention, fresh], 1)
        self.age = torch.cat([self.age + 1, fresh], 1)
        self.frames += 1
        if self.frames > self.config.work_frames:
            self.frames = self.config.work_frames
            if self.config.long_tokens:
                self.long += keys.shape[1]
            else:
                behind = torch.arange(keys.shape[1], self.keys.shape[1], device=keys.device)
                self.keep(behind.expand(len(keys), -1))
        if self.long > self.config.long_tokens:
            self.keep(self.order())
            self.long = self.config.long_tokens - self.frames * keys.shape[1]
        return True

    def order(self) -> Tensor:
        """The tokens that a prune keeps, by weight, ``(B, long_tokens)``."""
        young = self.age < self.config.work_frames + _YOUNG
        weight = (self.attention / self.age).masked_fill(young, _PROTECTED)
        return weight.topk(self.config.long_tokens, 1).indices

    def keep(self, index: Tensor) -> None:
        """Keep the tokens ``(B, m)`` in the order given."""
        wide = index[..., None].expand(-1, -1, self.keys.shape[2])
        self.keys = self.keys.gather(1, wide)
        self._seen_keys = self._seen_keys.gather(1, wide)
        self._seen_values = self._seen_values.gather(1, wide)
        self.attention, self.age = self.attention.gather(1, index), self.age.gather(1, index)

    def _alike(self, keys: Tensor) -> Tensor:
        """The largest mean cosine, patch by patch, to a frame of the working memory."""
        held = self.keys[:, -self.frames * keys.shape[1] :].unflatten(1, (self.frames, -1))
        return F.cosine_similarity(held, keys[:, None], dim=3).mean(2).max()
