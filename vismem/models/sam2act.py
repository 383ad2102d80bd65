"""The keyframe memory of SAM2Act+: a policy remembers what it saw and where it wanted to go.

At every keyframe each view (three renders of the scene) is conditioned on the last few keyframes of
the same view by SAM 2's memory attention, a heat map of the next waypoint is predicted from the
result, and the heat map is written back with the view's own features by SAM 2's memory encoder.

The published code gives the tokens wrong positions: a table that should be permuted is read anew in
another shape, differently in training and at test time, so that of the tokens of the released model
about one in 400 gets its own row. `token_rows` has the layout that was meant and both that ran.
`vismem.models.keyframe_policy` is the policy with this and other defects repaired.

Source: Fang et al., "SAM2Act: Integrating Visual Foundation Model with A Memory Architecture for
Robotic Manipulation", https://arxiv.org/abs/2501.18564; github.com/sam2act/sam2act, class
``MVT_SAM2_Single``, re-implemented from a description.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vismem.models.memory_attention import MemoryAttention
from vismem.models.memory_encoder import STRIDE, MemoryEncoder, mask_signal
from vismem.models.sine import sine_map

__all__ = ["KeyframeMemory", "Layout", "token_rows"]

Layout = Literal["intended", "eval", "train"]


def token_rows(
    layout: Layout, cells: int, views: int = 3, keyframes: int = 1, keyframe: int = 0
) -> Tensor:
    """Say which row of the table of positions each token of each view gets.

    Args:
        layout: ``"intended"``: a table of one view after the other; ``"eval"`` and ``"train"``: as
            the published code reads it for one keyframe, and for a batch of several.
        cells: Tokens of a view.
        views: Number of views.
        keyframes: How many keyframes are in the batch; matters for ``"train"`` alone.
        keyframe: Which of them.

    Returns:
        ``(views, cells)`` int64.

    Raises:
        ValueError: If the layout is not known, or the keyframe is not of the batch.

    Example:
        >>> token_rows("intended", 2).tolist(), token_rows("eval", 2).tolist()
        ([[0, 1], [2, 3], [4, 5]], [[0, 3], [1, 4], [2, 5]])
    """
    if layout not in get_args(Layout):
        raise ValueError(f"there is no layout {layout!r}; there are {', '.join(get_args(Layout))}")
    if not 0 <= keyframe < keyframes:
        raise ValueError(f"keyframe {keyframe} is none of a batch of {keyframes}")
    view, cell = torch.arange(views)[:, None], torch.arange(cells)
    if layout == "intended":
        return view * cells + cell
    batch, number = (keyframes, keyframe) if layout == "train" else (1, 0)
    # The table, `batch` times over, read as (cells, views of all keyframes).
    return (cell * views * batch + views * number + view) % (views * cells)


class KeyframeMemory(nn.Module):
    """Memory attention and encoder over the last keyframes, as published.

    Views have a bank each and share weights; here they are entries of a batch. State dicts load
    after `vismem.models.sam2_names.from_official`.

    Args:
        dim: Width ``C`` of a view's tokens.
        memory_dim: Width ``E`` of the memory.
        layers: Of the memory attention.
        hidden: Width of its two-layer networks.
        keyframes: How many of the last are read.
        dropout: In training.

    Example:
        >>> memory = KeyframeMemory(16, 4, layers=1, hidden=32).eval()
        >>> x, position = torch.randn(3, 6, 16), torch.randn(3, 6, 16)
        >>> stored = []
        >>> for heat in torch.randn(2, 3, 8, 8):
        ...     seen = memory.read(x, position, stored, grid=(2, 3))
        ...     stored.append(memory.write(x, heat, grid=(2, 3)))
        >>> seen.shape, stored[0].shape
        (torch.Size([3, 6, 16]), torch.Size([3, 6, 4]))
    """

    def __init__(
        self,
        dim: int = 128,
        memory_dim: int = 64,
        layers: int = 4,
        hidden: int = 2048,
        keyframes: int = 9,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.attention = MemoryAttention(dim, memory_dim, layers, hidden, dropout=dropout)
        self.encoder = MemoryEncoder(dim, memory_dim)
        self.temporal = nn.Parameter(torch.empty(keyframes, memory_dim))
        nn.init.trunc_normal_(self.temporal, std=0.02)

    def read(
        self, x: Tensor, position: Tensor, stored: Sequence[Tensor], *, grid: tuple[int, int]
    ) -> Tensor:
        """Condition the views on the last keyframes, newest first.

        Args:
            x: ``(V, H * W, C)`` tokens of the views.
            position: Of the tokens, as ``x``; see `token_rows`.
            stored: What `write` gave at the keyframes so far, oldest first.
            grid: ``(H, W)``.

        Returns:
            ``(V, H * W, C)``; ``x`` itself where nothing is stored, as published.
        """
        last = list(reversed(stored[-len(self.temporal) :]))
        if not last:
            return x
        place = sine_map(*grid, self.temporal.shape[1], dtype=x.dtype, device=x.device)
        codes = torch.cat([place + code for code in self.temporal[: len(last)]])
        return self.attention(
            x, torch.cat(last, 1), grid=grid, position=position, memory_position=codes
        )

    def write(self, x: Tensor, heat: Tensor, *, grid: tuple[int, int]) -> Tensor:
        """Make the memory of a keyframe.

        Args:
            x: ``(V, H * W, C)``, not conditioned on memories.
            heat: ``(V, h, w)`` logits of the waypoint in each view, of any size.
            grid: ``(H, W)``.

        Returns:
            ``(V, H * W, E)``.
        """
        size = (STRIDE * grid[0], STRIDE * grid[1])
        logits = F.interpolate(heat[:, None], size, mode="bilinear", align_corners=False)
        return self.encoder(x.mT.unflatten(2, grid), mask_signal(logits)).flatten(2).mT
