"""`Identities`: which instance is which over time, from how it looks and where it is.

Every detection is compared with every identity held. A pair has to beat a dustbin on both sides,
"somebody else" for the detection and "not here" for the identity, so that one detection and one
identity are not forced to match. Among the pairs that do, the assignment of greatest sum wins.
An identity keeps a momentum average of its embeddings and the last few of them, is known again
after a gap, and when too many are held the one unseen for longest is forgotten.

Source of the bi-softmax and the similarity-guided average: Ying et al., "CTVIS: Consistent Training
for Online Video Instance Segmentation", ICCV 2023 (https://arxiv.org/abs/2307.12616); of the
dustbin: Sarlin et al., "SuperGlue: Learning Feature Matching with Graph Neural Networks", CVPR 2020
(https://arxiv.org/abs/1911.11763). The tracker of CTVIS as published is
`vismem.memory.published.ctvis.PublishedTracker`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vismem.memory.assignment import assign
from vismem.memory.base import check_write
from vismem.memory.columns import Table

__all__ = ["Identities", "IdentityConfig"]


@dataclass(frozen=True)
class IdentityConfig:
    """Sizes and the rule of association.

    Args:
        dim: Width ``C`` of an embedding.
        most: Identities held; beyond it the one unseen for longest is forgotten.
        views: The last embeddings kept of each, beside their average.
        max_tokens: The most detections of one frame.
        alike: Cosine from which a detection may be an identity seen before.
        sharpness: Of the softmax over cosines; the inverse of a temperature.
        momentum: Share of a new embedding in the average, where it looks just like the old ones.
        place: What a place near the expected one is worth, in cosine; where boxes are given.
        motion: Seconds after which half of that is left.
        birth: Score from which an unmatched detection becomes a new identity.
        max_gap: Seconds unseen after which an identity is forgotten.

    Raises:
        ValueError: If a number is out of its range.
    """

    dim: int
    most: int = 256
    views: int = 4
    max_tokens: int = 300
    alike: float = 0.5
    sharpness: float = 10.0
    momentum: float = 0.25
    place: float = 0.2
    motion: float = 1.0
    birth: float = 0.3
    max_gap: float = math.inf

    def __post_init__(self) -> None:
        if min(self.dim, self.max_tokens) < 1 or min(self.most, self.views) < 0:
            raise ValueError("dim and max_tokens are 1 or more, most and views 0 or more")
        if not (self.sharpness > 0 and self.motion > 0 and 0 <= self.momentum <= 1):
            raise ValueError("sharpness and motion are above 0, momentum is from 0 to 1")

    @property
    def row_bytes(self) -> int:
        """Bytes of one identity."""
        return sum(column.nbytes for column in self.columns(1).values())

    def columns(self, rows: int) -> dict[str, Tensor]:
        """Columns for a number of identities, zero but for the boxes."""
        wide, whole = torch.zeros(rows, dtype=torch.float64), torch.zeros(rows, dtype=torch.int64)
        return {
            "ids": whole,
            "seen": whole.clone(),  # in how many frames
            "first": wide,
            "last": wide.clone(),
            "mean": torch.zeros(rows, self.dim),  # of unit length
            "views": torch.zeros(rows, self.views, self.dim),  # of unit length, newest last
            "boxes": torch.full((rows, 4), torch.nan),
            "speed": torch.zeros(rows, 2),  # of the centre, fractions of the picture a second
        }


class Identities:
    """Stable ids of the instances in one stream; see the module.

    Args:
        config: Sizes and the rule of association.

    Example:
        >>> identities = Identities(IdentityConfig(dim=2))
        >>> cat, dog = torch.eye(2)
        >>> identities.update(torch.stack([cat, dog]), time=0.0).tolist()
        [0, 1]
        >>> identities.update(dog[None], time=0.1).tolist()
        [1]
        >>> identities.update(torch.stack([-dog, cat]), time=9.0).tolist()
        [2, 0]
    """

    def __init__(self, config: IdentityConfig):
        self.config = config
        self.reset()

    def reset(self) -> None:
        """Forget everybody; the next frame may be at any time, and ids begin anew."""
        self._table = Table(self.config)

    def __len__(self) -> int:
        return len(self._table)

    @property
    def nbytes(self) -> int:
        """Bytes of all identities held."""
        return self._table.nbytes

    def held(self, name: str) -> Tensor:
        """One column of `IdentityConfig.columns` over all identities, in order of id."""
        return self._table.held[name].clone()

    def update(
        self,
        embeddings: Tensor,
        time: float,
        *,
        boxes: Tensor | None = None,
        scores: Tensor | None = None,
    ) -> Tensor:
        """Say who the detections of a frame are, and learn from them.

        Args:
            embeddings: ``(N, C)``; no rows where nothing was detected.
            time: Seconds, never earlier than the frame before.
            boxes: ``(N, 4)`` ``x0 y0 x1 y1`` as fractions of the picture.
            scores: ``(N,)``; 1 by default.

        Returns:
            An id for each detection, ``(N,)`` int64, no two alike; -1 for one that is nobody known
            and not sure enough, or for which there is no room, to become somebody.

        Raises:
            ValueError: If anything does not fit or is not finite; nothing is then changed.
        """
        config, time = self.config, float(time)
        looks, places, scores = self._checked(embeddings, time, boxes, scores)
        keep = time - self._table.held["last"] <= config.max_gap
        if not keep.all():
            self._table.keep(keep)
        rows, matched = self._associate(looks, places, time)
        self._learn(rows, looks[matched], places[matched], time)
        ids = torch.full((len(looks),), -1)
        ids[matched] = self._table.held["ids"][rows]
        born = torch.nonzero((ids < 0) & (scores >= config.birth))[:, 0]
        room = config.most - len(matched)
        best = scores[born].argsort(descending=True, stable=True)[: max(0, room)]
        born = born[best].sort().values
        self._make_room(len(born))
        ids[born] = self._bear(looks[born], places[born], time)
        self._table.writes, self._table.time = self._table.writes + 1, time
        return ids

    def forget(self, ids: Tensor) -> None:
        """Forget some, as if nobody had ever been they; their ids are not given again.

        Example:
            >>> identities = Identities(IdentityConfig(dim=2))
            >>> identities.forget(identities.update(torch.eye(2), time=0.0)[:1])
            >>> identities.held("ids").tolist()
            [1]
        """
        self._table.keep(~torch.isin(self._table.held["ids"], ids))

    def likeness(self, one: int, others: Tensor) -> Tensor:
        """How much the views of one look like the nearest views of each other, from -1 to 1.

        Args:
            one: An id that is held.
            others: ``(M,)`` ids that are held.

        Returns:
            ``(M,)``: the mean over the views of one. The average counts as a view.

        Raises:
            ValueError: If one of them is not held.
        """
        held = self._table.held
        views = torch.cat([held["views"], held["mean"][:, None]], 1)
        mine, theirs = views[self._rows(torch.tensor([one]))[0]], views[self._rows(others)]
        return (theirs @ mine.T).amax(1).mean(-1)

    def join(self, young: int, old: int) -> None:
        """Say that two are one: the old one goes on where and as the young one was last seen.

        Raises:
            ValueError: If one of them is not held, or they are one already.
        """
        if young == old:
            raise ValueError(f"{young} is one already")
        held, views = self._table.held, self.config.views
        a, b = self._rows(torch.tensor([young, old])).tolist()
        for name in ("boxes", "speed", "last"):
            held[name][b] = held[name][a]
        held["first"][b] = held["first"][[a, b]].min()
        held["seen"][b] += held["seen"][a]
        newest = (views + 1) // 2
        both = torch.cat([held["views"][b, newest:], held["views"][a, views - newest :]])
        held["views"][b] = both  # the newest half of each
        held["mean"][b] = F.normalize(held["mean"][a] + held["mean"][b], dim=0)
        self.forget(torch.tensor([young]))

    def _rows(self, ids: Tensor) -> Tensor:
        if not torch.isin(ids, self._table.held["ids"]).all():
            raise ValueError(f"of {ids.tolist()} some are not held")
        return torch.searchsorted(self._table.held["ids"], ids)

    def _checked(
        self, embeddings: Tensor, time: float, boxes: Tensor | None, scores: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Copies of what came, of unit length, with NaN for places that are not known."""
        dim, count = self.config.dim, len(embeddings)
        empty = embeddings.shape == (0, dim)
        given = torch.zeros(1, dim) if empty else embeddings
        check_write(given, time, dim, self.config.max_tokens, self._table.time)
        places = torch.full((count, 4), torch.nan) if boxes is None else boxes
        scores = torch.ones(count) if scores is None else scores
        if tuple(places.shape) != (count, 4) or tuple(scores.shape) != (count,):
            raise ValueError(
                f"{count} embeddings take boxes ({count}, 4) and scores ({count},), not "
                f"{tuple(places.shape)} and {tuple(scores.shape)}"
            )
        if boxes is not None and not (
            torch.isfinite(boxes).all() and (boxes[:, :2] <= boxes[:, 2:]).all()
        ):
            raise ValueError("boxes must be finite x0 y0 x1 y1, x0 <= x1 and y0 <= y1")
        if not torch.isfinite(scores).all():
            raise ValueError("scores hold NaN or infinity")
        looks = F.normalize(embeddings.detach().to("cpu", torch.float32), dim=1)
        return looks, places.detach().to("cpu", torch.float32), scores.detach().cpu()

    # ------------------------------------------------------------------ association

    def _associate(self, looks: Tensor, places: Tensor, time: float) -> tuple[Tensor, Tensor]:
        """Rows of the identities seen again, and the detection of each."""
        config = self.config
        likeness = self._cosines(looks) + config.place * self._nearness(places, time)
        logits = config.sharpness * likeness
        dustbin = F.pad(logits, (0, 1, 0, 1), value=config.sharpness * config.alike)
        fit = (dustbin.softmax(1) + dustbin.softmax(0))[:-1, :-1] / 2
        possible = likeness >= config.alike  # better than the dustbin on both sides
        matched, rows = assign(-(fit * possible).double().numpy())
        pairs = torch.from_numpy(matched), torch.from_numpy(rows)
        good = possible[pairs]
        return pairs[1][good], pairs[0][good]

    def _cosines(self, looks: Tensor) -> Tensor:
        """How much each detection looks like each identity, ``(N, M)``: the average or a view."""
        held = self._table.held
        each = looks @ held["views"].flatten(0, 1).T
        each = each.view(len(looks), len(self), self.config.views)
        return torch.cat([each, (looks @ held["mean"].T)[..., None]], -1).amax(-1)

    def _nearness(self, places: Tensor, time: float) -> Tensor:
        """From 0 to 1 how near each detection is to where each identity is expected, ``(N, M)``."""
        held = self._table.held
        gap = (time - held["last"]).float()
        here = _centres(places)[:, None]
        there = _centres(held["boxes"]) + held["speed"] * gap[:, None]
        sizes = (_areas(places)[:, None] + _areas(held["boxes"])).clamp_min(1e-12) / 2
        distance = (here - there).square().sum(-1) / sizes  # in squared box sides
        return torch.nan_to_num(torch.exp2(-distance - gap / self.config.motion))

    # ------------------------------------------------------------------ learning

    def _learn(self, rows: Tensor, looks: Tensor, places: Tensor, time: float) -> None:
        """Take what was seen of identities known already."""
        held, config = self._table.held, self.config
        gap = (time - held["last"][rows]).float()[:, None]
        moved = (_centres(places) - _centres(held["boxes"][rows])) / gap
        speed = (held["speed"][rows] + moved) / 2  # smoothed: boxes jitter
        known = torch.isfinite(speed)
        held["speed"][rows] = torch.where(known, speed, held["speed"][rows])
        unknown = places.isnan()
        held["boxes"][rows] = torch.where(unknown, held["boxes"][rows], places)
        alike = (held["mean"][rows] * looks).sum(1, keepdim=True).clamp_min(0)
        share = config.momentum * alike
        held["mean"][rows] = F.normalize((1 - share) * held["mean"][rows] + share * looks, dim=1)
        held["views"][rows] = torch.cat([held["views"][rows, 1:], looks[:, None]], 1)[
            :, : config.views
        ]
        held["seen"][rows] += 1
        held["last"][rows] = time

    def _make_room(self, count: int) -> None:
        """Forget those unseen for longest, the older of equals first, until so many fit."""
        over = len(self) + count - self.config.most
        if over > 0:
            order = self._table.held["last"].argsort(stable=True)  # rows are in order of id
            self._table.keep(order[over:].sort().values)

    def _bear(self, looks: Tensor, places: Tensor, time: float) -> Tensor:
        """Add new identities; gives their ids."""
        new = self.config.columns(len(looks))
        new["mean"], new["boxes"] = looks, places
        new["seen"] += 1
        new["first"] += time
        new["last"] += time
        new["views"][:] = looks[:, None]
        rows = self._table.add(new)
        return self._table.held["ids"][rows]

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Tensor]:
        """Give all state as tensors; loading it continues bit for bit."""
        return self._table.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the state of another instance of the same configuration.

        Raises:
            ValueError: If it is of another configuration or incomplete.
        """
        self._table.load_state_dict(state)


def _centres(boxes: Tensor) -> Tensor:
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def _areas(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).prod(1)
