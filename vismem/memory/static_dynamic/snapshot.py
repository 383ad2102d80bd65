"""What a static/dynamic memory holds at one moment, and how both layers are read together.

The static layer is read where a thing is; the dynamic layer where it has got to since it was seen,
the older the less. Which of the two a query is about, its own motion and the distances decide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from vismem.memory.base import Recall
from vismem.memory.static_dynamic.config import StaticDynamicConfig

__all__ = ["KV", "Layer", "StaticDynamicSnapshot"]

Layer = Literal["static", "dynamic"]

# Lengths in cells of the start, so that they fit any unit: of 8 cm they are 6 cm, 3 cm, 15 cm/s.
_NARROW = 0.75  # width of the kernel, at least
_SHARP = 0.375  # difference of distances that makes one layer 2.7 times as likely
_AGEING = 1.875  # that a second adds to the distance of what moves
_CLOSER = 0.6  # a static mean is this much nearer to what it stands for than its distance says
_LOOK = 1.5  # width of the kernel over the newest looks
_DOUBT = 0.1  # weight of the mean beside them
_ALIKE = 0.1  # width of the kernel over cosines, where there are no positions


@dataclass(frozen=True, eq=False, slots=True)
class KV:
    """Both layers as keys and values for an attention of one's own.

    Args:
        keys: ``(n, D)``.
        values: ``(n, D)``.
        bias: To be added to the logits, ``(n,)``: the log of how many tokens a static one stands
            for; of a dynamic one, less the older it is.
        positions: ``(n, axes)``, of the dynamic ones where they have got to.
        dynamic: ``(n,)`` bool.
    """

    keys: Tensor
    values: Tensor
    bias: Tensor
    positions: Tensor
    dynamic: Tensor


class StaticDynamicSnapshot:
    """Both layers at one moment; reading never changes it.

    Args:
        config: Of the memory.
        voxel: Side of a static cell.
        static: Columns of the static layer.
        window: Columns of the newest looks at what stands.
        ring: Columns of the dynamic layer.
        time: Of the newest write, in seconds.
    """

    def __init__(
        self,
        config: StaticDynamicConfig,
        voxel: float,
        static: Mapping[str, Tensor],
        window: Mapping[str, Tensor],
        ring: Mapping[str, Tensor],
        time: float,
    ):
        proven = static["count"] > 0
        self._means = int(proven.sum())  # rows before those of the window
        self._static = {name: torch.cat([column[proven], window[name]])
                        for name, column in static.items()}  # fmt: skip
        self._ring, self._config, self._voxel, self._time = ring, config, voxel, time

    def read(
        self,
        query: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        time: float | None = None,
        motion: Tensor | None = None,
        k: int = 8,
        layer: Layer | None = None,
        **context: Any,
    ) -> Recall:
        """Recall the tokens that fit best; without a query all of them.

        Args:
            query: ``(M, D)``; tokens are ranked by their cosine.
            positions: ``(M, axes)``; tokens are ranked by how near they are, or by both.
            time: For when; that of the newest write by default.
            motion: ``(M,)`` in 0 to 1, which layer each query is about.
            k: Tokens for each query.
            layer: One layer alone.
            **context: Of no meaning here.

        Returns:
            Each token once, with the best of its scores: cosine, nearness from 0 to 1, or their
            product. A static token's time is when it was last seen, its source the first write
            that it stands for; its position is three numbers or two, if there are any.

        Raises:
            ValueError: If shapes do not fit, or there is no such layer.
        """
        time = self._time if time is None else time
        self._check(query, positions, motion, k)
        if layer not in (None, *get_args(Layer)):
            raise ValueError(f"a layer is static or dynamic, not {layer!r}")
        kv = self.kv(time)
        keep = torch.ones(len(kv.dynamic), dtype=torch.bool)
        if layer is not None:
            keep = kv.dynamic == (layer == "dynamic")
        scores = torch.zeros(len(keep))
        if query is not None or positions is not None:
            fit = self._scores(kv, query, positions, time)
            rank = fit
            if motion is not None:
                share = torch.where(
                    kv.dynamic, motion.float()[:, None], 1 - motion.float()[:, None]
                )
                rank = fit + (share.clamp(1e-3, 1)).log()
            rank = rank.masked_fill(~keep, -torch.inf)
            best = rank.topk(min(k, len(keep)), dim=1).indices
            chosen = torch.zeros_like(keep).index_fill(0, best.unique(), True)
            keep = keep & chosen
            scores = fit.amax(0) if len(fit) else scores
        times = torch.cat([self._static["time"], self._ring["time"]])
        sources = torch.cat([self._static["source"], self._ring["source"]]).long()
        count = self._static["count"].long()
        weights = torch.cat([count, torch.ones(len(self._ring["time"]), dtype=torch.int64)])
        rows = keep.nonzero()[:, 0]
        rows = rows[sources[rows].argsort(stable=True)]
        rows = rows[times[rows].argsort(stable=True)]
        return Recall(
            tokens=kv.values[rows].half(),
            times=times[rows],
            weights=weights[rows],
            scores=scores[rows],
            sources=sources[rows],
            positions=kv.positions[rows] if self._config.axes else None,
        )

    def fuse(
        self,
        query: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        time: float | None = None,
        motion: Tensor | None = None,
        gate: Literal["soft", "hard"] = "soft",
        k: int = 8,
    ) -> Tensor:
        """Tell what memory says that each query point looks like.

        Args:
            query: ``(M, D)`` what is known of its look; needed where there are no positions.
            positions: ``(M, axes)`` where it is.
            time: For when; that of the newest write by default.
            motion: ``(M,)`` in 0 to 1: how likely each point moves.
            gate: ``"soft"`` weighs both layers by motion and distances; ``"hard"`` takes one: by
                motion alone where it is given.
            k: Neighbours in each layer.

        Returns:
            ``(M, D)`` float32; of an empty memory the query itself, or zeros.

        Raises:
            ValueError: If shapes do not fit, there is neither query nor position, or no such gate.
        """
        time = self._time if time is None else time
        self._check(query, positions, motion, k)
        if gate not in ("soft", "hard"):
            raise ValueError(f"a gate is soft or hard, not {gate!r}")
        if (positions is None) if self._config.axes else (query is None):
            raise ValueError("fuse needs positions, or a query where the memory has none")
        kv = self.kv(time)
        number = torch.arange(len(kv.dynamic))
        still, still_away = self._layer(kv, number < self._means, query, positions, time, k)
        moving, moving_away = self._layer(kv, kv.dynamic, query, positions, time, k)
        recent = ~kv.dynamic & (number >= self._means)
        if positions is not None and bool(recent.any()):
            look, near, trust = self._window(kv, recent, positions, k)
            still = torch.lerp(still, look, trust[:, None])
            still_away = torch.minimum(still_away, near)
        if not len(kv.dynamic):
            return still if query is None else query.float()
        sharp = _SHARP * self._config.voxel if self._config.axes else _ALIKE / 2
        odds = (_CLOSER * still_away - moving_away) / sharp
        if motion is not None:
            said = torch.logit(motion.float(), 1e-4)
            odds = torch.where(odds.isfinite(), odds + said, odds)
            if gate == "hard":
                odds = torch.where(odds.isfinite(), said, odds)
        share = torch.sigmoid(odds) if gate == "soft" else (odds >= 0).float()
        return torch.lerp(still, moving, share[:, None])

    def kv(self, time: float) -> KV:
        """Give both layers for an attention of one's own.

        Args:
            time: Seconds, to which the dynamic tokens are brought.
        """
        static, ring = self._static, self._ring
        age = (time - ring["time"]).float()
        features = torch.cat([static["feature"], ring["feature"]])
        moved = ring["position"] + age[:, None] * ring["velocity"]
        dynamic = torch.arange(len(features)) >= len(static["count"])
        bias = torch.cat([static["count"].float().log(), -_AGEING * age.abs()])
        return KV(features, features, bias, torch.cat([static["position"], moved]), dynamic)

    # ------------------------------------------------------------------ parts of a reading

    def _check(
        self, query: Tensor | None, positions: Tensor | None, motion: Tensor | None, k: int
    ) -> None:
        config = self._config
        given = [("query", query, (config.token_dim,)), ("positions", positions, (config.axes,)),
                 ("motion", motion, ())]  # fmt: skip
        count = next((len(value) for _, value, _ in given if value is not None), 0)
        for name, value, shape in given:
            if value is None:
                continue
            if value.shape != (count, *shape):
                raise ValueError(f"{name} must be {(count, *shape)}, not {tuple(value.shape)}")
            if not torch.isfinite(value).all():
                raise ValueError(f"{name} holds NaN or infinity")
        if positions is not None and not config.axes:
            raise ValueError("this memory keeps no positions")
        if k < 1:
            raise ValueError(f"k is 1 or more, not {k}")

    def _distances(self, kv: KV, positions: Tensor, time: float) -> Tensor:
        """``(M, n)``; what moves is the farther the older it is."""
        age = (time - self._ring["time"]).float().abs()
        extra = torch.cat([torch.zeros(len(kv.dynamic) - len(age)), age])
        return torch.cdist(positions.float(), kv.positions) + _AGEING * self._config.voxel * extra

    def _width(self) -> float:
        return max(_NARROW * self._config.voxel, self._voxel / 2)

    def _scores(
        self, kv: KV, query: Tensor | None, positions: Tensor | None, time: float
    ) -> Tensor:
        """How well each token fits each query, ``(M, n)``."""
        fit = torch.ones(())
        if query is not None:
            fit = F.normalize(query.float()) @ F.normalize(kv.keys).T
        if positions is not None:
            fit = fit * (-(self._distances(kv, positions, time) / self._width()).square()).exp()
        return fit

    def _window(
        self, kv: KV, of: Tensor, positions: Tensor, k: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the newest looks say, ``(M, D)``, how far the nearest is, and how much it counts."""
        away = torch.cdist(positions.float(), kv.positions[of])
        near = away.topk(min(k, away.shape[1]), largest=False)
        weight = (-(near.values / (_LOOK * self._config.voxel)).square()).exp()
        share = (-(near.values / (_LOOK * self._config.voxel)).square()).softmax(1)
        look = (share[:, None] @ kv.values[of][near.indices])[:, 0]
        total = weight.sum(1)
        return look, near.values[:, 0], total / (total + _DOUBT)

    def _layer(
        self,
        kv: KV,
        of: Tensor,
        query: Tensor | None,
        positions: Tensor | None,
        time: float,
        k: int,
    ) -> tuple[Tensor, Tensor]:
        """What one layer says, ``(M, D)``, and how far its nearest is, ``(M,)``, if any."""
        known = positions if positions is not None else query
        assert known is not None
        k = min(k, int(of.sum()))
        if k == 0:
            return torch.zeros(len(known), kv.values.shape[1]), torch.full((len(known),), torch.inf)
        if positions is None:
            away = 1 - F.normalize(known.float()) @ F.normalize(kv.keys[of]).T
            near = away.topk(k, largest=False)
            logits = kv.bias[of][near.indices] - near.values / _ALIKE
        else:
            away = self._distances(kv, positions, time)[:, of]
            near = away.topk(k, largest=False)
            logits = -(near.values / self._width()).square()
            if self._config.axes == 2:  # looks of one patch are equally near
                logits = logits + kv.bias[of][near.indices]
        # By rank, never by a threshold: where all are equally far, all have the same share.
        share = logits.softmax(1)
        return (share[:, None] @ kv.values[of][near.indices])[:, 0], near.values[:, 0]
