"""Leave out tokens of frames that show nothing new, before the language model sees them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vismem.memory.token_drop import TokenDrop

__all__ = ["FrameDrop"]


@dataclass(frozen=True, slots=True)
class FrameDrop:
    """Which visual tokens of each frame are worth encoding; its state is the memory's to keep.

    At least one token of a frame is kept, the one that changed most, so that every frame has its
    place in time; and now and then a frame is kept whole, so that what never changes stays near.

    Args:
        threshold: Cosine with what was last kept at the same place above which a token is left out.
        whole: Every how many frames one is kept whole.

    Raises:
        ValueError: If the threshold is no cosine, or ``whole`` is below one.

    Example:
        >>> drop, state = FrameDrop(0.9), {}
        >>> for _ in range(2):
        ...     kept, state = drop(torch.eye(3), state)
        >>> kept.tolist()
        [True, False, False]
    """

    threshold: float = 0.5
    whole: int = 64

    def __post_init__(self) -> None:
        TokenDrop(self.threshold)
        if self.whole < 1:
            raise ValueError(f"every how many frames one is kept whole is at least 1: {self.whole}")

    def __call__(
        self, tokens: Tensor, state: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compare a frame with what was kept.

        Args:
            tokens: ``(M, hidden)``.
            state: What the frame before returned; empty for the first.

        Returns:
            ``(M,)`` bool on the CPU, true where a token is kept, and the state from now on, CPU
            tensors whose names begin with ``drop.``.
        """
        drop, count = TokenDrop(self.threshold), 0
        if "drop.count" in state:
            count = int(state["drop.count"])
            names = "reference", "similarity"
            drop.load_state_dict({name: state[f"drop.{name}"].to(tokens.device) for name in names})
        if count % self.whole == 0:
            drop.reset()
        kept, after = drop(tokens), drop.state_dict()
        if not kept.any():
            changed = after["similarity"].argmin()
            kept[changed] = True
            after["reference"][changed] = tokens[changed].float()
        # What is kept of tokens has no more bits than they have.
        after["reference"] = after["reference"].to(tokens.dtype)
        named = {f"drop.{name}": value.cpu() for name, value in after.items()}
        return kept.cpu(), named | {"drop.count": torch.tensor(count + 1)}
