"""Rotary positions as a memory needs them: keys are stored unrotated and placed when they are read.

Sources: Su et al., "RoFormer" (RoPE), 2021 (https://arxiv.org/abs/2104.09864); Wang et al.,
"Qwen2-VL" (M-RoPE: time, row and column rotate different channels), 2024
(https://arxiv.org/abs/2409.12191).
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from vismem.errors import UsageError

__all__ = ["Rope", "frame_coords", "grid_positions"]


class Rope:
    """The rotation of a language model, at any positions and outside of its forward.

    Args:
        rotary: The model's own ``rotary_emb`` module; it knows base, scaling and, for M-RoPE,
            which channel turns with time, row or column.
        head_dim: Width of a head.
        mrope: Whether positions are triples.

    Raises:
        UsageError: If the rotation depends on how long the text is, or covers a part of the head
            only: keys stored unrotated could not be placed again.
    """

    def __init__(self, rotary: Any, head_dim: int, *, mrope: bool) -> None:
        kind = str(getattr(rotary, "rope_type", "default"))
        if "dynamic" in kind or kind == "longrope":
            raise UsageError(
                f"rotary positions of type {kind} change with the length of the text, which a "
                "memory of unrotated keys cannot host; load the model with another rope_type"
            )
        self._rotary, self.mrope, self._scaling = rotary, mrope, 1.0
        cos, sin = self.angles(torch.zeros(1, dtype=torch.int64))
        # YaRN and its like scale the angles' cosine. Position 0 then scales queries and keys too,
        # before they are stored; to scale them again when they are placed would count it twice.
        whole = cos.shape == (1, head_dim)
        self._scaling = cos.flatten()[0].item()
        if not whole or self._scaling <= 0 or (cos != self._scaling).any() or sin.any():
            raise UsageError(
                "position 0 of this model rotates, or a part of each head is not rotated (or "
                "transformers is older than 5.17); a memory of unrotated keys cannot host it"
            )

    def angles(self, positions: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """Cosine and sine of positions, computed in float32; once per forward, for all layers.

        Args:
            positions: ``(S,)``, or ``(3, S)`` time, row and column for M-RoPE.
            dtype: What they are rounded to, as the model does; float32 by default.

        Returns:
            Two ``(S, D)`` on the model's device.

        Raises:
            ValueError: If triples are given to a model that has no M-RoPE.
        """
        if positions.ndim != 1 and not (self.mrope and positions.ndim == 2):
            raise ValueError(f"positions are {self._form}, not {tuple(positions.shape)}")
        device = self._rotary.inv_freq.device
        positions = positions.to(device)
        if self.mrope:
            positions = positions.expand(3, -1)
        cos, sin = self._rotary(torch.empty(0, device=device), positions[..., None, :])
        return tuple((part[0] / self._scaling).to(dtype or torch.float32) for part in (cos, sin))

    def batched(self, positions: Tensor) -> Tensor:
        """Positions in the form that the language model takes, ``(1, S)`` or ``(3, 1, S)``."""
        return positions.expand(3, -1)[:, None] if self.mrope else positions[None]

    @staticmethod
    def apply(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate queries or keys, halves of a head against each other.

        Args:
            x: ``(..., S, D)``.
            cos: ``(S, D)``, from `angles`, in the number format of ``x``.
            sin: ``(S, D)``.
        """
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-second, first], dim=-1) * sin

    @property
    def _form(self) -> str:
        return "(S,) or (3, S)" if self.mrope else "(S,)"


def frame_coords(coords: Tensor, before: int, after: int) -> Tensor:
    """Put a frame's tokens between the words that stand before and after it.

    Args:
        coords: ``(M, 3)`` time, row and column of each token inside the frame.
        before: Tokens of text before the frame.
        after: Tokens of text behind it.

    Returns:
        ``(before + M + after, 3)``, relative to the first of them. Text counts up in all three;
        what follows a picture starts behind the largest of its coordinates.

    Example:
        >>> frame_coords(torch.tensor([[0, 0, 0], [0, 0, 1]]), 1, 1).tolist()
        [[0, 0, 0], [1, 1, 1], [1, 1, 2], [3, 3, 3]]
    """
    end = before + int(coords.max()) + 1
    head, tail = torch.arange(before), torch.arange(end, end + after)
    words = [rearrange(part, "n -> n 1").expand(-1, 3).to(coords) for part in (head, tail)]
    return torch.cat([words[0], coords + before, words[1]])


def grid_positions(
    coords: Tensor, frames: Tensor, *, start: int = 0, step: int = 1
) -> tuple[Tensor, int]:
    """M-RoPE positions of frames that follow each other: of a window, or of what was retrieved.

    In a run of frames without words between them, token ``(t, h, w)`` of frame ``i`` sits at
    ``(s + i * step + t, s + h, s + w)``, where ``s`` is the run's start. Words end a run: a frame
    whose coordinates go beyond one step in time has some, and is a run by itself. What comes next
    starts behind the largest position of all three rows, as the models were trained on (the index
    that transformers 5.3 to 5.23 compute for a video starts earlier).

    Args:
        coords: ``(S, 3)`` integers, from `frame_coords`; frames may lack any of their tokens.
        frames: ``(S,)`` which frame a token is of; tokens of one frame lie together.
        start: First free position.
        step: Positions between two frames of a run.

    Returns:
        Positions ``(3, S)`` int64, and the next free position.

    Example:
        >>> two = torch.tensor([[0, 0, 0], [0, 0, 1]]).repeat(2, 1)
        >>> positions, free = grid_positions(two, torch.tensor([7, 7, 9, 9]), start=5)
        >>> positions.tolist(), free
        ([[5, 5, 6, 6], [5, 5, 5, 5], [5, 6, 5, 6]], 7)
    """
    if not len(coords):
        return torch.empty(3, 0, dtype=torch.int64, device=coords.device), start
    coords = coords.long()
    frame = torch.unique_consecutive(frames, return_inverse=True)[1]
    count = int(frame[-1]) + 1
    last = coords.new_zeros(count, 3)
    last.scatter_reduce_(0, frame[:, None].expand(-1, 3), coords, "amax")  # largest of each row
    words = last[:, 0] > 0
    begins = torch.ones_like(words)
    begins[1:] = words[1:] | words[:-1]
    run = begins.cumsum(0) - 1
    number = torch.arange(count, device=coords.device)
    offset = (number - number[begins][run]) * step  # along time, inside the run
    last[:, 0] += offset
    length = coords.new_zeros(int(run[-1]) + 1)
    length.scatter_reduce_(0, run, last.amax(1) + 1, "amax")
    first = (start + length.cumsum(0) - length)[run]
    positions = coords.T + first[frame]
    positions[0] += offset[frame]
    return positions, start + int(length.sum())
