"""Token drop: pass on only the visual tokens that changed since they were last seen.

Source: TimeChat-Online, "80% Visual Tokens are Naturally Redundant in Streaming Videos", 2025
(https://arxiv.org/abs/2504.17343). `keep_mask` is its rule over a whole sequence. `TokenDrop` is
the rule for a stream; it compares with the last token that was kept at a place, where the published
rule compares with the frame before and so never sees what changes slowly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "TokenDrop",
    "keep_mask",
    "keep_pixel_mask",
    "pixel_difference",
    "pixel_patches",
    "similarity",
]


def similarity(previous: Tensor, current: Tensor) -> Tensor:
    """Cosine of tokens at the same place, ``(..., N, D)`` twice to ``(..., N)``."""
    return F.cosine_similarity(previous.float(), current.float(), dim=-1)


def pixel_patches(images: Tensor, size: int = 28) -> Tensor:
    """Cut pictures into the squares that one token stands for.

    Args:
        images: ``(T, 3, H, W)``; both sides are multiples of ``size``.
        size: Side of a square in pixels; 28 is two by two patches of Qwen2-VL.

    Returns:
        ``(T, N, 3 * size * size)``, squares row by row.

    Raises:
        ValueError: If a side is no multiple of ``size``.
    """
    count, channels, height, width = images.shape
    if height % size or width % size:
        raise ValueError(f"sides of {height} x {width} pixels are no multiples of {size}")
    squares = images.reshape(count, channels, height // size, size, width // size, size)
    return squares.permute(0, 2, 4, 1, 3, 5).reshape(count, -1, channels * size * size)


def pixel_difference(previous: Tensor, current: Tensor) -> Tensor:
    """Mean absolute difference of squares, ``(..., N, P)`` in 0 to 1 twice to ``(..., N)``."""
    return (previous - current).abs().mean(-1)


def keep_mask(
    previous: Tensor, current: Tensor, threshold: float, *, absolute: bool = True
) -> Tensor:
    """Tell which tokens differ from the frame before, for any number of pairs of frames at once.

    For a whole sequence give ``tokens[:-1]`` and ``tokens[1:]``; its first frame is kept whole.

    Args:
        previous: Tokens of the frame before, ``(..., N, D)``.
        current: Tokens in question, ``(..., N, D)``.
        threshold: Cosine above which a token is dropped; or, if not ``absolute``, the share of a
            frame's tokens, the most similar ones, that is dropped.
        absolute: Whether the threshold is a cosine.

    Returns:
        ``(..., N)`` bool, true where a token is kept.

    Example:
        >>> keep_mask(torch.eye(2), torch.tensor([[3.0, 0.0], [1.0, 0.0]]), 0.5).tolist()
        [False, True]
    """
    cosine = similarity(previous, current)
    return cosine <= threshold if absolute else _all_but_largest(cosine, threshold)


def keep_pixel_mask(
    previous: Tensor, current: Tensor, threshold: float, *, absolute: bool = True
) -> Tensor:
    """Tell which squares of a picture differ from the picture before; see `keep_mask`.

    A token of Qwen2-VL stands for two sub-frames. The published rule compares the first sub-frame
    of the token before with the last sub-frame of the current one.

    Args:
        previous: Squares of the picture before, ``(..., N, P)`` in 0 to 1; see `pixel_patches`.
        current: Squares in question, ``(..., N, P)``.
        threshold: Difference below which a token is dropped; or, if not ``absolute``, the share of
            a frame's tokens, the least different ones, that is dropped.
        absolute: Whether the threshold is a difference.
    """
    difference = pixel_difference(previous, current)
    return difference >= threshold if absolute else _all_but_largest(-difference, threshold)


def _all_but_largest(values: Tensor, share: float) -> Tensor:
    """False at the ``int(N * share)`` largest of the last dimension."""
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"the share of tokens to drop must be in 0 to 1, not {share}")
    dropped = values.topk(int(values.shape[-1] * share), dim=-1).indices
    return torch.ones_like(values, dtype=torch.bool).scatter(-1, dropped, False)


class TokenDrop:
    """Filter of a stream: which tokens of each frame are worth writing.

    Args:
        threshold: Cosine with the reference above which a token is dropped, -1 to 1.
        reference: ``"kept"`` compares with the last token kept at the place, so that a slow change
            adds up until it is seen; ``"previous"`` with the frame before, as published.

    Example:
        >>> drop = TokenDrop(0.9)
        >>> frame = torch.eye(3)
        >>> drop(frame).tolist(), drop(frame.flip(0)).tolist(), drop.drop_ratio
        ([True, True, True], [True, False, True], 0.3333333432674408)
    """

    def __init__(
        self, threshold: float = 0.5, *, reference: Literal["kept", "previous"] = "kept"
    ) -> None:
        if not -1.0 <= threshold <= 1.0:
            raise ValueError(f"a threshold is a cosine in -1 to 1, not {threshold}")
        if reference not in ("kept", "previous"):
            raise ValueError(f"reference is 'kept' or 'previous', not {reference!r}")
        self.threshold = threshold
        self.reference = reference
        self.reset()

    def reset(self) -> None:
        """Forget the reference; the next frame is kept whole."""
        self._reference = torch.empty(0, 0)
        self._similarity = torch.empty(0)

    def __call__(self, tokens: Tensor) -> Tensor:
        """Compare a frame with the reference, and take it up.

        A frame with another number or width of tokens begins anew and is kept whole.

        Args:
            tokens: ``(N, D)``.

        Returns:
            ``(N,)`` bool, true where a token is kept.

        Raises:
            ValueError: If the tokens are no finite ``(N, D)``; the filter is then unchanged.
        """
        if tokens.ndim != 2 or not tokens.numel():
            raise ValueError(f"tokens must be (N, D) and not empty, not {tuple(tokens.shape)}")
        if not torch.isfinite(tokens).all():
            raise ValueError("tokens hold NaN or infinity; drop that frame")
        current = tokens.detach().to(torch.float32, copy=True)
        if current.shape != self._reference.shape:
            self._reference = current
            # As far as can be from any reference, so that all is kept.
            self._similarity = current.new_full((len(current),), -1.0)
            return torch.ones_like(self._similarity, dtype=torch.bool)
        self._similarity = similarity(self._reference, current)
        keep = self._similarity <= self.threshold
        if self.reference == "previous":
            self._reference = current
        else:
            self._reference = torch.where(keep[:, None], current, self._reference)
        return keep

    @property
    def drop_ratio(self) -> float:
        """Share of the last frame that was dropped, 0 to 1; its valleys are scene changes."""
        if not len(self._similarity):
            return 0.0
        return float((self._similarity > self.threshold).float().mean())

    @property
    def surprise(self) -> float:
        """Mean cosine distance of the last frame from its reference; 2 for a frame without one."""
        return float(1.0 - self._similarity.mean()) if len(self._similarity) else 0.0

    def state_dict(self) -> dict[str, Tensor]:
        """Give all state as tensors; loading it continues bit for bit."""
        return {"reference": self._reference.clone(), "similarity": self._similarity.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the state of another instance.

        Raises:
            ValueError: If the state is incomplete or does not fit together.
        """
        try:
            reference, cosine = state["reference"], state["similarity"]
        except KeyError as error:
            raise ValueError(f"the state holds no {error}; it is incomplete") from error
        if reference.ndim != 2 or cosine.shape != reference.shape[:1]:
            raise ValueError(
                f"reference {tuple(reference.shape)} and similarity {tuple(cosine.shape)} "
                "are not of one frame"
            )
        self._reference, self._similarity = reference.float().clone(), cosine.float().clone()
