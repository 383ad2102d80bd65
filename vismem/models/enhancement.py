"""Enhance features by features from memory: attention from a frame to what was seen before it.

The published forms are multi-head attention written in two ways, so one core serves them all:

* SELSA and MAMBA as released: four linear layers (Wu et al., https://arxiv.org/abs/1907.06390; Sun
  et al., https://arxiv.org/abs/2401.09923; github.com/guanxiongsun/vfe.pytorch).
* MAMBA's earlier code, "GEO": the value is a grouped convolution of the per-head averages of raw
  keys, without output projection (github.com/Duckduckgod/MAMBA). Averaging and convolving commute,
  ``(w K) V^T = w (K V^T)``, so it is attention too, at a fraction of the cost.

`GeneralizedEnhancement` is ours. It starts as the identity, so a detector that it is put into
starts as it was; keys are weighed by their score (as YOLOV does, https://arxiv.org/abs/2208.09686)
and by where and when they were seen (`vismem.models.geometry_bias`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from vismem.kernels.aggregate import aggregate
from vismem.models.geometry_bias import GeometryBias

__all__ = [
    "GeneralizedEnhancement",
    "GroupedValueAttention",
    "RowAttention",
    "Projected",
    "SelsaAttention",
    "enhance_map",
]

PUBLISHED = {  # names of the layers in both published codes, and here
    "fc_embed": "query", "ref_fc_embed": "key", "ref_fc": "value", "fc": "output",
    "wq": "query", "wk": "key", "wv": "value",
}  # fmt: skip
LEAST_SCORE = 1e-6


class Projected(NamedTuple):
    """Keys and values of memory rows, ``(N, C)`` or ``(B, N, C)`` each, ready to attend to."""

    key: Tensor
    value: Tensor


class RowAttention(nn.Module):
    """Attention from the features of a frame to the rows of a memory.

    State dicts load under the published names of the layers as well: ``fc_embed``,
    ``ref_fc_embed``, ``ref_fc`` and ``fc``, or ``wq``, ``wk`` and ``wv``.

    Args:
        dim: Width ``C`` of features and rows.
        heads: Number of heads; divides ``dim``.
        output: Whether the heads' results go through a linear layer.

    Raises:
        ValueError: If the heads do not divide the width.
    """

    def __init__(self, dim: int, heads: int, *, output: bool = True) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise ValueError(f"{heads} heads do not divide a width of {dim}")
        self.dim, self.heads = dim, heads
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))
        self.output = nn.Linear(dim, dim) if output else nn.Identity()
        self.register_load_state_dict_pre_hook(_rename_published)

    def project(self, keys: Tensor) -> Projected:
        """Keys and values of rows ``(..., N, C)``; what may be computed once a row and kept."""
        return Projected(self.key(keys), self.value(keys))

    @property
    def version(self) -> tuple[int, ...]:
        """Changes when what `project` makes does: by a step of an optimiser, say, or by loading.

        Not by writing into ``weight.data``, which PyTorch does not count.
        """
        parts = [*self.key.parameters(), *self.value.parameters()]
        return tuple(number for part in parts for number in (part.data_ptr(), part._version))

    def attention(
        self,
        x: Tensor,
        keys: Tensor | Projected,
        *,
        bias: Tensor | None = None,
        index: Tensor | None = None,
    ) -> Tensor:
        """What the memory says to each feature, without the feature itself.

        Args:
            x: ``(Q, C)`` or ``(B, Q, C)``.
            keys: Raw rows, or what `project` made of them, ``(N, C)`` or ``(B, N, C)``; one set
                serves a whole batch.
            bias: See `vismem.kernels.aggregate.aggregate`.
            index: Numbers of the rows that are attended to, ``(K,)`` or ``(B, K)``; -1 where there
                is none. All rows by default, ``K = N``.

        Returns:
            As ``x``.

        Raises:
            ValueError: If the shapes do not fit each other.
        """
        places = check_shapes(x, keys, index, self.dim)
        if not isinstance(keys, Projected):
            keys = self.project(keys)
        query = self.query(x if x.ndim == 3 else x[None])
        seen = self.output(aggregate(query, *keys, self.heads, index=index, bias=bias))
        # Where there is no key there is nothing to say, not even the bias of the layer.
        if not places[-1] or not keys.key.shape[-2]:
            seen = torch.zeros_like(seen)
        elif index is not None:
            seen = seen.where((index >= 0).any(-1)[..., None, None], 0.0)
        return seen if x.ndim == 3 else seen[0]


class SelsaAttention(RowAttention):
    """The published form of four linear layers, with PyTorch's own initialisation.

    Example:
        >>> attention = SelsaAttention(8, heads=2)
        >>> attention(torch.ones(5, 8), torch.ones(3, 8)).shape
        torch.Size([5, 8])
    """

    def __init__(self, dim: int, heads: int = 16) -> None:
        super().__init__(dim, heads)

    def forward(self, x: Tensor, keys: Tensor | Projected, **more: Any) -> Tensor:
        """Give the branch of attention alone, as published: the caller adds it to ``x``.

        Args:
            x: ``(Q, C)`` or ``(B, Q, C)``.
            keys: ``(N, C)`` or ``(B, N, C)``.
            **more: Of `RowAttention.attention`.
        """
        return self.attention(x, keys, **more)


class GroupedValueAttention(RowAttention):
    """The published form without output projection, "GEO".

    Args:
        dim: Width ``C``.
        heads: Number of heads.
        keep: None for ``x + y`` (published as type "attention"); for the type "alignment" the share
            of ``x`` in what evaluation gives, ``keep * x + (1 - keep) * y``, where training gives
            ``y`` alone and the values start as the rows themselves.

    Example:
        >>> geo = GroupedValueAttention(8, heads=2, keep=0.7).eval()
        >>> x = torch.randn(5, 8)
        >>> torch.allclose(geo(x, torch.ones(1, 8)), 0.7 * x + 0.3)
        True
    """

    def __init__(self, dim: int, heads: int = 16, *, keep: float | None = None) -> None:
        super().__init__(dim, heads, output=False)
        self.keep = keep
        for layer in (self.query, self.key):
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)
        if keep is None:
            nn.init.normal_(self.value.weight, std=0.01)
        else:
            nn.init.eye_(self.value.weight)
        nn.init.zeros_(self.value.bias)

    def forward(self, x: Tensor, keys: Tensor | Projected, **more: Any) -> Tensor:
        """Enhance features.

        Args:
            x: ``(Q, C)`` or ``(B, Q, C)``.
            keys: ``(N, C)`` or ``(B, N, C)``, at least one.
            **more: Of `RowAttention.attention`.
        """
        y = self.attention(x, keys, **more)
        if self.keep is None:
            return x + y
        return y if self.training else self.keep * x + (1 - self.keep) * y


class GeneralizedEnhancement(RowAttention):
    """Features enhanced by memory; at first, and wherever there is no key, exactly themselves.

    Attention to a key is raised by the logarithm of its score, so that a row counts as much as the
    detector was sure of it; and by what a small network a head makes of where the two boxes are to
    each other and how old the row is.

    Args:
        dim: Width ``C`` of features and rows.
        heads: Number of heads ``H``.
        score_bias: Whether keys have scores that count.
        geometry_bias: Whether boxes and ages count.
        horizon: Age from which on all rows are equally old, in the unit of the ages.

    Example:
        >>> enhance = GeneralizedEnhancement(8, heads=2, geometry_bias=False)
        >>> x = torch.randn(5, 8)
        >>> torch.equal(enhance(x, torch.randn(3, 8), key_scores=torch.ones(3)), x)
        True
    """

    def __init__(
        self,
        dim: int,
        heads: int = 8,
        *,
        score_bias: bool = True,
        geometry_bias: bool = True,
        horizon: float = 12.0,
    ) -> None:
        super().__init__(dim, heads)
        self.score_bias = score_bias
        self.geometry = GeometryBias(heads, horizon) if geometry_bias else None
        for part in self.output.parameters():
            nn.init.zeros_(part)

    def forward(
        self,
        x: Tensor,
        keys: Tensor | Projected,
        *,
        boxes: Tensor | None = None,
        key_boxes: Tensor | None = None,
        key_scores: Tensor | None = None,
        ages: Tensor | None = None,
        index: Tensor | None = None,
    ) -> Tensor:
        """Enhance features by rows of a memory.

        Args:
            x: ``(Q, C)``, or ``(B, Q, C)`` for a batch of streams.
            keys: ``(N, C)`` or ``(B, N, C)``, raw or from `project`; ``N`` may be 0.
            boxes: Of the features, ``(Q, 4)`` or ``(B, Q, 4)``, ``x0 y0 x1 y1`` in any unit.
            key_boxes: Of the keys that are attended to, ``(K, 4)`` or ``(B, K, 4)``, in the same
                unit.
            key_scores: ``(K,)`` or ``(B, K)`` in 0..1.
            ages: How long ago each key was seen, ``(K,)`` or ``(B, K)``, not negative.
            index: Which rows are attended to, ``(K,)`` or ``(B, K)``; -1 where there is none. All
                by default, ``K = N``.

        Returns:
            As ``x``; the very same values where there is no key.

        Raises:
            ValueError: If shapes do not fit, or what a bias needs is missing.
        """
        rows, bias = check_shapes(x, keys, index, self.dim), None
        if not rows[-1] or not keys_of(keys).shape[-2] or not x.shape[-2]:
            return x
        if self.score_bias:
            scores = fitting("key_scores", key_scores, rows)
            bias = scores.to(x.dtype).clamp_min(LEAST_SCORE).log().reshape(-1, 1, 1, rows[-1])
        if self.geometry is not None:
            near = self.geometry(
                fitting("boxes", boxes, (*x.shape[:-1], 4)).reshape(-1, x.shape[-2], 4),
                fitting("key_boxes", key_boxes, (*rows, 4)).reshape(-1, rows[-1], 4),
                fitting("ages", ages, rows).reshape(-1, rows[-1]),
            )
            bias = near if bias is None else bias + near
        return x + self.attention(x, keys, bias=bias, index=index)


def enhance_map(
    enhance: Callable[..., Tensor], features: Tensor, keys: Tensor | Projected, **more: Any
) -> Tensor:
    """Enhance every cell of a feature map, ``(B, C, H, W)``: the pixel level.

    Args:
        enhance: Any form of this module.
        features: ``(B, C, H, W)``.
        keys: ``(K, C)`` or ``(B, K, C)``.
        **more: Of the form; `cell_boxes` gives where the cells are.

    Returns:
        ``(B, C, H, W)``.

    Example:
        >>> geo = GroupedValueAttention(8, heads=2)
        >>> enhance_map(geo, torch.randn(2, 8, 3, 5), torch.randn(4, 8)).shape
        torch.Size([2, 8, 3, 5])
    """
    height = features.shape[-2]
    rows = enhance(rearrange(features, "b c h w -> b (h w) c"), keys, **more)
    return rearrange(rows, "b (h w) c -> b c h w", h=height)


def keys_of(keys: Tensor | Projected) -> Tensor:
    """One row for each key, whatever became of it."""
    return keys.key if isinstance(keys, Projected) else keys


def check_shapes(
    x: Tensor, keys: Tensor | Projected, index: Tensor | None, dim: int
) -> tuple[int, ...]:
    """Refuse what does not fit: features, rows and their numbers, of one width and one batch.

    Returns:
        ``(K,)`` or ``(B, K)``: the shape of what is known of each key.

    Raises:
        ValueError: Naming what is wrong.
    """
    keys = keys_of(keys)
    for name, part, form in (("x", x, "Q"), ("keys", keys, "N")):
        if part.ndim not in (2, 3) or part.shape[-1] != dim:
            raise ValueError(
                f"{name} must be ({form}, {dim}) or (B, {form}, {dim}), not {tuple(part.shape)}"
            )
    if keys.ndim == 3 and (x.ndim != 3 or len(keys) != len(x)):
        raise ValueError(f"keys {tuple(keys.shape)} are not of the batch of x {tuple(x.shape)}")
    if index is None:
        return keys.shape[:-1]
    if index.shape[:-1] not in ((), x.shape[:-2]) or index.ndim == 0:
        raise ValueError(f"index {tuple(index.shape)} is not of the batch of x {tuple(x.shape)}")
    return index.shape


def fitting(name: str, part: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    """What a bias needs, if it is there and fits.

    Raises:
        ValueError: If not.
    """
    if part is None or part.shape != shape:
        found = "missing" if part is None else str(tuple(part.shape))
        raise ValueError(
            f"a bias of this enhancement needs {name} {tuple(shape)}; they are {found}"
        )
    return part


def _rename_published(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Give a published state dict the names here, while it loads."""
    for published, name in PUBLISHED.items():
        for kind in ("weight", "bias"):
            found = state.pop(f"{prefix}{published}.{kind}", None)
            if found is not None:
                state[f"{prefix}{name}.{kind}"] = found.flatten(1) if kind == "weight" else found
