"""`StarMemory`: spatial, temporal, abstract and retrieved memory in one budget.

After Flash-VStream's first memory, STAR: the newest frames whole (spatial), one mean of few tokens
a scene (temporal), a handful of single tokens that sum all up (abstract), and sharp frames of
the scenes that were seen most (retrieved). It differs from `FlashMemory` in two things. Sharp
frames are kept of the heaviest scenes, not of the most different. And it has the abstract memory.

The published abstract memory writes each frame by attention over the frames that come with it; in a
stream one comes at a time, its weight is always 1, and all tokens become the same moving average
within a minute. Here the attention is over the memory, and hard: a frame moves the one token that
is most like it, and a frame unlike all of them begins a token. (Were many moved a little, a static
hour would move them all to one place.) The published rule is `vismem.memory.published.star`.

Source: Zhang et al., "Flash-VStream: Memory-Based Real-Time Understanding for Long Video Streams",
2024 (https://arxiv.org/abs/2406.08085).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vismem.memory.base import Budget, WriteReport
from vismem.memory.flash import FlashConfig, FlashMemory
from vismem.memory.observations import Observation
from vismem.memory.slots import Slot

__all__ = ["StarConfig", "StarMemory"]

ABSTRACT_SHARE = 1 / 16  # of the budget at most


@dataclass(frozen=True)
class StarConfig(FlashConfig):
    """Sizes as of `FlashConfig`, and those of the abstract memory.

    Args:
        abstract: Tokens of the abstract memory.
        update_ratio: How far the token most like a frame moves towards it.
        novelty: Cosine distance from all tokens at which a frame begins one.
    """

    abstract: int = 25
    update_ratio: float = 0.2
    novelty: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.abstract < 0 or not 0 <= self.update_ratio <= 1:
            raise ValueError(f"abstract is a number of tokens, update_ratio a share: {self}")


class StarMemory(FlashMemory):
    """Spatial, temporal, abstract and retrieved memory of one stream; see the module.

    Args:
        config: Sizes and shares.
        budget: Bytes, or text such as ``"8MB"``.
        join_notes: Makes one note of two when scenes are merged; the representative's by default.

    Example:
        >>> memory = StarMemory(StarConfig(token_dim=4), budget="1MB")
        >>> for second in range(10):
        ...     _ = memory.write(torch.eye(4), time=float(second))
        >>> tuple(memory.abstract.shape)
        (1, 4)
    """

    config: StarConfig
    _lightest = True

    def reset(self) -> None:
        """Forget everything; the next write may be at any time."""
        super().reset()
        self._abstract = torch.zeros(0, self.config.token_dim)
        self._abstract_since = math.inf  # when the first frame that it sums up was seen

    @property
    def abstract(self) -> Tensor:
        """The abstract memory, ``(n, D)`` float32; it belongs to no time."""
        return self._abstract.clone()

    @property
    def nbytes(self) -> int:
        """Bytes of everything that is held, the abstract memory included."""
        return super().nbytes + self._abstract.nbytes

    @property
    def oldest(self) -> float:
        """When the oldest observation still held was seen, in the abstract memory at least."""
        return min(super().oldest, self._abstract_since if len(self._abstract) else math.inf)

    @property
    def _abstract_room(self) -> int:
        row = self.config.token_dim * 4
        return min(self.config.abstract, int(ABSTRACT_SHARE * self.budget.bytes) // row)

    def _take(self, observation: Observation) -> None:
        self._sum_up(observation.tokens.float().mean(0))
        self._abstract_since = min(self._abstract_since, observation.time)
        super()._take(observation)

    def _take_over(self, slots: Sequence[Slot]) -> WriteReport:
        for slot in slots:
            self._sum_up(slot.tokens.float().mean(0))
            self._abstract_since = min(self._abstract_since, slot.first)
        return super()._take_over(slots)

    def _sum_up(self, token: Tensor) -> None:
        """Write a frame's mean into the abstract memory; one of zeros has no direction."""
        memory = self._abstract
        alike = F.cosine_similarity(memory, token, dim=1)
        if len(memory) < self._abstract_room and (1 - alike > self.config.novelty).all():
            self._abstract = torch.cat([memory, token[None]]) if token.any() else memory
        elif len(memory):
            nearest = alike.argmax()
            memory[nearest] += self.config.update_ratio * (token - memory[nearest])

    @torch.inference_mode(False)
    def set_budget(self, budget: Budget | int | str) -> WriteReport:
        """Take another budget, at once; reports what that merged and dropped."""
        self.budget = Budget.parse(budget)
        self._abstract = self._abstract[: self._abstract_room].clone()
        return super().set_budget(budget)

    def forget(self, start: float, end: float) -> int:
        """Give up what may hold something of a span; the abstract memory holds of everything."""
        if start <= self._last and end >= self._abstract_since:
            self._abstract, self._abstract_since = self._abstract[:0].clone(), math.inf
        return super().forget(start, end)

    def state_dict(self) -> dict[str, Tensor]:
        """Give all state as tensors; loading it continues bit for bit."""
        since = torch.tensor(self._abstract_since, dtype=torch.float64)
        return super().state_dict() | {"abstract": self.abstract, "abstract_since": since}

    def _restore(self, state: Mapping[str, Tensor]) -> None:
        abstract, since = state["abstract"], float(state["abstract_since"])
        if abstract.shape[1:] != (self.config.token_dim,):
            raise ValueError("the abstract memory is of another configuration")
        super()._restore(state)
        self._abstract = abstract[: self._abstract_room].clone()
        self._abstract_since = since
